"""The problem of a language-model supernet, for one-shot methods."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxnas.nn.language_model import HIDDEN
from jaxnas.oneshot.problem import Problem
from jaxnas.space import SearchSpace, sample
from jaxnas.training import language_model
from jaxnas.training.data import Split
from jaxnas.types import PyTree


def language_problem(space: SearchSpace, *, batch_size: int | None = None) -> Problem:
    """The problem of a space whose supernet is a language model, such as `spaces.recurrent`.

    A batch is x i32[B, T] and y i32[B, T], see `jaxnas.training.text.windows`.

    DARTS carries two states from window to window, of the training and of the validation text. A
    method keeps only what its steps on the weights leave behind, so there is one here: by default
    it is not carried at all, and every window starts from zeros. With `batch_size` it is, and
    validation windows start from the state that the training text is in.

    Args:
      space: a space with a supernet that has `start`, `rows`, `row_operations` and `derive`.
      batch_size: rows of every batch, where the state is carried on in the collection "hidden" of
        `rest`; batches must then follow one another (`search(…, shuffle=False)`). None: windows in
        any order, each from zeros. Static.

    Returns:
      A `Problem` whose score is minus the loss in nats per symbol.

    Raises:
      ValueError: if the space has no such supernet.

    Example:
      >>> from jaxnas.spaces.recurrent import recurrent
      >>> problem = language_problem(recurrent(num_symbols=5, num_units=4, num_nodes=2))
      >>> problem.rows
      (5, 5, 5)
    """
    module: Any = None if space.supernet is None else space.supernet(space.full_bucket)
    if not hasattr(module, "start"):
        raise ValueError(f"space must have a language model as supernet; {space.name!r} has none")

    def init(key: Array) -> tuple[PyTree, PyTree]:
        arch = jnp.zeros(space.num_decisions, jnp.int32)
        rest = dict(module.init(key, jnp.zeros((1, 1), jnp.int32), arch, train=False))
        weights = rest.pop("params")
        if batch_size is not None:
            rest[HIDDEN] = module.start(batch_size)
        return weights, rest

    def loss(key, weights, rest, choice, batch: Split, train: bool):
        variables = {"params": weights, **rest}
        value, rest = language_model.loss(module, variables, choice, batch, train=train, key=key)
        return value, (rest, -value)

    return Problem(
        rows=module.rows,
        row_operations=module.row_operations,
        init=init,
        loss=loss,
        derive=module.derive,
        sample=lambda key: sample(key, space),
        decayed=module.weights,
        nodes=module.nodes,
    )
