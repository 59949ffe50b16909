"""Pooling with hand-written derivatives.

XLA's own derivatives of its windows are loop nests on CPU: the average's a padded reduce-window,
the maximum's a select-and-scatter, up to 30 times slower than these. The sum over a window is
separable and its transpose is again a sum over windows. The maximum remembers in one byte which tap
it came from, so its derivative is a comparison and an addition per tap. Both are linear operations
of `jaxnas.nn._linear`: derivatives of every order exist in forward and reverse mode.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnas.nn._linear import linear_op
from jaxnas.nn._windows import seen, total


class _Windows(NamedTuple):
    """Square windows over images. Pairs are (height, width)."""

    image: tuple[int, int]
    size: int
    stride: int
    padding: int
    count_padding: bool = True  # does an average divide by the taps that lie in the padding, too?

    @property
    def output(self) -> tuple[int, int]:
        height, width = (
            (length + 2 * self.padding - self.size) // self.stride + 1 for length in self.image
        )
        return height, width

    @property
    def pads(self) -> list[tuple[int, int, int]]:
        """Configuration of `lax.pad` for an image whose windows are taken."""
        side = (self.padding, self.padding, 0)
        return [(0, 0, 0), side, side, (0, 0, 0)]

    @property
    def back_pads(self) -> list[tuple[int, int, int]]:
        """The same for a result, so that stride-1 windows over it are aligned with the image."""
        sides = []
        for length, outputs in zip(self.image, self.output, strict=True):
            low = self.size - 1 - self.padding
            high = length + self.padding - ((outputs - 1) * self.stride + 1)
            sides.append((low, high, self.stride - 1))
        return [(0, 0, 0), *sides, (0, 0, 0)]


def max_pool(x: Array, size: int, *, stride: int = 1, padding: int = 0) -> Array:
    """The maximum of every window.

    The gradient goes to the first maximal element of a window, row by row, as in PyTorch. Not a
    number wins over numbers, so a failed candidate is not hidden.

    Args:
      x: f[N, H, W, C].
      size: of the square window. Static.
      stride: pixels between windows. Static.
      padding: pixels of minus infinity on every side, at most half of `size`. Static.

    Returns:
      f[N, H', W', C] of x's dtype, with H' = (H + 2 padding - size) // stride + 1.

    Raises:
      ValueError: for numbers out of range, or a window larger than the padded image.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2, stride=2)[0, :, :, 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """
    return _max_pool(x, _windows(x, size, stride, padding))


def avg_pool(
    x: Array, size: int, *, stride: int = 1, padding: int = 0, count_include_pad: bool = False
) -> Array:
    """The average of every window.

    Args:
      x: f[N, H, W, C].
      size: of the square window. Static.
      stride: pixels between windows. Static.
      padding: pixels of zeros on every side, at most half of `size`. Static.
      count_include_pad: whether padding counts as pixels of the window. Static.

    Returns:
      f[N, H', W', C] of x's dtype, with H' = (H + 2 padding - size) // stride + 1.

    Raises:
      ValueError: for numbers out of range, or a window larger than the padded image.

    Example:
      >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2, stride=2)[0, :, :, 0].tolist()
      [[2.5, 4.5], [10.5, 12.5]]
    """
    windows = _windows(x, size, stride, padding, count_include_pad)
    return _average((), (x,), windows=windows)[0]


def _windows(x: Array, size: int, stride: int, padding: int, count: bool = True) -> _Windows:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floats of 4 axes, got {x.dtype}{list(x.shape)}")
    for name, value, low in (("size", size, 1), ("stride", stride, 1), ("padding", padding, 0)):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if 2 * padding > size:
        raise ValueError(f"padding must be at most half of size {size}, got {padding}")
    windows = _Windows((x.shape[1], x.shape[2]), size, stride, padding, count)
    if min(windows.output) < 1:
        raise ValueError(f"size {size} is more than image {x.shape[1:3]} padded by {padding}")
    return windows


# --- average ---


def _reciprocal_counts(windows: _Windows) -> np.ndarray:
    """f32[H', W', 1]: 1 / pixels that a window's average divides by."""
    counts = []
    for length, outputs in zip(windows.image, windows.output, strict=True):
        start = np.arange(outputs) * windows.stride - windows.padding
        inside = np.minimum(start + windows.size, length) - np.maximum(start, 0)
        counts.append(np.full(outputs, windows.size) if windows.count_padding else inside)
    return (1.0 / np.multiply.outer(*counts)).astype(np.float32)[:, :, None]


