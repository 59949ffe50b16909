"""Do the searches on NAS-Bench-201 come out as published, and which strategy is best with few?

Three questions on the real table, each answered by whole searches inside one program:

* `protocol-12000` and `protocol-20000`: Dong & Yang, "NAS-Bench-201", 2020, Table 5, and the TPAMI
  version, "NATS-Bench", 2021: searches on CIFAR-10 with the 12-epoch schedule under a simulated
  clock, judged by the accuracy after 200 epochs on CIFAR-10 and, transferred, on CIFAR-100 and
  ImageNet16-120. The clock stops before it would overshoot.
* `queries-150`: 150 evaluations of the 200-epoch validation accuracy on CIFAR-100, one at a time
  or in the batches that a method is defined with, judged by the test accuracy of the incumbent.
* `optimum`: evaluations until the architecture with the best validation accuracy on CIFAR-100 is
  found by local search (White et al., 2021, report 127 on average).

The table is the `.npz` at `$JAXNAS_DATA/nasbench201.npz` (default `../shared/data`), in the format
of `jaxnas.tables.nasbench201`; `scripts/convert_nats_bench.py` makes one of the original files.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import analysis, strategies, tables
from jaxnas.compare import Searches, compare, interval
from jaxnas.report.analysis import welch_half_width
from jaxnas.tables.table import Table
from jaxnas.types import Strategy

BASELINE = "random_search"

# Mean test accuracy in percent after 200 epochs: CIFAR-10, CIFAR-100, ImageNet16-120. "published"
# is Table 5 of NAS-Bench-201 (12,000 s) and Table 4 of NATS-Bench (20,000 s, searched per data set,
# so that only CIFAR-10 compares); "loop" is a plain NumPy loop over the same table, 500 runs.
REFERENCES: Mapping[tuple[str, int], Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        ("random_search", 12000): {
            "published": (93.70, 71.04, 44.57),
            "loop": (93.75, 71.15, 44.67),
            "published std": (0.36, 1.07, 1.25),
        },
        ("regularized_evolution", 12000): {
            "published": (93.92, 71.84, 45.54),
            "loop": (93.93, 71.91, 45.42),
            "published std": (0.30, 0.99, 1.03),
        },
        ("reinforce", 12000): {
            "published": (93.85, 71.71, 45.24),
            "loop": (93.80, 71.31, 44.87),
            "published std": (0.37, 1.09, 1.18),
        },
        ("random_search", 20000): {
            "published": (93.86,),
            "loop": (93.87, 71.52, 45.08),
            "published std": (0.23,),
        },
        ("regularized_evolution", 20000): {
            "published": (94.02,),
            "loop": (94.07, 72.37, 45.79),
            "published std": (0.31,),
        },
        ("reinforce", 20000): {
            "published": (93.90,),
            "loop": (93.90, 71.68, 45.28),
            "published std": (0.26,),
        },
    }
)

DATASETS = ("cifar10", "cifar100", "imagenet16-120")


@dataclass(frozen=True)
class Setting:
    """One question and its size."""

    question: str  # "protocol", "queries" or "optimum"
    num_seeds: int
    num_evaluations: int  # of a search, at most
    seconds: int = 0  # simulated, of the protocol


SETTINGS = MappingProxyType(
    {
        "protocol-12000": Setting("protocol", 500, 320, 12000),
        "protocol-20000": Setting("protocol", 500, 480, 20000),
        "queries-150": Setting("queries", 200, 150),
        "optimum": Setting("optimum", 500, 600),
    }
)


class Problem(NamedTuple):
    """What is searched by whom."""

    setting: Setting
    table: Table
    strategies: dict[str, Strategy]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--strategies` picks some; `--set num_seeds=20` makes it shorter."""
    parser.add_argument("--strategies", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--seeds-per-call", type=int, default=25, help="side by side on a device")


def table_file() -> Path:
    """Where the table is looked for."""
    return Path(os.environ.get("JAXNAS_DATA", "../shared/data")) / "nasbench201.npz"


def load(setting: Setting) -> Problem:
    """The table and the strategies of a question.

    Raises:
      FileNotFoundError: if the table is not there.
    """
    if setting.question == "protocol":
        table = _with_transfer(table_file())
        return Problem(setting, table, _protocol_strategies(table))
    table = tables.nasbench201("cifar100", table_file())
    made = _local_searches(table) if setting.question == "optimum" else query_strategies(table)
    return Problem(setting, table, made)


def _with_transfer(path: Path) -> Table:
    """The CIFAR-10 table with the test accuracies on the other data sets as columns."""
    table = tables.nasbench201("cifar10", path)
    for name in DATASETS[1:]:
        other = tables.nasbench201(name, path)
        table.columns[f"test_accuracy_{name}"] = other.columns["test_accuracy"][
            other.row(table.archs)
        ]
    return table


def _protocol_strategies(table: Table) -> dict[str, Strategy]:
    """As published; the rewards of REINFORCE are percent, which only its entropy bonus notices."""
    space = table.space
    return {
        BASELINE: strategies.random_search(space, batch_size=1),
        "regularized_evolution": strategies.regularized_evolution(
            space, batch_size=1, population_size=10, tournament_size=3
        ),
        "reinforce": strategies.reinforce(
            space, batch_size=1, policy="factorised", learning_rate=0.01, entropy_weight=0.0
        ),
    }


def _local_searches(table: Table) -> dict[str, Strategy]:
    """Both neighbourhood rules."""
    return {
        f"local_search, {rule}": strategies.local_search(
            table.space, batch_size=1, neighbourhood=rule
        )
        for rule in ("first", "full")
    }


# What differs from a strategy's defaults with 150 evaluations; all others propose one at a time.
QUERY_OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "bananas": {"batch_size": 10},
        "dqn": {"num_evaluations": 150, "num_updates": 4},
        "genetic": {"batch_size": 10, "population_size": 20, "num_elites": 5},
        "nao": {"batch_size": 10},
        "nsga2": {"num_objectives": 1, "population_size": 20},
        "ppo": {"batch_size": 10, "policy": "factorised", "learning_rate": 0.1},
        "predictor": {"batch_size": 10},
        "q_learning": {"num_evaluations": 150},
        "regularized_evolution": {"population_size": 30, "tournament_size": 10},
        "reinforce": {"policy": "factorised", "learning_rate": 0.1},
        "simulated_annealing": {"num_evaluations": 150, "initial_temperature": 0.02},
    }
)


