"""Do zero-cost proxies rank networks as published, and how many networks are scored a second?

`correlation`: architectures of NAS-Bench-201, drawn without replacement with a fixed key, are
scored on one batch of the CIFAR-10 subset. Spearman's correlation of every proxy with the table's
test accuracy after 200 epochs on CIFAR-10 (Dong & Yang, 2020, https://arxiv.org/abs/2001.00326)
stands beside the published one: Abdelfattah et al., 2021 (https://arxiv.org/abs/2101.08134, all
15,625 architectures) for `grad_norm`, `snip`, `grasp`, `fisher`, `synflow` and `jacob_cov`;
Krishnakumar et al., "NAS-Bench-Suite-Zero", 2022 (https://arxiv.org/abs/2210.03230), to two digits,
for the rest. Where a network has no score it ranks last. That suite's scores of 725 architectures
are compared with ours of the same ones; the correlations of both with the accuracies tell what the
choice of architectures makes of a published figure. Weights and batch are not theirs, and images
are averaged down to 16x16 pixels, which leaves parameters as they are and makes passes four times
as cheap.

`speed`: seconds for the scores of many networks, each proxy by itself and all together, compilation
included, against PyTorch one network at a time (`benchmarks.peers.torch_proxies`), which scores an
evenly spread part of them. Sides alternate, each in a fresh process.

Needs `cifar10_subset_8k_2k_uint8.npz`, and for `correlation` `nasbench201.npz` and
`zerocost_nasbench201.npz`, in the folder `JAXNAS_DATA`.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _cells, harness, strategies_tabular
from benchmarks.rank_agreement import connected, ranks
from jaxnas import analysis, parallel, proxies, spaces, tables
from jaxnas.space import SearchSpace
from jaxnas.spaces.nasbench201 import PUBLISHED_OPERATIONS, arch_from_index
from jaxnas.training.data import Split

PUBLISHED = MappingProxyType(
    {
        "grad_norm": 0.594,
        "snip": 0.596,
        "grasp": 0.514,
        "fisher": 0.360,
        "synflow": 0.737,
        "jacob_cov": 0.731,
        "naswot": 0.77,
        "flops": 0.69,
        "parameters": 0.72,
        "zen": 0.35,
        "l2_norm": 0.68,
        "plain": -0.26,
        "epe_nas": 0.70,
    }
)
# Our name to that of the stored scores.
STORED = MappingProxyType(
    {name: name for name in ("synflow", "grasp", "fisher", "grad_norm", "l2_norm", "plain", "snip")}
    | {"flops": "flops", "parameters": "params", "naswot": "nwot", "jacob_cov": "jacov"}
    | {"epe_nas": "epe_nas"}
)
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's channels


@dataclass(frozen=True)
class Setting:
    """One size of a question."""

    question: str
    num_candidates: int = 1000
    num_stored: int = 0  # of the 725 architectures with stored scores
    num_peers: int = 0  # that the peer scores; 0: it is not asked
    num_rows: int = 64
    num_channels: int = 16
    num_cells: int = 1  # per stage
    image_size: int = 16


SETTINGS = MappingProxyType(
    {
        "correlation": Setting("correlation", num_stored=725, num_cells=5),
        "speed": Setting("speed", num_peers=100),
    }
)


class Problem(NamedTuple):
    """What is scored."""

    setting: Setting
    space: SearchSpace
    index: np.ndarray  # i64[P], rows of the benchmark's tables
    batch: Split

    @property
    def arch(self) -> np.ndarray:
        """The architectures: i32[P, 6]."""
        return np.asarray(arch_from_index(self.index), np.int32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=2, help="alternating runs (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights (default 0)")


def load(setting: Setting) -> Problem:
    """Architectures and a batch; the same in every process.

    Raises:
      FileNotFoundError: without the images.
    """
    drawn = jax.random.choice(jax.random.key(1), 15625, (setting.num_candidates,), replace=False)
    space = spaces.nasbench201(
        10,
        num_channels=setting.num_channels,
        num_cells=setting.num_cells,
        image_size=setting.image_size,
    )
    with np.load(_cells.cifar_file()) as raw:
        x, y = raw["x_train"], raw["y_train"]
    chosen = np.random.default_rng(0).permutation(len(x))[: setting.num_rows]
    factor = 32 // setting.image_size
    size = setting.image_size
    blocks = x[chosen].reshape(-1, size, factor, size, factor, 3) / np.float32(255)
    images = (blocks.mean(axis=(2, 4)) - np.float32(MEAN)) / np.float32(DEVIATION)
    batch = Split(jnp.asarray(images, jnp.float32), jnp.asarray(y[chosen], jnp.int32))
    return Problem(setting, space, np.asarray(drawn), batch)


# --- measuring ---


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """The raw measurements of the setting's question."""
    if problem.setting.question == "correlation":
        return _measure_scores(problem, options.seed)
    return _measure_speed(problem, options)


