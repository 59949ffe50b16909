"""Bars for the cells of a table, each beside the number that it shows."""

from jaxnas.report.axes import Scale
from jaxnas.report.markup import Markup, element

WIDTH, HEIGHT = 150, 14


def bar(
    value: float, limits: tuple[float, float], interval: tuple[float, float] | None = None
) -> Markup:
    """A bar from zero to `value`, hidden from screen readers, for its number is beside it.

    Args:
      value: finite.
      limits: of the scale, shared by the bars of a table; zero lies within.
      interval: drawn as a line across the end of the bar; None: nothing.
    """
    scale = Scale(*limits, 1.0, WIDTH - 1.0)
    zero, end = scale(0.0), scale(value)
    size = max(abs(end - zero), 1.0)
    left = min(zero, end, WIDTH - 1.0 - size)
    body = [
        element("rect", x=left, y=2, width=size, height=10, class_="fill c0"),
        element("line", x1=zero, y1=0, x2=zero, y2=HEIGHT, class_="axis"),
    ]
    if interval is not None:
        low, high = map(scale, interval)
        body.append(element("line", x1=low, y1=7, x2=high, y2=7, class_="whisker"))
    return element("svg", body, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="bar", aria_hidden="true")
