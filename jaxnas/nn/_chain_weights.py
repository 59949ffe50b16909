"""Weights of a block that is padded: to more channels, and to a larger kernel around its centre."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any

# What the axes of a layer's arrays count: sides of the kernel (k), channels that come into the
# block (i) or leave it (o), or what is never padded (.).
_AXES = {
    "conv": "kkio",
    "depthwise": "kk.i",
    "pointwise": "..io",
    "query": "i.",
    "key_value": "i.",
    "output": ".o",
    "norm": "o",
}


def crop(
    variables: PyTree, *, size: int, before: int | None = None, after: int | None = None
) -> PyTree:
    """Variables of the block with fewer channels and a smaller kernel.

    Args:
      variables: one collection of a `Block`.
      size: side of the kernel.
      before: channels of the input; None: as many as there are.
      after: channels of the output; None: as many as there are.

    Returns:
      The same tree with smaller arrays.
    """
    wanted = {"i": before, "o": after}

    def one(leaf: Array, axes: str) -> Array:
        slices = []
        for length, axis in zip(leaf.shape, axes, strict=True):
            start = (length - size) // 2 if axis == "k" else 0
            end = start + size if axis == "k" else wanted.get(axis)
            slices.append(slice(start, end))
        return leaf[tuple(slices)]

    return _map(one, variables)


def scaled(variables: PyTree, size: Array, before: Array) -> PyTree:
    """Initial weights as those of the smaller block: kernels are scaled to its number of inputs.

    Args:
      variables: of the padded `Block`.
      size: i32[], side of the kernel.
      before: i32[], channels of the input.

    Returns:
      The same tree.
    """
    wanted = {"k": size, "i": before}

    def one(leaf: Array, axes: str) -> Array:
        if leaf.ndim == 1:  # of the normalisation
            return leaf
        inputs = list(zip(leaf.shape, axes, strict=True))[:-1]
        ratios = [length / jnp.asarray(wanted[a], jnp.float32) for length, a in inputs if a in "ki"]
        return leaf * jnp.sqrt(math.prod(ratios)) if ratios else leaf

    return _map(one, variables)


def _map(fun: Callable[[Array, str], Array], variables: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: fun(leaf, _AXES[path[-2].key]), variables
    )
