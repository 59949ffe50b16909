"""What a run found, as lines of text."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from jaxnas.arm import Budget
from jaxnas.space import SearchSpace
from jaxnas.store import Row, Run, RunError, open_run


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first row is the header.

    Example:
      >>> print(table([("name", "size"), ("a", "10"), ("longer", "9")]))
      name    size
      a       10
      longer  9
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{w}}" for cell, w in zip(r, widths, strict=True)) for r in rows)
    return "\n".join(line.rstrip() for line in lines)


def best_row(rows: Sequence[Row]) -> Row | None:
    """The fittest of the rows with the largest budget, see `jaxnas.search.best`; None: all failed.

    The first one on ties.
    """
    succeeded = [row for row in rows if not math.isnan(row.fitness)]
    return max(succeeded, key=lambda row: (row.budget, row.fitness), default=None)


def results(run: Run, space: SearchSpace) -> str:
    """A table with one line per strategy, then the best architecture of each."""
    header = ("strategy", "seeds", "evaluations", "failed", "best fitness", "seconds")
    lines, found = [header], []
    by_strategy: dict[str, list[list[Row]]] = {}
    for arm in run.arms():
        by_strategy.setdefault(arm.strategy, []).append(run.rows(arm.name))
    for strategy, arms in by_strategy.items():
        rows = [row for arm in arms for row in arm]
        lines.append(
            (
                strategy,
                f"{len(arms)}",
                f"{len(rows)}",
                f"{sum(math.isnan(row.fitness) for row in rows)}",
                _mean_and_sd([b.fitness for b in map(best_row, arms) if b is not None]),
                f"{sum(arm[-1].seconds for arm in arms if arm):.1f}",
            )
        )
        best = best_row(rows)
        if best is not None:
            found.append(f"{strategy}: {best.fitness:.4f} with {describe(space, best)}")
    return "\n".join([table(lines), "", *found])


def describe(space: SearchSpace, row: Row) -> str:
    """The row's architecture as `name value, name value, ...`."""
    chosen = space.describe(jnp.asarray(row.arch))
    return ", ".join(f"{name} {value}" for name, value in chosen.items())


def status(run: Run) -> str:
    """Whether the run is finished, or how far it has come."""
    budget = Budget(**run.config["budget"])
    arms = [run.rows(arm.name) for arm in run.arms()]
    done = [budget.fraction(len(rows), rows[-1].seconds if rows else 0.0) for rows in arms]
    return "finished" if min(done) >= 1.0 else f"{sum(done) / len(done):.0%} done"


def runs(folder: Path) -> str:
    """A table of the runs in a folder; a damaged one says what is wrong with it.

    Raises:
      ValueError: if there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    lines = [("run", "status", "evaluations", "best fitness", "created")]
    for path in sorted(p for p in folder.iterdir() if (p / "config.json").is_file()):
        try:
            run = open_run(path)
            rows = run.rows()
            best = best_row(rows)
            fitness = "-" if best is None else f"{best.fitness:.4f}"
            lines.append((path.name, status(run), f"{len(rows)}", fitness, run.config["created"]))
        except (ValueError, RunError) as error:
            lines.append((path.name, str(error), "", "", ""))
    return table(lines)


def _mean_and_sd(values: list[float]) -> str:
    if not values:
        return "none succeeded"
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def timing(run: Run, num_devices: int) -> dict[str, float]:
    """Seconds that a run spent on compiling and on training, over all arms.

    Args:
      run: a run whose evaluator was `train_from_scratch`.
      num_devices: devices that trained side by side.

    Returns:
      `compile_seconds` and `run_seconds`.
    """
    rows = run.rows()

    def total(name: str) -> float:
        return sum(row.metrics.get(name, 0.0) for row in rows)

    return {
        "compile_seconds": total("compile_seconds"),
        "run_seconds": total("train_seconds") / num_devices,
    }