def query_strategies(table: Table) -> dict[str, Strategy]:
    """Every strategy there is, for 150 evaluations."""
    made = {}
    for name, factory in strategies.ALL.items():
        if name == "pareto_local_search":  # with one objective it is local search
            continue
        made[name] = factory(table.space, **({"batch_size": 1} | dict(QUERY_OPTIONS.get(name, {}))))
    return made


# --- searching ---


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Runs all searches; the raw results are what incumbents score."""
    setting, table = problem.setting, problem.table
    chosen = options.strategies or list(problem.strategies)
    made = {name: problem.strategies[name] for name in chosen}
    if BASELINE in problem.strategies:
        made = {BASELINE: problem.strategies[BASELINE]} | made
    rules: dict[str, Any] = {"seed": "random"}
    if setting.question == "protocol":
        rules |= {"max_fidelity": 12 / 200, "time_limit": float(setting.seconds), "stop": "before"}
    if setting.question == "optimum":
        rules = {"seed": "mean"}
    scores = _scores(setting)
    raw: dict[str, Any] = {}
    for score in scores:
        found = compare(
            table,
            made,
            num_evaluations=setting.num_evaluations,
            num_seeds=setting.num_seeds,
            score=score,
            seeds_per_call=options.seeds_per_call,
            progress_fn=lambda name, s: print(f"  {name}: {s.score[:, -1].mean():.4f}", flush=True),
            **rules,
        )
        for name, searches in found.searches.items():
            raw.setdefault(name, {})[score] = searches.score
            raw[name] |= _clock(searches)
    if setting.question == "optimum":
        best = float(table.final("valid_accuracy").max())
        for found in raw.values():
            found["queries"] = _first_reach(found["valid_accuracy"], best)
    return raw


def _scores(setting: Setting) -> tuple[str, ...]:
    if setting.question == "protocol":
        return ("test_accuracy", *(f"test_accuracy_{name}" for name in DATASETS[1:]))
    return ("valid_accuracy",) if setting.question == "optimum" else ("test_accuracy",)


def _clock(searches: Searches) -> dict[str, Any]:
    """How many evaluations were made in the simulated time, and what the search itself took."""
    made = (np.diff(searches.seconds, axis=1, prepend=0.0) > 0).sum(axis=1)
    return {
        "evaluations": made,
        "compile_seconds": searches.compile_seconds,
        "run_seconds": searches.run_seconds,
    }


def _first_reach(values: np.ndarray, best: float) -> np.ndarray:
    """Evaluations until the optimum is the incumbent: f64[S], infinite where it never is."""
    reached = values >= best - 1e-6
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf)


# --- what it means ---


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Tables for people; accuracies in percent."""
    del machine
    setting = problem.setting
    title = f"{setting.num_seeds} seeds"
    if setting.question == "protocol":
        return {f"{title}, {setting.seconds:,} simulated seconds": _protocol_rows(setting, raw)}
    if setting.question == "optimum":
        return {f"{title}, evaluations to the optimum": _optimum_rows(raw)}
    return {f"{title}, test accuracy of the incumbent in percent": _query_rows(raw)}


