"""What every position of a window sees, for convolutions and pooling written out tap by tap."""

import operator
from collections.abc import Iterable
from functools import reduce

from jax import Array, lax


def seen(padded: Array, offset: tuple[int, int], stride: int, output: tuple[int, int]) -> Array:
    """What one tap sees as the window moves over padded images.

    Args:
      padded: f[N, H, W, C].
      offset: of the tap from the window's corner, in pixels.
      stride: pixels between windows.
      output: windows down and across, (H', W').

    Returns:
      f[N, H', W', C].
    """
    down, right = offset
    spans = [(outputs - 1) * stride + 1 for outputs in output]
    stop = (padded.shape[0], down + spans[0], right + spans[1], padded.shape[3])
    return lax.slice(padded, (0, down, right, 0), stop, (1, stride, stride, 1))


def total(parts: Iterable[Array]) -> Array:
    """The sum of at least one array, without a zero to start from."""
    return reduce(operator.add, parts)
