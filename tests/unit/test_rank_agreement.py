"""`rank_agreement` compares ranks as it says, on the architectures and images that it says."""

import argparse
import dataclasses
import doctest
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import stats

from benchmarks import _cells, rank_agreement, run, strategies_tabular
from jaxnas import spaces
from jaxnas.spaces.nasbench201 import published_costs
from jaxnas.tables.table import from_arrays

PEAK = {"peak_gflops": {"all_devices": 100.0}}
NUM = 24  # candidates of the made-up table

needs_data = pytest.mark.skipif(
    not (_cells.cifar_file().is_file() and strategies_tabular.table_file().is_file()),
    reason="no table or no CIFAR-10 subset in JAXNAS_DATA",
)


@pytest.fixture(scope="module")
def problem():
    """A table of a few architectures whose truth is FLOPs and noise; nothing to train on."""
    rng = np.random.default_rng(0)
    archs = np.unique(rng.integers(0, 5, (NUM, 6)), axis=0).astype(np.int32)
    archs[0] = 0
    costs = published_costs(archs)
    truth = 0.5 + costs.flops / 1e9 + rng.normal(size=len(archs)) * 0.03
    runs = truth[:, None, None] + rng.normal(size=(len(archs), 2, 3)) * [[0.05], [0.001]]
    table = from_arrays(
        spaces.nasbench201(),
        {"valid_accuracy": runs},
        seconds=np.full(len(archs), 3600.0),
        columns={"test_accuracy": truth, "flops": costs.flops, "params": costs.parameters},
        fidelities=[12 / 200, 1.0],
        archs=archs,
    )
    rows = rng.permutation(len(archs))
    setting = rank_agreement.Setting(num_candidates=len(archs), epochs=3)
    return SimpleNamespace(
        setting=setting, table=table, rows=rows, arch=np.asarray(table.archs)[rows]
    )


@pytest.fixture(scope="module")
def raw(problem):
    """Accuracies that know nothing, the opposite, and the truth; one training failed."""
    truth = np.asarray(problem.table.columns["test_accuracy"])[problem.rows]
    noise = np.random.default_rng(1).normal(size=len(truth))
    accuracy = np.stack([noise, -truth, truth], axis=1)
    accuracy[3, 0] = np.nan
    return {
        "row": problem.rows,
        "accuracy": accuracy,
        "seed": 0,
        "compile_seconds": 2.0,
        "run_seconds": 46.0,
    }


@pytest.fixture(scope="module")
def scored(problem, raw):
    return rank_agreement.score(problem, raw, PEAK)


def test_doctests():
    found = doctest.testmod(rank_agreement)
    assert found.attempted > 0 and found.failed == 0


def test_the_benchmark_is_as_large_as_was_asked_for():
    (setting,) = rank_agreement.SETTINGS.values()
    assert setting.num_candidates == 200 and setting.epochs <= 12
    assert "rank_agreement" in run.NAMES


def test_correlations_are_scipys(problem, raw, scored):
    rows = next(iter(scored.values()))
    truth = np.asarray(problem.table.columns["test_accuracy"])[problem.rows]
    first = np.where(np.isnan(raw["accuracy"][:, 0]), -9.0, raw["accuracy"][:, 0])
    flops = np.asarray(problem.table.columns["flops"])[problem.rows]
    by_hand = {
        "accuracy after epoch 1": first,
        "accuracy after epoch 2": -truth,
        "accuracy after epoch 3": truth,
        "FLOPs": flops,
        "accuracy and FLOPs": stats.rankdata(truth) + stats.rankdata(flops),
    }
    found = {row["predictor"]: row for row in rows}
    alive, better = rank_agreement.connected(problem.arch), truth >= np.median(truth)
    assert 0 < alive.sum() < len(alive)
    for name, values in by_hand.items():
        row = found[name]
        spearman = stats.spearmanr(values, truth).statistic
        assert float(row["Spearman"].split()[0]) == pytest.approx(spearman, abs=6e-4)
        assert row["Kendall"] == pytest.approx(stats.kendalltau(values, truth).statistic, abs=1e-5)
        for column, among in (("connected", alive), ("better half", better)):
            expected = stats.spearmanr(values[among], truth[among]).statistic
            assert row[f"Spearman, {column}"] == pytest.approx(expected, abs=1e-5)


