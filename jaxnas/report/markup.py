"""HTML and SVG from Python values: everything is escaped unless it is `Markup` already."""

import html
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeAlias

MINUS = "\u2212"
DASH = "\u2013"

VOID = frozenset({"meta", "br"})  # HTML elements that have no end tag

Child: TypeAlias = "str | Iterable[Child] | None"


class Markup(str):
    """Text that is HTML already and must not be escaped again."""

    __slots__ = ()


def text(child: Child) -> Markup:
    """A child of an element as HTML: `Markup` as it is, text escaped, None left out.

    Example:
      >>> text(["a < b", Markup("<br>"), None])
      'a &lt; b<br>'
    """
    if child is None:
        return Markup("")
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return Markup(html.escape(child))
    return Markup("".join(text(part) for part in child))


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """One element with its children.

    Args:
      tag: the element's name.
      *children: text, markup, None, or lists of these.
      **attributes: a trailing underscore is dropped and the others become hyphens, so `class_` and
        `stroke_width` work; None and False leave an attribute out, True gives it no value, and
        floats are rounded to a tenth.

    Returns:
      The element; start and end tags always match.

    Example:
      >>> element("p", "1 < 2", class_="note")
      '<p class="note">1 &lt; 2</p>'
    """
    opened = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in VOID:
        return Markup(f"<{tag}{opened}>")
    return Markup(f"<{tag}{opened}>{text(children)}</{tag}>")


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else f"{value}"
    return f' {name}="{html.escape(shown)}"'


def number(value: object, *, signed: bool = False) -> str:
    """A number for reading: four significant digits, thousands separators, a real minus sign.

    Args:
      value: anything; what is not a number is shown by `str`, None as a dash.
      signed: whether positive numbers carry a plus.

    Returns:
      Plain text, not yet escaped.

    Example:
      >>> number(0.98765), number(1234567.0), number(2.5e20), number(float("nan"))
      ('0.9877', '1,234,567', '2.500e+20', 'NaN')
    """
    if value is None:
        return DASH
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if math.isnan(value):
        return "NaN"
    sign = MINUS if value < 0 else "+" if signed and value > 0 else ""
    size = abs(value)
    if math.isinf(size):
        return sign + "\u221e"
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{sign}{size:.3e}".replace("-", MINUS)
    if size >= 1000 or size == int(size):
        return f"{sign}{size:,.0f}"
    return f"{sign}{size:.{3 - math.floor(math.log10(size))}f}"


def duration(seconds: float | None) -> str:
    """Seconds for reading.

    Example:
      >>> duration(0.0123), duration(75), duration(7260)
      ('0.01230 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if abs(seconds) < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def metric(name: str, value: object) -> str:
    """A metric's value, or several, with the unit that its name tells.

    Example:
      >>> metric("train_seconds", 90.0), metric("latency_ms", 1.5), metric("params", 5000.0)
      ('1 min 30 s', '1.500 ms', '5,000')
    """
    if isinstance(value, (list, tuple)):
        return ", ".join(metric(name, part) for part in value)
    if isinstance(value, (int, float)) and name.endswith("seconds"):
        return duration(value)
    return number(value) + (" ms" if name.endswith("_ms") else "")


def size(num_bytes: float) -> str:
    """Bytes for reading.

    Example:
      >>> size(100), size(40_000), size(3 * 2**20)
      ('100 B', '39.06 KiB', '3 MiB')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(num_bytes, 1.0)) // 10), len(units) - 1)
    return f"{number(num_bytes / 2.0 ** (10 * power))} {units[power]}"


def date(value: object) -> str:
    """A Unix timestamp or an ISO 8601 date as a date in UTC; anything else as it is.

    Example:
      >>> date(0.0), date("2026-01-02T03:04:05+00:00"), date("yesterday")
      ('1970-01-01 00:00 UTC', '2026-01-02 03:04 UTC', 'yesterday')
    """
    try:
        moment = (
            datetime.fromtimestamp(value, UTC)
            if isinstance(value, (int, float))
            else datetime.fromisoformat(str(value)).astimezone(UTC)
        )
    except (ValueError, OverflowError, OSError):
        return str(value)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def count(num: int, noun: str) -> str:
    """A count with its noun in the right number.

    Example:
      >>> count(1, "seed"), count(2500, "seed")
      ('1 seed', '2,500 seeds')
    """
    return f"{num:,} {noun}" + ("" if num == 1 else "s")
