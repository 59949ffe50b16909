"""Trains a population as a race: all a little, the best on, the last ones to the end.

Successive halving (Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", 2016, https://arxiv.org/abs/1502.07943) inside one compiled program: candidates that
go on do so from the weights they have, which never leave the devices, and the learning rate follows
the schedule of their whole budget. So a survivor is trained as `population.train` would train it.

Between rungs the survivors are moved into as few slots and as evenly over the devices as there are
candidates left (`jaxnas.training.legs`). The program stays the same: empty slots cost a copy of
their states, which is far less than to compile a program for fewer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.parallel import device_mesh, spread
from jaxnas.space import SearchSpace
from jaxnas.surrogates.learning_curve import chances_to_win
from jaxnas.training.candidate import whole_epochs
from jaxnas.training.data import Data
from jaxnas.training.dealing import Layout, Slots, deal
from jaxnas.training.legs import Leg, make_move, make_zeros
from jaxnas.training.memory import MIB, Fitted, Job, fit, num_slots_of
from jaxnas.training.metrics import score_name
from jaxnas.training.plan import Plan
from jaxnas.training.population import Collected, Prepared, Training, fitted_ids, prepare
from jaxnas.training.program import split_shapes
from jaxnas.training.recipe import Recipe


class Race(NamedTuple):
    """A population after a race; P candidates, R rungs.

    Attributes:
      training: as of `population.train`, each candidate's scores after its last rung.
      fitness: f32[P], the last validation score, of those that were dropped below that of everyone
        who stayed in the race when they lost, see `capped`; NaN where training failed.
      budget: f32[P], fraction of full training that was reached; 0 for candidates not trained.
      rung: i64[P], the last rung, from 0; -1 for candidates not trained.
      rungs: fractions of a candidate's budget, ascending to 1.
    """

    training: Training
    fitness: np.ndarray
    budget: np.ndarray
    rung: np.ndarray
    rungs: tuple[float, ...]


def race(
    space: SearchSpace,
    arch: Array | np.ndarray,
    data: Data,
    recipe: Recipe,
    key: Array,
    plan: Plan | None = None,
    *,
    rungs: Sequence[float],
    eta: int = 3,
    chance: float | None = None,
    budget: Array | np.ndarray | None = None,
) -> Race:
    """Trains P candidates to the first rung, the better of them to the second, and so on.

    Who goes on is decided by validation scores: by the fixed share 1/eta, rounded down but at least
    one, the first of equals; or, with `chance`, everyone whose chance to win is above that level.
    Failed candidates never go on. Candidate `i` uses `fold_in(key, i)` as in `population.train`.

    The states of all candidates stay on the devices, twice while they are moved. Half of the plan's
    memory limit may be used for that.

    Args:
      space: the space.
      arch: i32[P, D], concrete.
      data: what to train and validate on.
      recipe: how to train; with `chance`, one that records `curves`.
      key: PRNG key, consumed.
      plan: as in `population.train`. A call has as many slots as there are candidates, at most
        `plan.chunk`.
      rungs: fractions of a candidate's budget, ascending, the last one 1. Rungs that fall into the
        same epoch as the next are left out.
      eta: one in `eta` goes on, at least 2.
      chance: in [0, 1]; None: the share decides. See `learning_curve.chances_to_win`.
      budget: f32[P] in (0, 1], fraction of the recipe's epochs; None: all. With `chance`, the same
        for all.

    Returns:
      A `Race`.

    Raises:
      ValueError: as `population.train`; for arguments out of range; if the states of the candidates
        do not fit.

    Example:
      >>> import jax, jaxnas as nas
      >>> data = nas.datasets.wine(jax.random.key(0))
      >>> space = nas.spaces.mlp(3, depths=(1,), widths=(8,))
      >>> arch = np.zeros((4, 6), np.int32)
      >>> key, recipe = jax.random.key(1), nas.Recipe(epochs=4)
      >>> found = race(space, arch, data, recipe, key, rungs=(0.5, 1.0), eta=2)
      >>> sorted(found.training.metrics["epochs"].tolist())
      [2.0, 2.0, 4.0, 4.0]
    """
    check_count("eta", eta, minimum=2)
    prepared = prepare(space, arch, data, recipe, key, plan, budget)
    candidates = prepared.candidates
    _check_chance(chance, recipe, candidates.budget)
    rungs, until = _rung_epochs(rungs, candidates.budget, recipe.epochs)
    track = _start(prepared)
    score = track.collected.metrics[score_name(data.task)]  # filled in as the race goes on
    last = np.full(len(candidates.arch), -1)
    alive = np.flatnonzero(track.bucket_ids >= 0)
    for rung, epochs in enumerate(until):
        if rung and chance is None:
            alive = best_share(score, alive, eta)
        elif rung and chance is not None:
            curves, seen, total = track.collected.valid_curve, until[rung - 1][0], until[-1][0]
            sound = alive[np.isfinite(score[alive])]
            alive = contenders(curves, int(seen), int(total), sound, chance)
        if not len(alive):
            break
        track.advance(alive, epochs)
        last[alive] = rung
    reached = np.where(last >= 0, np.asarray(rungs)[last] * candidates.budget, 0.0)
    training = track.collected.finish(
        f"{prepared.plan.report}\n{_describe(last, until)}".strip(), track.compile_seconds
    )
    return Race(training, capped(score, last), reached.astype(np.float32), last, rungs)


def best_share(score: np.ndarray, alive: np.ndarray, eta: int) -> np.ndarray:
    """The best 1/eta of the candidates that are alive, without failed ones.

    Args:
      score: f[P], NaN for failed candidates.
      alive: i[A], ascending.
      eta: one in `eta` stays, rounded down, at least one.

    Returns:
      Those that stay, ascending.

    Example:
      >>> best_share(np.array([0.5, np.nan, 0.7, 0.5, 0.7, 0.1]), np.arange(6), 2).tolist()
      [0, 2, 4]
    """
    order = alive[np.argsort(-np.nan_to_num(score[alive], nan=-np.inf), kind="stable")]
    kept = order[: max(1, len(alive) // eta)]
    return np.sort(kept[np.isfinite(score[kept])])


def contenders(
    curves: np.ndarray, num_seen: int, num_epochs: int, alive: np.ndarray, chance: float
) -> np.ndarray:
    """Candidates that are alive and whose chance to win is at least `chance`.

    Args:
      curves: f32[P, E], validation scores.
      num_seen: epochs so far.
      num_epochs: epochs in all, up to E.
      alive: i[A], ascending, none of them failed.
      chance: level.

    Returns:
      Those that stay, ascending; the one that is expected to end highest is always among them.
    """
    running = np.full_like(curves[:, :num_epochs], np.nan)
    running[alive] = curves[alive, :num_epochs]
    chances = np.asarray(jax.jit(chances_to_win)(running, num_seen))
    return alive[chances[alive] >= min(chance, chances.max())]


def capped(score: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Scores that rank those dropped behind those that stayed: f32[P].

    A short training can score above what a longer one ends with. Whoever was dropped lost at equal
    training, though, and must not be taken for better than those it lost to: what is not below the
    lowest of them becomes the next smaller number.

    Args:
      score: f32[P], after the last rung of each; NaN for failed candidates.
      last: i[P], the last rung of each.

    Example:
      >>> found = capped(np.array([0.8, 0.6, 0.7], np.float32), np.array([0, 2, 1]))
      >>> found.round(4).tolist() == np.float32([0.6, 0.6, 0.6]).tolist(), int(found.argmax())
      (True, 1)
    """
    fitness = np.array(score, np.float32)
    for rung in range(int(last.max()) - 1, -1, -1):
        stayed = fitness[last > rung]
        if np.isfinite(stayed).any():
            below = np.nextafter(np.nanmin(stayed), np.float32(-np.inf))
            fitness[last == rung] = np.minimum(fitness[last == rung], below)
    return fitness


