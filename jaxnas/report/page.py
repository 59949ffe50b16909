"""The page: head, verdict, key figures, and the sections in order."""

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from jaxnas.report import correlations, details, latency, layers, pareto, sections, supernet
from jaxnas.report.markup import DASH, Markup, count, date, duration, element, number
from jaxnas.report.style import CSS
from jaxnas.report.summary import Summary, summarise
from jaxnas.report.verdict import verdict
from jaxnas.store import Row

# Nothing may be loaded, whatever text a configuration holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(config: dict[str, Any], rows: Sequence[Row], results: dict[str, Any]) -> str:
    """The report of a run as one self-contained HTML page.

    Args:
      config: contents of `config.json`; what it lacks is left out of the page.
      rows: the journal, of all arms.
      results: result name to value; "winner", "layers", "latency", "plan", "timing" and those of
        `supernet.PREFIX` are shown.

    Returns:
      The page: no script, nothing loaded from elsewhere.

    Example:
      >>> page = render({"space": {"name": "tiny"}}, [], {})
      >>> "The journal holds no evaluation yet." in page
      True
    """
    summary = summarise(config, rows, results)
    title = _title(summary.config)
    parts = (
        details.winner,
        sections.trajectory,
        pareto.front,
        supernet.strengths,
        sections.evaluations,
        sections.importance,
        correlations.section_of,
        details.best,
        layers.section_of,
        latency.section_of,
        details.costs,
        details.plan,
        details.configuration,
    )
    main = element("main", [part(summary) for part in parts])
    return document(title, _header(summary, title), main, _footer(summary))


def document(title: str, *body: Markup) -> str:
    """A whole page from the parts of its body."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", f"{title} {DASH} jaxnas"),
        element("style", Markup(CSS)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', *body), lang='en')}\n"


def _title(config: dict[str, Any]) -> str:
    space, data = (_name(config.get(key)) for key in ("space", "data"))
    file = data and PurePath(data).name  # data may be given by its path
    return " on ".join(filter(None, (space or "Architecture search", file)))


def _name(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("name")
    return value if isinstance(value, str) else None


def _header(summary: Summary, title: str) -> Markup:
    created = summary.config.get("created")
    sentences = verdict(summary.groups, summary.baseline, summary.gains)
    return element(
        "header",
        element("p", "jaxnas search report", class_="eyebrow"),
        element("h1", title),
        element("p", " ".join(sentences), class_="verdict"),
        element("dl", _tiles(summary), class_="tiles"),
        element("p", f"Run created {date(created)}.", class_="note") if created else None,
    )


def _tiles(summary: Summary) -> list[Markup]:
    num, seeds = len(summary.rows), {row.seed for row in summary.rows}
    failed = sum(not math.isfinite(row.fitness) for row in summary.rows)
    tiles = [
        _tile("evaluations", f"{num:,}", f"{_planned(summary)}{failed:,} failed"),
        _tile("strategies", f"{len(summary.groups)}", count(len(seeds), "seed")),
    ]
    if summary.top:
        row = summary.top[0].row
        tiles.insert(0, _tile("best fitness", number(row.fitness), row.strategy))
    tested = (summary.results.get("winner") or {}).get("test") or {}
    scores = [(name, value) for name, value in tested.items() if name != "loss"]
    for name, value in scores[:1]:
        tiles.insert(1, _tile(f"test {name}", number(value), "of the retrained winner"))
    if num:
        charged = details.charged_seconds(summary.rows)
        tiles.append(_tile("charged", duration(charged), f"{duration(charged / num)} each"))
    wall = details.wall_seconds(summary.rows)
    if wall:
        tiles.append(_tile("candidates per second", number(num / wall), f"{duration(wall)} in all"))
    return tiles


def _planned(summary: Summary) -> str:
    """What the tile of an unfinished run says about its budget."""
    arms, budget = summary.config.get("arms"), summary.config.get("budget")
    each = budget.get("num_evaluations") if isinstance(budget, dict) else None
    planned = len(arms) * each if arms and each else 0
    return f"of {planned:,} planned, " if len(summary.rows) < planned else ""


def _tile(name: str, value: str, small: str) -> Markup:
    return element("div", element("dt", name), element("dd", value, element("small", small)))


def _footer(summary: Summary) -> Markup:
    last = max((row.time for row in summary.rows if math.isfinite(row.time)), default=None)
    told = "Higher fitness is better."
    if last is not None:
        told = f"The last evaluation was written {date(last)}. {told}"
    return element("footer", element("p", told))
