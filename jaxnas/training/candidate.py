"""Trains one candidate: a pure, traceable function that the population's programs repeat."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas import counter
from jaxnas.nn.auxiliary import COLLECTION as AUXILIARY
from jaxnas.nn.drop_path import DropPath
from jaxnas.parallel import split_rows
from jaxnas.training.augmentation import prepare
from jaxnas.training.data import Split, Task
from jaxnas.training.metrics import evaluate, score_name, target_losses
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
      module: `__call__(x, choice, *, train)`; also `drop_path` where the recipe drops paths.
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


class _State(NamedTuple):
    """What a step changes."""

    params: PyTree
    rest: PyTree  # the module's other collections, batch statistics for example
    moments: dict[str, tuple[PyTree, ...]]  # optimiser state per parameter group
    average: PyTree  # moving average of the variables, () without one

    @property
    def variables(self) -> PyTree:
        """The network that is scored and returned."""
        return self.average or {"params": self.params, **self.rest}


class _Loop(NamedTuple):
    """What an epoch changes."""

    epoch: Array  # i32[]
    state: _State
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
    recipe = trainee.recipe
    _check_drop_path(trainee)
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
    state = _State(
        params=params,
        rest=rest,
        moments={name: init_any(run.optimizers, params[name]) for name in params},
        average=() if recipe.average is None else {"params": params, **rest},
    )
    loop = _Loop(
        epoch=jnp.int32(0),
        state=state,
        train_curve=jnp.full(recipe.epochs, jnp.nan),
        valid_curve=jnp.full(recipe.epochs, jnp.nan),
        healthy=jnp.asarray(True),
    )
    # A diverged candidate stops: its result is NaN whatever follows.
    loop = jax.lax.while_loop(
        lambda loop: (loop.epoch < epochs) & loop.healthy, lambda loop: _epoch(run, loop), loop
    )
    return _outcome(run, loop), loop.state.variables


def _epoch(run: _Run, loop: _Loop) -> _Loop:
    """One pass over the training rows, in an order of its own."""
    recipe = run.trainee.recipe
    first = loop.epoch * run.per_epoch
    carry = (loop.state, jnp.zeros(()))
    if recipe.batch_size is None:
        state, total = _step(run, first, run.train, carry)
    else:
        seed = counter.fold(run.seed, 2 * loop.epoch + 1)
        order = counter.permutation(seed, run.train.y.shape[0])

        def body(i, carry):
            rows = jax.lax.dynamic_slice(order, [i * recipe.batch_size], [recipe.batch_size])
            return _step(run, first + i, Split(run.train.x[rows], run.train.y[rows]), carry)

        state, total = jax.lax.fori_loop(0, run.per_epoch, body, carry)
    train_curve = loop.train_curve.at[loop.epoch].set(total / run.per_epoch)
    valid_curve = loop.valid_curve
    if recipe.curves:
        (scores,) = evaluate(_apply_fn(run, state), [run.valid], run.trainee.task)
        valid_curve = valid_curve.at[loop.epoch].set(scores[score_name(run.trainee.task)])
    healthy = jnp.isfinite(total)
    return _Loop(loop.epoch + 1, state, train_curve, valid_curve, healthy)


def _step(run: _Run, index, batch: Split, carry: tuple[_State, Array]):
    """One gradient and one update; `carry` holds the state and the sum of losses."""
    state, total = carry
    loss_fn = _loss_fn(run, index, state.rest, split_rows(batch))
    (loss, rest), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    params, moments = _update(run, index, gradients, state.params, state.moments)
    average = _average(run, index, state.average, {"params": params, **rest})
    return _State(params, rest, moments, average), total + loss


def _average(run: _Run, index, average, variables) -> PyTree:
    """The moving average after step `index`; early on it follows faster."""
    if run.trainee.recipe.average is None:
        return ()
    decay = jnp.minimum(run.trainee.recipe.average, (1.0 + index) / (10.0 + index))
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, average, variables)


def _apply_fn(run: _Run, state: _State):
    module, variables = run.trainee.module, state.variables
    return lambda x: module.apply(variables, x, run.arch, train=False)


def _loss_fn(run: _Run, index, rest, batch: Split):
    """`params -> (mean loss f32[], updated other collections)` on the batch of step `index`."""
    recipe, task, module = run.trainee.recipe, run.trainee.task, run.trainee.module
    seed = counter.fold(run.seed, 2 * index)
    x, targets = prepare(recipe, task, counter.fold(seed, 0), batch)
    options: dict[str, Any] = {"train": True, "mutable": list(rest)}
    options["rngs"] = {"dropout": jax.random.wrap_key_data(seed, impl="threefry2x32")}
    if recipe.drop_path:
        rate = recipe.drop_path_rate(index, run.num_steps)
        options["drop_path"] = DropPath(rate, counter.fold(seed, 1))
    if recipe.auxiliary_weight:
        options["mutable"].append(AUXILIARY)

    def loss_fn(params):
        outputs, updated = module.apply({"params": params, **rest}, x, run.arch, **options)
        updated = dict(updated)
        loss = jnp.mean(target_losses(task, outputs, targets))
        if recipe.auxiliary_weight:
            heads = _auxiliary_outputs(recipe, updated.pop(AUXILIARY, {}))
            losses = [jnp.mean(target_losses(task, head, targets)) for head in heads]
            loss += recipe.auxiliary_weight * sum(losses)
        return loss, updated

    return loss_fn


def _auxiliary_outputs(recipe: Recipe, collection: PyTree) -> list[Array]:
    outputs = jax.tree.leaves(collection)
    if not outputs:
        raise ValueError(
            f"auxiliary_weight = {recipe.auxiliary_weight} needs networks with an auxiliary head; "
            "those of this space have none (nasbench201 has one with auxiliary=True)"
        )
    return outputs


def _check_drop_path(trainee: Trainee) -> None:
    rate = trainee.recipe.drop_path
    if rate and "drop_path" not in inspect.signature(trainee.module.__call__).parameters:
        raise ValueError(
            f"drop_path = {rate} needs networks whose __call__ takes `drop_path`; "
            "those of this space do not"
        )


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
    apply_fn = _apply_fn(run, loop.state)
    metrics, on_train = evaluate(apply_fn, [run.valid, run.train], task)
    metrics["train_loss"] = on_train["loss"]
    sound = loop.healthy & jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["train_loss"])
    metrics = {name: jnp.where(sound, value, jnp.nan) for name, value in metrics.items()}
    metrics["epochs"] = loop.epoch.astype(jnp.float32)
    return Outcome(metrics, loop.train_curve, loop.valid_curve)
