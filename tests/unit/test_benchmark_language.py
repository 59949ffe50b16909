"""The benchmark `language_model` compares as it says."""

import argparse
import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("jaxnas.oneshot.darts")

from benchmarks import language_model, run
from jaxnas.nn.language_model import LSTM

PEAK = {"peak_gflops": {"all_devices": 100.0}}

needs_text = pytest.mark.skipif(
    not language_model.text_file().is_file(), reason="no tinyshakespeare.txt in JAXNAS_DATA"
)


@needs_text
def test_both_sides_have_one_size_and_the_text_is_cut():
    setting = dataclasses.replace(language_model.SETTINGS["shakespeare"], num_characters=50_000)
    problem = language_model.load(setting)
    assert len(problem.text.train) == 40_000
    target = problem.space.cost(np.zeros(16)).parameters
    ours = LSTM.count(problem.lstm.num_symbols, problem.lstm.num_units)
    assert abs(ours / target - 1.0) < 0.02


@needs_text
def test_each_kind_is_shown_at_its_best_rate():
    problem = language_model.load(language_model.SETTINGS["smoke"])
    kinds = ["DARTS", "random cells", "random cells", "DARTS_V2", "LSTM"]
    raw = {
        "kind": kinds,
        "cell": ["a", "b", "c", "d", ""],
        "rate": (0.1, 0.2),
        "valid_bits": np.array([[2.0, 3.0, 2.5, 2.6, np.nan], [2.1, 2.2, 2.4, 2.7, 2.3]]),
        "test_bits": np.array([[2.2, 3.1, 2.7, 2.8, np.nan], [2.3, 2.5, 2.6, 2.9, 2.4]]),
        "seconds": {"search": 1.0},
    }
    tables = list(language_model.score(problem, raw, PEAK).values())
    rates = {row["kind"]: row["rate"] for row in tables[0]}
    assert rates == {"DARTS": 0.1, "random cells": 0.2, "DARTS_V2": 0.1, "LSTM": 0.2}
    random = tables[0][1]
    assert random["networks"] == 2
    assert random["test bits"] == "2.550 [2.500 to 2.600]"
    assert random["test of best"] == 2.5
    assert [row["cell"] for row in tables[1]] == ["a", "b", "c", "d", ""]


@needs_text
@pytest.mark.slow
def test_end_to_end(tmp_path):
    setting = language_model.Setting(4_000, 4, 1, 4, 2, 2, 1, 8, 16, 8, 8)
    options = argparse.Namespace(out=tmp_path, seed=0)
    run.run_setting("language_model", language_model, "tiny", setting, options, PEAK)
    stored = json.loads((tmp_path / "language_model-tiny.json").read_text())
    bits = np.asarray(stored["raw"]["valid_bits"])
    assert bits.shape == (3, 1 + 2 + 2 + 2)
    assert ((bits > 0.5) & (bits < 8.0)).all()
