"""The report's figures as inline SVG; colours and fonts come from the page's style sheet."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxnas.report.analysis import Curve, Trace
from jaxnas.report.axes import Frame, Scale, Series, fences, labelled_ticks, padded, points, svg
from jaxnas.report.importance import ChoiceStats
from jaxnas.report.markup import Markup, count, element, number

MAX_DOTS = 3000  # of one panel
UNITS = ((7200.0, 3600.0, "hours"), (300.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def trajectory(
    curves: Sequence[Curve],
    looks: Mapping[str, Series],
    axis: str,
    label: str = "best fitness so far",
) -> Markup:
    """What a search has found against what it has used, one line per strategy.

    The vertical axis covers what comes after the first tenth of the horizontal one, so that a
    poor start does not flatten the rest.

    Args:
      curves: at least one.
      looks: series by strategy.
      axis: "evaluations" or "seconds".
      label: what the curves show.
    """
    end = max(float(x[-1]) for curve in curves for x in (curve.x, *(t[0] for t in curve.tails)))
    divisor, unit = (
        next((size, name) for least, size, name in UNITS if end >= least)
        if axis == "seconds"
        else (1.0, axis)
    )
    frame = Frame(
        480,
        300,
        Scale(0.0, max(end, 1e-9) / divisor * 1.02, 64, 474),
        Scale(*_late_limits(curves, end / 10), 252, 24),
        252,
    )
    body = frame.axes(
        f"charged {unit}" if axis == "seconds" else unit,
        label,
        whole_x=axis == "evaluations",
    )
    for part in (_bands, _lines):
        body += [drawn for curve in curves for drawn in part(frame, curve, looks, divisor)]
    ends = "; ".join(
        f"{curve.strategy} reaches {number(float(curve.mean[-1]))} at "
        f"{number(float(curve.x[-1]))} {axis}"
        for curve in curves
    )
    return svg(frame.width, frame.height, f"{label.capitalize()} against {axis}", ends, body)


def _late_limits(curves: Sequence[Curve], start: float) -> tuple[float, float]:
    lows, highs = [], []
    for curve in curves:
        late = max(np.searchsorted(curve.x, start, side="right") - 1, 0)
        lows.append(float(min(curve.low[late], curve.mean[late])))
        highs.append(float(max(curve.high.max(), *(y[-1] for _, y in curve.tails), -np.inf)))
    return padded(min(lows), max(highs))


def _bands(frame: Frame, curve: Curve, looks: Mapping[str, Series], divisor: float) -> list[Markup]:
    if curve.num_seeds < 2:
        return []
    x = [frame.x(value / divisor) for value in curve.x]
    there = points(x, [frame.y(value) for value in curve.high])
    # Back along the lower edge: the same staircase, walked from its end.
    low = [frame.y(value) for value in curve.low]
    back = "".join(
        f"L{x[i]:.1f} {low[i]:.1f}V{low[i - 1]:.1f}" if i else f"L{x[i]:.1f} {low[i]:.1f}"
        for i in range(len(x) - 1, -1, -1)
    )
    return [element("path", d=f"{there}{back}Z", class_=f"band {looks[curve.strategy].colour}")]


def _lines(frame: Frame, curve: Curve, looks: Mapping[str, Series], divisor: float) -> list[Markup]:
    look = looks[curve.strategy]
    found = []
    for x, y in (*curve.tails, (curve.x, curve.mean)):
        path = points([frame.x(v / divisor) for v in x], [frame.y(v) for v in y])
        tail = "" if y is curve.mean else " tail"
        found.append(
            element("path", d=path, class_=f"line {look.colour}{tail}", stroke_dasharray=look.dash)
        )
    if len(curve.x) == 1:  # a path of one point would be invisible
        x, y = frame.x(float(curve.x[0]) / divisor), frame.y(float(curve.mean[0]))
        found.append(element("circle", cx=x, cy=y, r=3, class_=f"fill {look.colour}"))
    return found


def dots(searches: Sequence[Trace], look: Series, limits: tuple[float, float], end: int) -> Markup:
    """Fitness of every evaluation of one strategy; failures and far outliers on the floor.

    Args:
      searches: of one strategy, all seeds.
      look: its series.
      limits: of fitness, shared with the other strategies' panels.
      end: evaluations of the longest search of all strategies.
    """
    # Below the scale's end there is a lane for far outliers and one for failures.
    frame = Frame(360, 240, Scale(0.0, end * 1.02, 62, 354), Scale(*padded(*limits), 164, 24), 188)
    x = np.concatenate([trace.along("evaluations") for trace in searches])
    fitness = np.concatenate([trace.fitness for trace in searches])
    keep = np.linspace(0, len(x) - 1, min(len(x), MAX_DOTS)).round().astype(int)
    shown, below, failed = [], [], []
    for position, value in zip(x[keep], fitness[keep], strict=True):
        left = frame.x(float(position))
        if np.isnan(value):
            failed.append(f"M{left - 3:.1f} 178l6 6m0 -6l-6 6")
        elif value < limits[0]:
            below.append(f"M{left - 3:.1f} 167h6l-3 6Z")
        else:
            shown.append(f"M{left:.1f} {frame.y(float(value)):.1f}h0")
    body = frame.axes("evaluations", "fitness", whole_x=True)
    for paths, kind in ((shown, "dots"), (below, "fill"), (failed, "cross")):
        if paths:
            body.append(element("path", d="".join(paths), class_=f"{kind} {look.colour}"))
    num_failed = int(np.isnan(fitness).sum())
    description = f"{count(len(x), 'evaluation')}, {number(num_failed)} failed"
    return svg(
        frame.width, frame.height, f"Fitness of every evaluation, {look.name}", description, body
    )


def choices(stats: ChoiceStats, limits: tuple[float, float]) -> Markup:
    """Mean fitness and 95% interval by choice, one line per choice.

    Args:
      stats: of one decision.
      limits: of fitness, shared with the other decisions' panels.
    """
    row, left, right = 22, 104, 296
    height = row * len(stats.labels) + 26
    scale = Scale(*limits, left, right)
    body = []
    for x, label in labelled_ticks(scale, 4):
        body += [
            element("line", x1=x, y1=2, x2=x, y2=height - 22, class_="grid"),
            element("text", label, x=x, y=height - 6, text_anchor="middle"),
        ]
    for index, label in enumerate(stats.labels):
        y = row * index + row / 2 + 2
        body += [
            _clipped(label, left - 8.0, y + 4, 14),
            element("text", f"n={stats.count[index]:,}", x=354, y=y + 4, text_anchor="end"),
            *_mean_mark(stats, index, scale, y),
        ]
    means = "; ".join(
        f"{label}: {number(float(mean))} over {n:,}"
        for label, mean, n in zip(stats.labels, stats.mean, stats.count, strict=True)
        if n
    )
    return svg(360, height, f"Mean fitness by choice of {stats.title}", means, body)


def _clipped(label: str, x: float, y: float, room: int) -> Markup:
    short = label if len(label) <= room else label[: room - 1] + "\u2026"
    return element("text", element("title", label), short, x=x, y=y, text_anchor="end")


def _mean_mark(stats: ChoiceStats, index: int, scale: Scale, y: float) -> list[Markup]:
    if not stats.count[index]:
        return []
    mean, low, high = (float(part[index]) for part in (stats.mean, stats.low, stats.high))
    interval = "" if np.isnan(low) else f" ({number(low)} to {number(high)})"
    hint = element("title", f"{stats.labels[index]}: {number(mean)}{interval}")
    marks = [element("circle", hint, cx=scale(mean), cy=y, r=4, class_="fill c0")]
    if interval:
        x1, x2 = scale(low), scale(high)
        marks.insert(0, element("line", x1=x1, y1=y, x2=x2, y2=y, class_="line c0"))
    return marks


def shares(stats: Sequence[ChoiceStats]) -> Markup:
    """Share of the variance of fitness that each decision explains by itself, as bars.

    Args:
      stats: at least one, with finite `share`.
    """
    row, left, right = 22, 130, 304
    height = row * len(stats) + 4
    scale = Scale(0.0, max(max(entry.share for entry in stats), 1e-6), left, right)
    body = []
    for index, entry in enumerate(stats):
        y = row * index + 2
        size = max(scale(entry.share) - left, 1.0)
        body += [
            _clipped(entry.title, left - 8.0, y + 15, 16),
            element("rect", x=left, y=y + 4, width=size, height=14, class_="fill c0"),
            element("text", f"{entry.share:.1%}", x=left + size + 6, y=y + 15),
        ]
    told = "; ".join(f"{entry.title}: {entry.share:.1%}" for entry in stats)
    return svg(360, height, "Variance of fitness explained by each decision", told, body)


def fitness_limits(searches: Sequence[Trace]) -> tuple[float, float] | None:
    """Common limits of fitness without far outliers; None where every candidate failed."""
    fitness = np.concatenate([trace.fitness for trace in searches] or [np.zeros(0)])
    fitness = fitness[~np.isnan(fitness)]
    return fences(fitness) if fitness.size else None


def choice_limits(stats: Sequence[ChoiceStats], within: tuple[float, float]) -> tuple[float, float]:
    """Common limits of means and intervals, no wider than the fitness that is shown at all."""
    ends = np.concatenate([part for entry in stats for part in (entry.mean, entry.low, entry.high)])
    ends = np.clip(ends[~np.isnan(ends)], *within)
    return padded(float(ends.min()), float(ends.max()))
