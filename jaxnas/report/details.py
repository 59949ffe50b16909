"""The sections with tables; each gives None where it has nothing to show."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

from jaxnas.proxies.recording import PREFIX
from jaxnas.report.architectures import Candidate, arch_table, canonical, values
from jaxnas.report.blocks import exact, note, section, settings, table
from jaxnas.report.markup import DASH, Markup, duration, element, metric, number
from jaxnas.report.summary import Summary
from jaxnas.store import Row

MAX_COLUMNS = 8  # decisions that get a column each in the table of the best


def best(summary: Summary) -> Markup | None:
    """The best distinct architectures."""
    if not summary.top:
        return None
    names = list(dict.fromkeys(name for entry in summary.top for name in entry.row.metrics))
    names = [name for name in names if name != "fitness" and not name.startswith(PREFIX)]
    partial = any(entry.row.budget < 1 for entry in summary.top)
    repeated = any(entry.seen > 1 for entry in summary.top)
    columns = len(summary.space) <= MAX_COLUMNS
    decided = [d.name for d in summary.space] if columns else ["architecture"]
    before = ["#", "fitness", *(["mean"] if repeated else []), "seen", "strategies"]
    after = [*names, "charged", *(["budget"] if partial else [])]
    rows = []
    for rank, entry in enumerate(summary.top, 1):
        row = entry.row
        mean = [number(entry.mean)] if repeated else []
        metrics = [metric(n, row.metrics[n]) if n in row.metrics else DASH for n in names]
        rows.append(
            [f"{rank}", number(row.fitness), *mean, f"{entry.seen:,}", ", ".join(entry.strategies)]
            + _decided(summary, entry, columns)
            + [*metrics, duration(row.cost), *([number(row.budget)] if partial else [])]
        )
    first_metric = len(before) + len(decided)
    return section(
        f"Best {len(rows)} distinct architectures" if len(rows) > 1 else "Best architecture",
        table(
            "Ranked by their best evaluation, to which metrics and charged time belong"
            + ("; the mean is over all times an architecture was seen." if repeated else "."),
            [*before, *decided, *after],
            rows,
            numeric=[*range(len(before) - 1), *range(first_metric, first_metric + len(after))],
            wide=[] if columns else [len(before)],
        ),
    )


def _decided(summary: Summary, entry: Candidate, columns: bool) -> list[str]:
    chosen = values(summary.space, entry.arch)
    if columns:
        return list(chosen)
    pairs = zip(summary.space, chosen, strict=True)
    return [", ".join(f"{d.name} {value}" for d, value in pairs if value != DASH)]


def winner(summary: Summary) -> Markup | None:
    """The winner in full: its decisions, its evaluation in the search, and after retraining."""
    result = summary.results.get("winner") or {}
    given = result.get("arch") or ()
    if len(given) == len(summary.space) > 0:
        arch = tuple(canonical(summary.space, given).tolist())
    elif summary.top:
        arch = summary.top[0].arch
    else:
        return None
    pairs = zip(summary.space, values(summary.space, arch), strict=True)
    matching = next((entry for entry in summary.top if entry.arch == arch), None)
    highest = matching is not None and matching is summary.top[0]
    return section(
        "The winner",
        note(
            f"Its fitness is the highest of {len(summary.rows):,}, which flatters it where "
            "evaluations are noisy; a test after retraining is free of that."
        )
        if highest and len(summary.rows) > 1
        else None,
        element(
            "div",
            table("Architecture", ("decision", "value"), [(d.name, v) for d, v in pairs]),
            _searched(matching) if matching else None,
            settings("Retrained", _test_first(result)),
            class_="grid-3",
        ),
    )


def _test_first(result: dict[str, Any]) -> dict[str, Any]:
    """What retraining found, the test split before all else; the architecture has its own table."""
    first = {name: result[name] for name in ("test", "valid") if name in result}
    return first | {name: part for name, part in result.items() if name not in (*first, "arch")}


def _searched(entry: Candidate) -> Markup:
    row = entry.row
    rows = [
        ("fitness", number(row.fitness)),
        *((n, metric(n, value)) for n, value in row.metrics.items() if n != "fitness"),
        ("charged", duration(row.cost)),
        ("found by", f"{row.strategy}, seed {row.seed}, step {row.step}"),
        ("seen", f"{entry.seen:,}"),
    ]
    return table("In the search, its best evaluation", ("measure", "value"), rows)


def costs(summary: Summary) -> Markup | None:
    """Evaluations, failures and time by strategy, and what the run measured of itself."""
    rows = [
        _cost_row(summary, name, [row for row in summary.rows if row.strategy == name])
        for name in summary.groups
    ]
    if len(rows) > 1:
        rows.append(_cost_row(summary, "all", summary.rows))
    header = ("strategy", "searches", "evaluations", "failed", "distinct", "charged")
    header += ("wall time", "candidates/s")
    by_strategy = table(
        "Costs by strategy; charged time is what the evaluator counts, wall time what passed",
        header,
        rows,
        numeric=range(1, len(header)),
    )
    timing = settings("Measured by the run", summary.results.get("timing"))
    return section("Costs", by_strategy if rows else None, timing)


def _cost_row(summary: Summary, name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    wall = wall_seconds(rows)
    return (
        name,
        f"{len({(row.arm, row.seed) for row in rows}):,}",
        f"{len(rows):,}",
        f"{sum(not math.isfinite(row.fitness) for row in rows):,}",
        f"{len(set(map(tuple, arch_table(summary.space, rows).tolist()))):,}",
        duration(charged_seconds(rows)),
        duration(wall) if wall else DASH,
        number(len(rows) / wall) if wall else DASH,
    )


def charged_seconds(rows: Sequence[Row]) -> float:
    """Seconds that the evaluator charged, unknown ones left out."""
    return sum(row.cost for row in rows if math.isfinite(row.cost))


def wall_seconds(rows: Sequence[Row]) -> float:
    """Wall time of all searches together: the last measurement of each arm, summed."""
    last: dict[str, float] = {}
    for row in rows:
        if math.isfinite(row.seconds):
            last[row.arm] = max(row.seconds, last.get(row.arm, 0.0))
    return sum(last.values())


def plan(summary: Summary) -> Markup | None:
    """What the planner decided to compile, and why."""
    given = summary.results.get("plan")
    if isinstance(given, dict) and isinstance(given.get("report"), str):
        rest = {name: value for name, value in given.items() if name != "report"}
        return section("Plan", element("pre", given["report"]), settings("Plan", rest))
    if isinstance(given, str):
        return section("Plan", element("pre", given))
    return section("Plan", settings("What was compiled", given))


def configuration(summary: Summary) -> Markup | None:
    """What was asked for, the space, versions, device, and how to do it again."""
    config = summary.config
    elsewhere = ("schema", "space", "arms", "versions", "device", "created", "command")
    asked = {name: value for name, value in config.items() if name not in elsewhere}
    space = config.get("space")
    if isinstance(space, dict):
        described = {name: part for name, part in space.items() if name != "decisions"}
        asked = {"space": described, **asked}
    command = config.get("command")
    shown = command if isinstance(command, str) else shlex.join(map(str, command or ()))
    return section(
        "Configuration",
        [element("h3", "To reproduce"), element("pre", shown)] if shown else None,
        settings("Settings", asked, show=exact),
        _space_table(summary),
        element(
            "div",
            settings("Versions", config.get("versions"), ("package", "version"), show=exact),
            settings("Device", config.get("device"), show=exact),
            class_="grid-3",
        )
        if config.get("versions") or config.get("device")
        else None,
    )


def _space_table(summary: Summary) -> Markup | None:
    if not summary.space:
        return None
    rows = []
    for decision in summary.space:
        condition = DASH
        if decision.active_if is not None:
            parent, allowed = summary.space[decision.active_if[0]], decision.active_if[1]
            condition = f"{parent.name} is {' or '.join(parent.label(c) for c in allowed)}"
        rows.append((decision.name, ", ".join(decision.choices) or DASH, condition))
    return table("Search space", ("decision", "choices", "active if"), rows, wide=(1,))
