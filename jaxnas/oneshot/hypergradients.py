"""Hypergradients: how the upper loss moves with alpha when the weights answer to it.

The upper loss f(w, alpha) is to be small where w minimises the lower loss g(w, alpha). All of these
return the loss and an estimate of its total derivative with respect to alpha:

- `first_order`: the weights do not move. Liu et al., "DARTS", 2019,
  https://arxiv.org/abs/1806.09055, equation 6 with xi = 0.
- `unrolled`: the weights take K steps of their optimiser first, and the derivative goes back
  through them: equation 6 exactly, for K = 1. Unless told otherwise, each step is computed again on
  the way back, so that memory holds one step's residuals and K copies of the weights.
- `finite_difference`: the same for K = 1, with the mixed second derivative as a difference of two
  gradients: equations 7 and 8.
- `conjugate_gradient`: by the implicit function theorem,
  df/dalpha - df/dw (d2g/dw2)^-1 d2g/dw dalpha, the system solved by conjugate gradients. Pedregosa,
  "Hyperparameter optimization with approximate gradient", 2016, https://arxiv.org/abs/1602.02355.
- `neumann`: the same with (d2g/dw2)^-1 = gamma sum_k (1 - gamma d2g/dw2)^k cut off after the terms
  0 to K. Lorraine et al., 2020, https://arxiv.org/abs/1911.02590, algorithm 3; for architectures
  Zhang et al., "iDARTS", 2021, https://arxiv.org/abs/2106.10784, section 3.
- `t1_t2`: with the identity instead of the inverse. Luketina et al., 2016,
  https://arxiv.org/abs/1511.06727, section 2.

Deviations: the K steps of `unrolled` see one and the same batch, since an update has one. The last
three are taken at the current weights, which need not minimise the lower loss; conjugate gradients
want a positive definite second derivative, which `damping` may have to provide.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.types import PyTree

Upper = Callable[[PyTree, PyTree], tuple[Array, Any]]  # (weights, alpha) -> (loss f32[], auxiliary)


class Lower(NamedTuple):
    """The training of the weights, as hypergradients see it.

    Attributes:
      loss: `(weights, alpha) -> f32[]`, weight decay included.
      advance: `(gradient, memory, weights) -> (weights, memory)`, a differentiable optimiser step.
      memory: what the optimiser remembers.
    """

    loss: Callable[[PyTree, PyTree], Array]
    advance: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
    memory: PyTree


# (upper, lower, weights, alpha) -> ((loss, auxiliary), gradient like alpha)
Hypergradient = Callable[[Upper, Lower, PyTree, PyTree], tuple[tuple[Array, Any], PyTree]]


def first_order() -> Hypergradient:
    """The weights do not answer.

    Example:
      >>> upper = lambda w, a: (jnp.square(w * a), ())
      >>> lower = Lower(lambda w, a: 0.5 * jnp.square(w - a), lambda g, m, w: (w - 0.5 * g, m), ())
      >>> float(first_order()(upper, lower, jnp.float32(1.0), jnp.float32(2.0))[1])
      4.0
      >>> float(unrolled()(upper, lower, jnp.float32(1.0), jnp.float32(2.0))[1])
      15.0
    """

    def hypergradient(upper: Upper, lower: Lower, weights, alpha):
        del lower
        return jax.value_and_grad(upper, argnums=1, has_aux=True)(weights, alpha)

    return hypergradient


def unrolled(*, num_unrolled: int = 1, recompute: bool = True) -> Hypergradient:
    """Through the optimiser's steps, exactly.

    Args:
      num_unrolled: steps K. Static.
      recompute: whether each step is computed again on the way back; otherwise what it needs there
        is kept. Static.

    Raises:
      ValueError: for fewer than one step.
    """
    check_count("num_unrolled", num_unrolled)

    def hypergradient(upper: Upper, lower: Lower, weights, alpha):
        def after(alpha):
            def body(carry, _):
                weights, memory = carry
                gradient = jax.grad(lower.loss)(weights, alpha)
                return lower.advance(gradient, memory, weights), None

            body = jax.checkpoint(body) if recompute else body
            carry = (weights, lower.memory)
            if num_unrolled == 1:
                carry, _ = body(carry, None)
            else:
                carry, _ = jax.lax.scan(body, carry, length=num_unrolled)
            return upper(carry[0], alpha)

        return jax.value_and_grad(after, has_aux=True)(alpha)

    return hypergradient


def finite_difference(*, radius: float | Array = 0.01) -> Hypergradient:
    """Through one step of the optimiser, by two gradients of the lower loss either side.

    Args:
      radius: distance of the two from the weights, in the Euclidean norm.
    """
    check_number("radius", radius)

    def hypergradient(upper: Upper, lower: Lower, weights, alpha):
        gradient = jax.grad(lower.loss)(weights, alpha)
        moved, pull = jax.vjp(lambda g: lower.advance(g, lower.memory, weights)[0], gradient)
        grad_fn = jax.value_and_grad(upper, argnums=(0, 1), has_aux=True)
        value, (at_weights, direct) = grad_fn(moved, alpha)
        (direction,) = pull(at_weights)
        epsilon = radius / jnp.maximum(optax.tree.norm(direction), 1e-12)

        def mixed(sign):  # in a scan, so that the program holds the gradient once
            return jax.grad(lower.loss, argnums=1)(
                jax.tree.map(lambda w, d: w + sign * epsilon * d, weights, direction), alpha
            )

        sides = jax.lax.map(mixed, jnp.array([1.0, -1.0]))
        difference = jax.tree.map(lambda both: (both[0] - both[1]) / (2.0 * epsilon), sides)
        return value, jax.tree.map(jnp.add, direct, difference)

    return hypergradient


def conjugate_gradient(*, num_iterations: int = 10, damping: float | Array = 0.0) -> Hypergradient:
    """Implicit, the linear system solved by conjugate gradients from 0.

    Args:
      num_iterations: at most. Static.
      damping: is added to the diagonal of the second derivative, at least 0.
    """
    check_count("num_iterations", num_iterations)
    check_number("damping", damping)

    def solve(hessian, v):
        damped = lambda u: jax.tree.map(lambda h, d: h + damping * d, hessian(u), u)  # noqa: E731
        return jax.scipy.sparse.linalg.cg(damped, v, tol=1e-7, maxiter=num_iterations)[0]

    return _implicit(solve)


def neumann(*, step_size: float | Array = 0.01, num_terms: int = 2) -> Hypergradient:
    """Implicit, the inverse as a Neumann series; with `num_terms=0` it is `t1_t2`.

    Args:
      step_size: gamma, above 0 and below 2 over the largest eigenvalue for the series to converge.
      num_terms: K, products with the second derivative. Static.
    """
    check_count("num_terms", num_terms, minimum=0)
    check_number("step_size", step_size)

    def solve(hessian, v):
        def body(carry, _):
            term, total = carry
            term = jax.tree.map(lambda t, h: t - step_size * h, term, hessian(term))
            return (term, jax.tree.map(jnp.add, total, term)), None

        (_, total), _ = jax.lax.scan(body, (v, v), length=num_terms)
        return jax.tree.map(lambda leaf: step_size * leaf, total)

    return _implicit(solve)


def t1_t2(*, step_size: float | Array = 0.01) -> Hypergradient:
    """Implicit, with `step_size` times the identity for the inverse.

    Args:
      step_size: at least 0; the paper's is 1, that of DARTS the learning rate.
    """
    check_number("step_size", step_size)
    return _implicit(lambda hessian, v: jax.tree.map(lambda leaf: step_size * leaf, v))


def _implicit(solve: Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]) -> Hypergradient:
    """With `solve(hessian, v)`, about the inverse of the lower second derivative times v."""

    def hypergradient(upper: Upper, lower: Lower, weights, alpha):
        grad_fn = jax.value_and_grad(upper, argnums=(0, 1), has_aux=True)
        value, (at_weights, direct) = grad_fn(weights, alpha)
        slope = lambda w: jax.grad(lower.loss)(w, alpha)  # noqa: E731

        def hessian(u):
            return jax.jvp(slope, (weights,), (u,))[1]

        solution = jax.lax.stop_gradient(solve(hessian, at_weights))

        def along(alpha):
            return optax.tree.vdot(jax.grad(lower.loss)(weights, alpha), solution)

        return value, jax.tree.map(jnp.subtract, direct, jax.grad(along)(alpha))

    return hypergradient


ALL = MappingProxyType(
    {
        "conjugate_gradient": conjugate_gradient,
        "finite_difference": finite_difference,
        "first_order": first_order,
        "neumann": neumann,
        "t1_t2": t1_t2,
        "unrolled": unrolled,
    }
)
