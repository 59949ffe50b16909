"""The host driver of one-shot methods: the same run directory, journal and resume as searches.

An arm is one method from one seed. It trains a supernet epoch by epoch; after each epoch one row is
journaled: the architecture derived so far, with its fitness by inherited weights on the validation
split, and the share of the search that is done as its budget. The weights and the architecture
parameters are trained on the two halves of the training split, as in DARTS (Liu et al., 2019,
https://arxiv.org/abs/1806.09055, section 3).

A method's state cannot be had again from a journal, so resuming starts from the last checkpoint and
repeats the epochs since, which must give the rows that are there.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas import checkpoints, counter, oneshot, progress, signals, store
from jaxnas.arm import Budget
from jaxnas.evaluators.shared_weights import shared_weights
from jaxnas.run import CHECKPOINT_SECONDS, describe_space, stopped_message
from jaxnas.space import SearchSpace
from jaxnas.store import Arm, Row, Run
from jaxnas.training.data import Data, Split
from jaxnas.training.metrics import score_name
from jaxnas.types import OneShot, Proposal, PyTree, split_like

_RECALIBRATION_BATCHES = 4

# (problem, num_steps=T) -> method
MethodFactory = Callable[..., OneShot]


class Supernets(NamedTuple):
    """What is searched by one-shot methods.

    Attributes:
      space: the space of the architectures.
      supernets: by method, the space that has the supernet to train: the same decisions, but
        perhaps another normalisation, or operations on a part of the channels.
      methods: by name, `(problem, *, num_steps) -> OneShot`.
      problem_fn: `(space) -> Problem`.
      data: what to train, choose and test on.
      epochs: of the search.
      batch_size: rows of both batches of an update.
    """

    space: SearchSpace
    supernets: Mapping[str, SearchSpace]
    methods: Mapping[str, MethodFactory]
    problem_fn: Callable[[SearchSpace], oneshot.Problem]
    data: Data
    epochs: int
    batch_size: int

    def halves(self, key: Array) -> tuple[Split, Split]:
        """The rows for weights and those for architecture parameters, of equal number.

        Raises:
          ValueError: if a half is smaller than a batch.
        """
        train = self.data.train
        half = len(train.y) // 2
        if half < self.batch_size:
            raise ValueError(
                f"batch_size must be at most {half}, half of the training rows, "
                f"got {self.batch_size}"
            )
        order = counter.permutation(counter.seed_from_key(key), len(train.y))
        rows = order[:half], order[half : 2 * half]
        first, second = (Split(train.x[part], train.y[part]) for part in rows)
        return first, second


def run(
    directory: Any,
    supernets: Supernets,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    settings: dict[str, Any] | None = None,
    progress_fn: progress.ProgressFn | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Run:
    """Trains the supernets into a new run directory.

    Args:
      directory: the run directory to make.
      supernets: what is searched.
      seed: first seed. The arm of seed s uses `jax.random.key(s)`.
      num_seeds: arms per method.
      settings: simple JSON values to keep in the run's configuration.
      progress_fn: called after each epoch is journaled; None: a line on standard error.
      checkpoint_seconds: least time between two checkpoints of an arm.

    Returns:
      The finished run.

    Raises:
      ValueError: for bad arguments, before anything is written.
      RunError: if the directory cannot be written to.
      Interrupted: after SIGINT or SIGTERM, once the epoch is journaled and a checkpoint saved.
    """
    supernets.halves(jax.random.key(seed))
    for name in supernets.methods:
        _make(supernets, name)
    config = {
        "space": describe_space(supernets.space),
        "arms": [
            Arm(f"{name}-{s}", name, s)._asdict()
            for name in supernets.methods
            for s in range(seed, seed + num_seeds)
        ],
        "budget": Budget(num_evaluations=supernets.epochs)._asdict(),
        "settings": settings,
    }
    return _drive(store.create(directory, config), supernets, progress_fn, checkpoint_seconds)


def resume(
    opened: Run,
    supernets: Supernets,
    *,
    progress_fn: progress.ProgressFn | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Run:
    """Continues a run that was stopped or killed; a finished one is left as it is.

    Args:
      opened: the run.
      supernets: as for `run`.
      progress_fn: likewise.
      checkpoint_seconds: likewise.

    Returns:
      The finished run.

    Raises:
      ValueError: if an epoch that is repeated does not give the row that is there.
      RunError: if the directory cannot be written to, or another process uses it.
      Interrupted: as for `run`.
    """
    return _drive(opened, supernets, progress_fn, checkpoint_seconds)


def strengths_of(opened: Run, arm: str) -> np.ndarray | None:
    """How strong the operations of each row were after each epoch: f32[epochs, R, K], or None."""
    found = opened.result(f"strengths/{arm}")
    return None if found is None else np.asarray(found["strengths"], np.float32)


def _drive(opened: Run, supernets: Supernets, progress_fn, checkpoint_seconds: float) -> Run:
    show = progress.printer() if progress_fn is None else progress_fn
    with opened.lock(), signals.deferred(stopped_message(opened.directory)) as stop:
        for arm in opened.arms():
            _ArmDriver(opened, arm, supernets, show).advance(stop, checkpoint_seconds)
            if stop.signum is not None:
                message = stopped_message(opened.directory, len(opened.rows()))
                raise signals.Interrupted(stop.signum, message)
    return opened


def _make(supernets: Supernets, name: str) -> tuple[oneshot.Problem, OneShot]:
    problem = supernets.problem_fn(supernets.supernets[name])
    per_epoch = len(supernets.data.train.y) // 2 // supernets.batch_size
    num_steps = supernets.epochs * per_epoch
    return problem, supernets.methods[name](problem, num_steps=num_steps)


class _Epoch(NamedTuple):
    """What one epoch gives besides the next state."""

    arch: Array  # i32[D]
    fitness: Array  # f32[]
    metrics: dict[str, Array]  # f32[]
    strengths: Array  # f32[R, K]; [0, 0] where a method has none


class _ArmDriver:
    """Takes one arm from its last checkpoint to its last epoch."""

    def __init__(self, opened: Run, arm: Arm, supernets: Supernets, show: progress.ProgressFn):
        self.run, self.arm, self.supernets, self.show = opened, arm, supernets, show
        self.problem, self.method = _make(supernets, arm.strategy)
        self.rows = opened.rows(arm.name)
        self.meter = progress.Meter(self.rows)
        self.seconds = self.rows[-1].seconds if self.rows else 0.0
        self.mark = time.perf_counter()

    def advance(self, stop: signals.Stop, checkpoint_seconds: float) -> None:
        """Repeats what was journaled after the last checkpoint, then goes on."""
        total = self.supernets.epochs
        if len(self.rows) >= total:
            return
        folder = self.run.directory / "checkpoints" / self.arm.name
        key = jax.random.key(self.arm.seed)
        k_search, k_halves = split_like(key, 2)
        method = self.method
        train, valid = self.supernets.halves(k_halves)
        init = jax.jit(method.init)(split_like(k_search, 2)[0])
        epoch_fn = jax.jit(partial(_epoch, self.supernets, self.arm.strategy, method))
        first = _strengths(init)
        state = (init, jnp.zeros((total, *first.shape)) if first.size else ())
        index, state = checkpoints.restore(folder, state, at_most=len(self.rows))
        self.mark = saved = time.perf_counter()
        while stop.signum is None and index < total:
            trained, past = state
            trained, found = epoch_fn(k_search, trained, train, valid)
            if first.size:
                past = past.at[index].set(found.strengths)
            state = (trained, past)
            self._journal(index, jax.device_get(found), np.asarray(past)[: index + 1])
            index += 1
            if time.perf_counter() - saved > checkpoint_seconds:
                checkpoints.save(folder, index, state)
                saved = time.perf_counter()
        checkpoints.save(folder, index, state)

    def _journal(self, index: int, found: _Epoch, strengths: np.ndarray) -> None:
        now = time.perf_counter()
        spent, self.mark = now - self.mark, now
        arch, fitness = tuple(found.arch.tolist()), float(found.fitness)
        if index < len(self.rows):
            known = self.rows[index]
            same = np.array_equal([known.fitness], [fitness], equal_nan=True)
            if known.arch != arch or not same:
                raise ValueError(
                    f"epoch {index} of arm {self.arm.name} gives another result than its journal "
                    "has: the code, the options or the data have changed"
                )
            return
        self.seconds += spent
        row = Row(
            *self.arm,
            step=index,
            slot=0,
            arch=arch,
            budget=(index + 1) / self.supernets.epochs,
            fitness=fitness,
            objectives=(fitness,),
            metrics={name: float(value) for name, value in found.metrics.items()},
            cost=spent,
            seconds=self.seconds,
            time=time.time(),
        )
        self.run.append([row])
        if strengths.size:
            self.run.put_result(f"strengths/{self.arm.name}", self._described(strengths))
        self.rows.append(row)
        self.meter.update([row])
        self.show(self._progress())

    def _described(self, strengths: np.ndarray) -> dict[str, Any]:
        """Strengths f32[epochs, R, K] with the names of rows and operations."""
        problem, decisions = self.problem, self.supernets.space.decisions
        named = len(problem.rows) == len(decisions)
        rows = [decisions[r].name if named else f"row {r}" for r in range(len(problem.rows))]
        return {
            "rows": rows,
            "operations": [list(names) for names in problem.row_operations],
            "strengths": np.round(strengths.astype(float), 6).tolist(),
        }

    def _progress(self) -> progress.Progress:
        total, arms = self.supernets.epochs, self.run.arms()
        fraction = self.meter.evaluations / total
        arms_left = len(arms) - 1 - arms.index(self.arm) + 1.0 - fraction
        return progress.Progress(
            arm=self.arm.name,
            evaluations=self.meter.evaluations,
            total=total,
            fraction=fraction,
            best=self.meter.best,
            num_failed=self.meter.num_failed,
            rate=self.meter.rate,
            seconds_left=arms_left * total / self.meter.rate,
        )


def _epoch(
    supernets: Supernets,
    name: str,
    method: OneShot,
    key: Array,
    state: PyTree,
    train: Split,
    valid: Split,
) -> tuple[PyTree, _Epoch]:
    """One pass over the halves, and the architecture that the state then stands for."""
    per_epoch = len(train.y) // supernets.batch_size
    state, history = oneshot.resume(
        key, method, state, train, valid, num_steps=per_epoch, batch_size=supernets.batch_size
    )
    arch = method.derive(state)
    variables = {"params": state.weights, **state.rest}
    batch_size = min(supernets.batch_size, len(supernets.data.train.y) // _RECALIBRATION_BATCHES)
    evaluator = shared_weights(
        supernets.supernets[name],
        variables,
        supernets.data,
        num_recalibration_batches=_RECALIBRATION_BATCHES,
        batch_size=batch_size,
    )
    proposal = Proposal(arch[None], jnp.ones(1))
    scored, _ = evaluator.evaluate(key, (), proposal)
    metrics = {f"search_{name}": jnp.nanmean(values) for name, values in history.items()}
    metrics |= {name: values[0] for name, values in scored.metrics.items()}
    assert score_name(supernets.data.task) in metrics
    return state, _Epoch(arch, scored.fitness[0], metrics, _strengths(state))


def _strengths(state: PyTree) -> Array:
    """f32[R, K], or f32[0, 0] for methods without architecture parameters."""
    return getattr(state, "strengths", jnp.zeros((0, 0)))
