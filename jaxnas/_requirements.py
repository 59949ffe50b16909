"""What the conformance kit's checks are made of."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas.types import PyTree


def assert_traced_once(fn: Callable) -> Callable:
    """`jax.jit(fn)` that raises when it is traced a second time.

    Example:
      >>> double = assert_traced_once(lambda x: 2 * x)
      >>> float(double(jnp.ones(()))), float(double(jnp.zeros(())))
      (2.0, 0.0)
    """
    traces = []

    @functools.wraps(fn)
    def counted(*args, **kwargs):
        traces.append(None)
        name = getattr(fn, "__name__", repr(fn))
        cause = "a shape, dtype, weak type or static value changed"
        require(len(traces) == 1, f"{name} was traced twice: {cause}")
        return fn(*args, **kwargs)

    return jax.jit(counted)


def require(condition: Any, message: str) -> None:
    """Raises AssertionError with `message` unless `condition`."""
    if not condition:  # not `assert`, which -O removes
        raise AssertionError(message)


def check_parameters(fn: Callable, names: tuple[str, ...], what: str) -> None:
    """Whether the first parameters of `fn` are called `names`."""
    got = tuple(inspect.signature(fn).parameters)[: len(names)]
    require(got == names, f"{what} takes {got}, the contract says {names}")


def check_array(value: Array, shape: tuple[int, ...], dtype: Any, what: str) -> None:
    """Shape and dtype."""
    got, want = f"{value.dtype}{list(value.shape)}", f"{jnp.dtype(dtype)}{list(shape)}"
    require(got == want, f"{what} is {got}, the contract says {want}")


def check_layout(got: PyTree, want: PyTree, what: str) -> None:
    """Same structure, shapes and dtypes."""
    trees = jax.tree.structure(got), jax.tree.structure(want)
    require(trees[0] == trees[1], f"{what} has structure {trees[0]}, expected {trees[1]}")
    pairs = zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True)
    for (path, leaf), model in pairs:
        check_array(leaf, model.shape, model.dtype, f"{what}{jax.tree_util.keystr(path)}")


def check_same(got: PyTree, want: PyTree, what: str, tolerance: float = 1e-5) -> None:
    """Same layout and values; floats to rounding, for compilers reorder sums."""
    check_layout(got, want, what)
    pairs = zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True)
    for (path, leaf), model in pairs:
        close = np.allclose(leaf, model, rtol=tolerance, atol=tolerance, equal_nan=True)
        place = f"{what}{jax.tree_util.keystr(path)}"
        require(close, f"{place} gives {leaf} instead of {model}")
