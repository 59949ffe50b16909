"""Successive halving as a schedule that is known before the search, for many candidates at a time.

Which rung the next candidate belongs to depends on the sizes of the rungs alone, never on fitness;
only who is promoted does. So the whole timetable is worked out on the host when the strategy is
made, for every step and every place of its batch, and the traced part of a search is a look-up.

The rules of the timetable are those of the schedulers of BOHB and DEHB:

1. each place of a batch is a job of the oldest bracket that has one left in its current rung;
2. where no bracket has, the next bracket starts with its first rung;
3. a bracket moves to its next rung when all results of the current one are there. The results of
   a batch arrive together, so no batch holds two rungs of one bracket.

With one candidate per batch that is the sequential algorithm: a bracket ends before the next one
begins. With more, the places that a rung leaves free in a batch are spent on later brackets rather
than wasted. Brackets are repeated in turn for as long as the search goes on; the timetable is
written down until the situation repeats, and from there on it loops.

In the shape descriptions, `T` denotes the steps of the timetable, `R` the rungs that have to be
remembered at the same time and `N` the candidates of the largest rung.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas._checks import check_count
from jaxnas.space import SearchSpace
from jaxnas.types import Evaluation, Proposal, rank_value, split_like

_ROUNDING = 1e-6  # relative slack when a power of eta is compared with the smallest budget


class Bracket(NamedTuple):
    """One run of successive halving: candidates and their budget, rung by rung."""

    sizes: tuple[int, ...]
    budgets: tuple[float, ...]


class Jobs(NamedTuple):
    """What the places of a batch are for: fields [T, B], of one step [B], of one place []."""

    budget: Any  # f32, fraction of full training
    level: Any  # i32, position of the budget among all budgets, ascending
    bracket: Any  # i32, which of the brackets
    size: Any  # i32, candidates of the job's rung
    rank: Any  # i32, the job's number in its rung, from 0
    row: Any  # i32, where the rung is remembered; R: nowhere, it is the last one
    parent_row: Any  # i32, where the rung before is remembered; -1: there is none
    parent_size: Any  # i32, candidates of the rung before, 0 without one
    opens: Any  # bool, whether the rung's first job is in the same batch
    first_round: Any  # bool, whether the bracket is one of the first pass over all


class Schedule(NamedTuple):
    """A timetable; after its last step it goes on at `loop_start`."""

    jobs: Jobs  # [T, B]
    loop_start: int
    num_rows: int  # R
    row_size: int  # N
    budgets: tuple[float, ...]  # all budgets, ascending


class Rungs(NamedTuple):
    """Results that promotions still depend on, and where in the timetable the search is."""

    arch: Array  # i32[R, N, D]
    fitness: Array  # f32[R, N], minus infinity for failed candidates
    position: Array  # i32[], step of the timetable


def ladder(eta: int, min_budget: float) -> tuple[float, ...]:
    """The budgets `eta**-s, ..., 1 / eta, 1` with the largest s whose budget is allowed.

    Args:
      eta: factor between budgets, an integer of at least 2.
      min_budget: the smallest budget allowed, in (0, 1].

    Returns:
      Ascending budgets.

    Raises:
      ValueError: for an argument out of range.

    Example:
      >>> [round(budget, 4) for budget in ladder(3, 0.1)]
      [0.1111, 0.3333, 1.0]
    """
    check_count("eta", eta, minimum=2)
    if not isinstance(min_budget, Real) or not 0.0 < float(min_budget) <= 1.0:
        raise ValueError(f"min_budget must be a number in (0, 1], got {min_budget!r}")
    num_halvings = 0
    while float(eta) ** -(num_halvings + 1) >= float(min_budget) * (1.0 - _ROUNDING):
        num_halvings += 1
    return tuple(float(eta) ** -s for s in range(num_halvings, -1, -1))


def halving(num_candidates: int, eta: int, budgets: Sequence[float]) -> Bracket:
    """The bracket that keeps the best 1/eta, rounded down, from each budget to the next."""
    sizes = tuple(num_candidates // eta**rung for rung in range(len(budgets)))
    return Bracket(sizes, tuple(budgets))


def balanced_brackets(eta: int, min_budget: float) -> tuple[Bracket, ...]:
    """The brackets of BOHB and DEHB, the one with the smallest budget first.

    As in both authors' code a bracket of s halvings begins with `floor(S / (s + 1)) * eta**s`
    candidates, S the number of brackets: a multiple of eta**s, where Hyperband's own number is
    rounded up once and then down in every rung.
    """
    budgets = ladder(eta, min_budget)
    num = len(budgets)
    return tuple(
        halving(num // (s + 1) * eta**s, eta, budgets[num - 1 - s :]) for s in reversed(range(num))
    )


@dataclass
class _Run:
    """A bracket under way."""

    bracket: int
    first_round: bool
    row: int
    parent_row: int = -1
    rung: int = 0
    rank: int = 0  # of the next job
    opens: bool = True  # no job of the rung was in an earlier batch


def make_schedule(brackets: Sequence[Bracket], batch_size: int) -> Schedule:
    """The timetable of brackets that are run in turn, over and over.

    Args:
      brackets: with at least one rung each, sizes of at least 1, budgets that ascend.
      batch_size: places B per step.

    Returns:
      The timetable, as NumPy arrays.
    """
    levels = sorted({budget for bracket in brackets for budget in bracket.budgets})
    runs: list[_Run] = []
    steps: list[list[Jobs]] = []
    seen: dict[tuple, int] = {}
    num_started = 0
    while True:
        runs = _move_up(runs, brackets)
        first_round = num_started < len(brackets)
        situation = (*map(astuple, runs), num_started % len(brackets), first_round)
        if situation in seen:
            break
        seen[situation] = len(steps)
        jobs: list[Jobs] = []
        oldest = 0
        while len(jobs) < batch_size:
            if oldest == len(runs):
                bracket, first_round = num_started % len(brackets), num_started < len(brackets)
                runs.append(_Run(bracket, first_round, _free_row(runs, brackets[bracket], 0)))
                num_started += 1
            jobs += _take(runs[oldest], brackets, levels, batch_size - len(jobs))
            oldest += 1
        steps.append(jobs)
    return _finished(steps, seen[situation], brackets, levels)


def _finished(
    steps: list[list[Jobs]], loop_start: int, brackets: Sequence[Bracket], levels: list[float]
) -> Schedule:
    """Jobs of scalars as a timetable of arrays, in the types that traced code has."""

    def column(field: str) -> np.ndarray:
        array = np.asarray([[getattr(job, field) for job in step] for step in steps])
        return array.astype({"f": np.float32, "i": np.int32}.get(array.dtype.kind, bool))

    jobs = Jobs(*map(column, Jobs._fields))
    num_rows = max(int(jobs.row.max()) + 1, 1)
    jobs = jobs._replace(row=np.where(jobs.row < 0, num_rows, jobs.row))
    row_size = max(max(bracket.sizes) for bracket in brackets)
    return Schedule(jobs, loop_start, num_rows, row_size, tuple(levels))


def _move_up(runs: list[_Run], brackets: Sequence[Bracket]) -> list[_Run]:
    """What is left of the runs when the results of all their jobs are there."""
    left = []
    for run in runs:
        bracket = brackets[run.bracket]
        if run.rank == bracket.sizes[run.rung]:
            if run.rung + 1 == len(bracket.sizes):
                continue
            run.rung, run.rank, run.parent_row = run.rung + 1, 0, run.row
            run.row = _free_row(runs, bracket, run.rung)
        run.opens = run.rank == 0
        left.append(run)
    return left


def _free_row(runs: list[_Run], bracket: Bracket, rung: int) -> int:
    """The first row that nobody uses; -1 for a last rung, whose results promote nobody."""
    if rung + 1 == len(bracket.sizes):
        return -1
    used = {row for run in runs for row in (run.row, run.parent_row)}
    return next(row for row in range(2 * len(runs) + 1) if row not in used)


def _take(run: _Run, brackets: Sequence[Bracket], levels: list[float], at_most: int) -> list[Jobs]:
    """The next jobs of a run, as many as its rung has left and the batch has room for."""
    sizes, budgets = brackets[run.bracket]
    first, run.rank = run.rank, min(run.rank + at_most, sizes[run.rung])
    return [
        Jobs(
            budget=budgets[run.rung],
            level=levels.index(budgets[run.rung]),
            bracket=run.bracket,
            size=sizes[run.rung],
            rank=rank,
            row=run.row,
            parent_row=run.parent_row,
            parent_size=sizes[run.rung - 1] if run.rung else 0,
            opens=run.opens,
            first_round=run.first_round,
        )
        for rank in range(first, run.rank)
    ]


def jobs_at(schedule: Schedule, position: Array) -> Jobs:
    """The jobs of one step: fields [B]."""
    return jax.tree.map(lambda table: jnp.asarray(table)[position], schedule.jobs)


def next_position(schedule: Schedule, position: Array) -> Array:
    """The step after `position`: i32[]."""
    num_steps = len(schedule.jobs.budget)
    return jnp.where(position + 1 < num_steps, position + 1, schedule.loop_start)


def empty(space: SearchSpace, schedule: Schedule) -> Rungs:
    """The state before the first step."""
    shape = (schedule.num_rows, schedule.row_size)
    return Rungs(
        arch=jnp.zeros((*shape, space.num_decisions), jnp.int32),
        fitness=jnp.full(shape, -jnp.inf, jnp.float32),
        position=jnp.zeros((), jnp.int32),
    )


def propose(
    key: Array, schedule: Schedule, rungs: Rungs, draw: Callable[[Array], Array]
) -> Proposal:
    """The candidates of the present step: promoted ones and, in first rungs, new ones.

    A failed candidate is never promoted; a place that only such could take gets a new one.

    Args:
      key: PRNG key.
      schedule: the timetable.
      rungs: the results so far.
      draw: `(key) -> i32[D]`, makes a new candidate.

    Returns:
      B candidates with their budgets.
    """
    jobs = jobs_at(schedule, rungs.position)

    def one(k, job: Jobs):
        members = jnp.arange(schedule.row_size) < job.parent_size
        fitness = jnp.where(members, rungs.fitness[job.parent_row], -jnp.inf)
        place = jnp.argsort(fitness, descending=True)[job.rank]  # stable: the older one on ties
        promoted = rungs.arch[job.parent_row, place]
        return jnp.where(fitness[place] > -jnp.inf, promoted, draw(k))

    arch = jax.vmap(one)(split_like(key, jobs.rank.shape[0]), jobs)
    return Proposal(arch, jnp.asarray(jobs.budget))


def record(schedule: Schedule, rungs: Rungs, proposal: Proposal, evaluation: Evaluation) -> Rungs:
    """The results with those of the present step, at the next step."""
    jobs = jobs_at(schedule, rungs.position)
    place = (jobs.row, jobs.rank)
    return Rungs(
        arch=rungs.arch.at[place].set(proposal.arch, mode="drop"),
        fitness=rungs.fitness.at[place].set(rank_value(evaluation.fitness), mode="drop"),
        position=next_position(schedule, rungs.position),
    )
