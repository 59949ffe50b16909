"""Activation functions by name, and the one that an architecture chose."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Activation(NamedTuple):
    """An elementwise function.

    Attributes:
      fn: the function.
      slope: its derivative as a function of its own output, or None where that is not one.
    """

    fn: Callable[[Array], Array]
    slope: Callable[[Array], Array] | None = None


ACTIVATIONS = MappingProxyType(
    {
        "relu": Activation(jax.nn.relu, lambda y: (y > 0.0).astype(y.dtype)),
        "leaky_relu": Activation(jax.nn.leaky_relu, lambda y: jnp.where(y > 0.0, 1.0, 0.01)),
        "tanh": Activation(jnp.tanh, lambda y: 1.0 - y * y),
        "sigmoid": Activation(jax.nn.sigmoid, lambda y: y * (1.0 - y)),
        "elu": Activation(jax.nn.elu, lambda y: jnp.where(y > 0.0, 1.0, y + 1.0)),
        "identity": Activation(lambda x: x, jnp.ones_like),
        "gelu": Activation(jax.nn.gelu),
        "silu": Activation(jax.nn.silu),
    }
)


def select(index: Array, values: Sequence[Array]) -> Array:
    """`values[index]` for a traced `index` i32[]; all are computed, in one fused loop.

    Next to a matrix product that is cheaper than the memory traffic of a branch, and far less to
    compile.
    """
    chosen = values[-1]
    for position in reversed(range(len(values) - 1)):
        chosen = jnp.where(index == position, values[position], chosen)
    return chosen


def activate(names: tuple[str, ...], index: Array, x: Array) -> Array:
    """The activation `names[index]` of x f32[...].

    Args:
      names: keys of `ACTIVATIONS`. Static.
      index: i32[], may be traced.
      x: f32[...].

    Returns:
      f32[...].

    Example:
      >>> activate(("relu", "tanh"), jnp.int32(0), jnp.array([-1.0, 2.0])).tolist()
      [0.0, 2.0]
    """
    return select(index, [ACTIVATIONS[name].fn(x) for name in names])


def has_slopes(names: Sequence[str]) -> bool:
    """Whether the derivatives of all these follow from their outputs."""
    return all(ACTIVATIONS[name].slope is not None for name in names)


def slope(names: tuple[str, ...], index: Array, y: Array) -> Array:
    """The derivative of `names[index]` where its output is y f32[...]; see `has_slopes`."""
    slopes = [ACTIVATIONS[name].slope for name in names]
    return select(index, [fn(y) for fn in slopes if fn is not None])
