"""Trains one candidate: a pure, traceable function that the population's programs repeat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas.nn import counter
from jaxnas.training.data import Split, Task
from jaxnas.training.metrics import evaluate, row_losses, score_name
from jaxnas.training.optimizers import OPTIMIZERS, Optimizer, Step, init_any, step_any
from jaxnas.training.recipe import Recipe

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


@dataclass(frozen=True)
class Trainee:
    """The static half of training: everything that decides what the program looks like.

    Attributes:
      module: `__call__(x, choice, *, train)`.
      task: the task.
      recipe: the recipe.
      optimizers: names that a candidate's `optimizer` hyperparameter indexes.
      hyperparameters: `(arch) -> dict`, see `SearchSpace`.
    """

    module: Any
    task: Task
    recipe: Recipe
    optimizers: tuple[str, ...]
    hyperparameters: Callable[[Array], dict[str, Array]] | None


class _Run(NamedTuple):
    """What stays the same while one candidate trains."""

    trainee: Trainee
    train: Split
    valid: Split
    arch: Array  # i32[D]
    hyper: dict[str, Array]
    seed: Array  # u32[2]
    which: Array  # i32[], the optimiser
    per_epoch: int  # steps
    num_steps: Array  # i32[], over the whole budget

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that `which` chooses from."""
        return [OPTIMIZERS[name] for name in self.trainee.optimizers]


class _Loop(NamedTuple):
    """What changes."""

    epoch: Array  # i32[]
    params: PyTree
    rest: PyTree  # the module's other collections, batch statistics for example
    moments: dict[str, tuple[PyTree, ...]]  # optimiser state per parameter group
    train_curve: Array  # f32[E]
    valid_curve: Array  # f32[E]
    healthy: Array  # bool[], all losses so far finite


def train_candidate(
    trainee: Trainee, train: Split, valid: Split, arch: Array, budget: Array, key: Array
) -> tuple[Outcome, PyTree]:
    """Trains the network of `arch` from scratch and scores it.

    Args:
      trainee: static description of module, task and recipe.
      train: training rows, on the device.
      valid: rows that the metrics come from.
      arch: i32[D].
      budget: f32[], fraction of the recipe's epochs, rounded up to whole epochs.
      key: PRNG key of this candidate.

    Returns:
      The outcome, and the trained Flax variables.
    """
    recipe = trainee.recipe
    # The counter hash throughout: one threefry split is a loop and six kernels to compile.
    seed = counter.seed_from_key(key)
    k_init = jax.random.wrap_key_data(counter.fold(seed, 0), impl="threefry2x32")
    epochs = jnp.clip(jnp.ceil(budget * recipe.epochs - 1e-4), 1, recipe.epochs).astype(jnp.int32)
    per_epoch = recipe.steps_per_epoch(train.y.shape[0])
    hyper = {} if trainee.hyperparameters is None else trainee.hyperparameters(arch)
    run = _Run(
        trainee=trainee,
        train=train,
        valid=valid,
        arch=arch,
        hyper=hyper,
        seed=counter.fold(seed, 1),
        which=hyper.get("optimizer", jnp.int32(0)),
        per_epoch=per_epoch,
        num_steps=epochs * per_epoch,
    )
    rest = dict(trainee.module.init(k_init, train.x[:1], arch, train=False))
    params = rest.pop("params")
    loop = _Loop(
        epoch=jnp.int32(0),
        params=params,
        rest=rest,
        moments={name: init_any(run.optimizers, params[name]) for name in params},
        train_curve=jnp.full(recipe.epochs, jnp.nan),
        valid_curve=jnp.full(recipe.epochs, jnp.nan),
        healthy=jnp.asarray(True),
    )
    # A diverged candidate stops: its result is NaN whatever follows.
    loop = jax.lax.while_loop(
        lambda loop: (loop.epoch < epochs) & loop.healthy, lambda loop: _epoch(run, loop), loop
    )
    return _outcome(run, loop), {"params": loop.params, **loop.rest}


