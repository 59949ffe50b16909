"""`one_shot` computes its expectations exactly, and runs."""

import argparse
import dataclasses
import itertools
import json

import numpy as np
import pytest

from benchmarks import one_shot, run, strategies_tabular
from jaxnas import oneshot

needs_table = pytest.mark.skipif(
    not strategies_tabular.table_file().is_file(), reason="no table in JAXNAS_DATA"
)


@pytest.mark.parametrize("num", [1, 2, 4, 6])
def test_expected_best_averages_over_all_subsets(num):
    rng = np.random.default_rng(0)
    valid, value = rng.normal(size=(2, 6))
    subsets = [list(chosen) for chosen in itertools.combinations(range(6), num)]
    expected = np.mean([value[c][np.argmax(valid[c])] for c in subsets])
    assert one_shot.expected_best(valid, value, num) == pytest.approx(expected)


def test_a_failed_training_is_only_chosen_where_all_failed():
    valid, value = np.array([np.nan, 0.2, 0.1]), np.array([9.0, 2.0, 1.0])
    assert one_shot.expected_best(valid, value, 3) == 2.0
    assert one_shot.expected_best(valid, value, 2) == pytest.approx((2 + 2 + 1) / 3)


def test_entropy_of_strengths():
    assert one_shot.strength_entropy(np.ones((6, 5))) == pytest.approx(1.0)
    assert one_shot.strength_entropy(np.eye(5)) == pytest.approx(0.0)
    assert np.isnan(one_shot.strength_entropy(None))


def test_rejects_updates_that_do_not_divide():
    setting = dataclasses.replace(one_shot.SETTINGS["smoke"], num_steps=7)
    with pytest.raises(ValueError, match="num_steps must be a positive multiple of 5, got 7"):
        one_shot.load(setting)


def test_methods_exist():
    assert set(one_shot.METHODS.values()) <= set(oneshot.ALL)
    assert set(one_shot.ALPHA_RATES) < set(one_shot.METHODS.values())


@needs_table
@pytest.mark.slow
def test_runs_end_to_end(tmp_path):
    methods = ["random_weight_sharing", "single_path + evolution"]
    options = argparse.Namespace(out=tmp_path, methods=methods)
    setting = one_shot.SETTINGS["smoke"]
    run.run_setting("one_shot", one_shot, "smoke", setting, options, {})
    stored = json.loads((tmp_path / "one_shot-smoke.json").read_text())
    (rows,) = (t for name, t in stored["tables"].items() if name.endswith("searches each"))
    assert [row["method"] for row in rows] == methods
    assert all(
        0.0 < row["mean"] <= stored["tables"]["for comparison"][0]["best of all"] for row in rows
    )
