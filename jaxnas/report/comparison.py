"""The page of a comparison of strategies on a table."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxnas.analysis import average_ranks
from jaxnas.compare import Comparison, Searches, interval, ranked
from jaxnas.report import figures
from jaxnas.report.analysis import MIN_SEEDS_T, Curve, t_interval, thinned, welch_half_width
from jaxnas.report.axes import Series, looks
from jaxnas.report.blocks import exact, figure, note, section, settings, table
from jaxnas.report.files import write_page
from jaxnas.report.markup import DASH, Markup, duration, element, number
from jaxnas.report.page import document
from jaxnas.report.summary import RANDOM

NUM_TIMES = 300  # points of a curve over seconds


def write(comparison: Comparison, path: str | os.PathLike) -> Path:
    """Writes the page; it appears whole or not at all.

    Raises:
      OSError: if it cannot be written there.
    """
    return write_page(Path(path), render(comparison))


def render(comparison: Comparison) -> str:
    """The comparison as one self-contained HTML page: anytime curves, final table, settings."""
    title = f"Strategies on {comparison.table}"
    baseline = RANDOM if RANDOM in comparison.searches else None
    series = looks(list(comparison.searches), baseline)
    parts = [_curves(comparison, series), _results(comparison, baseline), _settings(comparison)]
    header = element(
        "header",
        element("p", "jaxnas comparison", class_="eyebrow"),
        element("h1", title),
        element("p", " ".join(_verdict(comparison, baseline)), class_="verdict"),
    )
    return document(title, header, element("main", parts))


def _verdict(comparison: Comparison, baseline: str | None) -> list[str]:
    (name, best), *_ = ranked(comparison)
    num_seeds, total = best.score.shape
    low, high = interval(best.score[:, -1])
    sentences = [
        f"After {total:,} evaluations {name} has the best mean {comparison.score_name}, "
        f"{number(float(np.nanmean(best.score[:, -1])))} (95% interval {number(low)} to "
        f"{number(high)}, {num_seeds:,} seeds); the best in the table is "
        f"{number(comparison.optimum)}."
    ]
    others = [other for other in comparison.searches if other != baseline]
    if baseline is None or not others:
        return [*sentences, "Without random search beside it, no gain can be stated."]
    better = [other for other in others if _gain(comparison, other, baseline)[1] > 0]
    sentences.append(
        f"{len(better)} of {len(others)} strategies end above {baseline} with a 95% interval "
        "that leaves out zero."
    )
    return sentences


def _gain(comparison: Comparison, name: str, baseline: str) -> tuple[float, float, float]:
    """Mean final score above the baseline's, with the ends of Welch's 95% interval."""
    ours, theirs = (
        side[~np.isnan(side)]
        for side in (comparison.searches[n].score[:, -1] for n in (name, baseline))
    )
    if not len(ours) or not len(theirs):
        return np.nan, np.nan, np.nan
    half = welch_half_width(ours, theirs)
    difference = float(ours.mean() - theirs.mean())
    return difference, difference - half, difference + half


def _curves(comparison: Comparison, series: dict[str, Series]) -> Markup | None:
    drawn = []
    for axis in ("evaluations", "seconds"):
        found = [_curve(name, s, axis) for name, s in comparison.searches.items()]
        curves = [curve for curve in found if curve is not None]
        if curves:
            label = f"{comparison.score_name} of the incumbent"
            title = f"Against {'simulated ' if axis == 'seconds' else ''}{axis}"
            drawn.append(figure(title, figures.trajectory(curves, series, axis, label)))
    enough = any(len(s.score) >= MIN_SEEDS_T for s in comparison.searches.values())
    return section(
        "Anytime performance",
        note(
            f"The incumbent is chosen by {comparison.metric}; lines are means over seeds.",
            "Bands are 95% t intervals."
            if enough
            else "Bands reach from the lowest to the highest seed.",
            "The vertical axis leaves out what the first tenth of the search improved.",
        ),
        element("ul", [element("li", s.swatch, s.name) for s in series.values()], class_="legend"),
        element("div", drawn, class_="grid-2"),
    )


def _curve(name: str, searches: Searches, axis: str) -> Curve | None:
    """Mean score over seeds from where every seed has one, along evaluations or seconds."""
    x, values = np.arange(1.0, searches.score.shape[1] + 1), searches.score.astype(np.float64)
    if axis == "seconds":
        x = np.linspace(0.0, float(searches.seconds[:, -1].min()), NUM_TIMES)
        padded = np.pad(values, ((0, 0), (1, 0)), constant_values=np.nan)
        pairs = zip(padded, searches.seconds, strict=True)
        values = np.stack([row[np.searchsorted(ends, x, side="right")] for row, ends in pairs])
    known = ~np.isnan(values).any(axis=0)
    if not known.any():
        return None
    first = int(known.argmax())
    keep = thinned(np.arange(first, len(x)))
    x, values = x[keep], values[:, keep]
    if len(values) >= MIN_SEEDS_T:
        low, high = t_interval(values)
    else:
        low, high = values.min(axis=0), values.max(axis=0)
    return Curve(name, x, values.mean(axis=0), low, high, len(values), ())


def _results(comparison: Comparison, baseline: str | None) -> Markup | None:
    final = np.stack([s.score[:, -1] for s in comparison.searches.values()])
    mean_ranks = np.asarray(average_ranks(jnp.asarray(final))).tolist()
    ranks = dict(zip(comparison.searches, mean_ranks, strict=True))
    others = [name for name in comparison.searches if name != baseline]
    gains = {} if baseline is None else {n: _gain(comparison, n, baseline) for n in others}
    rows = []
    for name, searches in ranked(comparison):
        score = searches.score[:, -1]
        low, high = interval(score)
        rows.append(
            (
                name,
                number(float(np.nanmean(score))),
                number(float(np.nanstd(score))),
                f"{number(low)} to {number(high)}",
                number(float(comparison.optimum - np.nanmean(score))),
                _gain_text(gains[name]) if name in gains else DASH,
                number(ranks[name]),
                duration(searches.compile_seconds),
                duration(searches.run_seconds / len(score)),
            )
        )
    header = ("strategy", "mean", "std", "95% interval", "regret", "above baseline", "mean rank")
    return section(
        "At the end",
        table(
            f"{comparison.score_name} of the incumbent at the end, over seeds (bootstrap interval "
            "of the mean; Welch's interval of the gain); compilation, and seconds per search",
            (*header, "compile", "each search"),
            rows,
            numeric=range(1, 9),
        ),
    )


def _gain_text(gain: Sequence[float]) -> str:
    mean, low, high = (number(value, signed=True) for value in gain)
    return f"{mean} ({low} to {high})"


def _settings(comparison: Comparison) -> Markup | None:
    told = {"table": comparison.table, "metric": comparison.metric, "score": comparison.score_name}
    shown = settings("What was run", {**told, **comparison.settings}, show=exact)
    return section("Configuration", shown)
