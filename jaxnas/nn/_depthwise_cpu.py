"""Depthwise convolution and its gradients, one kernel per channel, for XLA's CPU backend.

What is summed is written out tap by tap, as images shifted and scaled. The kernel's gradient is
products summed over whole images, and XLA makes vector code of such a sum only if it is small: so a
loop adds up blocks of rows, each with sums of at most `_BLOCK` numbers for all taps, up to five
times as fast as one sum after the other over everything. The input's gradient is kept apart, or XLA
fuses it with those of all operations that read the same input, without vector code.
"""

import jax.numpy as jnp
from jax import Array, lax

from jaxnas.nn._fusion import apart
from jaxnas.nn._geometry import Geometry, image_pads, windows
from jaxnas.nn._windows import total

_BLOCK = 2**11  # numbers of the result that one sum takes at a time
_LITTLE = 2**14  # numbers of the result below which blocks do not pay for their compilation


def forward(x: Array, kernel: Array, g: Geometry) -> Array:
    """The convolution f[N, H', W', C] of x f[N, H, W, C] with kernel f[k1, k2, C]."""
    return total(part * kernel[i, j] for (i, j), part in windows(x, g))


@apart("g")
def input_gradient(dy: Array, kernel: Array, *, g: Geometry) -> Array:
    """The gradient with respect to x, from that of the result.

    Every pixel of a stride is a sum over the taps that see it; then all are interleaved.
    """
    step, (num, height, width, channels) = g.stride, dy.shape
    rows, columns = (
        -(-(size + 2 * pad) // step) for size, pad in zip(g.image, g.padding, strict=True)
    )
    top, left = ((k - 1) * g.dilation // step for k in g.window)
    sides = [(0, 0, 0), (top, rows - height, 0), (left, columns - width, 0), (0, 0, 0)]
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), sides)
    parts: dict[tuple[int, int], list[Array]] = {}
    for i, j in g.taps:
        (down, y), (right, x) = divmod(i * g.dilation, step), divmod(j * g.dilation, step)
        seen = dy[:, top - down : top - down + rows, left - right : left - right + columns]
        parts.setdefault((y, x), []).append(seen * kernel[i, j])
    none = [jnp.zeros((num, rows, columns, channels), dy.dtype)]
    pixels = [[total(parts.get((y, x), none)) for x in range(step)] for y in range(step)]
    whole = jnp.stack([jnp.stack(line, 3) for line in pixels], 2)
    whole = whole.reshape(num, rows * step, columns * step, channels)
    (top, left), (height, width) = g.padding, g.image
    return whole[:, top : top + height, left : left + width]


def kernel_gradient(x: Array, dy: Array, g: Geometry) -> Array:
    """The gradient f[k1, k2, C] with respect to the kernel, from that of the result."""
    padded = lax.pad(x, jnp.zeros((), x.dtype), image_pads(g))
    return (_by_tap if dy.size < _LITTLE else _by_block)(padded, dy, g)


def _by_tap(padded: Array, dy: Array, g: Geometry) -> Array:
    """One tap after the other: as fast as all at once, and one tap to compile."""
    num, *output, channels = dy.shape
    height, width = ((out - 1) * g.stride + 1 for out in output)

    def tap(index: Array) -> Array:
        start = (0, index // g.window[1] * g.dilation, index % g.window[1] * g.dilation, 0)
        seen = lax.dynamic_slice(padded, start, (num, height, width, channels))
        return jnp.sum(seen[:, :: g.stride, :: g.stride] * dy, (0, 1, 2))

    return lax.map(tap, jnp.arange(len(g.taps))).reshape(*g.window, channels)


def _by_block(padded: Array, dy: Array, g: Geometry) -> Array:
    """All taps at once, a few rows of one image after the other."""
    num, height, width, channels = dy.shape
    size = width * channels
    rows = max(
        n for n in range(1, height + 1) if height % n == 0 and (n == 1 or n * size <= _BLOCK)
    )
    phases, dy = _phases(padded, g.stride), dy.reshape(num, height, size)
    seen_rows = rows + (g.window[0] - 1) * g.dilation // g.stride

    def add(sums: list[Array], block: Array) -> tuple[list[Array], None]:
        image, row = block // (height // rows), block % (height // rows) * rows
        shape = (1, *phases.shape[1:3], seen_rows, phases.shape[4])
        seen = lax.dynamic_slice(phases, (image, 0, 0, row, 0), shape)[0]
        slope = lax.dynamic_slice(dy, (image, row, 0), (1, rows, size))[0]
        added = []
        for sum_, (i, j) in zip(sums, g.taps, strict=True):
            down, phase_down = divmod(i * g.dilation, g.stride)
            right, phase_right = divmod(j * g.dilation, g.stride)
            part = seen[phase_down, phase_right, down : down + rows]
            part = part[:, right * channels : right * channels + size]
            added.append(sum_ + jnp.sum(part * slope, 0))
        return added, None

    none = [jnp.zeros(size, dy.dtype)] * len(g.taps)
    sums = lax.scan(add, none, jnp.arange(num * (height // rows)))[0]
    return jnp.stack(sums).reshape(*g.window, width, channels).sum(2)


def _phases(padded: Array, stride: int) -> Array:
    """Images whose pixels lie `stride` apart: f[N, stride, stride, rows, columns * C]."""
    num, height, width, channels = padded.shape
    ends = [(0, -length % stride, 0) for length in (height, width)]
    padded = lax.pad(padded, jnp.zeros((), padded.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    rows, columns = (length // stride for length in padded.shape[1:3])
    phases = padded.reshape(num, rows, stride, columns, stride, channels)
    phases = phases.transpose(0, 2, 4, 1, 3, 5)
    return phases.reshape(num, stride, stride, rows, columns * channels)
