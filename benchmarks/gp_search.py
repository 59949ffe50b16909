"""How many whole searches by Bayesian optimisation a second, against scikit-learn?

Both sides search NAS-Bench-201 for the best validation accuracy on CIFAR-100, one architecture at a
time, with a Gaussian process that is asked about all 15,625 architectures before each. Kernel,
hyperparameters, warping and acquisition are the same: length scale and noise are fixed, the
amplitude is the likeliest. The peer is `benchmarks.peers.sklearn_gp`.

Ours runs all searches in one compiled program, in a fresh process with an empty compilation cache:
`cold` includes tracing and compiling, `steady` is the second call. A further run with many more
searches, chunk by chunk, says whether their cost stays the same. Besides the time that passed there
is the time that all cores together were busy with it, which a busy machine distorts less.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from benchmarks import harness
from jaxnas import incumbent_curve, parallel, search
from jaxnas.evaluators import tabular
from jaxnas.strategies.gaussian_process import gaussian_process
from jaxnas.tables import Table, nasbench201

LENGTHSCALE, NOISE, NUM_INITIAL = 3.0, 0.01, 10
KINDS = ("cold", "steady", "many")


@dataclass(frozen=True)
class Setting:
    """One size of the question."""

    dataset: str
    num_seeds: int  # searches of ours at once
    num_chunks: int  # of so many searches, in the further run
    peer_seeds: int  # searches of the peer, whose time is scaled to ours
    evaluations: int  # per search


SETTINGS = MappingProxyType({"cifar100": Setting("cifar100", 32, 8, 4, 150)})


class Problem(NamedTuple):
    """What every side is given."""

    setting: Setting
    arch: np.ndarray  # i32[N, D]
    fitness: np.ndarray  # f32[N], mean over the table's seeds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=3, help="alternating rounds (default 3)")


def _table(setting: Setting) -> Table:
    return nasbench201(setting.dataset)


def load(setting: Setting) -> Problem:
    """The table's rows; both sides read them from the package with the benchmark's data."""
    if setting.evaluations < NUM_INITIAL:
        raise ValueError(f"evaluations must be at least {NUM_INITIAL}, got {setting.evaluations}")
    table = _table(setting)
    return Problem(setting, np.asarray(table.archs), np.asarray(table.final("valid_accuracy")))


# --- measuring ---


def measure_ours(setting: Setting) -> dict[str, Any]:
    """Entry point of a fresh process: the searches twice, then many more in chunks."""
    parallel.cpu_devices(1)  # whose threads use all cores
    table = _table(setting)
    jax.block_until_ready(table.metrics)
    strategy = gaussian_process(
        table.space,
        num_initial=NUM_INITIAL,
        lengthscale=LENGTHSCALE,
        noise=NOISE,
        capacity=setting.evaluations + 1,
    )

    def one(table, key):
        evaluator = tabular(table, seed="mean")
        history = search(key, strategy, evaluator, setting.evaluations)[1]
        return incumbent_curve(history)

    @jax.jit
    def run(table, keys):
        return jax.lax.map(lambda chunk: jax.vmap(lambda key: one(table, key))(chunk), keys)

    def timed(num_chunks: int, seed: int) -> dict[str, Any]:
        keys = jax.random.split(jax.random.key(seed), (num_chunks, setting.num_seeds))
        start = time.perf_counter(), time.process_time()
        curves = np.asarray(run(table, keys))
        return {
            "seconds": time.perf_counter() - start[0],
            "cpu_seconds": time.process_time() - start[1],
            "curves": curves.reshape(-1, setting.evaluations),
        }

    cold, steady = timed(1, 0), timed(1, 1)
    timed(setting.num_chunks, 2)  # compiles for this number of chunks
    return {"cold": cold, "steady": steady, "many": timed(setting.num_chunks, 3)}


def _run_ours(problem: Problem) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        return harness.in_fresh_process(
            "benchmarks.gp_search:measure_ours",
            problem.setting,
            environment={"JAX_COMPILATION_CACHE_DIR": os.path.join(cache, "empty")},
        )


def _run_peer(problem: Problem) -> dict[str, Any]:
    request = {
        "arch": problem.arch,
        "fitness": problem.fitness.astype(np.float64),
        "seeds": list(range(problem.setting.peer_seeds)),
        "evaluations": problem.setting.evaluations,
        "num_initial": NUM_INITIAL,
        "lengthscale": LENGTHSCALE,
        "noise": NOISE,
        "num_processes": min(harness.num_cores(), problem.setting.peer_seeds),
    }
    measured = harness.in_fresh_process("benchmarks.peers.sklearn_gp:measure", request)
    found = problem.fitness[measured["rows"]]
    return {**measured, "curves": np.maximum.accumulate(found, axis=1)}


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Alternating runs, each in a fresh process."""
    sides = {"ours": lambda: _run_ours(problem), "sklearn": lambda: _run_peer(problem)}
    return {"runs": harness.alternate(sides, options.repeats)}


# --- what it means ---


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds per search, and how good the searches are on both sides.

    A ratio compares runs that were neighbours in time. Intervals are Student's for the mean.
    """
    del machine
    setting, runs = problem.setting, raw["runs"]
    sides = {f"ours, {kind}": [run[kind] for run in runs["ours"]] for kind in KINDS}
    sides["sklearn"] = runs["sklearn"]
    points = sorted({max(1, setting.evaluations * third // 3) for third in (1, 2, 3)})
    quality = [
        {
            "side": side,
            **{f"after {n}": _interval(sides[side][0]["curves"][:, n - 1]) for n in points},
        }
        for side in ("ours, many", "sklearn")
    ]
    rows = [_time_row(side, measured, runs["sklearn"]) for side, measured in sides.items()]
    return {"time per search": rows, "best validation accuracy so far": quality}


def _time_row(side: str, ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> dict[str, Any]:
    row: dict[str, Any] = {"side": side, "searches": len(ours[0]["curves"])}
    for name, label in (("seconds", "ms"), ("cpu_seconds", "CPU ms")):
        mine, peer = ([1e3 * run[name] / len(run["curves"]) for run in r] for r in (ours, theirs))
        ratios = [b / a for a, b in zip(mine, peer, strict=True)]
        row[label] = harness.format_spread(harness.spread(mine), digits=0)
        row[f"x sklearn, {label}"] = harness.format_spread(harness.spread(ratios), digits=1)
    return row


def _interval(values: np.ndarray) -> str:
    reach = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1) if len(values) > 1 else np.nan
    return f"{values.mean():.4f} ± {reach:.4f}"
