"""The section on how well cheap numbers rank what was measured: proxies, size, work."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxnas import analysis
from jaxnas.proxies.recording import PREFIX
from jaxnas.report.architectures import arch_table
from jaxnas.report.bars import bar
from jaxnas.report.blocks import note, section, table
from jaxnas.report.markup import DASH, Markup, number
from jaxnas.report.summary import Summary
from jaxnas.store import Row

SIZES = ("parameters", "params", "flops")  # metrics that are known without training
MIN_COUNT = 4  # architectures; with fewer there is no interval


class RankCorrelation(NamedTuple):
    """How a metric ranks architectures against their fitness."""

    name: str
    count: int  # architectures
    value: float  # Spearman's
    low: float  # 95% interval; NaN where there is none
    high: float


def section_of(summary: Summary) -> Markup | None:
    """Rank correlations of proxies and sizes with fitness; None where nothing of it is recorded."""
    found = rank_correlations(summary)
    if not found:
        return None
    rows = []
    for each in found:
        known = not math.isnan(each.low)
        ends = (each.low, each.high) if known else None
        rows.append(
            (
                each.name.removeprefix(PREFIX),
                f"{each.count:,}",
                number(each.value, signed=True),
                f"{number(each.low, signed=True)} to {number(each.high, signed=True)}"
                if known
                else DASH,
                bar(each.value, (-1.0, 1.0), ends),
            )
        )
    return section(
        "Rank correlation with fitness",
        note(
            "How well numbers that need no training rank the architectures of this run: Spearman's "
            "correlation with their fitness, the mean over all times an architecture was evaluated "
            "with its largest budget. The strategies picked these architectures, and liked good "
            "ones, so that a correlation over the whole space may be another, mostly a higher one. "
            "Architectures without a score, such as those without a path from input to output, are "
            "left out of its line."
        ),
        table(
            "Spearman's rank correlation of scores with fitness, with approximate 95% intervals "
            "(Bonett & Wright 2000)",
            ("score", "architectures", "correlation", "95% interval", f"{number(-1)} to 1"),
            rows,
            numeric=(1, 2, 3),
        ),
    )


def rank_correlations(summary: Summary) -> list[RankCorrelation]:
    """The correlation of every recorded score that varies, the highest first."""
    groups: dict[tuple[int, ...], list[Row]] = {}
    archs = arch_table(summary.space, summary.rows).tolist()
    for arch, row in zip(archs, summary.rows, strict=True):
        if math.isfinite(row.fitness):
            groups.setdefault(tuple(arch), []).append(row)
    names = dict.fromkeys(name for row in summary.rows for name in row.metrics)
    sizes = [name for name in SIZES if name in names and PREFIX + name not in names]
    found = []
    for name in names:
        if name.startswith(PREFIX) or name in sizes:
            pairs = (_pair(rows, name) for rows in groups.values())
            known = [pair for pair in pairs if all(map(math.isfinite, pair))]
            correlation = _correlate(name, known)
            if correlation is not None:
                found.append(correlation)
    return sorted(found, key=lambda each: -each.value)


def _pair(rows: list[Row], name: str) -> tuple[float, float]:
    """A score of one architecture, and its mean fitness with the largest budget."""
    largest = max(row.budget for row in rows)
    full = [row for row in rows if row.budget == largest]
    return full[0].metrics.get(name, math.nan), float(np.mean([row.fitness for row in full]))


def _correlate(name: str, pairs: list[tuple[float, float]]) -> RankCorrelation | None:
    if len(pairs) < MIN_COUNT:
        return None
    scores, fitness = np.array(pairs, np.float32).T
    if min(np.ptp(scores), np.ptp(fitness)) == 0.0:
        return None
    value = float(analysis.spearman(jnp.asarray(scores), jnp.asarray(fitness)))
    return RankCorrelation(name, len(pairs), value, *spearman_interval(value, len(pairs)))


def spearman_interval(value: float, count: int) -> tuple[float, float]:
    """95% interval of Spearman's correlation by Fisher's transformation.

    Bonett & Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations", Psychometrika 2000, https://doi.org/10.1007/BF02294183: the variance of the
    transformed correlation is (1 + r^2 / 2) / (n - 3).

    Args:
      value: r, the correlation.
      count: n, pairs that it is over.

    Returns:
      Lower and upper end; NaN for fewer than four pairs or a perfect correlation.

    Example:
      >>> [round(end, 2) for end in spearman_interval(0.7, 28)]
      [0.41, 0.86]
    """
    if count < MIN_COUNT or abs(value) > 1.0 - 1e-6:
        return math.nan, math.nan
    half = stats.norm.ppf(0.975) * math.sqrt((1.0 + value**2 / 2.0) / (count - 3))
    centre = math.atanh(value)
    return math.tanh(centre - half), math.tanh(centre + half)
