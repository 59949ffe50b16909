"""The section on several objectives: the front that was found, and its hypervolume on the way."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxnas.objectives.hypervolume import MAX_EXACT, hypervolume
from jaxnas.objectives.pareto import is_efficient, knee_point
from jaxnas.report.architectures import values
from jaxnas.report.axes import Frame, Scale, padded, svg
from jaxnas.report.blocks import figure, note, section, table
from jaxnas.report.markup import DASH, Markup, element, number
from jaxnas.report.sections import MILESTONES, legend
from jaxnas.report.summary import Summary
from jaxnas.store import Row

MAX_FRONT = 20  # architectures in the table
MAX_DOTS = 3000  # of one strategy


def front(summary: Summary) -> Markup | None:
    """The Pareto front of all evaluations; None where they have one objective."""
    rows = [row for row in summary.rows if all(map(math.isfinite, row.objectives))]
    sizes = {len(row.objectives) for row in rows}
    if len(sizes) != 1 or max(sizes) < 2:
        return None
    values_of = np.array([row.objectives for row in rows], np.float32)
    names = _names(summary, values_of.shape[1])
    efficient = np.asarray(is_efficient(jnp.asarray(values_of)))
    best = [row for row, on_front in zip(rows, efficient, strict=True) if on_front]
    drawn = []
    if len(names) == 2:
        title = f"{names[1]} against {names[0]}"
        drawn = [legend(summary), figure(title, _scatter(summary, rows, best, names))]
    return section(
        "Pareto front",
        note(
            "Every objective is shown as it is maximised, costs with a minus sign. An architecture "
            "is on the front if no other is at least as good in all objectives and better in one."
        ),
        *drawn,
        _architectures(summary, best, names),
        _volumes(summary, rows, values_of) if len(names) <= MAX_EXACT else None,
    )


def _names(summary: Summary, num_objectives: int) -> list[str]:
    """What the configuration calls the objectives, or their numbers."""
    named = summary.config.get("objectives")
    if isinstance(named, list) and len(named) == num_objectives:
        return [str(name) for name in named]
    return [f"objective {index}" for index in range(1, num_objectives + 1)]


def _scatter(
    summary: Summary, rows: Sequence[Row], best: Sequence[Row], names: Sequence[str]
) -> Markup:
    points = np.array([row.objectives for row in rows])
    x, y = (padded(float(c.min()), float(c.max())) for c in points.T)
    frame = Frame(720, 360, Scale(*x, 64, 712), Scale(*y, 312, 24), 312)
    body = frame.axes(names[0], names[1])
    for name, look in summary.looks.items():
        own = [row.objectives for row in rows if row.strategy == name]
        keep = np.linspace(0, len(own) - 1, min(len(own), MAX_DOTS)).round().astype(int)
        path = "".join(f"M{frame.x(own[i][0]):.1f} {frame.y(own[i][1]):.1f}h0" for i in keep)
        if path:
            body.append(element("path", d=path, class_=f"dots {look.colour}"))
    corners = sorted({row.objectives for row in best})
    steps = "".join(f"H{frame.x(a):.1f}V{frame.y(b):.1f}" for a, b in corners)
    start = f"M{frame.x(corners[0][0]):.1f} {frame.y(corners[0][1]):.1f}"
    body.append(element("path", d=start + steps, class_="edge"))
    text = f"The front has {len(corners)} points"
    return svg(frame.width, frame.height, f"{names[1]} against {names[0]}", text, body)


def _architectures(summary: Summary, best: Sequence[Row], names: Sequence[str]) -> Markup:
    distinct = {row.objectives: row for row in reversed(best)}
    ordered = sorted(distinct.values(), key=lambda row: [-value for value in row.objectives])
    knee = int(knee_point(jnp.asarray([row.objectives for row in ordered], jnp.float32)))
    shown = [
        (
            ", ".join(v for v in values(summary.space, row.arch) if v != DASH),
            *map(number, row.objectives),
            row.strategy + (" (knee)" if index == knee else ""),
        )
        for index, row in enumerate(ordered)
    ]
    left = len(shown) - MAX_FRONT
    return table(
        "Architectures on the front, the best in the first objective first; the knee is the "
        "farthest from the straight line between the front's ends."
        + (f" {left} more are left out." if left > 0 else ""),
        ["architecture", *names, "found by"],
        shown[:MAX_FRONT],
        numeric=range(1, 1 + len(names)),
        wide=[0],
    )


def _volumes(summary: Summary, rows: Sequence[Row], every: np.ndarray) -> Markup:
    """Hypervolume of each arm's evaluations so far, as a share of that of all together."""
    reference = jnp.asarray(every.min(axis=0))
    whole = float(hypervolume(jnp.asarray(every), reference))
    longest = max(len([r for r in summary.rows if r.arm == row.arm]) for row in rows)
    marks = sorted({math.ceil(share * longest) for share in MILESTONES})
    lines = []
    for name in summary.groups:
        arms = dict.fromkeys(row.arm for row in summary.rows if row.strategy == name)
        found = [[_volume(summary, arm, mark, reference) for mark in marks] for arm in arms]
        shares = np.mean(found, axis=0) / whole if whole > 0 else np.full(len(marks), np.nan)
        lines.append((name, f"{len(arms)}", *map(number, shares)))
    return table(
        "Hypervolume after a number of evaluations, mean over seeds, as a share of that of all "
        "evaluations together, above the worst value of each objective.",
        ["strategy", "seeds", *(f"{mark:,}" for mark in marks)],
        lines,
        numeric=range(1, 2 + len(marks)),
    )


def _volume(summary: Summary, arm: str, mark: int, reference) -> float:
    members = [row for row in summary.rows if row.arm == arm][:mark]
    return float(hypervolume(jnp.asarray([row.objectives for row in members]), reference))