def _window_sums(x: Array, size: int, stride: int, output: tuple[int, int]) -> Array:
    for axis, outputs in zip((1, 2), output, strict=True):
        span = (outputs - 1) * stride + 1
        x = total(lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(size))
    return x


def _average_apply(_, operands, *, windows: _Windows):
    x = operands[0].astype(jnp.float32)
    x = lax.pad(x, np.float32(0), windows.pads)
    sums = _window_sums(x, windows.size, windows.stride, windows.output)
    return ((sums * _reciprocal_counts(windows)).astype(operands[0].dtype),)


def _average_transpose(_, operands, *, windows: _Windows):
    dy = operands[0].astype(jnp.float32) * _reciprocal_counts(windows)
    dy = lax.pad(dy, np.float32(0), windows.back_pads)
    return (_window_sums(dy, windows.size, 1, windows.image).astype(operands[0].dtype),)


_average = linear_op("average_pool", _average_apply, _average_transpose)


# --- maximum ---


def _taps(x: Array, size: int, stride: int, output: tuple[int, int]) -> Iterator[Array]:
    """What every position of the window sees, row by row: f[N, H', W', C] each."""
    for i in range(size):
        for j in range(size):
            yield seen(x, (i, j), stride, output)


def _maximum(x: Array, windows: _Windows) -> tuple[Array, Array]:
    """The maximum and the number of the tap that it came from."""
    few = windows.size**2 <= np.iinfo(np.int8).max
    number = np.int8 if few else np.int32
    x = lax.pad(x, jnp.array(-np.inf, x.dtype), windows.pads)
    taps = _taps(x, windows.size, windows.stride, windows.output)
    y = next(taps)
    index = jnp.zeros(y.shape, number)
    for tap, value in enumerate(taps, start=1):
        wins = (value > y) | (value != value)
        y, index = jnp.where(wins, value, y), jnp.where(wins, number(tap), index)
    return y, index


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(x: Array, windows: _Windows) -> Array:
    return _maximum(x, windows)[0]


@_max_pool.defjvp
def _max_pool_jvp(windows, primals, tangents):
    (x,) = primals
    y, index = _maximum(x, windows)
    return y, _select((index,), tangents, windows=windows)[0]


def _select_apply(residuals, operands, *, windows: _Windows):
    (index,), (x,) = residuals, operands
    zero = jnp.zeros((), x.dtype)
    taps = _taps(lax.pad(x, zero, windows.pads), windows.size, windows.stride, windows.output)
    return (total(jnp.where(index == tap, value, zero) for tap, value in enumerate(taps)),)


def _select_transpose(residuals, operands, *, windows: _Windows):
    (index,), (dy,) = residuals, operands
    zero, none = jnp.zeros((), dy.dtype), jnp.array(-1, index.dtype)
    dys = _taps(lax.pad(dy, zero, windows.back_pads), windows.size, 1, windows.image)
    owners = _taps(lax.pad(index, none, windows.back_pads), windows.size, 1, windows.image)
    # Seen from a pixel, the windows that contain it come in the opposite order of their taps.
    last = windows.size**2 - 1
    pairs = enumerate(zip(owners, dys, strict=True))
    return (total(jnp.where(own == last - tap, part, zero) for tap, (own, part) in pairs),)


_select = linear_op("max_pool_select", _select_apply, _select_transpose)
