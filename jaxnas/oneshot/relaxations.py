"""Relaxations: how architecture parameters become a `choice` of the supernet, and strengths.

A relaxation is a `NamedTuple` of pure functions made by a factory, like everything a method is
composed of. All of them take a mask of the operations that remain, which methods that drop some
narrow as they go; a dropped operation has weight and strength 0.

Sources are the papers of the methods that use them; see their files.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas._checks import check_number
from jaxnas.nn.mixed import Gated
from jaxnas.types import PyTree, split_like

INITIAL_SCALE = 1e-3  # standard deviation of initial logits, that of DARTS


class Context(NamedTuple):
    """What a relaxation may depend on besides the parameters."""

    progress: Array  # f32[], share of the search that is done, in [0, 1]
    mask: Array  # bool[R, K], the operations that remain


class Relaxation(NamedTuple):
    """From architecture parameters to what the supernet takes.

    Attributes:
      init: `(key, shape) -> alpha`, usually f32[R, K] = `shape`.
      choose: `(key, alpha, context) -> choice`.
      strengths: `(alpha, mask) -> f32[R, K]`, what the final architecture is made from.
    """

    init: Callable[[Array, tuple[int, ...]], PyTree]
    choose: Callable[[Array, PyTree, Context], Any]
    strengths: Callable[[PyTree, Array], Array]


def linear_schedule(first: float | Array, last: float | Array) -> Callable[[Array], Array]:
    """`progress -> f32[]`, from `first` to `last` in a straight line.

    Example:
      >>> float(linear_schedule(10.0, 0.0)(jnp.float32(0.5)))
      5.0
    """
    return lambda progress: first + (last - first) * progress


def init_logits(key: Array, shape: tuple[int, ...]) -> Array:
    """Nearly equal logits, f32[R, K]."""
    return INITIAL_SCALE * jax.random.normal(key, shape)


def masked_softmax(logits: Array, mask: Array) -> Array:
    """Softmax over the last axis of those inside the mask, 0 for the others.

    Example:
      >>> masked_softmax(jnp.zeros(3), jnp.array([True, False, True])).tolist()
      [0.5, 0.0, 0.5]
    """
    return jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)


def softmax() -> Relaxation:
    """Weights are the softmax of logits: f32[R, K].

    Example:
      >>> relaxation = softmax()
      >>> context = Context(jnp.float32(0.0), jnp.ones((2, 4), bool))
      >>> relaxation.choose(jax.random.key(0), jnp.zeros((2, 4)), context)[0].tolist()
      [0.25, 0.25, 0.25, 0.25]
    """

    def choose(key, alpha, context: Context):
        del key
        return masked_softmax(alpha, context.mask)

    return Relaxation(init_logits, choose, masked_softmax)


def sigmoid() -> Relaxation:
    """Every operation has a weight in (0, 1) of its own: f32[R, K]."""

    def strengths(alpha, mask):
        return jnp.where(mask, jax.nn.sigmoid(alpha), 0.0)

    def choose(key, alpha, context: Context):
        del key
        return strengths(alpha, context.mask)

    return Relaxation(init_logits, choose, strengths)


def concrete(temperature: Callable[[Array], Array]) -> Relaxation:
    """Weights are drawn from the concrete distribution of the logits: f32[R, K].

    Args:
      temperature: `progress -> f32[]`, above 0.
    """

    def choose(key, alpha, context: Context):
        noisy = jax.nn.log_softmax(alpha, axis=-1) + jax.random.gumbel(key, alpha.shape)
        return masked_softmax(noisy / temperature(context.progress), context.mask)

    return Relaxation(init_logits, choose, masked_softmax)


def hard_concrete(temperature: Callable[[Array], Array]) -> Relaxation:
    """One operation per row, drawn; gradients are those of the concrete distribution: `Gated`.

    Args:
      temperature: `progress -> f32[]`, above 0.
    """
    soft = concrete(temperature)

    def choose(key, alpha, context: Context):
        return straight_through(soft.choose(key, alpha, context))

    return soft._replace(choose=choose)


def straight_through(weights: Array) -> Gated:
    """Runs the heaviest operation of each row with the gradient of all weights.

    The one-hot of the heaviest operation, plus the weights, minus the weights without gradient: the
    others, which are 0, enter as scalars instead of being multiplied by an operation's output.

    Args:
      weights: f32[R, K].

    Returns:
      `Gated` of R operations: scale 1 and shift 0.

    Example:
      >>> straight_through(jnp.array([[0.2, 0.5, 0.3]])).op.tolist()
      [1]
    """
    op = jnp.argmax(weights, axis=-1).astype(jnp.int32)
    heaviest = jax.nn.one_hot(op, weights.shape[-1])
    hard = heaviest + (weights - jax.lax.stop_gradient(weights))
    scale = jnp.sum(hard * heaviest, axis=-1)
    return Gated(op, scale, jnp.sum(hard * (1.0 - heaviest), axis=-1))


def dirichlet() -> Relaxation:
    """Weights are drawn from a Dirichlet distribution, with pathwise gradients: f32[R, K].

    Its concentrations are ELU(alpha) + 1, and strengths its mean.
    """

    def strengths(alpha, mask):
        concentration = jnp.where(mask, concentrations(alpha), 0.0)
        return concentration / jnp.sum(concentration, axis=-1, keepdims=True)

    def choose(key, alpha, context: Context):
        # Of logarithms, for a small concentration gives a draw that underflows.
        drawn = jax.random.loggamma(key, concentrations(alpha))
        return masked_softmax(drawn, context.mask)

    return Relaxation(init_logits, choose, strengths)


def concentrations(alpha: Array) -> Array:
    """ELU(alpha) + 1, kept off 0: f32[R, K]."""
    return jax.nn.elu(alpha) + 1.0 + 1e-6


def with_edge_weights(relaxation: Relaxation, nodes: tuple[int, ...]) -> Relaxation:
    """Multiplies weights and strengths of a row by a softmax over all rows into its node.

    Args:
      relaxation: whose choice is f32[R, K].
      nodes: the node that each row leads to. Static.

    Returns:
      A relaxation of `(alpha, beta f32[R])`.
    """
    same = jnp.asarray(np.asarray(nodes)[:, None] == np.asarray(nodes))

    def edge_weights(beta):
        return jnp.diagonal(masked_softmax(jnp.broadcast_to(beta, same.shape), same))[:, None]

    def init(key, shape):
        k_alpha, k_beta = split_like(key, 2)
        return relaxation.init(k_alpha, shape), INITIAL_SCALE * jax.random.normal(k_beta, shape[:1])

    def choose(key, alpha, context: Context):
        return relaxation.choose(key, alpha[0], context) * edge_weights(alpha[1])

    def strengths(alpha, mask):
        return relaxation.strengths(alpha[0], mask) * edge_weights(alpha[1])

    return Relaxation(init, choose, strengths)


def with_auxiliary(
    relaxation: Relaxation, where: np.ndarray, factor: Callable[[Array], Array]
) -> Relaxation:
    """Adds a weight that is not learned to some operations; strengths do not count it.

    Args:
      relaxation: whose choice is f32[R, K].
      where: bool[R, K], the operations. Static.
      factor: `progress -> f32[]`, what is added.
    """

    def choose(key, alpha, context: Context):
        own = relaxation.choose(key, alpha, context)
        return own + jnp.where(where, factor(context.progress), 0.0)

    return relaxation._replace(choose=choose)


def with_dropout(
    relaxation: Relaxation, where: np.ndarray, rate: Callable[[Array], Array]
) -> Relaxation:
    """Leaves some operations out at random, row by row; where kept, they weigh more in return.

    Args:
      relaxation: whose choice is f32[R, K].
      where: bool[R, K], the operations. Static.
      rate: `progress -> f32[]`, chance of being left out, in [0, 1).
    """

    def choose(key, alpha, context: Context):
        k_own, k_drop = split_like(key, 2)
        own = relaxation.choose(k_own, alpha, context)
        now = rate(context.progress)
        kept = jax.random.uniform(k_drop, own.shape) >= now
        return jnp.where(where, jnp.where(kept, own / (1.0 - now), 0.0), own)

    return relaxation._replace(choose=choose)


def check_temperatures(first: Any, last: Any) -> None:
    """Raises ValueError unless both are above 0, as far as they are concrete numbers."""
    check_number("first_temperature", first, low=1e-6)
    check_number("last_temperature", last, low=1e-6)
