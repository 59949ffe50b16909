"""The blocks that sections are made of: headings, notes, figures and tables."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxnas.report.markup import Child, Markup, element, metric


def section(title: str, *parts: Markup | list[Markup] | None) -> Markup | None:
    """A headed section, or None where every part is missing."""
    if not any(parts):
        return None
    return element("section", element("h2", title), [part for part in parts if part])


def note(*sentences: str) -> Markup:
    """A paragraph of explanation."""
    return element("p", " ".join(filter(None, sentences)), class_="note")


def figure(title: str, drawing: Markup, extra: str = "") -> Markup:
    """A figure under its title, which the drawing repeats for screen readers."""
    heading = element("h3", title, element("span", f" {extra}") if extra else None)
    return element("figure", heading, drawing)


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    numeric: Sequence[int] = (),
    wide: Sequence[int] = (),
) -> Markup:
    """A table that scrolls by itself where it is wider than the page.

    Args:
      caption: what the table shows.
      header: titles of the columns.
      rows: cells; the first of each row is its heading.
      numeric: positions of the columns that align to the right.
      wide: positions of the columns that hold long text.
    """

    def cell(tag: str, position: int, content: Child, **attributes: str) -> Markup:
        kind = "num" if position in numeric else "wide" if position in wide else None
        return element(tag, content, class_=kind, **attributes)

    head = [cell("th", position, title, scope="col") for position, title in enumerate(header)]
    body = [
        element(
            "tr",
            cell("th", 0, row[0], scope="row"),
            [cell("td", position, content) for position, content in enumerate(row) if position],
        )
        for row in rows
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", head)),
            element("tbody", body),
        ),
        class_="scroll",
        role="group",
        aria_label=caption,
        tabindex=0,
    )


def flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Nested dictionaries as dotted names and plain values.

    Example:
      >>> flat({"recipe": {"epochs": 5, "sizes": [1, 2]}, "seed": 0})
      [('recipe.epochs', 5), ('recipe.sizes', [1, 2]), ('seed', 0)]
    """
    if isinstance(value, Mapping):
        prefix = f"{name}." if name else ""
        return [pair for key, part in value.items() for pair in flat(part, f"{prefix}{key}")]
    return [(name, value)]


def exact(name: str, value: Any) -> str:
    """A setting as it was given, the entries of a list joined by commas.

    Example:
      >>> exact("widths", [16, 32]), exact("learning_rate", 0.001)
      ('16, 32', '0.001')
    """
    if isinstance(value, (list, tuple)):
        return ", ".join(exact(name, part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def settings(
    caption: str,
    values: Any,
    header: Sequence[str] = ("name", "value"),
    *,
    show: Callable[[str, Any], str] = metric,
) -> Markup | None:
    """A two-column table of a nested dictionary; None where there is nothing to show.

    Args:
      caption: what the table shows.
      values: the dictionary; parts that are None or empty are left out.
      header: titles of the columns.
      show: `(name, value)` to text; `exact` for what a person has set.
    """
    pairs = [(name, value) for name, value in flat(values) if value not in (None, "", [])]
    if not pairs:
        return None
    rows = [(name or header[1], show(name, value)) for name, value in pairs]
    return table(caption, header, rows, wide=(1,))
