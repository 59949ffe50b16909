"""What one-shot methods train: a supernet and its loss as pure functions.

A **row** is one mixed operation of the supernet, and its operations are what a method chooses from.
In most spaces row d is decision d. Where they differ, as in DARTS, whose decisions are the inputs
of nodes as well as operations, the supernet module says so through optional members:

- `rows`: the number of operations of each row;
- `row_operations`: their names;
- `derive(strengths f32[R, K]) -> i32[D]`: the architecture of the strongest operations, traceable;
- `nodes`: the node that each row leads to, for methods that weigh the edges into a node.

In the shape descriptions, `R` denotes rows, `K` the most operations that any of them has, and `D`
the decisions of the space.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas import counter
from jaxnas.nn.drop_path import DropPath
from jaxnas.space import SearchSpace, canonical, sample
from jaxnas.training.augmentation import prepare
from jaxnas.training.data import Data, Split, Task
from jaxnas.training.metrics import row_losses, target_losses
from jaxnas.training.recipe import Recipe
from jaxnas.types import PyTree

# (key, weights, rest, choice, batch, train) -> (loss, (rest, score))
LossFn = Callable[..., tuple[Array, tuple[PyTree, Array]]]


class Problem(NamedTuple):
    """A supernet with its loss, as pure functions.

    `choice` is an architecture i32[D], or weights of all operations f32[R, K], or whatever else the
    supernet takes; a batch is a `jaxnas.training.data.Split`.

    Attributes:
      rows: operations of each row. Static.
      row_operations: their names. Static.
      init: `(key) -> (weights, rest)`, the parameters and the other Flax collections.
      loss: `(key, weights, rest, choice, batch, train) -> (loss f32[], (rest, score f32[]))` with
        static `train`; the score is maximised.
      derive: `(strengths f32[R, K]) -> i32[D]`, traceable.
      sample: `(key) -> i32[D]`, a uniform architecture.
      decayed: `(weights) -> pytree of bool`, what weight decay applies to.
      nodes: the node that each row leads to; empty: one of its own for every row. Static.
    """

    rows: tuple[int, ...]
    row_operations: tuple[tuple[str, ...], ...]
    init: Callable[[Array], tuple[PyTree, PyTree]]
    loss: LossFn
    derive: Callable[[Array], Array]
    sample: Callable[[Array], Array]
    decayed: Callable[[PyTree], PyTree]
    nodes: tuple[int, ...] = ()

    @property
    def mask(self) -> np.ndarray:
        """Which of the K places of each row hold an operation: bool[R, K]."""
        return np.arange(max(self.rows)) < np.asarray(self.rows)[:, None]

    def where(self, *names: str) -> np.ndarray:
        """Which places hold one of the operations called `names`: bool[R, K]."""
        found = np.zeros(self.mask.shape, bool)
        for row, operations in enumerate(self.row_operations):
            found[row, : len(operations)] = np.isin(operations, names)
        return found


def from_space(space: SearchSpace, data: Data, recipe: Recipe | None = None) -> Problem:
    """The problem of a space's supernet on a classification or regression.

    With `train=True` the loss is that of augmented rows, with dropout and with batch statistics of
    the batch, which also move the running ones; with `train=False` of the rows as they are, by the
    running statistics. Methods train weights and architecture parameters in the first mode, as
    DARTS does, where both halves of the training data are augmented alike.

    Args:
      space: a space with a supernet.
      data: says what is predicted, and the shape of rows; its rows are not kept.
      recipe: `crop`, `flip`, `cutout`, `mixup`, `label_smoothing` and `drop_path`, the latter at
        its final rate throughout; the optimiser's fields are the method's business. None: nothing.

    Returns:
      A `Problem` whose score is the accuracy or R2 on the batch.

    Raises:
      ValueError: if the space has no supernet, or the recipe has auxiliary heads.

    Example:
      >>> from jaxnas import datasets, spaces
      >>> space = spaces.nasbench201(num_channels=4, num_cells=1, image_size=8, in_channels=1)
      >>> problem = from_space(space, datasets.digits(jax.random.key(0)))
      >>> problem.rows, problem.row_operations[0][1]
      ((5, 5, 5, 5, 5, 5), 'skip_connect')
    """
    recipe = Recipe() if recipe is None else recipe
    if space.supernet is None:
        raise ValueError(f"space must have a supernet; {space.name!r} has none")
    if recipe.auxiliary_weight:
        raise ValueError(
            "recipe must have auxiliary_weight = 0 while weights are shared, "
            f"got {recipe.auxiliary_weight}"
        )
    module = space.supernet(space.full_bucket)
    row_shape, dtype = data.train.x.shape[1:], data.train.x.dtype
    names = tuple(tuple(map(str, decision.choices)) for decision in space.decisions)
    rows: tuple[int, ...] = getattr(module, "rows", space.num_choices)

    def init(key: Array) -> tuple[PyTree, PyTree]:
        arch = canonical(space, jnp.zeros(space.num_decisions, jnp.int32))
        rest = dict(module.init(key, jnp.zeros((1, *row_shape), dtype), arch, train=False))
        weights = rest.pop("params", {})
        return weights, rest

    def derive(strengths: Array) -> Array:
        if hasattr(module, "derive"):
            return canonical(space, module.derive(strengths))
        return canonical(space, strongest(strengths, rows))

    def decayed(weights: PyTree) -> PyTree:
        if hasattr(module, "weights"):
            return module.weights(weights)
        return jax.tree.map(lambda leaf: leaf.ndim > 1, weights)

    return Problem(
        rows=rows,
        row_operations=getattr(module, "row_operations", names),
        init=init,
        loss=_supervised_loss(module, data.task, recipe),
        derive=derive,
        sample=lambda key: sample(key, space),
        decayed=decayed,
        nodes=getattr(module, "nodes", ()),
    )


def strongest(strengths: Array, rows: tuple[int, ...]) -> Array:
    """The strongest operation of each row, the first one of equals.

    Args:
      strengths: f32[R, K]; NaN counts as the weakest.
      rows: operations of each row. Static.

    Returns:
      i32[R].

    Example:
      >>> strongest(jnp.array([[0.1, 0.9, 0.0], [0.2, 0.1, 5.0]]), (3, 2)).tolist()
      [1, 0]
    """
    inside = jnp.arange(strengths.shape[1]) < jnp.asarray(rows)[:, None]
    sound = inside & ~jnp.isnan(strengths)
    return jnp.argmax(jnp.where(sound, strengths, -jnp.inf), axis=1).astype(jnp.int32)


def _supervised_loss(module: Any, task: Task, recipe: Recipe) -> LossFn:
    def loss(key, weights, rest, choice, batch: Split, train: bool):
        variables = {"params": weights, **rest}
        if not train:
            outputs = module.apply(variables, batch.x, choice, train=False)
            losses = row_losses(task, outputs, batch.y)
            return jnp.mean(losses), (rest, _score(task, outputs, batch.y))
        seed = counter.seed_from_key(key)
        x, targets = prepare(recipe, task, counter.fold(seed, 0), batch)
        options: dict[str, Any] = {"rngs": {"dropout": key}, "mutable": list(rest)}
        if recipe.drop_path:
            rate = jnp.float32(recipe.drop_path)
            options["drop_path"] = DropPath(rate, counter.fold(seed, 1))
        outputs, updated = module.apply(variables, x, choice, train=True, **options)
        value = jnp.mean(target_losses(task, outputs, targets))
        return value, ({**rest, **updated}, _score(task, outputs, batch.y))

    return loss


def _score(task: Task, outputs: Array, y: Array) -> Array:
    """Accuracy or R2 on the batch: f32[]."""
    if task.kind == "classification":
        return jnp.mean((jnp.argmax(outputs, axis=-1) == y).astype(jnp.float32))
    spread = jnp.sum(jnp.square(y - jnp.mean(y, axis=0)), axis=0)
    error = jnp.sum(jnp.square(outputs - y), axis=0)
    return jnp.mean(1.0 - error / jnp.maximum(spread, 1e-12))
