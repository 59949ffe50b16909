"""The section on one-shot methods: how strong operations became, and the cell derived from it."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnas.report.architectures import values
from jaxnas.report.axes import Frame, Scale, Series, looks, padded, svg
from jaxnas.report.blocks import figure, note, section
from jaxnas.report.markup import Markup, element, number
from jaxnas.report.summary import Summary

PREFIX = "strengths/"  # of the results' names; an arm's name follows
MAX_ROWS = 28  # panels of one arm

_EDGE = re.compile(r"(.*?)(\d+)<-(\d+)")


def strengths(summary: Summary) -> Markup | None:
    """Strength of every operation over the search, for the first seed of each method."""
    shown: dict[str, dict[str, Any]] = {}
    for arm in summary.config.get("arms", ()):
        found = summary.results.get(PREFIX + arm["name"])
        if found is not None:
            shown.setdefault(arm["strategy"], {"arm": arm["name"], **found})
    if not shown:
        return None
    drawn = [_method(summary, name, found) for name, found in shown.items()]
    return section(
        "Strength of operations",
        note(
            "How strong the operations of each mixed operation were after every epoch, on one "
            "scale per method; the architecture is derived from the strongest. One seed each."
        ),
        *drawn,
    )


def _method(summary: Summary, name: str, found: dict[str, Any]) -> Markup:
    history = np.asarray(found["strengths"], float)
    names: list[str] = list(dict.fromkeys(op for row in found["operations"] for op in row))
    series = looks(names, None)
    legend = [element("li", series[op].swatch, op) for op in names]
    kept = [history[:, r, : len(row)] for r, row in enumerate(found["operations"])]
    limits = padded(min(map(np.min, kept)), max(map(np.max, kept)))
    panels = [
        figure(row, _panel(history[:, index], operations, series, row, limits))
        for index, (row, operations) in enumerate(
            zip(found["rows"], found["operations"], strict=True)
        )
    ][:MAX_ROWS]
    last = [row for row in summary.rows if row.arm == found["arm"]][-1:]
    cells = [cell(summary, row.arch) for row in last]
    return element(
        "div",
        element("h3", f"{name}, arm {found['arm']}"),
        element("ul", legend, class_="legend"),
        [drawing for drawing in cells if drawing is not None],
        element("div", panels, class_="grid-3"),
    )


def _panel(
    history: np.ndarray,
    operations: Sequence[str],
    series: dict[str, Series],
    row: str,
    limits: tuple[float, float],
) -> Markup:
    """f64[epochs, K] as one line per operation."""
    epochs = len(history)
    frame = Frame(320, 190, Scale(0.0, epochs * 1.02, 44, 314), Scale(*limits, 146, 24), 146)
    body = frame.axes("epochs", "strength", whole_x=True)
    x = [frame.x(float(epoch)) for epoch in range(1, epochs + 1)]
    ends = []
    for index, operation in enumerate(operations):
        look, line = series[operation], history[:, index]
        y = [frame.y(float(value)) for value in line]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
        kind = f"line {look.colour}"
        body.append(element("path", d=path, class_=kind, stroke_dasharray=look.dash))
        body.append(element("circle", cx=x[-1], cy=y[-1], r=2.5, class_=f"fill {look.colour}"))
        ends.append(f"{operation} {number(float(line[-1]))}")
    title = f"Strengths of the operations of {row}"
    return svg(frame.width, frame.height, title, "; ".join(ends), body)


def cell(summary: Summary, arch: Sequence[int]) -> Markup | None:
    """The graph of an architecture whose decisions are operations on edges; None for others."""
    edges = []
    for decision, value in zip(summary.space, values(summary.space, arch), strict=True):
        found = _EDGE.fullmatch(decision.name)
        if found is None:
            return None
        edges.append((int(found[3]), int(found[2]), value))
    nodes = sorted({node for source, target, _ in edges for node in (source, target)})
    place = {node: 40.0 + 170.0 * index for index, node in enumerate(nodes)}
    width, middle = int(place[nodes[-1]] + 40), 130.0
    body: list[Markup] = []
    for source, target, operation in edges:
        if operation != "none":
            steps = nodes.index(target) - nodes.index(source)
            body += _arc(place[source], place[target], middle, steps, operation)
    for node in nodes:
        body.append(element("circle", cx=place[node], cy=middle, r=15, class_="node"))
        body.append(element("text", f"{node}", x=place[node], y=middle + 4, text_anchor="middle"))
    text = "; ".join(f"{source} to {target}: {name}" for source, target, name in edges)
    return figure("Derived cell", svg(width, 260, "Derived cell", text, body))


def _arc(start: float, end: float, middle: float, steps: int, operation: str) -> list[Markup]:
    """An arrow with its label; longer ones bend further, by turns above and below."""
    bend = {1: 0.0, 2: -95.0}.get(steps, 95.0 + 25.0 * (steps - 3))
    x = (start + end) / 2
    top = middle + 1.6 * bend
    path = f"M{start + 15:.1f} {middle:.1f}Q{x:.1f} {top:.1f} {end - 17:.1f} {middle:.1f}"
    label_y = middle + 0.8 * bend - 6.0
    return [
        element("path", d=path, class_="edge"),
        element("path", d=f"M{end - 15:.1f} {middle:.1f}l-9 -4v8Z", class_="tip"),
        element("text", operation, x=x, y=label_y, text_anchor="middle"),
    ]
