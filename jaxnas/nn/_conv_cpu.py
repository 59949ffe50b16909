"""Convolutions and their gradients in the forms that XLA's CPU backend is fast at inside loops.

There, a convolution that is not in canonical layout (NHWC, HWIO, NHWC) is a naive loop nest, 20 to
40 times slower than Eigen's; autodiff's gradients are such. Here every gradient is a convolution in
canonical layout, or a matrix product over patches where that is faster: for images of up to four
pixels, and for strides, where half of what a gradient convolves would be zeros in between.
"""

from collections.abc import Iterable
from functools import reduce
from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

LAYOUT = ("NHWC", "HWIO", "NHWC")

_TINY = 4  # pixels of an output up to which patches beat the convolution


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


def _method(kernel_shape: tuple[int, ...], g: Geometry) -> str:
    if g.groups > 1:
        one_each = kernel_shape[2] == 1 and kernel_shape[3] == g.groups
        return "depthwise" if one_each else "grouped"
    if g.window == (1, 1) and g.padding == (0, 0):
        return "patches"
    return "patches" if g.stride > 1 or g.output[0] * g.output[1] <= _TINY else "direct"


def forward(x: Array, kernel: Array, g: Geometry) -> Array:
    """The convolution f32[N, H', W', O] of x f32[N, H, W, C] with kernel f32[k1, k2, C / G, O]."""
    method = _method(kernel.shape, g)
    if method == "depthwise":
        return _total(part * kernel[i, j, 0] for (i, j), part in _windows(x, g))
    if method == "patches":
        y = _patches(x, g) @ kernel.reshape(-1, kernel.shape[3])
        return y.reshape(x.shape[0], *g.output, -1)
    return lax.conv_general_dilated(
        x,
        kernel,
        (g.stride,) * 2,
        [(p, p) for p in g.padding],
        rhs_dilation=(g.dilation,) * 2,
        dimension_numbers=LAYOUT,
        feature_group_count=g.groups,
    )


def input_gradient(dy: Array, kernel: Array, g: Geometry) -> Array:
    """The gradient with respect to x, from that of the result."""
    method = _method(kernel.shape, g)
    if method == "depthwise":
        return _total(_spread(dy * kernel[i, j, 0], i, j, g) for i, j in g.taps)
    if method == "patches":
        columns = dy.reshape(-1, dy.shape[3]) @ kernel.reshape(-1, kernel.shape[3]).T
        columns = columns.reshape(*dy.shape[:3], len(g.taps), -1)
        taps = enumerate(g.taps)
        return _total(_spread(columns[:, :, :, t], i, j, g) for t, (i, j) in taps)
    k1, k2, channels, outputs = kernel.shape
    share = outputs // g.groups
    flipped = kernel[::-1, ::-1].reshape(k1, k2, channels, g.groups, share)
    flipped = flipped.transpose(0, 1, 4, 3, 2).reshape(k1, k2, share, g.groups * channels)
    pads = []
    for size, window, pad, out in zip(g.image, g.window, g.padding, g.output, strict=True):
        reach = g.dilation * (window - 1)
        low = reach - pad
        pads.append((low, size - ((out - 1) * g.stride + 1) - low + reach))
    return lax.conv_general_dilated(
        dy,
        flipped,
        (1, 1),
        pads,
        lhs_dilation=(g.stride,) * 2,
        rhs_dilation=(g.dilation,) * 2,
        dimension_numbers=LAYOUT,
        feature_group_count=g.groups,
    )


def kernel_gradient(x: Array, dy: Array, g: Geometry) -> Array:
    """The gradient with respect to the kernel, from that of the result."""
    shape = (*g.window, x.shape[3] // g.groups, dy.shape[3])
    method = _method(shape, g)
    if method == "depthwise":
        sums = [jnp.sum(part * dy, axis=(0, 1, 2)) for _, part in _windows(x, g)]
        return jnp.stack(sums).reshape(shape)
    if method == "patches":
        return (_patches(x, g).T @ dy.reshape(-1, dy.shape[3])).reshape(shape)
    if method == "grouped":
        # XLA's own grouped kernel gradient is naive here; one group at a time is not.
        alone = g._replace(groups=1)
        xs = jnp.moveaxis(x.reshape(*x.shape[:3], g.groups, -1), 3, 0)
        dys = jnp.moveaxis(dy.reshape(*dy.shape[:3], g.groups, -1), 3, 0)
        parts = lax.map(lambda pair: kernel_gradient(pair[0], pair[1], alone), (xs, dys))
        return jnp.moveaxis(parts, 0, 3).reshape(shape)
    pads = []
    for size, window, pad, out in zip(g.image, g.window, g.padding, g.output, strict=True):
        pads.append((pad, (window - 1) * g.dilation + (out - 1) * g.stride + 1 - size - pad))
    # The batch is what is summed over, so it takes the place of the channels.
    found = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        (g.dilation,) * 2,
        pads,
        rhs_dilation=(g.stride,) * 2,
        dimension_numbers=LAYOUT,
    )
    return found.transpose(1, 2, 0, 3)


def _total(parts: Iterable[Array]) -> Array:
    return reduce(jnp.add, parts)


def _windows(x: Array, g: Geometry):
    """Per tap, what it sees: f32[N, H', W', C]."""
    sides = [(p, p, 0) for p in g.padding]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *sides, (0, 0, 0)])
    spans = [(out - 1) * g.stride + 1 for out in g.output]
    for i, j in g.taps:
        start = (0, i * g.dilation, j * g.dilation, 0)
        stop = (x.shape[0], start[1] + spans[0], start[2] + spans[1], x.shape[3])
        yield (i, j), lax.slice(padded, start, stop, (1, g.stride, g.stride, 1))


def _patches(x: Array, g: Geometry) -> Array:
    """All that a pixel of the result sees, as a row: f32[N * H' * W', k1 * k2 * C]."""
    parts = [part for _, part in _windows(x, g)]
    columns = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    return columns.reshape(-1, columns.shape[-1])


def _spread(part: Array, i: int, j: int, g: Geometry) -> Array:
    """The transpose of a tap's window: f32[N, H', W', C] back to where it came from in x."""
    pads = [(0, 0, 0)]
    for tap, size, out, pad in zip((i, j), g.image, g.output, g.padding, strict=True):
        low = tap * g.dilation - pad
        pads.append((low, size - low - ((out - 1) * g.stride + 1), g.stride - 1))
    return lax.pad(part, jnp.zeros((), part.dtype), [*pads, (0, 0, 0)])
