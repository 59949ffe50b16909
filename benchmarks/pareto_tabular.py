"""Does multi-objective search find the Pareto front of NAS-Bench-201 with few evaluations?

Every architecture's test accuracy (200 epochs) and its latency on a device are in the real table,
so the true front and its hypervolume are known. Searches of 500 evaluations are judged by the share
of the true hypervolume that what they evaluated reaches. Settings are a data set and a device; the
reference point is the accuracy of guessing and the latency of the slowest architecture.

The table is the `.npz` at `$JAXNAS_DATA/nasbench201.npz`, see `strategies_tabular`. Architectures
without a path from input to output, whose latency some devices report as nearly zero, count as
failures: their accuracy is that of guessing.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxnas as nas
from benchmarks.strategies_tabular import table_file
from jaxnas.compare import interval
from jaxnas.objectives import hypervolume
from jaxnas.objectives.pareto import is_efficient
from jaxnas.report.analysis import welch_half_width
from jaxnas.tables.table import Table
from jaxnas.types import Strategy

BASELINE = "random_search"
MARKS = (100, 250, 500)  # evaluations after which the share is reported


@dataclass(frozen=True)
class Setting:
    """One front."""

    dataset: str
    device: str
    num_classes: int
    num_seeds: int = 100
    num_evaluations: int = 500


SETTINGS = MappingProxyType(
    {
        "cifar10-pixel3": Setting("cifar10", "pixel3", 10),
        "cifar10-gpu": Setting("cifar10", "1080ti_1", 10),
        "cifar100-eyeriss": Setting("cifar100", "eyeriss", 100),
    }
)


class Problem(NamedTuple):
    """A table, its objectives, and what the true front covers."""

    setting: Setting
    table: Table
    reference: np.ndarray  # f32[2]
    volume: float
    front_size: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--strategies` picks some."""
    parser.add_argument("--strategies", nargs="+", metavar="NAME", help="default: all four")


def load(setting: Setting) -> Problem:
    """The table with failures for networks without a path, and the true front.

    Raises:
      FileNotFoundError: if the table is not there.
    """
    table = nas.tables.nasbench201(setting.dataset, table_file())
    name = f"latency_ms_{setting.device}"
    accuracy = np.asarray(table.columns["test_accuracy"])
    sound = accuracy > 1.5 / setting.num_classes
    latency = np.where(sound, np.asarray(table.columns[name]), np.nan)
    table.columns[name] = jnp.asarray(latency, jnp.float32)
    values = np.stack([accuracy, -latency], axis=1)[sound]
    reference = np.array([1.0 / setting.num_classes, values[:, 1].min()], np.float32)
    front = _front(values)
    volume = float(hypervolume(jnp.asarray(front, jnp.float32), jnp.asarray(reference)))
    return Problem(setting, table, reference, volume, len(front))


def _front(values: np.ndarray) -> np.ndarray:
    """The efficient ones of points f[N, 2], sorted by the first objective."""
    order = np.lexsort((-values[:, 1], -values[:, 0]))
    best = np.maximum.accumulate(values[order, 1])
    fresh = np.concatenate([[True], values[order[1:], 1] > best[:-1]])
    front = values[order[fresh]]
    assert bool(jnp.all(is_efficient(jnp.asarray(front, jnp.float32))))
    return front


def _strategies(space) -> dict[str, Strategy]:
    make = nas.strategies.ALL
    return {
        BASELINE: make["random_search"](space, batch_size=20),
        "nsga2": make["nsga2"](space, batch_size=20, population_size=40),
        "pareto_local_search": make["pareto_local_search"](space, batch_size=1, capacity=512),
        "regularized_evolution": make["regularized_evolution"](space, batch_size=20),
    }


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Shares of the true hypervolume f32[S, marks], and seconds, by strategy."""
    setting = problem.setting
    made = _strategies(problem.table.space)
    raw = {}
    for name in options.strategies or made:
        run = jax.jit(jax.vmap(partial(_search, problem, made[name]), in_axes=(None, 0)))
        seeds = jnp.arange(setting.num_seeds)
        start = time.perf_counter()
        program = run.lower(problem.table, seeds).compile()
        compiled = time.perf_counter()
        shares = np.asarray(program(problem.table, seeds))
        raw[name] = {
            "shares": shares,
            "compile_seconds": compiled - start,
            "run_seconds": time.perf_counter() - compiled,
        }
        print(f"  {name}: {shares[:, -1].mean():.4f}", flush=True)
    return raw


def _search(problem: Problem, strategy: Strategy, table: Table, seed):
    """One search: the share of the volume after some evaluations, f32[marks].

    A strategy for one objective maximises a scalarisation with equal weights.
    """
    latency = f"-latency_ms_{problem.setting.device}"
    evaluator = nas.evaluators.tabular(
        table, metric="test_accuracy", objectives=("test_accuracy", latency), report=()
    )
    scale = 1.0 - problem.reference

    def weighed(key, state, proposal):
        found, state = evaluator.evaluate(key, state, proposal)
        above = (found.objectives - problem.reference) / np.array([scale[0], -problem.reference[1]])
        return found._replace(fitness=above.mean(axis=1)), state

    key = jax.random.key(seed)
    first = jax.eval_shape(lambda key: strategy.ask(key, strategy.init(key)), key)
    num_steps = -(-problem.setting.num_evaluations // first.arch.shape[0])
    _, history = nas.search(key, strategy, evaluator._replace(evaluate=weighed), num_steps)
    values = history.evaluation.objectives.reshape(-1, 2)
    volumes = [
        hypervolume(values[:mark], jnp.asarray(problem.reference)) for mark in _marks(problem)
    ]
    return jnp.stack(volumes) / problem.volume


def _marks(problem: Problem) -> tuple[int, ...]:
    total = problem.setting.num_evaluations
    return tuple(mark for mark in MARKS if mark < total) + (total,)


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """One row per strategy."""
    del machine
    baseline = np.asarray(raw[BASELINE]["shares"])[:, -1]
    rows = []
    for name, found in raw.items():
        shares = np.asarray(found["shares"])
        low, high = interval(shares[:, -1])
        gain = shares[:, -1].mean() - baseline.mean()
        half = welch_half_width(shares[:, -1], baseline)
        row: dict[str, Any] = {"strategy": name}
        row |= {
            f"{mark}": float(mean)
            for mark, mean in zip(_marks(problem), shares.mean(0), strict=True)
        }
        row["95%"] = f"{low:.4f} to {high:.4f}"
        row["above random"] = "" if name == BASELINE else f"{gain:+.4f} +- {half:.4f}"
        row["ms per search"] = 1e3 * found["run_seconds"] / len(shares)
        rows.append(row)
    title = (
        f"{problem.setting.num_seeds} seeds, share of the true hypervolume "
        f"({problem.front_size} architectures on the front)"
    )
    return {title: rows}
