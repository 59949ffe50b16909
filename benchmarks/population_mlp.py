"""How many perceptrons a second can be trained from scratch, against PyTorch?

Both sides train the same candidates, drawn uniformly from the joint space of architectures and
hyperparameters, on the same rows with the same recipe, and end with a loss on the training rows and
a loss and score on the validation rows. The peer is `benchmarks.peers.torch_mlp`, on the CPU.

Ours runs in a fresh process with an empty compilation cache. Its clock starts when jax is imported
and the data are on the device: `cold` includes choosing a plan, tracing and compiling, `steady` is
the second call. Every side runs in a process of its own, and they alternate.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from benchmarks import harness
from jaxnas import datasets, parallel, spaces
from jaxnas.space import SearchSpace, sample
from jaxnas.training import Data, Recipe, population
from jaxnas.training.data import from_splits
from jaxnas.types import split_like

FORMS = ("processes", "loop")  # of the peer; the strongest first
METRICS = ("train_loss", "loss", "accuracy", "r2")

NUM_TRAIN, NUM_HELD_OUT = 800, 200  # rows of the regression
NOISE = 0.1  # standard deviation of its targets around the curve


@dataclass(frozen=True)
class Setting:
    """One size of the question."""

    task: str  # "regression" or "digits"
    num_candidates: int
    epochs: int
    batch_size: int | None  # None: full batch


SETTINGS = MappingProxyType(
    {
        "regression-64": Setting("regression", 64, 50, None),
        "regression-512": Setting("regression", 512, 50, None),
        "digits-64": Setting("digits", 64, 20, 32),
        "digits-512": Setting("digits", 512, 20, 32),
    }
)


class Problem(NamedTuple):
    """What every side is given."""

    setting: Setting
    data: Data
    space: SearchSpace
    arch: np.ndarray  # i32[P, D]
    recipe: Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=3, help="alternating rounds (default 3)")
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=list(FORMS), help="forms of the peer to run"
    )
    parser.add_argument(
        "--peer-candidates",
        type=int,
        metavar="K",
        help="measure the peer on K candidates of all sizes and extrapolate (default: all)",
    )


def _curve(key_seed: int) -> Data:
    """One feature, a wavy target: 800 training rows."""
    rng = np.random.default_rng(key_seed)
    x = rng.uniform(-1.0, 1.0, (NUM_TRAIN + 2 * NUM_HELD_OUT, 1))
    y = np.sin(3.0 * np.pi * x[:, 0]) + 0.5 * x[:, 0] + NOISE * rng.normal(size=len(x))
    ends = [NUM_TRAIN, NUM_TRAIN + NUM_HELD_OUT]
    parts = list(zip(np.split(x, ends), np.split(y, ends), strict=True))
    return from_splits(*parts, name="curve")


def load(setting: Setting) -> Problem:
    """Data and candidates from fixed seeds, the same in every process."""
    data = _curve(0) if setting.task == "regression" else datasets.digits(jax.random.key(0))
    space = spaces.mlp(data.task.num_outputs)
    keys = split_like(jax.random.key(1), setting.num_candidates)
    arch = np.asarray(jax.vmap(lambda key: sample(key, space))(keys))
    recipe = Recipe(epochs=setting.epochs, batch_size=setting.batch_size)
    return Problem(setting, data, space, arch, recipe)


def step_flops(problem: Problem) -> np.ndarray:
    """Floating-point operations of one training step of each candidate: f64[P].

    Matrix products alone: forward, gradient of the weights, and gradient of the inputs except for
    the first layer's, which nobody needs. What a plan computes in padding is not counted.
    """
    num_rows, num_inputs = problem.data.train.x.shape
    rows = problem.setting.batch_size or num_rows

    def flops(values: Mapping[str, Any]) -> float:
        hidden = [values["width"]] * values["depth"]
        sizes = [num_inputs, *hidden, problem.data.task.num_outputs]
        products = [a * b for a, b in pairwise(sizes)]
        return rows * (6.0 * sum(products) - 2.0 * products[0])

    return np.array([flops(problem.space.describe(row)) for row in problem.arch])


def stratified(costs: np.ndarray, num_chosen: int) -> np.ndarray:
    """Indices of the middle candidates of `num_chosen` equal groups in order of cost.

    Example:
      >>> stratified(np.array([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]), 2).tolist()
      [3, 0]
    """
    if not 1 <= num_chosen <= len(costs):
        raise ValueError(f"--peer-candidates must be 1 to {len(costs)}, got {num_chosen}")
    places = (np.arange(num_chosen) + 0.5) * len(costs) / num_chosen
    return np.argsort(costs, kind="stable")[places.astype(int)]


# --- measuring ---


def measure_ours(setting: Setting) -> dict[str, Any]:
    """Entry point of a fresh process: trains the population twice, cold and steady."""
    parallel.cpu_devices(harness.num_cores())
    problem = load(setting)
    jax.block_until_ready((problem.data.train, problem.data.valid))
    seconds, results = [], []
    for seed in range(2):
        start = time.perf_counter()
        result = population.train(
            problem.space, problem.arch, problem.data, problem.recipe, jax.random.key(seed)
        )
        jax.block_until_ready(result.metrics)
        seconds.append(time.perf_counter() - start)
        results.append(result)
    return {
        "cold_seconds": seconds[0],
        "steady_seconds": seconds[1],
        "compile_seconds": results[0].compile_seconds,
        "run_seconds": results[0].run_seconds,
        "second_compile_seconds": results[1].compile_seconds,
        "metrics": {name: np.asarray(values) for name, values in results[0].metrics.items()},
        "plan": str(results[0].report),
    }


def _run_ours(problem: Problem) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        return harness.in_fresh_process(
            "benchmarks.population_mlp:measure_ours",
            problem.setting,
            environment={"JAX_COMPILATION_CACHE_DIR": os.path.join(cache, "empty")},
        )


def _run_peer(problem: Problem, form: str, chosen: np.ndarray) -> dict[str, Any]:
    data, setting = problem.data, problem.setting
    request = {
        "form": form,
        "candidates": [problem.space.describe(problem.arch[i]) for i in chosen],
        "arrays": {
            "x_train": np.asarray(data.train.x),
            "y_train": np.asarray(data.train.y),
            "x_valid": np.asarray(data.valid.x),
            "y_valid": np.asarray(data.valid.y),
        },
        "recipe": {
            "task": data.task.kind,
            "num_outputs": data.task.num_outputs,
            "epochs": setting.epochs,
            "batch_size": setting.batch_size,
        },
        "num_processes": harness.num_cores(),
    }
    measured = harness.in_fresh_process("benchmarks.peers.torch_mlp:measure", request)
    if len(chosen) < len(problem.arch):
        # As if the processes shared the work perfectly, which favours the peer.
        shares = harness.num_cores() if form == "processes" else 1
        total = measured["candidate_seconds"].sum() / shares
        measured["seconds"] = float(total) * len(problem.arch) / len(chosen)
    return measured


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Alternating runs of ours and of the peer's forms, each in a fresh process."""
    everyone = np.arange(len(problem.arch))
    sampled = options.peer_candidates is not None
    chosen = stratified(step_flops(problem), options.peer_candidates) if sampled else everyone
    sides = {"ours": lambda: _run_ours(problem)}
    for form in options.forms:
        sides[form] = lambda form=form: _run_peer(problem, form, chosen)
    runs = harness.alternate(sides, options.repeats)
    return {"runs": runs, "peer_candidates": chosen}


