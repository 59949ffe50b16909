"""The numbers behind the report, from the rows of a journal. Plain NumPy, no HTML.

A fitness that is not finite is a failed candidate here: it takes part in no mean and no maximum,
and is counted on its own.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from jaxnas.store import Row

MIN_SEEDS_T = 5  # fewer seeds than this get a band from the lowest to the highest
MAX_POINTS = 400  # of one curve; more cannot be seen


class Trace(NamedTuple):
    """One search, evaluation by evaluation, in the order of the journal."""

    strategy: str
    seed: int
    fitness: np.ndarray  # f64[N], NaN where the candidate failed
    incumbent: np.ndarray  # f64[N], best so far, NaN before the first success
    seconds: np.ndarray  # f64[N], charged so far

    def along(self, axis: str) -> np.ndarray:
        """What the search had used after each evaluation, f64[N]: "evaluations" or "seconds"."""
        return self.seconds if axis == "seconds" else np.arange(1.0, len(self.fitness) + 1)

    def best_at(self, axis: str, used: np.ndarray | float) -> np.ndarray:
        """The incumbent's fitness after `used` evaluations or seconds; NaN before the first."""
        last = np.searchsorted(self.along(axis), used, side="right")
        return np.concatenate([[np.nan], self.incumbent])[last]


class Curve(NamedTuple):
    """Mean incumbent of one strategy over its seeds, as far as every seed has come."""

    strategy: str
    x: np.ndarray  # f64[P], where some seed improved, ascending
    mean: np.ndarray  # f64[P]
    low: np.ndarray  # f64[P], lower edge of the band
    high: np.ndarray  # f64[P]
    num_seeds: int
    tails: tuple[tuple[np.ndarray, np.ndarray], ...]  # (x, incumbent) of the seeds beyond the mean


class Gain(NamedTuple):
    """A strategy against the baseline, both cut at the same evaluations or seconds."""

    strategy: str
    axis: str
    used: float  # evaluations or seconds of each search
    mean: float  # of the incumbents, over seeds
    baseline: float
    low: float  # 95% interval of mean - baseline; NaN where either side has one seed
    high: float
    num_seeds: tuple[int, int]  # of the strategy, of the baseline

    @property
    def difference(self) -> float:
        """Mean fitness above the baseline."""
        return self.mean - self.baseline


def fitness_of(rows: Iterable[Row]) -> np.ndarray:
    """Fitness f64[N] with NaN for every failure, infinite ones included."""
    fitness = np.array([row.fitness for row in rows], np.float64)
    return np.where(np.isfinite(fitness), fitness, np.nan)


def traces(rows: Sequence[Row]) -> list[Trace]:
    """The searches in a journal: one per arm, strategy and seed, in order of appearance."""
    searches: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        searches.setdefault((row.arm, row.strategy, row.seed), []).append(row)
    found = []
    for (_, strategy, seed), members in searches.items():
        members = sorted(members, key=lambda row: (row.step, row.slot))
        fitness = fitness_of(members)
        best = np.maximum.accumulate(np.where(np.isnan(fitness), -np.inf, fitness))
        cost = np.array([row.cost for row in members], np.float64)
        seconds = np.cumsum(np.where(np.isfinite(cost), cost, 0.0))
        found.append(
            Trace(strategy, seed, fitness, np.where(np.isinf(best), np.nan, best), seconds)
        )
    return found


def by_strategy(searches: Iterable[Trace]) -> dict[str, list[Trace]]:
    """Searches grouped by strategy, in order of appearance."""
    groups: dict[str, list[Trace]] = {}
    for trace in searches:
        groups.setdefault(trace.strategy, []).append(trace)
    return groups


def t_interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's 95% interval of the mean along the first axis, of at least two samples."""
    num = samples.shape[0]
    half = stdtrit(num - 1, 0.975) * samples.std(axis=0, ddof=1) / np.sqrt(num)
    mean = samples.mean(axis=0)
    return mean - half, mean + half


def curve(searches: Sequence[Trace], axis: str) -> Curve | None:
    """The mean incumbent of one strategy's searches; None before each has had a success.

    The band is a 95% t interval from `MIN_SEEDS_T` seeds on and the range of the seeds below.

    Args:
      searches: of one strategy, at least one.
      axis: "evaluations" or "seconds".
    """
    xs = [trace.along(axis) for trace in searches]
    if any(np.isnan(trace.incumbent[-1]) for trace in searches):
        return None
    first = max(x[np.isfinite(t.incumbent)][0] for x, t in zip(xs, searches, strict=True))
    last = min(x[-1] for x in xs)
    if first > last:
        return None
    steps = [x[_improves(t.incumbent)] for x, t in zip(xs, searches, strict=True)]
    grid = np.unique(np.concatenate([[first, last], *steps]))
    grid = thinned(grid[(grid >= first) & (grid <= last)])
    values = np.stack([trace.best_at(axis, grid) for trace in searches])
    enough = len(searches) >= MIN_SEEDS_T
    low, high = t_interval(values) if enough else (values.min(axis=0), values.max(axis=0))
    beyond = [thinned(np.concatenate([[last], x[x > last]])) for x in xs]
    tails = tuple(
        (x, trace.best_at(axis, x)) for x, trace in zip(beyond, searches, strict=True) if len(x) > 1
    )
    mean = values.mean(axis=0)
    return Curve(searches[0].strategy, grid, mean, low, high, len(searches), tails)


def _improves(incumbent: np.ndarray) -> np.ndarray:
    return np.concatenate([[True], incumbent[1:] != incumbent[:-1]])


def thinned(x: np.ndarray) -> np.ndarray:
    """At most `MAX_POINTS` of `x`, its first and last among them."""
    keep = np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int)
    return x[keep]


def gain(searches: Sequence[Trace], baseline: Sequence[Trace], axis: str) -> Gain | None:
    """How far one strategy is above the baseline where the shorter of all searches ends.

    The interval is Welch's: the two sides need not have the same spread or number of seeds.

    Args:
      searches: of one strategy.
      baseline: of the baseline.
      axis: "evaluations" or "seconds", what is to be equal.

    Returns:
      The comparison; None where a side has no search or some search no success by then.
    """
    if not searches or not baseline:
        return None
    used = float(min(trace.along(axis)[-1] for trace in (*searches, *baseline)))
    ours, theirs = (
        np.array([float(trace.best_at(axis, used)) for trace in side])
        for side in (searches, baseline)
    )
    if np.isnan(ours).any() or np.isnan(theirs).any():
        return None
    half = welch_half_width(ours, theirs)
    difference = ours.mean() - theirs.mean()
    low, high = float(difference - half), float(difference + half)
    means = float(ours.mean()), float(theirs.mean())
    num_seeds = len(searches), len(baseline)
    return Gain(searches[0].strategy, axis, used, *means, low, high, num_seeds)


def welch_half_width(a: np.ndarray, b: np.ndarray) -> float:
    """Half of Welch's 95% interval of the difference of two means; NaN for a lone sample."""
    if len(a) < 2 or len(b) < 2:
        return np.nan
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    variance = sum(parts)
    if variance == 0:
        return 0.0
    freedom = variance**2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    return float(stdtrit(freedom, 0.975) * np.sqrt(variance))