def _measure_scores(problem: Problem, seed: int) -> dict[str, Any]:
    index, stored = problem.index, _stored(problem.setting)
    both = np.concatenate([index, stored["index"]])
    arch = np.asarray(arch_from_index(both), np.int32)
    key = jax.random.key(seed)
    found = proxies.score_population(key, problem.space, arch, problem.batch)
    return {
        "index": both,
        "values": found.values,
        "compile_seconds": found.compile_seconds,
        "run_seconds": found.run_seconds,
    }


def _stored(setting: Setting) -> dict[str, np.ndarray]:
    """Of CIFAR-10: `index` i64[S], and the stored scores f64[S] under their own names."""
    path = _cells.cifar_file().parent / "zerocost_nasbench201.npz"
    with np.load(path) as raw:
        index = raw["arch_index"][: setting.num_stored].astype(np.int64)
        columns = raw["score"][: setting.num_stored, 0].T
        return {"index": index, **dict(zip(raw["metrics"].tolist(), columns, strict=True))}


def _measure_speed(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    setting = problem.setting
    sides = {"ours": lambda: _fresh("measure_ours", (setting, options.seed))}
    if setting.num_peers:
        sides["peer"] = lambda: _peer(problem, options.seed)
    return harness.alternate(sides, options.repeats)


def _fresh(entry: str, request: Any) -> Any:
    """Runs a function of this module in a new process with an empty compilation cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {"JAX_COMPILATION_CACHE_DIR": os.path.join(cache, "empty")}
        return harness.in_fresh_process(
            f"benchmarks.zero_cost:{entry}", request, environment=environment
        )


def measure_ours(request: tuple[Setting, int]) -> dict[str, Any]:
    """Entry point of a fresh process: every proxy by itself, then all in one program."""
    setting, seed = request
    parallel.cpu_devices(harness.num_cores())
    problem = load(setting)
    jax.block_until_ready(problem.batch)
    seconds, compiling = {}, {}
    for name, names in {**{name: [name] for name in proxies.ALL}, "all": None}.items():
        start = time.perf_counter()
        found = proxies.score_population(
            jax.random.key(seed), problem.space, problem.arch, problem.batch, names
        )
        seconds[name] = time.perf_counter() - start
        compiling[name] = found.compile_seconds
    return {"seconds": seconds, "compile_seconds": compiling, "values": found.values}


def _peer(problem: Problem, seed: int) -> dict[str, Any]:
    """PyTorch, one network after the other, with all cores."""
    setting = problem.setting
    places = np.linspace(0, setting.num_candidates - 1, setting.num_peers).astype(int)
    request = {
        "candidates": [
            tuple(PUBLISHED_OPERATIONS[choice] for choice in arch) for arch in problem.arch[places]
        ],
        "network": {
            "num_classes": 10,
            "num_channels": setting.num_channels,
            "num_cells": setting.num_cells,
            "in_channels": 3,
        },
        "x": np.asarray(problem.batch.x),
        "y": np.asarray(problem.batch.y),
        "proxies": list(proxies.ALL),
        "num_threads": harness.num_cores(),
        "seed": seed,
    }
    found = harness.in_fresh_process("benchmarks.peers.torch_proxies:measure", request)
    seconds = dict(zip(proxies.ALL, found["seconds"].tolist(), strict=True))
    return {"seconds": seconds, "values": found["values"], "places": places}


# --- the tables ---


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The tables of the setting's question.

    Args:
      problem: what was measured.
      raw: from `measure`.
      machine: not used.
    """
    del machine
    if problem.setting.question == "correlation":
        return _correlations(problem, raw)
    return {"seconds": _seconds(problem.setting, raw)}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation; what is missing ranks last.

    Example:
      >>> round(spearman(np.array([1.0, 2.0, np.nan]), np.array([2.0, 3.0, 1.0])), 3)
      1.0
    """
    return float(analysis.spearman(ranks(np.asarray(a)), ranks(np.asarray(b))))


def _correlations(problem: Problem, raw: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    table = tables.nasbench201("cifar10", strategies_tabular.table_file())
    num = problem.setting.num_candidates
    truth = np.asarray(table.columns["test_accuracy"])[problem.index]
    alive = connected(problem.arch)
    values = {name: np.asarray(column) for name, column in raw["values"].items()}
    own = {name: column[:num] for name, column in values.items()}
    three = {name: jnp.asarray(own[name]) for name in ("synflow", "jacob_cov", "snip")}
    own["vote of synflow, jacob_cov, snip"] = np.asarray(jax.jit(proxies.vote)(three))
    stored = _stored(problem.setting)
    judged = np.asarray(table.columns["test_accuracy"])[stored["index"]]
    rows = []
    for name, column in own.items():
        like = stored.get(STORED.get(name, ""), np.full(len(judged), np.nan))
        same = values[name][num:] if name in values else np.full(len(judged), np.nan)
        rows.append(
            {
                "proxy": name,
                "Spearman": spearman(column, truth),
                "published": PUBLISHED.get(name, np.nan),
                "connected": spearman(column[alive], truth[alive]),
                "missing": int(np.isnan(column).sum()),
                **_against_stored(same, like, judged),
            }
        )
    total = raw["compile_seconds"] + raw["run_seconds"]
    seconds = {
        "networks": len(raw["index"]),
        "compiling": raw["compile_seconds"],
        "scoring": raw["run_seconds"],
        "networks per second, all proxies": len(raw["index"]) / total,
    }
    return {"rank correlation with test accuracy": rows, "seconds": [seconds]}


def _against_stored(ours: np.ndarray, stored: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Both suites' scores of the same architectures, with each other and with the truth."""
    known = np.isfinite(stored)
    if known.sum() < 2:
        return dict.fromkeys(("with stored scores", "ours of the same", "stored"), np.nan)
    ours, stored, truth = ours[known], stored[known], truth[known]
    return {
        "with stored scores": spearman(ours, stored),
        "ours of the same": spearman(ours, truth),
        "stored": spearman(stored, truth),
    }


def _seconds(setting: Setting, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name in (*proxies.ALL, "all"):
        ours = [run["seconds"][name] for run in raw["ours"]]
        row = {
            "proxy": name,
            "ours, s": harness.format_spread(harness.spread(ours)),
            "compiling, s": float(np.median([run["compile_seconds"][name] for run in raw["ours"]])),
            "networks per second": setting.num_candidates / float(np.median(ours)),
        }
        if "peer" in raw:
            scale = setting.num_candidates / setting.num_peers
            each = [run["seconds"] for run in raw["peer"]]
            peer = [scale * (sum(s.values()) if name == "all" else s[name]) for s in each]
            ratios = [p / o for p, o in zip(peer, ours, strict=True)]
            row["PyTorch, s"] = harness.format_spread(harness.spread(peer))
            row["ratio"] = harness.format_spread(harness.spread(ratios))
        rows.append(row)
    return rows