# --- what it means ---


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The tables of times and of agreement.

    Args:
      problem: what was measured.
      raw: from `measure`.
      machine: with `peak_gflops`.

    Returns:
      "time": one row per side; the ratios compare runs that were neighbours in time. "same
      results": per metric both distributions and two tests of whether they differ.
    """
    runs, chosen = raw["runs"], raw["peer_candidates"]
    forms = [form for form in FORMS if form in runs]
    sides = {f"ours, {kind}": [run[f"{kind}_seconds"] for run in runs["ours"]] for kind in KINDS}
    note = "" if len(chosen) == len(problem.arch) else f", EXTRAPOLATED from {len(chosen)}"
    peers = {f"torch {form}{note}": [run["seconds"] for run in runs[form]] for form in forms}
    steps = problem.recipe.steps_per_epoch(len(problem.data.train.x))
    epochs = np.asarray(runs["ours"][0]["metrics"]["epochs"])
    gflop = float(np.sum(step_flops(problem) * epochs)) * steps / 1e9
    peak = machine["peak_gflops"]["all_devices"]
    tables = {
        f"time of {len(problem.arch)} candidates, {gflop:.0f} GFLOP": [
            _time_row(name, seconds, peers, len(problem.arch), gflop, peak)
            for name, seconds in {**sides, **peers}.items()
        ],
        "our time": [
            {
                "part": part,
                "s": harness.format_spread(
                    harness.spread([run[f"{part}_seconds"] for run in runs["ours"]])
                ),
            }
            for part in ("compile", "run", "second_compile")
        ],
    }
    if forms:
        ours = {name: v[chosen] for name, v in runs["ours"][0]["metrics"].items()}
        theirs = runs[forms[0]][0]["metrics"]
        tables["same results"] = [
            {"metric": name, **agreement(ours[name], theirs[name])}
            for name in METRICS
            if name in theirs
        ]
    return tables


KINDS = ("cold", "steady")


def _time_row(name, seconds: Sequence[float], peers, num_candidates, gflop, peak):
    middle = harness.spread(seconds)["median"]
    row = {
        "side": name,
        "s": harness.format_spread(harness.spread(seconds)),
        "candidates/s": num_candidates / middle,
        "GFLOP/s": gflop / middle,
        "% of peak": 100.0 * gflop / middle / peak,
    }
    for peer, theirs in peers.items():
        ratios = [b / a for a, b in zip(seconds, theirs, strict=True)]
        row[f"x {peer}"] = harness.format_spread(harness.spread(ratios))
    return row


def agreement(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Whether two sides' results of the same candidates have one distribution.

    A candidate that diverged (NaN) counts as worse than all others, on either side.

    Args:
      ours: f[P].
      theirs: f[P], of the same candidates in the same order.

    Returns:
      Median and quartiles of both; the two-sample Kolmogorov-Smirnov statistic and its p; the p of
      Wilcoxon's signed-rank test on the differences, which would notice a small bias that all
      candidates share; the number of diverged candidates.
    """
    kolmogorov = stats.ks_2samp(*(np.where(np.isnan(v), np.inf, v) for v in (ours, theirs)))
    differences = ours - theirs
    differences = differences[np.isfinite(differences) & (differences != 0.0)]
    paired = stats.wilcoxon(differences).pvalue if len(differences) else 1.0
    return {
        "ours": _quartiles(ours),
        "torch": _quartiles(theirs),
        "KS": float(kolmogorov.statistic),
        "KS p": float(kolmogorov.pvalue),
        "paired p": float(paired),
        "diverged": f"{np.isnan(ours).sum()} / {np.isnan(theirs).sum()}",
    }


def _quartiles(values: np.ndarray) -> str:
    if np.isnan(values).all():
        return "none"
    low, middle, high = np.nanpercentile(values, [25, 50, 75])
    return f"{middle:.4g} [{low:.4g} to {high:.4g}]"
