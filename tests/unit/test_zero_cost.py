"""The benchmark of zero-cost proxies compares what it says."""

import argparse
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _cells, run, strategies_tabular, zero_cost
from jaxnas import proxies

needs_data = pytest.mark.skipif(
    not (_cells.cifar_file().is_file() and strategies_tabular.table_file().is_file()),
    reason="no table or no CIFAR-10 subset in JAXNAS_DATA",
)
SMALL = zero_cost.Setting(
    "correlation", num_candidates=3, num_stored=2, num_rows=8, num_channels=2, image_size=8
)


def test_settings_name_everything():
    assert "zero_cost" in run.NAMES
    assert set(zero_cost.PUBLISHED) | {"ntk"} == set(proxies.ALL)
    assert set(zero_cost.STORED) <= set(proxies.ALL)


def test_peer_knows_every_proxy():
    pytest.importorskip("torch")
    from benchmarks.peers import torch_proxies

    assert set(torch_proxies.SCORES) == set(proxies.ALL)


def test_peer_scores_networks_by_themselves():
    pytest.importorskip("torch")
    from benchmarks.peers import torch_proxies

    request = {
        "candidates": [("nor_conv_3x3",) * 6, ("skip_connect",) * 6],
        "network": {"num_classes": 3, "num_channels": 2, "num_cells": 1, "in_channels": 3},
        "x": np.random.default_rng(0).normal(size=(6, 8, 8, 3)),
        "y": np.arange(6) % 3,
        "proxies": ["parameters", "zen", "snip"],
        "num_threads": 1,
        "seed": 0,
    }
    found = torch_proxies.measure(request)
    assert found["seconds"].shape == (3,) and (found["seconds"] > 0.0).all()
    assert np.isfinite(found["values"]).all()
    assert (found["values"][0, 0] > found["values"][0, 1]) and found["values"].shape == (3, 2)


def test_speed_is_the_scaled_ratio():
    setting = zero_cost.Setting("speed", num_candidates=100, num_peers=10)
    names = (*proxies.ALL, "all")
    ours = {"seconds": dict.fromkeys(names, 20.0), "compile_seconds": dict.fromkeys(names, 5.0)}
    peer = {"seconds": dict.fromkeys(proxies.ALL, 4.0)}
    problem = SimpleNamespace(setting=setting)
    tables = zero_cost.score(problem, {"ours": [ours], "peer": [peer]}, {})
    rows = {row["proxy"]: row for row in tables["seconds"]}
    assert rows["snip"]["ratio"] == "2.00" and rows["snip"]["PyTorch, s"] == "40.00"
    assert rows["all"]["ratio"] == f"{2.0 * len(proxies.ALL):.2f}"
    assert rows["snip"]["networks per second"] == 5.0


@needs_data
def test_correlations_are_with_the_table(monkeypatch):
    problem = zero_cost.load(SMALL)
    assert problem.batch.x.shape == (8, 8, 8, 3) and problem.batch.y.dtype == jnp.int32
    stored = zero_cost._stored(SMALL)
    index = np.concatenate([problem.index, stored["index"]])
    with np.load(strategies_tabular.table_file()) as raw:
        truth = raw["test_c10_e200"][index]
    values = {name: truth for name in proxies.ALL} | {"snip": -truth}
    values["params"] = values["parameters"]
    raw = {"index": index, "values": values, "compile_seconds": 1.0, "run_seconds": 1.0}
    tables = zero_cost.score(problem, raw, {})
    rows = {row["proxy"]: row for row in tables["rank correlation with test accuracy"]}
    np.testing.assert_allclose(rows["synflow"]["Spearman"], 1.0, atol=1e-6)
    np.testing.assert_allclose(rows["snip"]["Spearman"], -1.0, atol=1e-6)
    agreed = zero_cost.spearman(truth[3:], stored["synflow"])
    np.testing.assert_allclose(rows["synflow"]["with stored scores"], agreed)


def test_arguments():
    parser = argparse.ArgumentParser()
    zero_cost.add_arguments(parser)
    assert parser.parse_args(["--repeats", "3"]).repeats == 3
