"""Losses and scores of the two supervised tasks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas.training.data import Split, Task

EVALUATION_ROWS = 1024  # rows per forward pass when a split is scored


def row_losses(task: Task, outputs: Array, y: Array) -> Array:
    """Cross-entropy of logits, or squared error averaged over targets: f32[N].

    Args:
      task: the task. Static.
      outputs: f32[N, num_outputs].
      y: i32[N] labels, or f32[N, num_outputs] targets.
    """
    if task.kind == "classification":
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y)
    return jnp.mean(jnp.square(outputs - y), axis=-1)


def score_name(task: Task) -> str:
    """The score that fitness is made of: "accuracy" or "r2", both at most 1, larger is better."""
    return "accuracy" if task.kind == "classification" else "r2"


def _sums(task: Task, outputs: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Weighted sums over rows: of the loss f32[], and of hits f32[] or squared errors f32[K]."""
    loss = jnp.sum(row_losses(task, outputs, y) * weight)
    if task.kind == "classification":
        return loss, jnp.sum((jnp.argmax(outputs, axis=-1) == y) * weight)
    return loss, jnp.sum(jnp.square(outputs - y) * weight[:, None], axis=0)


def evaluate(apply_fn: Callable[[Array], Array], split: Split, task: Task) -> dict[str, Array]:
    """Loss and score of a network on a split, a thousand rows at a time.

    Args:
      apply_fn: `x f32[n, ...] -> outputs f32[n, num_outputs]`, without dropout.
      split: what to score on.
      task: the task. Static.

    Returns:
      `loss` f32[], the mean loss, and `accuracy` f32[] or `r2` f32[] (averaged over targets; 0 for
      predicting the split's mean).
    """
    num_rows = split.y.shape[0]
    if num_rows <= EVALUATION_ROWS:
        loss, hits = _sums(task, apply_fn(split.x), split.y, jnp.ones(num_rows))
    else:

        def body(carry, start):
            rows = start + jnp.arange(EVALUATION_ROWS)
            inside = (rows < num_rows).astype(jnp.float32)
            rows = jnp.minimum(rows, num_rows - 1)
            found = _sums(task, apply_fn(split.x[rows]), split.y[rows], inside)
            return jax.tree.map(jnp.add, carry, found), None

        shape = () if task.kind == "classification" else (task.num_outputs,)
        zero = (jnp.zeros(()), jnp.zeros(shape))
        (loss, hits), _ = jax.lax.scan(body, zero, jnp.arange(0, num_rows, EVALUATION_ROWS))
    if task.kind == "classification":
        return {"loss": loss / num_rows, "accuracy": hits / num_rows}
    spread = jnp.sum(jnp.square(split.y - jnp.mean(split.y, axis=0)), axis=0)
    r2 = jnp.mean(1.0 - hits / jnp.maximum(spread, 1e-12))
    return {"loss": loss / num_rows, "r2": r2}
