"""Convolutions and their gradients in the forms that XLA's CPU backend is fast at inside loops.

There, a convolution that is not in canonical layout (NHWC, HWIO, NHWC) is a naive loop nest, 20 to
40 times slower than Eigen's; autodiff's gradients are such. Here every gradient is a convolution in
canonical layout, or what is faster for its shape:

* pointwise: a matrix product of pixels.
* matrix: for images no larger than the kernel, a product of whole images with the matrix of the
  convolution, which then has fewer numbers than the patches would have.
* patches: for other results of up to four pixels, where Eigen's convolution slows down tenfold.
* few: for a first layer's few input channels, sums of shifted images, which need no packing.
* depthwise: the same per channel; XLA's own is 20 to 90 times slower.
* grouped: one group after the other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnas.nn import _depthwise_cpu as depthwise
from jaxnas.nn._geometry import Geometry, back_pads, spread, tap_by_tap, windows
from jaxnas.nn._windows import total

LAYOUT = ("NHWC", "HWIO", "NHWC")

# Where one form overtakes another, as measured.
_TINY = 4  # pixels of a result up to which patches beat the convolution
_MATRIX = 256  # pixels of image times pixels of result: the matrix is that many kernels' channels
_FEW = 32  # numbers that one output is a sum of, up to which shifted images beat the convolution
_NARROW = 16  # channels of a result up to which a kernel gradient takes all images at once
_CACHED = 2**17  # numbers of x up to which it does so for any result
_CHUNK = 2**15  # numbers of x that it takes at a time otherwise: what stays in the cache


def _method(channels: int, g: Geometry) -> str:
    """The form of a convolution with `channels` inputs per group."""
    if g.groups > 1:
        return "depthwise" if channels == 1 else "grouped"
    pixels, results = g.image[0] * g.image[1], g.output[0] * g.output[1]
    if g.window == (1, 1) and g.padding == (0, 0):
        return "pointwise"
    if pixels <= len(g.taps) and pixels * results <= _MATRIX:
        return "matrix"
    if results <= _TINY:
        return "patches"
    return "few" if channels * len(g.taps) <= _FEW else "direct"


def forward(x: Array, kernel: Array, g: Geometry) -> Array:
    """The convolution f[N, H', W', O] of x f[N, H, W, C] with kernel f[k1, k2, C / groups, O]."""
    channels, outputs = kernel.shape[2:]
    method = _method(channels, g)
    if method == "grouped":
        return _by_group(forward, x, kernel, g)
    if method == "matrix":
        y = x.reshape(x.shape[0], -1) @ _matrix(kernel, g)
        return y.reshape(x.shape[0], *g.output, outputs)
    if method in ("pointwise", "patches"):
        y = _patches(x, g) @ kernel.reshape(-1, outputs)
        return y.reshape(x.shape[0], *g.output, outputs)
    if method == "depthwise":
        return depthwise.forward(_repeat(x, outputs // g.groups), kernel[:, :, 0], g)
    if method == "few":
        return total(
            part[..., c : c + 1] * kernel[i, j, c]
            for (i, j), part in windows(x, g)
            for c in range(channels)
        )
    return lax.conv_general_dilated(
        x,
        kernel,
        (g.stride,) * 2,
        [(p, p) for p in g.padding],
        rhs_dilation=(g.dilation,) * 2,
        dimension_numbers=LAYOUT,
    )


def input_gradient(dy: Array, kernel: Array, g: Geometry) -> Array:
    """The gradient with respect to x, from that of the result."""
    channels, outputs = kernel.shape[2:]
    method = _method(channels, g)
    if method == "grouped":
        return _by_group(input_gradient, dy, kernel, g)
    if method == "matrix":
        x = dy.reshape(dy.shape[0], -1) @ _matrix(kernel, g).T
        return x.reshape(dy.shape[0], *g.image, channels)
    if method == "depthwise":
        x = depthwise.input_gradient(dy, kernel[:, :, 0], g=g)
        return x if outputs == g.groups else x.reshape(*x.shape[:3], g.groups, -1).sum(4)
    if method in ("pointwise", "patches") or tap_by_tap(g):
        columns = dy.reshape(-1, outputs) @ kernel.reshape(-1, outputs).T
        columns = columns.reshape(*dy.shape[:3], len(g.taps), channels)
        return total(spread(columns[:, :, :, t], i, j, g) for t, (i, j) in enumerate(g.taps))
    return lax.conv_general_dilated(
        dy,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        back_pads(g),
        lhs_dilation=(g.stride,) * 2,
        rhs_dilation=(g.dilation,) * 2,
        dimension_numbers=LAYOUT,
    )


def kernel_gradient(x: Array, dy: Array, g: Geometry) -> Array:
    """The gradient with respect to the kernel, from that of the result."""
    channels, outputs = x.shape[3] // g.groups, dy.shape[3]
    method = _method(channels, g)
    shape = (*g.window, channels, outputs)
    if method == "grouped":
        return _by_group(kernel_gradient, x, dy, g)
    if method == "matrix":
        products = x.reshape(x.shape[0], -1).T @ dy.reshape(dy.shape[0], -1)
        kernel = jax.ShapeDtypeStruct(shape, x.dtype)
        return jax.linear_transpose(lambda kernel: _matrix(kernel, g), kernel)(products)[0]
    if method == "depthwise":
        return depthwise.kernel_gradient(_repeat(x, outputs // g.groups), dy, g)[:, :, None]
    if method == "pointwise":
        return (dy.reshape(-1, outputs).T @ _patches(x, g)).T.reshape(shape)
    size = _chunk_size(x)
    if size == x.shape[0] or outputs <= _NARROW or x.size <= _CACHED:
        return _chunk_kernel_gradient(x, dy, g)
    chunks = (x.reshape(-1, size, *x.shape[1:]), dy.reshape(-1, size, *dy.shape[1:]))

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _chunk_kernel_gradient(chunk[0], chunk[1], g), None

    return lax.scan(add, jnp.zeros(shape, x.dtype), chunks)[0]


def _chunk_size(x: Array) -> int:
    """Images to take at a time: a divisor of all, not far below what fits."""
    wanted = max(1, _CHUNK // (x.size // x.shape[0]))
    fitting = [n for n in range(1, min(wanted, x.shape[0]) + 1) if x.shape[0] % n == 0]
    return fitting[-1] if fitting and 4 * fitting[-1] >= wanted else x.shape[0]


def _chunk_kernel_gradient(x: Array, dy: Array, g: Geometry) -> Array:
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


def _repeat(x: Array, times: int) -> Array:
    return x if times == 1 else jnp.repeat(x, times, axis=-1)


# --- shared ---


def _by_group(
    fun: Callable[[Array, Array, Geometry], Array], a: Array, b: Array, g: Geometry
) -> Array:
    """Runs `fun` on one group after the other: every array's last axis is what groups divide."""

    def split(v: Array) -> Array:
        return jnp.moveaxis(v.reshape(*v.shape[:-1], g.groups, -1), -2, 0)

    alone = g._replace(groups=1)
    parts = lax.map(lambda pair: fun(pair[0], pair[1], alone), (split(a), split(b)))
    joined = jnp.moveaxis(parts, 0, -2)
    return joined.reshape(*joined.shape[:-2], -1)


def _patches(x: Array, g: Geometry) -> Array:
    """All that a pixel of the result sees, as a row: f[N * H' * W', k1 * k2 * C]."""
    parts = [part for _, part in windows(x, g)]
    columns = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    return columns.reshape(-1, columns.shape[-1])


def _matrix(kernel: Array, g: Geometry) -> Array:
    """The convolution as a matrix f[H * W * C, H' * W' * O]: the kernel at every position."""
    placed = kernel
    for axis, size, window, pad, out in zip(
        (0, 1), g.image, g.window, g.padding, g.output, strict=True
    ):
        copies = []
        for position in range(out):
            low = position * g.stride - pad
            pads = [(0, 0, 0)] * placed.ndim
            pads[axis] = (low, size - low - (g.dilation * (window - 1) + 1), g.dilation - 1)
            copies.append(lax.pad(placed, jnp.zeros((), placed.dtype), pads))
        placed = jnp.stack(copies, axis=-2)
    return placed.reshape(g.image[0] * g.image[1] * kernel.shape[2], -1)
