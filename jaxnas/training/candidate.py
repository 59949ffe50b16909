"""Trains one candidate: pure, traceable functions that the population's programs repeat.

`train_candidate` trains from start to end. Its three parts, `begin`, `advance` and `finish`, stop
in between and go on: between them everything is in a `Loop`, a pytree of arrays.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas import counter
from jaxnas.training._steps import Run, State, Trainee, apply_fn, check_drop_path, step
from jaxnas.training.data import Split
from jaxnas.training.metrics import evaluate, score_name
from jaxnas.training.optimizers import init_any

PyTree = Any


class Outcome(NamedTuple):
    """What training one candidate gave; E = recipe.epochs.

    Attributes:
      metrics: `loss` and `accuracy` or `r2` on the validation split, `train_loss` on the training
        split, all without dropout after the last step, and `epochs` trained; NaN after divergence.
      train_curve: mean training loss of each epoch, NaN where there was none.
      valid_curve: validation score after each epoch with `recipe.curves`, else NaN.
    """

    metrics: dict[str, Array]  # f32[]
    train_curve: Array  # f32[E]
    valid_curve: Array  # f32[E]


class Loop(NamedTuple):
    """What an epoch changes: where the training of a candidate stands."""

    epoch: Array  # i32[]
    state: State
    train_curve: Array  # f32[E]
    valid_curve: Array  # f32[E]
    healthy: Array  # bool[], all losses so far finite


def train_candidate(
    trainee: Trainee, train: Split, valid: Split, arch: Array, budget: Array, seed: Array
) -> tuple[Outcome, PyTree]:
    """Trains the network of `arch` from scratch and scores it.

    Args:
      trainee: static description of module, task and recipe.
      train: training rows, on the device.
      valid: rows that the metrics come from.
      arch: i32[D].
      budget: f32[], fraction of the recipe's epochs, rounded up to whole epochs.
      seed: u32[2] of this candidate.

    Returns:
      The outcome, and the trained Flax variables.

    Raises:
      ValueError: if the recipe asks for what the network does not have.
    """
    run = make_run(trainee, train, valid, arch, budget, seed)
    loop = advance(run, begin(run), run.epochs)
    return finish(run, loop), loop.state.variables


def resume_candidate(
    trainee: Trainee,
    train: Split,
    valid: Split,
    arch: Array,
    budget: Array,
    seed: Array,
    until: Array,
    loop: Loop,
) -> tuple[Outcome, Loop]:
    """Trains a candidate on to an epoch and scores it; one that was not begun is.

    In several calls as in one: rates follow the schedule of the whole budget.

    Args:
      trainee: as in `train_candidate`.
      train: likewise.
      valid: likewise.
      arch: likewise, the same in every call.
      budget: likewise.
      seed: likewise.
      until: i32[], the epoch to stop after; with all of the budget's epochs the outcome is that
        of `train_candidate`.
      loop: from the call before, or zeros.

    Returns:
      The outcome so far, and the loop for the next call.

    Raises:
      ValueError: as `train_candidate`.
    """
    run = make_run(trainee, train, valid, arch, budget, seed)
    loop = jax.lax.cond(loop.epoch == 0, lambda _: begin(run), lambda old: old, loop)
    loop = advance(run, loop, until)
    return finish(run, loop), loop


def whole_epochs(budget: Any, epochs: Any) -> Any:
    """How many of `epochs` a budget buys, rounded up, as a float: f32[...], NumPy's or JAX's.

    Example:
      >>> float(whole_epochs(jnp.float32(1 / 3), 9)), float(whole_epochs(jnp.float32(0.01), 9))
      (3.0, 1.0)
    """
    xp = jnp if isinstance(budget, jax.Array) else np
    return xp.clip(xp.ceil(budget * epochs - 1e-4), 1, epochs)


def make_run(
    trainee: Trainee, train: Split, valid: Split, arch: Array, budget: Array, seed: Array
) -> Run:
    """What `begin`, `advance` and `finish` work with; arguments as in `train_candidate`."""
    check_drop_path(trainee)
    epochs = whole_epochs(budget, trainee.recipe.epochs).astype(jnp.int32)
    per_epoch = trainee.recipe.steps_per_epoch(train.y.shape[0])
    hyper = {} if trainee.hyperparameters is None else trainee.hyperparameters(arch)
    return Run(
        trainee=trainee,
        train=train,
        valid=valid,
        arch=arch,
        hyper=hyper,
        start=counter.fold(seed, 0),
        seed=counter.fold(seed, 1),
        which=hyper.get("optimizer", jnp.int32(0)),
        epochs=epochs,
        per_epoch=per_epoch,
        num_steps=epochs * per_epoch,
    )


def begin(run: Run) -> Loop:
    """The candidate before its first epoch."""
    trainee, recipe = run.trainee, run.trainee.recipe
    key = jax.random.wrap_key_data(run.start, impl="threefry2x32")
    rest = dict(trainee.module.init(key, run.train.x[:1], run.arch, train=False))
    params = rest.pop("params")
    state = State(
        params=params,
        rest=rest,
        moments={name: init_any(run.optimizers, params[name]) for name in params},
        average=() if recipe.average is None else {"params": params, **rest},
    )
    return Loop(
        epoch=jnp.int32(0),
        state=state,
        train_curve=jnp.full(recipe.epochs, jnp.nan),
        valid_curve=jnp.full(recipe.epochs, jnp.nan),
        healthy=jnp.asarray(True),
    )


def advance(run: Run, loop: Loop, until: Array) -> Loop:
    """The candidate after epoch `until` i32[]; past that already, it stays as it is."""
    # A diverged candidate stops: its result is NaN whatever follows.
    return jax.lax.while_loop(
        lambda loop: (loop.epoch < until) & loop.healthy, lambda loop: _epoch(run, loop), loop
    )


def finish(run: Run, loop: Loop) -> Outcome:
    """Scores the candidate as it stands."""
    task = run.trainee.task
    network = apply_fn(run, loop.state)
    metrics, on_train = evaluate(network, [run.valid, run.train], task)
    metrics["train_loss"] = on_train["loss"]
    sound = loop.healthy & jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["train_loss"])
    metrics = {name: jnp.where(sound, value, jnp.nan) for name, value in metrics.items()}
    metrics["epochs"] = loop.epoch.astype(jnp.float32)
    return Outcome(metrics, loop.train_curve, loop.valid_curve)


def _epoch(run: Run, loop: Loop) -> Loop:
    """One pass over the training rows, in an order of its own."""
    recipe = run.trainee.recipe
    first = loop.epoch * run.per_epoch
    carry = (loop.state, jnp.zeros(()))
    if recipe.batch_size is None:
        state, total = step(run, first, run.train, carry)
    else:
        seed = counter.fold(run.seed, 2 * loop.epoch + 1)
        order = counter.permutation(seed, run.train.y.shape[0])

        def body(i, carry):
            rows = jax.lax.dynamic_slice(order, [i * recipe.batch_size], [recipe.batch_size])
            return step(run, first + i, Split(run.train.x[rows], run.train.y[rows]), carry)

        state, total = jax.lax.fori_loop(0, run.per_epoch, body, carry)
    train_curve = loop.train_curve.at[loop.epoch].set(total / run.per_epoch)
    valid_curve = loop.valid_curve
    if recipe.curves:
        (scores,) = evaluate(apply_fn(run, state), [run.valid], run.trainee.task)
        valid_curve = valid_curve.at[loop.epoch].set(scores[score_name(run.trainee.task)])
    healthy = jnp.isfinite(total)
    return Loop(loop.epoch + 1, state, train_curve, valid_curve, healthy)
