"""The benchmark of races compares what it says."""

import argparse
import dataclasses
import doctest
import json

import numpy as np
import pytest

from benchmarks import racing, run

SMOKE = racing.SETTINGS["smoke"]


def repetition(full, race, same, seconds=10.0):
    fitness = np.array([0.5, 0.9, 0.8, np.nan])
    winner = 1 if same else 2

    def side(test, winner, scale):
        found = {"fitness": fitness, "winner": winner, "test": np.asarray(test)}
        costs = {"epochs": 40.0 * scale, "seconds": seconds * scale, "compile_seconds": 3.0}
        return {**found, **costs}

    return {"full": side(full, 1, 1.0), "race": side(race, winner, 0.3)}


def test_doctests():
    found = doctest.testmod(racing)
    assert found.attempted >= 2 and not found.failed


def test_settings():
    assert "racing" in run.NAMES
    assert set(racing.SETTINGS) == {"digits", "cifar", "smoke"}
    assert racing.RUNGS[-1] == 1.0


def test_the_difference_is_paired_and_costs_are_shares():
    raw = {
        "seed": 0,
        "repetitions": [
            repetition([0.8, 0.9], [0.8, 0.9], same=True),
            repetition([0.7, 0.7], [0.6, 0.6], same=False, seconds=30.0),
        ],
    }
    tables = racing.score(None, raw, {})
    (summary,) = tables["race against full training"]
    assert summary["difference"].startswith("-0.0500 [")
    assert summary["full, test"].startswith("0.7750 [")
    assert summary["same winner"] == "1 of 2"
    assert summary["share of epochs"] == pytest.approx(0.3)
    assert summary["share of seconds"] == pytest.approx(0.3)
    assert summary["race, compile s"] == 6.0
    assert summary["retraining noise"] == pytest.approx(0.05)
    first, second = tables["repetitions"]
    assert (first["its rank in full"], second["its rank in full"]) == (1, 2)
    assert second["race's winner, valid"] == pytest.approx(0.8)
    assert second["mean of all, valid"] == pytest.approx((0.5 + 0.9 + 0.8) / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 1}, "num_seeds must be at least 2"),
        ({"num_train": 5000}, "must be at most the 1797 images"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        racing.load(dataclasses.replace(SMOKE, **changes))


@pytest.mark.slow
def test_end_to_end(tmp_path):
    parser = argparse.ArgumentParser()
    racing.add_arguments(parser)
    options = parser.parse_args(["--seed", "1"])
    options.out = tmp_path
    run.run_setting("racing", racing, "smoke", SMOKE, options, {})
    stored = json.loads((tmp_path / "racing-smoke.json").read_text())
    assert len(stored["raw"]["repetitions"]) == SMOKE.num_seeds
    for found in stored["raw"]["repetitions"]:
        full, raced = found["full"], found["race"]
        assert full["epochs"] == 12.0 and raced["epochs"] == 6.0
        # Who ends the race scores as in full.
        winner = raced["winner"]
        assert raced["fitness"][winner] == full["fitness"][winner]
        assert len(full["test"]) == SMOKE.num_retrain
