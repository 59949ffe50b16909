"""Pruning: operations that are dropped during a search, or selected at its end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas import counter
from jaxnas._checks import check_count
from jaxnas.oneshot.parts import Pruning

TIE_BREAK = 1e-3  # weight of the loss where removals cost equal accuracy


def keep_strongest(steps: tuple[int, ...], counts: tuple[int, ...]) -> Pruning:
    """Keeps the strongest operations of each row, at given moments.

    Args:
      steps: after how many updates. Static.
      counts: operations that are kept then, at least 1. Static.

    Returns:
      A `Pruning` without a state.

    Raises:
      ValueError: for unequal lengths, or a number below 1.
    """
    if len(steps) != len(counts):
        raise ValueError(f"counts must be as many as the {len(steps)} steps, got {len(counts)}")
    for count in counts:
        check_count("counts", count)

    def update(key, step, state, mask, strengths, score_fn):
        del key, score_fn
        for moment, count in zip(steps, counts, strict=True):
            mask = jnp.where(step + 1 == moment, strongest_places(strengths, mask, count), mask)
        return state, mask

    return Pruning(lambda key, mask: (), update)


def strongest_places(strengths: Array, mask: Array, count: int) -> Array:
    """The `count` strongest operations of each row inside the mask: bool[R, K].

    Example:
      >>> mask = jnp.array([[True, True, False]])
      >>> strongest_places(jnp.array([[0.1, 0.2, 0.9]]), mask, 1).tolist()
      [[False, True, False]]
    """
    order = jnp.argsort(jnp.where(mask, -strengths, jnp.inf), axis=-1)
    return mask & (jnp.argsort(order, axis=-1) < count)


class _Selection(NamedTuple):
    """What selection by removal carries."""

    order: Array  # i32[R], rows in the order in which they are decided
    scores: Array  # f32[K], sums over batches without each operation of the row in turn


def select_by_removal(begin: int, period: int) -> Pruning:
    """Decides row after row for the operation whose removal hurts the validation score most.

    The `period` updates between two decisions each add the score of their batch to a sum per
    operation, and train the weights, for which the decided rows have one operation.

    Args:
      begin: updates before the first row is looked at. Static.
      period: updates per row. Static.
    """
    check_count("begin", begin, minimum=0)
    check_count("period", period)

    def init(key: Array, mask: Array) -> _Selection:
        order = counter.permutation(counter.seed_from_key(key), mask.shape[0])
        return _Selection(order, jnp.zeros(mask.shape[1]))

    def update(key, step, state: _Selection, mask, strengths, score_fn):
        del key
        turn = (step - begin) // period
        row = state.order[jnp.clip(turn, 0, mask.shape[0] - 1)]

        def look(state: _Selection):
            def without(op):
                score, loss = score_fn(without_operation(strengths, mask, row, op))
                return score - TIE_BREAK * loss

            scores = state.scores + jax.lax.map(without, jnp.arange(mask.shape[1]))
            decided = (step - begin) % period == period - 1
            sound = jnp.where(jnp.isfinite(scores), scores, 0.0)  # or argmin would pick any NaN
            worst = jnp.argmin(jnp.where(mask[row], sound, jnp.inf))
            chosen = jnp.arange(mask.shape[1]) == worst
            kept = jnp.where(decided, mask.at[row].set(chosen & mask[row]), mask)
            return _Selection(state.order, jnp.where(decided, 0.0, scores)), kept

        active = (step >= begin) & (turn < mask.shape[0])
        return jax.lax.cond(active, look, lambda state: (state, mask), state)

    return Pruning(init, update)


def without_operation(strengths: Array, mask: Array, row: Array, op: Array) -> Array:
    """Strengths with one operation of a row left out and the others made to sum to one.

    A row whose only operation would go keeps it.

    Args:
      strengths: f32[R, K], 0 outside the mask.
      mask: bool[R, K].
      row: i32[].
      op: i32[].

    Returns:
      f32[R, K].

    Example:
      >>> strengths, mask = jnp.array([[0.5, 0.25, 0.25]]), jnp.ones((1, 3), bool)
      >>> without_operation(strengths, mask, jnp.int32(0), jnp.int32(0)).tolist()
      [[0.0, 0.5, 0.5]]
    """
    own = jnp.where(mask[row] & (jnp.arange(mask.shape[1]) != op), strengths[row], 0.0)
    total = jnp.sum(own)
    own = jnp.where(total > 0.0, own / jnp.where(total > 0.0, total, 1.0), strengths[row])
    return strengths.at[row].set(own)
