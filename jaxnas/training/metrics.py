"""Losses and scores of the two supervised tasks."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxnas.training.data import Split, Task

EVALUATION_ROWS = 2048  # rows per forward pass when a split is scored


def targets_of(task: Task, y: Array) -> Array:
    """What outputs should say: class probabilities or regression targets, f32[N, num_outputs].

    Args:
      task: the task. Static.
      y: i32[N] labels, or f32[N, num_outputs] targets.
    """
    # One-hot: gathers and their scatter gradients are slow to compile and to run on CPU.
    return jax.nn.one_hot(y, task.num_outputs) if task.kind == "classification" else y


def target_losses(task: Task, outputs: Array, targets: Array) -> Array:
    """Cross-entropy of logits, or squared error averaged over targets: f32[N].

    Args:
      task: the task. Static.
      outputs: f32[N, num_outputs].
      targets: f32[N, num_outputs], see `targets_of`.

    Raises:
      ValueError: if the network has another number of outputs than the task.
    """
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs has shape {outputs.shape}, but the task wants {targets.shape}: the space's "
            "number of classes or outputs must be the task's"
        )
    if task.kind == "classification":
        return optax.softmax_cross_entropy(outputs, targets)
    return jnp.mean(jnp.square(outputs - targets), axis=-1)


def row_losses(task: Task, outputs: Array, y: Array) -> Array:
    """The loss of every row: f32[N]; see `targets_of` and `target_losses`."""
    return target_losses(task, outputs, targets_of(task, y))


def score_name(task: Task) -> str:
    """The score that fitness is made of: "accuracy" or "r2", both at most 1, larger is better."""
    return "accuracy" if task.kind == "classification" else "r2"


def _sums(task: Task, outputs: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Sums over rows for each weighting f32[S, N]: losses f32[S], hits or squared errors f32[S, K].

    K is 1 for classification and the number of targets for regression.
    """
    losses = weights @ row_losses(task, outputs, y)
    if task.kind == "classification":
        marks = (jnp.argmax(outputs, axis=-1) == y)[:, None].astype(outputs.dtype)
    else:
        marks = jnp.square(outputs - y)
    return losses, weights @ marks


def evaluate(
    apply_fn: Callable[[Array], Array], splits: Sequence[Split], task: Task
) -> list[dict[str, Array]]:
    """Loss and score of a network on splits, all rows in one pass if they are few.

    Args:
      apply_fn: `x f32[n, ...] -> outputs f32[n, num_outputs]`, without dropout.
      splits: what to score on.
      task: the task. Static.

    Returns:
      For each split `loss` f32[], the mean loss, and `accuracy` f32[] or `r2` f32[] (averaged over
      targets; 0 for predicting the split's mean).
    """
    sizes = [split.y.shape[0] for split in splits]
    if len(splits) > 1 and sum(sizes) > EVALUATION_ROWS:
        return [evaluate(apply_fn, [split], task)[0] for split in splits]
    x = jnp.concatenate([split.x for split in splits])
    y = jnp.concatenate([split.y for split in splits])
    owner = np.repeat(np.arange(len(splits)), sizes)
    weights = jnp.asarray(owner == np.arange(len(splits))[:, None], jnp.float32)
    if len(y) <= EVALUATION_ROWS:
        losses, marks = _sums(task, apply_fn(x), y, weights)
    else:

        def body(carry, start):
            rows = start + jnp.arange(EVALUATION_ROWS)
            inside = (rows < len(y)).astype(jnp.float32)[None]
            rows = jnp.minimum(rows, len(y) - 1)
            found = _sums(task, apply_fn(x[rows]), y[rows], inside)
            return jax.tree.map(jnp.add, carry, found), None

        columns = 1 if task.kind == "classification" else task.num_outputs
        zero = (jnp.zeros(1), jnp.zeros((1, columns)))
        (losses, marks), _ = jax.lax.scan(body, zero, jnp.arange(0, len(y), EVALUATION_ROWS))
    return [_scores(task, *row) for row in zip(splits, losses, marks, strict=True)]


def _scores(task: Task, split: Split, loss: Array, marks: Array) -> dict[str, Array]:
    num_rows = split.y.shape[0]
    if task.kind == "classification":
        return {"loss": loss / num_rows, "accuracy": marks[0] / num_rows}
    spread = jnp.sum(jnp.square(split.y - jnp.mean(split.y, axis=0)), axis=0)
    return {"loss": loss / num_rows, "r2": jnp.mean(1.0 - marks / jnp.maximum(spread, 1e-12))}
