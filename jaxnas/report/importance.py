"""What mattered: fitness by choice, per decision and over decisions that share their choices."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxnas.report.analysis import fitness_of, t_interval
from jaxnas.report.architectures import Decision, arch_table, is_active
from jaxnas.store import Row

MAX_NAMES = 3  # decisions that the title of a shared panel spells out


class ChoiceStats(NamedTuple):
    """Fitness by the choice of one decision, over the evaluations in which it is active."""

    title: str
    labels: tuple[str, ...]
    count: np.ndarray  # i64[K], evaluations that did not fail
    mean: np.ndarray  # f64[K], NaN where there are none
    low: np.ndarray  # f64[K], 95% interval; NaN where there are fewer than two
    high: np.ndarray  # f64[K]
    share: float  # of the variance of fitness that the choice explains, in [0, 1]; NaN if unknown


def choice_stats(
    space: Sequence[Decision], rows: Sequence[Row], lowest: float = -np.inf
) -> list[ChoiceStats]:
    """Fitness by choice for every decision that varies, the one that explains most first.

    Args:
      space: the decisions.
      rows: the evaluations of all strategies.
      lowest: what is worse counts as this much, so that one far outlier does not decide a mean.

    Returns:
      One entry per decision of which at least two choices were evaluated without failing.
    """
    arch, active, fitness = _table(space, rows, lowest)
    found = []
    for position, decision in enumerate(space):
        on = active[:, position]
        num = max(len(decision.choices), 1 + int(arch[on, position].max(initial=0)))
        labels = tuple(decision.label(choice) for choice in range(num))
        stats = _summarise(decision.name, labels, arch[on, position], fitness[on])
        if np.count_nonzero(stats.count) > 1:
            found.append(stats)
    return sorted(found, key=lambda stats: -np.nan_to_num(stats.share, nan=-1.0))


def shared_stats(
    space: Sequence[Decision], rows: Sequence[Row], lowest: float = -np.inf
) -> list[ChoiceStats]:
    """Fitness by choice over all decisions with the same choices: the operations of a cell.

    An evaluation counts once for every such decision; the intervals treat these as independent
    and are therefore somewhat too narrow.

    Args:
      space: the decisions.
      rows: the evaluations of all strategies.
      lowest: as for `choice_stats`.

    Returns:
      One entry per set of choices that at least two decisions share, without `share`.
    """
    arch, active, fitness = _table(space, rows, lowest)
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, decision in enumerate(space):
        if len(decision.choices) > 1:
            groups.setdefault(decision.choices, []).append(position)
    found = []
    for labels, positions in groups.items():
        if len(positions) > 1:
            on = active[:, positions]
            repeated = np.repeat(fitness[:, None], len(positions), axis=1)
            stats = _summarise(
                _joined([space[p].name for p in positions]),
                labels,
                arch[:, positions][on],
                repeated[on],
            )
            if np.count_nonzero(stats.count) > 1:
                found.append(stats._replace(share=np.nan))
    return found


def _joined(names: Sequence[str]) -> str:
    if len(names) <= MAX_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: MAX_NAMES - 1])} and {len(names) - MAX_NAMES + 1} more"


def _table(
    space: Sequence[Decision], rows: Sequence[Row], lowest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The evaluations that did not fail: arch i64[N, D], active bool[N, D], fitness f64[N]."""
    fitness = fitness_of(rows)
    fine = ~np.isnan(fitness)
    arch = arch_table(space, rows)[fine]
    return arch, is_active(space, arch), np.maximum(fitness[fine], lowest)


def _summarise(
    title: str, labels: tuple[str, ...], choice: np.ndarray, fitness: np.ndarray
) -> ChoiceStats:
    count = np.bincount(choice, minlength=len(labels))
    mean, low, high = (np.full(len(labels), np.nan) for _ in range(3))
    for index in np.flatnonzero(count):
        samples = fitness[choice == index]
        mean[index] = samples.mean()
        if len(samples) > 1:
            low[index], high[index] = t_interval(samples)
    return ChoiceStats(title, labels, count, mean, low, high, _explained(choice, fitness))


def _explained(choice: np.ndarray, fitness: np.ndarray) -> float:
    """Epsilon squared: the variance between choices, less what chance alone would put there.

    Kelley, "An Unbiased Correlation Ratio Measure", PNAS 1935, https://doi.org/10.1073/pnas.21.9.554

    Returns:
      In [0, 1]; NaN where the fitness does not vary or every choice was seen once.
    """
    _, group = np.unique(choice, return_inverse=True)
    num_groups = int(group.max(initial=0)) + 1
    if len(fitness) <= num_groups or np.ptp(fitness) == 0:
        return np.nan
    total = float(np.square(fitness - fitness.mean()).sum())
    sums = np.bincount(group, fitness)
    means = sums / np.bincount(group)
    within = float(np.square(fitness - means[group]).sum())
    unexplained = within / (len(fitness) - num_groups) * (len(fitness) - 1)
    return float(np.clip(1.0 - unexplained / total, 0.0, 1.0))