def _epoch(run: _Run, loop: _Loop) -> _Loop:
    """One pass over the training rows, in an order of its own."""
    recipe = run.trainee.recipe
    first = loop.epoch * run.per_epoch
    carry = (loop.params, loop.rest, loop.moments, jnp.zeros(()))
    if recipe.batch_size is None:
        carry = _step(run, first, run.train, carry)
    else:
        seed = counter.fold(run.seed, 2 * loop.epoch + 1)
        order = counter.permutation(seed, run.train.y.shape[0])

        def body(i, carry):
            rows = jax.lax.dynamic_slice(order, [i * recipe.batch_size], [recipe.batch_size])
            return _step(run, first + i, Split(run.train.x[rows], run.train.y[rows]), carry)

        carry = jax.lax.fori_loop(0, run.per_epoch, body, carry)
    params, rest, moments, total = carry
    train_curve = loop.train_curve.at[loop.epoch].set(total / run.per_epoch)
    valid_curve = loop.valid_curve
    if recipe.curves:
        (scores,) = evaluate(_apply_fn(run, params, rest), [run.valid], run.trainee.task)
        valid_curve = valid_curve.at[loop.epoch].set(scores[score_name(run.trainee.task)])
    healthy = jnp.isfinite(total)
    return _Loop(loop.epoch + 1, params, rest, moments, train_curve, valid_curve, healthy)


def _step(run: _Run, index, batch: Split, carry):
    """One gradient and one update: `carry` is (params, rest, moments, sum of losses)."""
    params, rest, moments, total = carry
    loss_fn = _loss_fn(run, rest, batch, counter.fold(run.seed, 2 * index))
    (loss, rest), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    params, moments = _update(run, index, gradients, params, moments)
    return params, rest, moments, total + loss


def _apply_fn(run: _Run, params, rest):
    module, variables = run.trainee.module, {"params": params, **rest}
    return lambda x: module.apply(variables, x, run.arch, train=False)


def _loss_fn(run: _Run, rest, batch: Split, seed: Array):
    """`params -> (mean loss f32[], updated other collections)` on one batch."""

    def loss_fn(params):
        outputs, updated = run.trainee.module.apply(
            {"params": params, **rest},
            batch.x,
            run.arch,
            train=True,
            mutable=list(rest),
            rngs={"dropout": jax.random.wrap_key_data(seed, impl="threefry2x32")},
        )
        return jnp.mean(row_losses(run.trainee.task, outputs, batch.y)), dict(updated)

    return loss_fn


def _decayed(module, params) -> PyTree:
    """Which parameters weight decay applies to: weights, not biases."""
    if hasattr(module, "weights"):
        return module.weights(params)
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _update(run: _Run, index, gradients, params, moments):
    """One optimiser step, group by group, so that groups an architecture lacks cost nothing."""
    recipe, hyper, module = run.trainee.recipe, run.hyper, run.trainee.module
    if recipe.clip_norm is not None:
        clip = optax.clip_by_global_norm(recipe.clip_norm)
        gradients, _ = clip.update(gradients, clip.init(params))
    rate = hyper.get("learning_rate", recipe.learning_rate)
    decay = hyper.get("weight_decay", recipe.weight_decay or None)
    step = Step(
        index=run.which,
        count=(index + 1).astype(jnp.float32),
        rate=rate * recipe.rate_factor(index, run.num_steps),
        decay=decay,
        decoupled=recipe.decoupled,
    )
    active = module.active_groups(run.arch) if hasattr(module, "active_groups") else {}
    decayed = _decayed(module, params)
    found = {
        name: step_any(
            run.optimizers,
            step,
            active.get(name),
            gradients[name],
            moments[name],
            params[name],
            decayed[name],
        )
        for name in params
    }
    return {k: v[0] for k, v in found.items()}, {k: v[1] for k, v in found.items()}


def _outcome(run: _Run, loop: _Loop) -> Outcome:
    task = run.trainee.task
    apply_fn = _apply_fn(run, loop.params, loop.rest)
    metrics, on_train = evaluate(apply_fn, [run.valid, run.train], task)
    metrics["train_loss"] = on_train["loss"]
    sound = loop.healthy & jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["train_loss"])
    metrics = {name: jnp.where(sound, value, jnp.nan) for name, value in metrics.items()}
    metrics["epochs"] = loop.epoch.astype(jnp.float32)
    return Outcome(metrics, loop.train_curve, loop.valid_curve)