def _check_chance(chance: float | None, recipe: Recipe, budget: np.ndarray) -> None:
    if chance is None:
        return
    check_number("chance", chance, 0.0, 1.0)
    if not recipe.curves:
        raise ValueError("chance needs a recipe with curves=True, got curves=False")
    if (budget != budget[0]).any():
        raise ValueError(f"chance needs the same budget for all candidates, got {budget}")


def _rung_epochs(
    rungs: Sequence[float], budget: np.ndarray, epochs: int
) -> tuple[tuple[float, ...], np.ndarray]:
    """The rungs that differ, and the epoch at which each candidate reaches them: i32[R, P]."""
    values = np.asarray(rungs, np.float32)
    ascending = values.ndim == 1 and len(values) and (np.diff(values) > 0).all()
    if not ascending or values[0] <= 0.0 or values[-1] != 1.0:
        raise ValueError(f"rungs must ascend from above 0 to 1, got {tuple(rungs)}")
    # A candidate's own epochs first, so that the last rung is the end of its training.
    own = whole_epochs(budget, epochs)
    until = np.stack([whole_epochs(value, own) for value in values]).astype(np.int32)
    differs = np.append((until[1:] != until[:-1]).any(axis=1), True)
    return tuple(np.asarray(rungs, float)[differs].tolist()), until[differs]


def _describe(last: np.ndarray, until: np.ndarray) -> str:
    counts = [f"{(last >= rung).sum()} to epoch {row.max()}" for rung, row in enumerate(until)]
    return f"race: {', '.join(counts)}"


