"""Architectures as people read them: names and values from the run's configuration."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnas.report.markup import DASH
from jaxnas.store import Row


class Decision(NamedTuple):
    """A decision as the report shows it."""

    name: str
    choices: tuple[str, ...]
    active_if: tuple[int, tuple[int, ...]] | None = None

    def label(self, choice: int) -> str:
        """The text of one choice; its index where the configuration does not say."""
        return self.choices[choice] if 0 <= choice < len(self.choices) else f"choice {choice}"


class Candidate(NamedTuple):
    """A distinct architecture and everything the journal says about it."""

    arch: tuple[int, ...]  # canonical
    row: Row  # its best evaluation
    mean: float  # fitness over its evaluations that did not fail
    seen: int  # evaluations, failed ones included
    strategies: tuple[str, ...]


def decisions(config: dict[str, Any], num_decisions: int) -> tuple[Decision, ...]:
    """The decisions of the run's space, with made-up names where the configuration lacks them.

    Args:
      config: its `space` may hold `decisions`: name to choices, name to a dictionary with
        `choices` and `active_if`, or a list of such dictionaries with `name`.
      num_decisions: how many the journal's architectures have; 0 where it has none yet.

    Returns:
      `num_decisions` decisions, or those of the configuration where it is 0.

    Example:
      >>> [decision.name for decision in decisions({"space": {"decisions": {"a": [1, 2]}}}, 2)]
      ['a', 'decision 2']
    """
    space = config.get("space")
    given = space.get("decisions") if isinstance(space, dict) else None
    if isinstance(given, dict):
        given = [
            {"name": name, **(entry if isinstance(entry, dict) else {"choices": entry})}
            for name, entry in given.items()
        ]
    found = []
    for position, entry in enumerate(given or ()):
        choices = tuple(_label(choice) for choice in entry.get("choices") or ())
        condition = entry.get("active_if")
        active_if = (int(condition[0]), tuple(map(int, condition[1]))) if condition else None
        found.append(Decision(str(entry.get("name", _made_up(position))), choices, active_if))
    missing = range(len(found), num_decisions)
    found += [Decision(_made_up(position), ()) for position in missing]
    return tuple(found[: num_decisions or None])


def _made_up(position: int) -> str:
    return f"decision {position + 1}"


def _label(choice: object) -> str:
    if isinstance(choice, (list, tuple)):
        return "(" + ", ".join(_label(part) for part in choice) + ")"
    return str(choice)


def is_active(space: Sequence[Decision], arch: np.ndarray) -> np.ndarray:
    """Which decisions count in `arch` i64[..., D]: bool[..., D], as `jaxnas.space.is_active`."""
    active = np.ones(arch.shape, bool)
    for position, decision in enumerate(space):
        if decision.active_if is not None:
            parent, allowed = decision.active_if
            active[..., position] = active[..., parent] & np.isin(arch[..., parent], allowed)
    return active


def canonical(space: Sequence[Decision], arch: Sequence[Any] | np.ndarray) -> np.ndarray:
    """`arch` i64[..., D] with its inactive decisions set to 0."""
    arch = np.asarray(arch, np.int64)
    return np.where(is_active(space, arch), arch, 0)


def arch_table(space: Sequence[Decision], rows: Sequence[Row]) -> np.ndarray:
    """The canonical architectures of rows: i64[N, D]."""
    arch = np.array([row.arch for row in rows], np.int64)
    return canonical(space, arch.reshape(len(rows), len(space)))


def values(space: Sequence[Decision], arch: Sequence[int]) -> tuple[str, ...]:
    """The chosen value of each decision as text, a dash for the inactive ones."""
    active = is_active(space, np.asarray(arch))
    return tuple(
        decision.label(choice) if on else DASH
        for decision, choice, on in zip(space, arch, active, strict=True)
    )


def top(space: Sequence[Decision], rows: Sequence[Row], num: int) -> list[Candidate]:
    """The best distinct architectures by their best evaluation with the largest budget.

    The earlier one on ties.

    Args:
      space: the decisions.
      rows: evaluations; those that failed only count as seen.
      num: how many at most.

    Returns:
      Candidates, the best first; fewer than `num` where fewer were evaluated without failing.
    """
    groups: dict[tuple[int, ...], list[Row]] = {}
    for arch, row in zip(arch_table(space, rows).tolist(), rows, strict=True):
        groups.setdefault(tuple(arch), []).append(row)
    found = []
    for arch, members in groups.items():
        fine = [row for row in members if np.isfinite(row.fitness)]
        if fine:
            best = max(fine, key=lambda row: (row.budget, row.fitness))
            mean = float(np.mean([row.fitness for row in fine]))
            strategies = tuple(dict.fromkeys(row.strategy for row in members))
            found.append(Candidate(arch, best, mean, len(members), strategies))
    return sorted(found, key=lambda found: (-found.row.budget, -found.row.fitness))[:num]
