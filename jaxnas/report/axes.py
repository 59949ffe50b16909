"""The parts that every figure shares: scales, ticks, frames and the look of a series."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxnas.report.markup import MINUS, Child, Markup, element

# Chosen to differ in every pair: seven colours (style.py) times six patterns is 42 looks.
DASHES = (None, "8 3", "4 2", "9 3 2 3", "14 4", "5 2 1 2 1 2")
BASELINE_DASH = "2 2"
NUM_COLOURS = 7
LETTER_WIDTH = 7.0  # of a tick label's digit, in pixels


class Series(NamedTuple):
    """How one strategy looks in every figure."""

    name: str
    colour: str  # CSS class that sets the colour
    dash: str | None  # SVG dash pattern

    @property
    def swatch(self) -> Markup:
        """A short piece of its line, for legends."""
        line = element(
            "line",
            x1=1,
            y1=6,
            x2=33,
            y2=6,
            class_=f"line {self.colour}",
            stroke_dasharray=self.dash,
        )
        return element("svg", line, viewBox="0 0 34 12", class_="swatch", aria_hidden="true")


def looks(strategies: Sequence[str], baseline: str | None) -> dict[str, Series]:
    """A colour and a dash pattern for each strategy; the baseline is grey and dotted."""
    others = [name for name in strategies if name != baseline]
    series = {
        name: Series(name, f"c{index % NUM_COLOURS}", DASHES[index % len(DASHES)])
        for index, name in enumerate(others)
    }
    if baseline in strategies and baseline is not None:
        series[baseline] = Series(baseline, "grey", BASELINE_DASH)
    return series


class Scale(NamedTuple):
    """A linear map from data to pixels; values beyond the ends land on them."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of `value`."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def padded(low: float, high: float, share: float = 0.04) -> tuple[float, float]:
    """Limits with a margin, also where `low` equals `high`."""
    margin = (high - low) * share
    if not margin > abs(high) * 1e-9:
        margin = max(abs(high) * 0.05, 1e-6)
    return low - margin, high + margin


def fences(values: np.ndarray) -> tuple[float, float]:
    """Limits that show the good values well: far outliers below the rest are left outside.

    Tukey's outer fence, three interquartile ranges below the first quartile, if anything lies
    beyond it; never above, because the best is what the report is about.

    Args:
      values: f64[N], N >= 1, finite.
    """
    lower, upper = np.percentile(values, [25, 75])
    fence = lower - 3 * (upper - lower)
    inside = values[values >= fence]
    return float(inside.min()), float(values.max())


def ticks(low: float, high: float, num: int, *, whole: bool = False) -> list[float]:
    """About `num` round numbers between the limits, 1, 2 or 5 times a power of ten apart.

    Args:
      low: lower limit.
      high: upper limit, above `low`.
      num: ticks wished for.
      whole: whether only whole numbers make sense.

    Example:
      >>> ticks(0.0, 103.0, 5)
      [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    rough = (high - low) / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    step = max(step, 1.0) if whole else step
    slack = rough * 1e-9  # a limit that is a tick but for rounding keeps it
    first, last = math.ceil((low - slack) / step), math.floor((high + slack) / step)
    return [index * step for index in range(first, last + 1)]


def tick_labels(positions: Sequence[float]) -> list[str]:
    """Tick labels with as many decimals as their distance needs, the same for all.

    Example:
      >>> tick_labels([0.9, 0.95, 1.0]), tick_labels([0.0, 2000.0])
      (['0.90', '0.95', '1.00'], ['0', '2,000'])
    """
    largest = max(map(abs, positions), default=0.0)
    step = min((b - a for a, b in itertools.pairwise(positions)), default=largest) or 1.0
    if largest >= 1e6 or step < 1e-4:
        digits = 1 + max(0, math.ceil(math.log10(largest / step)))
        return [f"{value:.{digits}g}".replace("-", MINUS) for value in positions]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{decimals}f}".replace("-", MINUS) for value in positions]


def labelled_ticks(scale: Scale, num: int, *, whole: bool = False) -> list[tuple[float, str]]:
    """Pixel and label of the ticks of a horizontal axis, as many as have room side by side."""
    positions = ticks(scale.low, scale.high, num, whole=whole)
    labels = tick_labels(positions)
    needed = LETTER_WIDTH * (max(map(len, labels), default=0) + 1) * len(labels)
    stride = max(1, math.ceil(needed / (scale.end - scale.start)))
    return [(scale(p), s) for p, s in zip(positions, labels, strict=True)][::stride]


def points(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> str:
    """A staircase through pixel positions as SVG path data: level, then up at each next x."""
    parts = [f"M{x[0]:.1f} {y[0]:.1f}"]
    for left, right in zip(x[1:], y[1:], strict=True):
        parts.append(f"H{left:.1f}V{right:.1f}")
    return "".join(parts)


class Frame(NamedTuple):
    """A drawing area with its two scales, in pixels of the SVG's own coordinates."""

    width: int
    height: int
    x: Scale
    y: Scale
    floor: float  # where the horizontal axis is drawn, at the end of `y` or below

    def axes(self, x_label: str, y_label: str, *, whole_x: bool = False) -> list[Markup]:
        """Grid lines, ticks and labels of both axes."""
        left, right, bottom = self.x.start, self.x.end, self.floor
        parts = []
        positions = ticks(self.y.low, self.y.high, 5)
        for value, label in zip(positions, tick_labels(positions), strict=True):
            y = self.y(value)
            parts += [
                element("line", x1=left, y1=y, x2=right, y2=y, class_="grid"),
                element("text", label, x=left - 6, y=y + 4, text_anchor="end"),
            ]
        for x, label in labelled_ticks(self.x, 5, whole=whole_x):
            parts += [
                element("line", x1=x, y1=bottom, x2=x, y2=bottom + 4, class_="axis"),
                element("text", label, x=x, y=bottom + 18, text_anchor="middle"),
            ]
        middle = (left + right) / 2
        parts += [
            element("line", x1=left, y1=bottom, x2=right, y2=bottom, class_="axis"),
            element("text", x_label, x=middle, y=self.height - 4.0, text_anchor="middle"),
            element("text", y_label, x=2, y=12, class_="name"),
        ]
        return parts


def svg(width: int, height: int, title: str, description: str, body: Child) -> Markup:
    """A figure that screen readers announce by its title and description."""
    return element(
        "svg",
        element("title", title),
        body,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{title}. {description}",
    )
