"""Regularisers: what the upper loss has besides the network's loss.

Each is `(loss f32[], alpha, choice, mask bool[R, K]) -> loss`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, gammaln
from jax.typing import ArrayLike

from jaxnas._checks import check_number
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.relaxations import concentrations
from jaxnas.types import PyTree

Regulariser = Callable[[Array, PyTree, PyTree, Array], Array]


def zero_one(weight: float | Array) -> Regulariser:
    """Drives weights to 0 or 1: minus the mean square of their distance from 1/2.

    Args:
      weight: of the term, at least 0.

    Example:
      >>> fn, mask = zero_one(10.0), jnp.ones((1, 2), bool)
      >>> float(fn(jnp.float32(0.0), (), jnp.array([[0.0, 1.0]]), mask))
      -2.5
    """
    check_number("weight", weight)

    def regularise(loss, alpha, choice, mask):
        del alpha
        squares = jnp.where(mask, jnp.square(choice - 0.5), 0.0)
        return loss - weight * jnp.sum(squares) / jnp.sum(mask)

    return regularise


def dirichlet_divergence(weight: float | Array) -> Regulariser:
    """Holds Dirichlet distributions near the uniform one: the divergence from it, summed over rows.

    Args:
      weight: of the term, at least 0.
    """
    check_number("weight", weight)

    def regularise(loss, alpha, choice, mask):
        del choice
        own = concentrations(alpha)
        total, count = jnp.sum(own * mask, axis=-1), jnp.sum(mask, axis=-1)
        spread = (own - 1.0) * (digamma(own) - digamma(total)[:, None]) - gammaln(own)
        divergence = gammaln(total) - gammaln(1.0 * count) + jnp.sum(spread * mask, axis=-1)
        return loss + weight * jnp.sum(divergence)

    return regularise


def log_cost_factor(costs: Array, *, factor: float | Array, exponent: float | Array) -> Regulariser:
    """The loss times `factor * log(cost) ** exponent`, of the cost that the choice adds up to.

    Args:
      costs: f32[R, K], above 1 in sum.
      factor: at least 0.
      exponent: at least 0.
    """
    check_number("factor", factor)
    check_number("exponent", exponent)

    def regularise(loss, alpha, choice, mask):
        del alpha, mask
        return loss * factor * jnp.log(jnp.sum(choice * costs)) ** exponent

    return regularise


def relative_cost(
    costs: Array,
    reference: float | Array,
    *,
    weight: float | Array,
    strengths: Callable[[PyTree, Array], Array],
) -> Regulariser:
    """Adds `weight` times the expected cost's excess over `reference`, relative to it.

    Args:
      costs: f32[R, K].
      reference: the cost aimed at, above 0.
      weight: at least 0.
      strengths: `(alpha, mask) -> f32[R, K]`, probabilities.
    """
    check_number("weight", weight)

    def regularise(loss, alpha, choice, mask):
        del choice
        expected = jnp.sum(strengths(alpha, mask) * costs)
        return loss + weight * (expected - reference) / reference

    return regularise


def checked_costs(problem: Problem, costs: ArrayLike) -> Array:
    """`costs` as f32[R, K].

    Raises:
      ValueError: for another shape.
    """
    table = jnp.asarray(costs, jnp.float32)
    if table.shape != problem.mask.shape:
        raise ValueError(f"costs must have shape {problem.mask.shape}, got {table.shape}")
    return jax.lax.stop_gradient(table)
