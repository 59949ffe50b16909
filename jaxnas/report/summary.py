"""Everything the page shows, gathered once from the configuration, the journal and the results."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxnas.report.analysis import Curve, Gain, Trace, by_strategy, curve, gain, traces
from jaxnas.report.architectures import Candidate, Decision, decisions, top
from jaxnas.report.axes import Series, looks
from jaxnas.store import Row

NUM_TOP = 10
RANDOM = "random_search"  # the baseline where the configuration does not name one


class Summary(NamedTuple):
    """A run, ready to be shown."""

    config: dict[str, Any]
    results: dict[str, Any]
    rows: Sequence[Row]
    space: tuple[Decision, ...]
    searches: list[Trace]
    groups: dict[str, list[Trace]]  # by strategy
    baseline: str | None
    gains: dict[str, Gain]  # by strategy, where a comparison is possible
    looks: dict[str, Series]
    top: list[Candidate]

    def curves(self, axis: str) -> list[Curve]:
        """Mean incumbents of the strategies that have one, the baseline first (lowest layer)."""
        ordered = sorted(self.groups, key=lambda name: name != self.baseline)
        found = (curve(self.groups[name], axis) for name in ordered)
        return [c for c in found if c is not None]


def summarise(config: dict[str, Any], rows: Sequence[Row], results: dict[str, Any]) -> Summary:
    """Gathers what the page needs; missing parts of `config` and `results` are left out.

    What the caller of the run has put into `config["settings"]` counts as part of `config`.
    """
    config = {**(config.get("settings") or {}), **config}
    config.pop("settings", None)
    space = decisions(config, max((len(row.arch) for row in rows), default=0))
    searches = traces(rows)
    groups = by_strategy(searches)
    named = config.get("baseline")
    baseline = named if isinstance(named, str) else RANDOM if RANDOM in groups else None
    axis = equal_axis(config, rows)
    gains = {}
    for name, group in groups.items():
        compared = gain(group, groups.get(baseline or "", ()), axis) if name != baseline else None
        if compared is not None:
            gains[name] = compared
    return Summary(
        config=config,
        results=results,
        rows=rows,
        space=space,
        searches=searches,
        groups=groups,
        baseline=baseline,
        gains=gains,
        looks=looks(list(groups), baseline),
        top=top(space, rows, NUM_TOP),
    )


def equal_axis(config: dict[str, Any], rows: Sequence[Row]) -> str:
    """What "equal budget" means for a run.

    Charged seconds where the run was limited by time or trained candidates partially, for then
    evaluations differ in what they cost; evaluations otherwise.
    """
    limits = config.get("budget")
    timed = isinstance(limits, dict) and limits.get("seconds")
    return "seconds" if timed or any(row.budget < 1 for row in rows) else "evaluations"