def _start(prepared: Prepared) -> "_Track":
    """Fits the program into the memory that the candidates' states leave."""
    job = dataclasses.replace(prepared.job, resumable=True)
    plan, num_candidates = prepared.plan, len(prepared.candidates.arch)
    chunk = min(plan.chunk, -(-num_candidates // job.num_shards))
    limit = plan.memory_limit
    if limit is not None:
        waiting = 2 * _state_bytes(prepared, job, chunk)
        if waiting > limit // 2:
            raise ValueError(
                f"the states of {num_candidates} candidates in a race take {waiting / MIB:,.1f} "
                f"MiB on each of {job.num_shards} devices while they are moved, of which half of "
                f"memory_limit, {limit / 2 / MIB:,.1f} MiB, may be used: race fewer at a time"
            )
        limit -= waiting
    fitted = fit(job, prepared.buckets, plan.group_size, chunk, limit)
    collected = Collected(job, prepared.candidates.arch)
    collected.refuse(fitted.reasons, prepared.candidates.bucket_ids)
    return _Track(prepared, job, fitted, collected)


def _state_bytes(prepared: Prepared, job: Job, chunk: int) -> int:
    """Bytes per device of the loops of all calls."""
    plan, num_buckets = prepared.plan, len(prepared.buckets)
    num_slots = num_slots_of(chunk, num_buckets, plan.group_size)
    loops = job.loops(job.program(prepared.buckets, plan.group_size), num_slots)
    size = sum(s.dtype.itemsize * int(np.prod(s.shape)) for s in jax.tree.leaves(loops))
    num_calls = -(-len(prepared.candidates.arch) // (chunk * job.num_shards))
    return num_calls * size // job.num_shards


class _Track:
    """Where the candidates stand, on the devices."""

    def __init__(self, prepared: Prepared, job: Job, fitted: Fitted, collected: Collected):
        self.candidates, self.fitted, self.collected = prepared.candidates, fitted, collected
        self.compile_seconds = fitted.compile_seconds
        self.bucket_ids = fitted_ids(fitted, self.candidates.bucket_ids)
        self.calls: list[tuple[Slots, Any]] = []
        self.mesh = device_mesh(job.num_devices, job.batch_devices)
        self.splits = spread(self.mesh, (job.data.train, job.data.valid))
        size, num_buckets = (job.num_shards, fitted.num_slots), len(fitted.kept)
        self.layout = Layout(*size, fitted.group_size, num_buckets)
        if fitted.program is not None:
            trainees, train = fitted.program.trainees, split_shapes(job.data)[0]
            decisions = job.space.num_decisions
            self.zeros = make_zeros(trainees, decisions, train, size, self.mesh)
            self.move = make_move(trainees, self.mesh)

    def advance(self, alive: np.ndarray, until: np.ndarray) -> None:
        """Trains the candidates `alive` to epochs `until` i32[P]; the others are forgotten."""
        assert self.fitted.program is not None
        self._deal(alive)
        given = self.candidates
        for position, (slots, loops) in enumerate(self.calls):
            index = np.maximum(slots.rows, 0)
            stops = np.where(slots.rows >= 0, until[index], 0).astype(np.int32)
            fields = (given.arch[index], given.budget[index], given.seeds[index])
            leg = spread(self.mesh, Leg(*fields, slots.bounds, stops), "candidate")
            (outcomes, loops), seconds = self.fitted.program(leg, loops, *self.splits)
            self.calls[position] = (slots, loops)
            self.collected.add(slots, outcomes, given.seconds, seconds)

    def _deal(self, alive: np.ndarray) -> None:
        """Lays the candidates out anew and moves their loops there."""
        if sum((slots.rows >= 0).sum() for slots, _ in self.calls) == len(alive):
            return
        bucket_ids = np.full_like(self.bucket_ids, -1)
        bucket_ids[alive] = self.bucket_ids[alive]
        total, moved = 0.0, []
        for slots in deal(bucket_ids, self.candidates.seconds, self.layout):
            target, seconds = self._timed(self.zeros)
            total += seconds
            for old, loops in self.calls:
                index = _sources(slots.rows, old.rows)
                if (index >= 0).any():
                    index = spread(self.mesh, index, "candidate")
                    target, seconds = self._timed(self.move, target, loops, index)
                    total += seconds
            moved.append((slots, target))
        self.calls = moved
        self.collected.charge(alive, total * self.layout.num_shards)

    def _timed(self, program, *arguments) -> tuple[Any, float]:
        self.compile_seconds += program.compile(*arguments)
        return program(*arguments)


def _sources(rows: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Flat place in `old` of the candidate in each slot: i32[G, C]; -1: not there."""
    place = np.full(max(rows.max(), old.max()) + 2, -1, np.int32)
    filled = np.flatnonzero(old.reshape(-1) >= 0)
    place[old.reshape(-1)[filled]] = filled
    return np.where(rows >= 0, place[rows], -1)
