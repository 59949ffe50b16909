"""The report's sections on proxies, layers and latency."""

import math

import numpy as np
import pytest
from scipy import stats

import jaxnas as nas
from jaxnas import latencies, report, store
from jaxnas.objectives import latency as measuring
from jaxnas.objectives.breakdown import breakdown
from jaxnas.report.correlations import spearman_interval
from tests.unit.report_pages import CONFIG, RESULTS, changed, make_rows, render
from tests.unit.test_report import positions

SPACE = nas.spaces.mlp(3, depths=(1, 2, 3), widths=(4, 8), dropouts=(0.0,))


def with_scores(row):
    """A score that follows the first decision, one that is missing for some, and noise."""
    rng = np.random.default_rng([*row.arch])
    return {
        "accuracy": row.fitness,
        "params": 1000.0 * (1 + row.arch[0]),
        "proxy_snip": row.arch[0] + 0.1 * rng.normal(),
        "proxy_zen": math.nan if row.arch[1] == 2 else float(-row.arch[0]),
        "proxy_ntk": 7.0,
    }


def inside(page):
    for tag, attributes in page.elements:
        if tag == "svg":
            width, height = map(float, attributes["viewbox"].split()[2:])
        elif tag in ("line", "circle", "rect", "text", "path"):
            x, y = positions(tag, attributes)
            assert all(0 <= value <= width for value in x), (tag, attributes)
            assert all(0 <= value <= height for value in y), (tag, attributes)
    return True


# Rank correlations.


def test_correlations_are_those_of_distinct_architectures():
    rows = changed(make_rows(), metrics=with_scores)
    page = render(rows)
    assert inside(page)
    table = {row["score"]: row for row in page.table("Spearman's rank correlation of scores")}
    assert set(table) == {"snip", "zen", "params"}  # a constant ranks nothing
    active = {}
    for row in rows:
        first, second, third, rate = row.arch
        third = third if first in (1, 2) else 0
        rate = rate if third == 0 and first in (1, 2) else 0
        if not math.isnan(row.fitness):
            active.setdefault((first, second, third, rate), []).append(row)
    fitness = [np.mean([row.fitness for row in own]) for own in active.values()]
    for name, metric in (("snip", "proxy_snip"), ("params", "params"), ("zen", "proxy_zen")):
        scores = np.array([own[0].metrics[metric] for own in active.values()])
        known = ~np.isnan(scores)
        expected = stats.spearmanr(scores[known], np.array(fitness)[known]).statistic
        shown = float(table[name]["correlation"].replace("\u2212", "-"))
        assert shown == pytest.approx(expected, abs=6e-4)
        assert int(table[name]["architectures"]) == known.sum()
    assert [*table][-1] == "zen"  # the highest first
    assert "proxy_snip" not in page.text[page.text.index("Best 10") :].split("Cost")[0]


def test_no_scores_no_section():
    rows = changed(make_rows(), metrics=lambda row: {"accuracy": row.fitness})
    assert "Rank correlation" not in render(rows).text
    few = changed(make_rows(("random_search",), 1, 3, 0.0), metrics=with_scores)
    assert "Rank correlation" not in render(few).text
    failed = changed(make_rows(), metrics=with_scores, fitness=lambda row: math.nan)
    assert "Rank correlation" not in render(failed).text


def test_interval_holds_the_true_correlation():
    rng, true, held = np.random.default_rng(0), 0.6, 0
    for _ in range(400):
        pairs = rng.multivariate_normal([0, 0], [[1, true], [true, 1]], 30)
        value = stats.spearmanr(pairs).statistic
        low, high = spearman_interval(value, 30)
        # Spearman's correlation of a normal pair, Pearson 1907.
        held += low <= 6 / np.pi * np.arcsin(true / 2) <= high
    assert 0.92 < held / 400 < 0.98
    assert all(map(math.isnan, spearman_interval(0.5, 3)))
    assert all(map(math.isnan, spearman_interval(1.0, 30)))


def test_a_size_is_shown_once_and_empty_sections_are_not():
    both = lambda row: with_scores(row) | {"proxy_params": 2.0 * (1 + row.arch[0])}  # noqa: E731
    page = render(changed(make_rows(), metrics=both))
    names = [row["score"] for row in page.table("Spearman's rank correlation of scores")]
    assert sorted(names) == ["params", "snip", "zen"]
    assert "Strength of operations" not in page.text


# Layers.


def test_layers_of_the_winner():
    module = SPACE.network(np.asarray(SPACE.arch({"depth": 3, "width": 8})))
    layers = [layer._asdict() for layer in breakdown(module, (5,))]
    page = render(make_rows(), CONFIG, RESULTS | {"layers": {"arch": [], "layers": layers}})
    assert inside(page)
    table = page.table("Layers in the order")
    assert [row["layer"] for row in table][-2:] == ["output", "whole network"]
    assert {row["kind"] for row in table[1:-1]} == {"Dense"}
    sizes = [int(row["parameters"].replace(",", "")) for row in table]
    assert sum(sizes[:-1]) == sizes[-1] == 5 * 8 + 8 + 2 * (8 * 8 + 8) + 8 * 3 + 3
    assert "added up by the modules" not in page.text
    assert "Cost of the winner by layer" not in render(make_rows()).text


