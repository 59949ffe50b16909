"""One step of a candidate's training: gradient, optimiser, moving average."""

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
from jaxnas.training.metrics import target_losses
from jaxnas.training.optimizers import OPTIMIZERS, Optimizer, Step, step_any
from jaxnas.training.recipe import Recipe

PyTree = Any


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


class Run(NamedTuple):
    """What stays the same while one candidate trains; from `make_run`."""

    trainee: Trainee
    train: Split
    valid: Split
    arch: Array  # i32[D]
    hyper: dict[str, Array]
    start: Array  # u32[2], seed of the initial weights
    seed: Array  # u32[2], of the steps
    which: Array  # i32[], the optimiser
    epochs: Array  # i32[], of the whole budget
    per_epoch: int  # steps
    num_steps: Array  # i32[], over the whole budget

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that `which` chooses from."""
        return [OPTIMIZERS[name] for name in self.trainee.optimizers]


class State(NamedTuple):
    """What a step of training changes."""

    params: PyTree
    rest: PyTree  # the module's other collections, batch statistics for example
    moments: dict[str, tuple[PyTree, ...]]  # optimiser state per parameter group
    average: PyTree  # moving average of the variables, () without one

    @property
    def variables(self) -> PyTree:
        """The network that is scored and returned."""
        return self.average or {"params": self.params, **self.rest}


def step(run: Run, index, batch: Split, carry: tuple[State, Array]):
    """One gradient and one update; `carry` holds the state and the sum of losses."""
    state, total = carry
    loss_fn = _loss_fn(run, index, state.rest, split_rows(batch))
    (loss, rest), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    params, moments = _update(run, index, gradients, state.params, state.moments)
    average = _average(run, index, state.average, {"params": params, **rest})
    return State(params, rest, moments, average), total + loss


def _average(run: Run, index, average, variables) -> PyTree:
    """The moving average after step `index`; early on it follows faster."""
    if run.trainee.recipe.average is None:
        return ()
    decay = jnp.minimum(run.trainee.recipe.average, (1.0 + index) / (10.0 + index))
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, average, variables)


def apply_fn(run: Run, state: State) -> Callable[[Array], Array]:
    """`x -> outputs` of the network that is scored."""
    module, variables = run.trainee.module, state.variables
    return lambda x: module.apply(variables, x, run.arch, train=False)


def _loss_fn(run: Run, index, rest, batch: Split):
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


def check_drop_path(trainee: Trainee) -> None:
    """Raises ValueError if the recipe drops paths where the network cannot."""
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


def _update(run: Run, index, gradients, params, moments):
    """One optimiser step, group by group, so that groups an architecture lacks cost nothing."""
    recipe, hyper, module = run.trainee.recipe, run.hyper, run.trainee.module
    if recipe.clip_norm is not None:
        clip = optax.clip_by_global_norm(recipe.clip_norm)
        gradients, _ = clip.update(gradients, clip.init(params))
    rate = hyper.get("learning_rate", recipe.learning_rate)
    decay = hyper.get("weight_decay", recipe.weight_decay or None)
    settings = Step(
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
            settings,
            active.get(name),
            gradients[name],
            moments[name],
            params[name],
            decayed[name],
        )
        for name in params
    }
    return {k: v[0] for k, v in found.items()}, {k: v[1] for k, v in found.items()}
