"""The shape of a convolution, and what its taps see."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnas.nn._windows import seen

_SPREAD = 9  # taps up to which a strided gradient is a sum per tap rather than one over zeros


class Geometry(NamedTuple):
    """What a convolution's arrays do not say. Pairs are (height, width)."""

    image: tuple[int, ...]
    window: tuple[int, ...]
    stride: int
    dilation: int
    groups: int
    padding: tuple[int, ...]

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        sizes = zip(self.image, self.window, self.padding, strict=True)
        height, width = (
            (size + 2 * pad - self.dilation * (window - 1) - 1) // self.stride + 1
            for size, window, pad in sizes
        )
        return height, width

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Positions in the window, row by row."""
        height, width = self.window
        return list(product(range(height), range(width)))


def tap_by_tap(g: Geometry) -> bool:
    """Whether each tap spreads its gradient, rather than a convolution over zeros between."""
    return g.stride > 1 and len(g.taps) <= _SPREAD


def image_pads(g: Geometry) -> list[tuple[int, int, int]]:
    """Configuration of `lax.pad` for an image."""
    return [(0, 0, 0), *((p, p, 0) for p in g.padding), (0, 0, 0)]


def back_pads(g: Geometry) -> list[tuple[int, int]]:
    """Padding of the result with which a convolution with the flipped kernel gives the image."""
    pads = []
    for size, window, pad, out in zip(g.image, g.window, g.padding, g.output, strict=True):
        pads.append((g.dilation * (window - 1) - pad, size + pad - ((out - 1) * g.stride + 1)))
    return pads


def windows(x: Array, g: Geometry) -> Iterator[tuple[tuple[int, int], Array]]:
    """Per tap, what it sees: f[N, H', W', C]."""
    padded = lax.pad(x, jnp.zeros((), x.dtype), image_pads(g))
    for i, j in g.taps:
        yield (i, j), seen(padded, (i * g.dilation, j * g.dilation), g.stride, g.output)


def spread(part: Array, i: int, j: int, g: Geometry) -> Array:
    """The transpose of a tap's window: f[N, H', W', C] back to where it came from in x."""
    pads = [(0, 0, 0)]
    for tap, size, out, pad in zip((i, j), g.image, g.output, g.padding, strict=True):
        low = tap * g.dilation - pad
        pads.append((low, size - low - ((out - 1) * g.stride + 1), g.stride - 1))
    return lax.pad(part, jnp.zeros((), part.dtype), [*pads, (0, 0, 0)])