def test_many_layers_are_added_up():
    space = nas.spaces.nasbench201(3, num_channels=4, num_cells=2, image_size=8)
    module = space.network(np.full(6, 3))
    layers = [layer._asdict() for layer in breakdown(module, (8, 8, 3))]
    page = render(make_rows(), CONFIG, {"layers": {"arch": [], "layers": layers}})
    table = page.table("Layers in the order")
    assert len(layers) > 40 >= len(table) - 1
    assert f"{len(layers)} layers are added up" in page.text
    shown = [int(row["parameters"].replace(",", "")) for row in table]
    assert sum(shown[:-1]) == shown[-1] == sum(layer["parameters"] for layer in layers)


# Latency.


def fake_measure(space, arch, feature_shape, *, batch_size, num_repeats):
    """Milliseconds that follow from the parameters, and more of them for more rows."""
    cost = nas.objectives.costs.structural_cost(space, arch, feature_shape)
    median = 0.1 + 1e-3 * cost.parameters * batch_size
    return measuring.Latency(median, 0.9 * median, 1.1 * median, 1e3 * batch_size / median, 0.5)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run, and measurements that can be foretold."""
    monkeypatch.setattr(measuring, "measure", fake_measure)
    strategy = nas.strategies.random_search(SPACE, batch_size=8)
    evaluator = nas.evaluators.from_function(lambda key, arch: arch.sum())
    quiet = {"progress_fn": lambda progress: None}
    return nas.run(tmp_path / "run", SPACE, strategy, evaluator, num_evaluations=40, **quiet)


def test_networks_are_the_best_and_others(run):
    chosen = latencies.pick(SPACE, run.rows(), 8)
    ranks = [rank for rank, _ in chosen]
    assert ranks[:4] == [1, 2, 3, 4] and len(set(ranks)) == 8 and ranks == sorted(ranks)
    assert len({row.arch for _, row in chosen}) == 8
    fitness = [row.fitness for _, row in chosen]
    assert fitness == sorted(fitness, reverse=True)
    assert fitness[0] == max(row.fitness for row in run.rows())
    last = min(row.fitness for row in run.rows())
    assert fitness[-1] == last
    assert latencies.pick(SPACE, [], 8) == []
    every = latencies.pick(SPACE, run.rows(), 10_000)
    assert [rank for rank, _ in every] == list(range(1, len({r.arch for r in run.rows()}) + 1))


def test_latency_is_stored_and_shown_with_honest_predictions(run):
    found = latencies.measure_latencies(run, SPACE, (5,), num=8)
    assert found == run.result("latency") is not None
    costs = [
        nas.objectives.costs.structural_cost(SPACE, network["arch"], (5,))
        for network in found["networks"]
    ]
    features = np.array([[getattr(cost, name) for name in latencies.FEATURES] for cost in costs])
    for place in range(2):
        measured = [network["latency"][place]["median"] for network in found["networks"]]
        for left, network in enumerate(found["networks"]):
            others = np.arange(8) != left
            model = measuring.fit(features[others], np.array(measured)[others])
            guess = float(model.predict(features[left].astype(np.float32)))
            assert network["latency"][place]["predicted"] == pytest.approx(guess, rel=1e-3)
    assert latencies.told(found).count("\n") == 1

    from tests.unit.report_pages import Page

    page = Page(report.write(run).read_text())
    assert inside(page)
    quality = page.table("Predictions of networks that were left out")
    assert [row["batch"] for row in quality] == ["1", "64"]
    assert all(float(row["error"][:-1]) < float(row["error of the mean"][:-1]) for row in quality)
    table = page.table("Measured networks by their rank")
    assert len(table) == 8 and table[0]["rank"] == "1"


def test_what_cannot_be_measured(run, tmp_path):
    with pytest.raises(ValueError, match="num must be an integer of at least 3, got 2"):
        latencies.measure_latencies(run, SPACE, (5,), num=2)
    empty = store.create(tmp_path / "empty", {"arms": []})
    assert latencies.measure_latencies(empty, SPACE, (5,), num=4) is None
    assert "too few architectures" in latencies.told(None)


def test_leaving_one_out():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 2))
    true = 3.0 + features @ [1.0, -0.5]
    found = measuring.leave_one_out(features, true + 0.01 * rng.normal(size=12))
    np.testing.assert_allclose(found, true, atol=0.1)
    # What is left out has no say in its own prediction.
    wild = np.where(np.arange(12) == 5, 100.0, true)
    assert abs(measuring.leave_one_out(features, wild)[5] - true[5]) < 0.1
    with pytest.raises(ValueError, match="at least 3 measurements, got 2"):
        measuring.leave_one_out(features[:2], true[:2])