def _protocol_rows(setting: Setting, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, found in raw.items():
        reference = REFERENCES[name, setting.seconds]
        for index, (dataset, score) in enumerate(zip(DATASETS, _scores(setting), strict=True)):
            final = 100 * np.asarray(found[score])[:, -1]
            row = {
                "strategy": name,
                "data": dataset,
                "ours": f"{final.mean():.2f} +- {final.std():.2f}",
                "loop": reference["loop"][index],
                "difference": float(final.mean() - reference["loop"][index]),
                "published": _published(reference, index),
                "evaluations": float(np.mean(found["evaluations"])),
            }
            rows.append(row)
    return rows


def _published(reference: Mapping[str, tuple[float, ...]], index: int) -> str:
    if index >= len(reference["published"]):
        return ""
    return f"{reference['published'][index]:.2f} +- {reference['published std'][index]:.2f}"


def _optimum_rows(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "strategy": name,
            "mean": float(np.mean(found["queries"])),
            "standard error": float(np.std(found["queries"]) / np.sqrt(len(found["queries"]))),
            "median": float(np.median(found["queries"])),
            "not found": int(np.isinf(found["queries"]).sum()),
        }
        for name, found in raw.items()
    ]


def _query_rows(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    curves = {name: 100 * np.asarray(found["test_accuracy"]) for name, found in raw.items()}
    final = np.stack([curve[:, -1] for curve in curves.values()])
    ranks = np.asarray(jax.jit(analysis.average_ranks)(jnp.asarray(final)))
    baseline = curves[BASELINE][:, -1]
    rows = []
    for (name, curve), rank in zip(curves.items(), ranks, strict=True):
        total = curve.shape[1]
        low, high = interval(curve[:, -1])
        gain = float(curve[:, -1].mean() - baseline.mean())
        half = welch_half_width(curve[:, -1], baseline)
        rows.append(
            {
                "strategy": name,
                **{
                    f"{n}": float(np.nanmean(curve[:, n - 1])) for n in (total // 3, 2 * total // 3)
                },
                f"{total}": f"{curve[:, -1].mean():.2f} [{low:.2f} to {high:.2f}]",
                "above random": ""
                if name == BASELINE
                else f"{gain:+.2f} [{gain - half:+.2f} to {gain + half:+.2f}]",
                "mean rank": float(rank),
                "compile s": float(raw[name]["compile_seconds"]),
                "s per search": float(raw[name]["run_seconds"]) / len(curve),
            }
        )
    return sorted(rows, key=lambda row: -curves[row["strategy"]][:, -1].mean())
