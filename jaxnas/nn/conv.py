"""Two-dimensional convolution whose derivatives are as fast as itself, inside loops too.

On CPU it runs in the forms of `jaxnas.nn._conv_cpu`; elsewhere it is XLA's own convolution with
XLA's own gradients. It is a JAX primitive rather than a `custom_vjp`: a convolution is linear in
each argument, and the three products of image, kernel and result are each other's transposes, so
derivatives of every order exist in forward and reverse mode, and all of them are fast.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxnas.nn import _conv_cpu as cpu
from jaxnas.nn._conv_cpu import Geometry
from jaxnas.nn._linear import define

Product = Callable[[Array, Array, Geometry], Array]


def conv(
    x: Array,
    kernel: Array,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    padding: int | Sequence[int] | None = None,
) -> Array:
    """Convolves images with a kernel (cross-correlation, as everywhere in deep learning).

    Args:
      x: f[N, H, W, C], float32 or bfloat16; products are accumulated in float32 on CPU.
      kernel: f[k1, k2, C / groups, O]; is brought to x's dtype.
      stride: pixels between outputs, at least 1. Static.
      dilation: pixels between the kernel's taps, at least 1. Static.
      groups: of channels that are convolved apart, a divisor of C and of O; C of them make a
        depthwise convolution. Static.
      padding: zeros on either side, one number or (height, width); None keeps the size of the image
        at stride 1 for odd kernels: dilation * (k // 2). Static.

    Returns:
      f[N, H', W', O] of x's dtype.

    Raises:
      ValueError: for shapes that do not fit, numbers out of range, or a kernel that is larger than
        the padded image.

    Example:
      >>> image, kernel = jnp.arange(9.0).reshape(1, 3, 3, 1), jnp.ones((3, 3, 1, 1))
      >>> conv(image, kernel)[0, :, :, 0].tolist()
      [[8.0, 15.0, 12.0], [21.0, 36.0, 27.0], [20.0, 33.0, 24.0]]
    """
    for name, value in (("stride", stride), ("dilation", dilation), ("groups", groups)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(f"x and kernel must have 4 axes, got {x.shape} and {kernel.shape}")
    if kernel.shape[2] * groups != x.shape[3] or kernel.shape[3] % groups:
        raise ValueError(
            f"kernel of shape {kernel.shape} does not fit {x.shape[3]} channels in {groups} groups"
        )
    window = kernel.shape[:2]
    if padding is None:
        pads = [dilation * (k // 2) for k in window]
    else:
        pads = [padding] * 2 if isinstance(padding, int) else list(padding)
    if len(pads) != 2 or min(pads) < 0:
        raise ValueError(f"padding must be one or two numbers of at least 0, got {padding}")
    geometry = Geometry(x.shape[1:3], window, stride, dilation, groups, (pads[0], pads[1]))
    if min(geometry.output) < 1:
        raise ValueError(
            f"kernel {window} with dilation {dilation} is larger than the image {x.shape[1:3]} "
            f"padded by {tuple(pads)}"
        )
    return _forward_p.bind(x, kernel.astype(x.dtype), geometry=geometry)


def _on_cpu(fun: Product) -> Product:
    def one(a, b, geometry):
        a32, b32 = a.astype(jnp.float32), b.astype(jnp.float32)
        return fun(a32, b32, geometry).astype(a.dtype)

    def run(a, b, geometry):
        if a.ndim == 4:
            return one(a, b, geometry)
        # Batched kernels would be a grouped convolution, which is slower than one after the other.
        return lax.map(lambda pair: one(pair[0], pair[1], geometry), (a, b))

    return run


def _elsewhere(fun: Product) -> Product:
    def run(a, b, geometry):
        one = lambda a, b: fun(a, b, geometry)  # noqa: E731
        return one(a, b) if a.ndim == 4 else jax.vmap(one)(a, b)

    return run


def _native(x: Array, kernel: Array, g: Geometry) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (g.stride,) * 2,
        [(p, p) for p in g.padding],
        rhs_dilation=(g.dilation,) * 2,
        dimension_numbers=cpu.LAYOUT,
        feature_group_count=g.groups,
    )


def _native_input_gradient(dy: Array, kernel: Array, g: Geometry) -> Array:
    shape = (dy.shape[0], *g.image, kernel.shape[2] * g.groups)
    x = jax.ShapeDtypeStruct(shape, dy.dtype)
    return jax.linear_transpose(lambda x: _native(x, kernel, g), x)(dy)[0]


def _native_kernel_gradient(x: Array, dy: Array, g: Geometry) -> Array:
    shape = (*g.window, x.shape[3] // g.groups, dy.shape[3])
    kernel = jax.ShapeDtypeStruct(shape, dy.dtype)
    return jax.linear_transpose(lambda kernel: _native(x, kernel, g), kernel)(dy)[0]


def _primitive(name: str, cpu_fun: Product, native_fun: Product, shape_fn: Callable) -> Primitive:
    """A bilinear primitive; arrays may have a leading axis of independent products."""

    def shapes(a, b, geometry):
        shape = (*a.shape[:-4], *shape_fn(a.shape[-4:], b.shape[-4:], geometry))
        return jax.core.ShapedArray(shape, a.dtype)

    primitive = define(name, _elsewhere(native_fun), shapes)
    on_cpu = mlir.lower_fun(_on_cpu(cpu_fun), multiple_results=False)
    mlir.register_lowering(primitive, on_cpu, platform="cpu")

    def batch(arrays, axes, geometry):
        mapped = [isinstance(axis, int) for axis in axes]
        pairs = list(zip(arrays, axes, strict=True))
        size = next(a.shape[i] for (a, i), on in zip(pairs, mapped, strict=True) if on)
        a, b = (
            jnp.moveaxis(v, i, 0) if on else jnp.broadcast_to(v, (size, *v.shape))
            for (v, i), on in zip(pairs, mapped, strict=True)
        )
        if a.ndim == 5:
            return primitive.bind(a, b, geometry=geometry), 0
        # Batched before: both leading axes become one.
        flat = (v.reshape(-1, *v.shape[2:]) for v in (a, b))
        found = primitive.bind(*flat, geometry=geometry)
        return found.reshape(size, -1, *found.shape[1:]), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


_forward_p = _primitive("conv", cpu.forward, _native, lambda x, k, g: (x[0], *g.output, k[3]))
_input_p = _primitive(
    "conv_input_gradient",
    cpu.input_gradient,
    _native_input_gradient,
    lambda dy, k, g: (dy[0], *g.image, k[2] * g.groups),
)
_kernel_p = _primitive(
    "conv_kernel_gradient",
    cpu.kernel_gradient,
    _native_kernel_gradient,
    lambda x, dy, g: (*g.window, x[3] // g.groups, dy[3]),
)


def _bilinear(primitive: Primitive, first: Callable, second: Callable) -> None:
    """Sets the transposes in the first and in the second array, given the other."""
    ad.defbilinear(
        primitive,
        lambda ct, a, b, geometry: first(ct, b, geometry),
        lambda ct, a, b, geometry: second(a, ct, geometry),
    )


def _product(primitive: Primitive, swap: bool = False) -> Callable:
    def run(a, b, geometry):
        a, b = (b, a) if swap else (a, b)
        return primitive.bind(a, b, geometry=geometry)

    return run


# The result of each is an argument of the other two.
_bilinear(_forward_p, _product(_input_p), _product(_kernel_p))
_bilinear(_input_p, _product(_forward_p), _product(_kernel_p, swap=True))
_bilinear(_kernel_p, _product(_input_p, swap=True), _product(_forward_p))
