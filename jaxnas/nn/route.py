"""Routing: run the one branch that an architecture chose, forwards and backwards."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
from jax import Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _routed(branches: tuple[Callable[[Array], Array], ...], index: Array, x: Array) -> Array:
    return jax.lax.switch(index, branches, x)


def _routed_forward(branches, index, x):
    return jax.lax.switch(index, branches, x), (index, x)


def _routed_backward(branches, residuals, cotangent):
    index, x = residuals
    pullbacks = [lambda x, ct, f=f: jax.vjp(f, x)[1](ct)[0] for f in branches]
    return None, jax.lax.switch(index, pullbacks, x, cotangent)


_routed.defvjp(_routed_forward, _routed_backward)


def route(branches: Sequence[Callable[[Array], Array]], index: Array, x: Array) -> Array:
    """Applies branch `index` to `x`.

    Autodiff of `lax.switch` keeps the residuals of every branch, zero-filled for those not taken.
    Here the input is the only residual and the chosen branch is recomputed in the backward pass,
    which is the better trade for elementwise functions. Under `vmap` over `index` every branch
    runs and the result is selected.

    Args:
      branches: functions of one array, all with the same output shape; a single one is called
        directly.
      index: i32[], which branch. May be traced.
      x: the input.

    Returns:
      The chosen branch's output.

    Example:
      >>> import jax.numpy as jnp
      >>> float(route([jnp.tanh, jnp.abs], jnp.int32(1), jnp.float32(-2.0)))
      2.0
    """
    if len(branches) == 1:
        return branches[0](x)
    return _routed(tuple(branches), index, x)