def test_intervals_hold_their_correlation_and_compare_with_flops(scored):
    rows = {row["predictor"]: row for row in next(iter(scored.values()))}
    assert list(rows)[3:] == [
        "FLOPs",
        "parameters",
        "accuracy and FLOPs",
        "table's accuracy after 12 epochs",
        "table's accuracy after 200 epochs",
    ]
    for row in rows.values():
        value, low, _, high = row["Spearman"].replace("[", "").replace("]", "").split()
        assert -1.0 <= float(low) <= float(value) <= float(high) <= 1.0
    assert rows["accuracy after epoch 3"]["Spearman"] == "1.000 [1.000 to 1.000]"
    assert rows["parameters"]["Spearman"] == rows["FLOPs"]["Spearman"]
    assert rows["parameters"]["minus FLOPs'"] == "0.000 [0.000 to 0.000]"
    assert "-" not in rows["accuracy after epoch 3"]["minus FLOPs'"]
    late = rows["table's accuracy after 200 epochs"]["Kendall"]
    assert rows["table's accuracy after 12 epochs"]["Kendall"] < late


def test_bootstrap_spreads_as_the_correlation_does():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200).astype(np.float32)
    noisy = (truth + rng.normal(size=200)).astype(np.float32)
    drawn = jax.jit(rank_agreement.bootstrap)(jax.random.key(0), truth, noisy[None])
    assert drawn.shape == (rank_agreement.NUM_RESAMPLES, 1)
    # Bonett and Wright, 2000: the deviation of Fisher's transform of Spearman's.
    rho = stats.spearmanr(noisy, truth).statistic
    expected = np.sqrt((1.0 + rho**2 / 2.0) / (200 - 3)) * (1.0 - rho**2)
    assert float(np.std(drawn)) == pytest.approx(expected, rel=0.25)


def test_population_and_seconds(problem, raw, scored):
    (population,), (seconds,) = scored["architectures"], scored["seconds"]
    truth = np.asarray(problem.table.columns["test_accuracy"])
    num_rows = len(truth)
    assert population["architectures"] == num_rows
    assert population["not connected"] == (~rank_agreement.connected(problem.arch)).sum()
    assert 1 < population["different as graphs"] <= num_rows
    assert population["diverged"] == 0
    assert population["its test accuracy after 200"] == pytest.approx(truth.max())
    assert seconds["per architecture"] == pytest.approx(48.0 / num_rows)
    assert seconds["200 epochs on the table's GPU"] == 3600.0 * num_rows


@needs_data
def test_disconnected_architectures_classify_at_random():
    table = rank_agreement.load(dataclasses.replace(TINY, num_candidates=1)).table
    alive = rank_agreement.connected(np.asarray(table.archs))
    accuracy = np.asarray(table.columns["test_accuracy"])
    np.testing.assert_allclose(accuracy[~alive], 0.1, atol=1e-6)
    assert (accuracy[alive] > 0.1).mean() > 0.99


TINY = rank_agreement.Setting(2, num_train=64, num_valid=20, epochs=1, num_channels=4)


@needs_data
def test_architectures_differ_and_images_are_averaged_down():
    problem = rank_agreement.load(dataclasses.replace(TINY, num_candidates=200))
    assert problem.arch.shape == (200, 6) == np.unique(problem.arch, axis=0).shape
    again = rank_agreement.load(TINY)
    np.testing.assert_array_equal(again.data.train.x, problem.data.train.x)
    assert problem.data.train.x.shape == (64, 16, 16, 3) and len(problem.data.valid.y) == 20
    with np.load(_cells.cifar_file()) as file:
        small = file["x_train"].reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)) / 255.0
        labels = file["y_train"]
    mine = np.asarray(problem.data.train.x[0]) * problem.data.x_scale + problem.data.x_mean
    distance = np.abs(small - mine).max(axis=(1, 2, 3))
    assert distance.min() < 1e-5
    assert labels[distance.argmin()] == problem.data.train.y[0]


@needs_data
def test_too_many_rows_are_refused():
    with pytest.raises(ValueError, match="1 to 2000 rows of this kind, got 2001"):
        rank_agreement.load(dataclasses.replace(TINY, num_valid=2001))


@needs_data
@pytest.mark.slow
def test_end_to_end(tmp_path):
    parser = argparse.ArgumentParser()
    rank_agreement.add_arguments(parser)
    options = parser.parse_args(["--seed", "1"])
    options.out = tmp_path
    setting = dataclasses.replace(TINY, num_candidates=3)
    run.run_setting("rank_agreement", rank_agreement, "cifar", setting, options, PEAK)
    stored = json.loads((tmp_path / "rank_agreement-cifar.json").read_text())
    assert np.shape(stored["raw"]["accuracy"]) == (3, 1)
    assert all(0.0 <= value <= 1.0 for (value,) in stored["raw"]["accuracy"])
    assert stored["raw"]["seed"] == 1 and stored["setting"]["num_train"] == 64
    names = [row["predictor"] for row in next(iter(stored["tables"].values()))]
    assert names[:2] == ["accuracy after epoch 1", "FLOPs"]
