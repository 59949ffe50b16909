"""Convolution against XLA's own: values and derivatives of first and second order."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.nn import _depthwise_cpu as depthwise
from jaxnas.nn._geometry import Geometry
from jaxnas.nn.conv import conv

SETTINGS = hypothesis.settings(max_examples=8, deadline=None, derandomize=True)

# image, window, channels, outputs, options
CASES = {
    "dense": ((6, 5), (3, 3), 4, 3, {}),
    "large": ((7, 7), (7, 7), 2, 2, {}),
    "even": ((6, 6), (2, 2), 3, 2, {"padding": 0}),
    "oblong": ((6, 7), (1, 5), 2, 3, {}),
    "pointwise": ((5, 5), (1, 1), 4, 6, {}),
    "pointwise strided": ((5, 6), (1, 1), 4, 6, {"stride": 2}),
    "strided": ((8, 8), (3, 3), 3, 4, {"stride": 2}),
    "strided odd": ((7, 5), (3, 3), 3, 4, {"stride": 2}),
    "strided far": ((9, 8), (5, 5), 2, 3, {"stride": 3, "padding": (1, 2)}),
    "dilated": ((8, 7), (3, 3), 3, 2, {"dilation": 2}),
    "dilated strided": ((9, 9), (3, 3), 3, 2, {"dilation": 2, "stride": 2}),
    "tiny": ((2, 2), (3, 3), 4, 4, {}),
    "tiny strided": ((4, 4), (3, 3), 4, 4, {"stride": 2}),
    "grouped": ((6, 6), (3, 3), 6, 4, {"groups": 2}),
    "grouped strided": ((6, 6), (3, 3), 6, 4, {"groups": 2, "stride": 2}),
    "depthwise": ((6, 5), (3, 3), 4, 4, {"groups": 4}),
    "depthwise strided": ((7, 6), (5, 5), 4, 4, {"groups": 4, "stride": 2}),
    "depthwise dilated": ((7, 6), (3, 3), 4, 4, {"groups": 4, "dilation": 2}),
    "depthwise strided little": ((7, 6), (3, 3), 4, 4, {"groups": 4, "stride": 2}),
    "depthwise multiplied": ((5, 5), (3, 3), 3, 6, {"groups": 3}),
}


def reference(x, kernel, *, stride=1, dilation=1, groups=1, padding=None):
    if padding is None:
        padding = [dilation * (k // 2) for k in kernel.shape[:2]]
    pads = [padding] * 2 if isinstance(padding, int) else padding
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * 2,
        [(p, p) for p in pads],
        rhs_dilation=(dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


def arrays(case, dtype=jnp.float32):
    image, window, channels, outputs, options = case
    shapes = (3, *image, channels), (*window, channels // options.get("groups", 1), outputs)
    keys = jax.random.split(jax.random.key(0), 4)
    made = [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes + shapes, strict=True)]
    return tuple(made[:2]), tuple(made[2:]), options


SECOND_ORDER = ("dense", "strided", "tiny", "depthwise", "grouped")


def derivatives(fun, at, along, second):
    """Value, derivatives in both modes, and both ways to a second derivative along `along`."""

    def scalar(pair):
        return jnp.sum(jnp.sin(fun(*pair)))

    gradient = jax.grad(scalar)
    value, moved = jax.jvp(lambda pair: fun(*pair), (at,), (along,))
    if not second:
        return value, moved, gradient(at)
    forward_over_reverse = jax.jvp(gradient, (at,), (along,))[1]

    def directional(pair):
        return sum(jnp.vdot(g, a) for g, a in zip(gradient(pair), along, strict=True))

    return value, moved, gradient(at), forward_over_reverse, jax.grad(directional)(at)


def assert_close(found, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        scale = float(jnp.max(jnp.abs(b.astype(jnp.float32)))) + 1e-6
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance * scale, rtol=0
        )


def check(case, second=False):
    at, along, options = arrays(case)

    @jax.jit
    def both(at, along):
        ours = derivatives(lambda x, k: conv(x, k, **options), at, along, second)
        return ours, derivatives(lambda x, k: reference(x, k, **options), at, along, second)

    assert_close(*both(at, along), 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_all_derivatives_are_those_of_xla(name):
    check(CASES[name], second=name in SECOND_ORDER)


@st.composite
def cases(draw):
    window = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    dilation = draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    padding = draw(st.none() | st.tuples(st.integers(0, 2), st.integers(0, 2)))
    pads = [dilation * (k // 2) for k in window] if padding is None else padding
    smallest = [max(1, dilation * (k - 1) + 1 - 2 * p) for k, p in zip(window, pads, strict=True)]
    image = tuple(low + draw(st.integers(0, 5)) for low in smallest)
    channels, outputs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    options = {"stride": draw(st.integers(1, 3)), "dilation": dilation, "groups": groups}
    return image, window, channels, outputs, {**options, "padding": padding}


@pytest.mark.slow
@hypothesis.given(cases())
@SETTINGS
def test_any_geometry(case):
    check(case)


@pytest.mark.parametrize("block", [1, 50, 10_000])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
def test_kernel_gradient_block_by_block(monkeypatch, stride, dilation, block):
    monkeypatch.setattr(depthwise, "_LITTLE", 0)
    monkeypatch.setattr(depthwise, "_BLOCK", block)  # a row, some rows, a whole image
    (image, window, channels), padding = ((12, 11), (3, 5), 3), (2, 3)
    g = Geometry(image, window, stride, dilation, channels, padding)
    k_x, k_dy = jax.random.split(jax.random.key(0))
    x = jax.random.normal(k_x, (2, *image, channels))
    dy = jax.random.normal(k_dy, (2, *g.output, channels))
    options = {"stride": stride, "dilation": dilation, "groups": channels, "padding": padding}

    @jax.jit
    def both(x, dy):
        kernel = jnp.zeros((*window, 1, channels))
        pull = jax.linear_transpose(lambda k: reference(x, k, **options), kernel)
        return depthwise.kernel_gradient(x, dy, g), pull(dy)[0][:, :, 0]

    assert_close(*both(x, dy), 1e-5)


@pytest.mark.parametrize("name", ["dense", "strided", "depthwise", "grouped"])
def test_bfloat16(name):
    at, along, options = arrays(CASES[name], jnp.bfloat16)

    @jax.jit
    def both(at, along):
        def pair(fun):
            value, pull = jax.vjp(lambda x, k: fun(x, k, **options), *at)
            return value, pull(jnp.ones_like(value))

        exact = jax.tree.map(lambda a: a.astype(jnp.float32), at)
        value, pull = jax.vjp(lambda x, k: reference(x, k, **options), *exact)
        wanted = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (value, pull(jnp.ones_like(value))))
        return pair(conv), wanted

    assert_close(*both(at, along), 1e-2)


def test_inside_loops_and_under_vmap():
    (x, kernel), _, options = arrays(CASES["strided"])
    kernels = jnp.stack([kernel, 2.0 * kernel])

    def gradient(x, kernel):
        return jax.grad(lambda x, k: jnp.sum(conv(x, k, **options) ** 2), (0, 1))(x, kernel)

    wanted = [gradient(x, k) for k in kernels]
    wanted = jax.tree.map(lambda *parts: jnp.stack(parts), *wanted)
    mapped = jax.jit(lambda ks: lax.map(lambda k: gradient(x, k), ks))(kernels)
    assert_close(mapped, wanted, 1e-6)
    assert_close(jax.jit(jax.vmap(gradient, (None, 0)))(x, kernels), wanted, 1e-6)
    twice = jax.vmap(jax.vmap(gradient, (0, None)), (None, 0))(x[None], kernels)
    assert_close(jax.tree.map(lambda a: a[:, 0], twice), wanted, 1e-6)


# Chunks of three and of one, and a result so narrow that all images are taken at once.
@pytest.mark.parametrize(("batch", "outputs"), [(15, 17), (13, 17), (15, 2)])
def test_kernel_gradient_of_more_than_a_chunk(batch, outputs):
    x = jax.random.normal(jax.random.key(0), (batch, 16, 16, 40))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 40, outputs))

    def gradient(fun):
        return jax.jit(jax.grad(lambda k: jnp.sum(jnp.sin(0.1 * fun(x, k)))))(kernel)

    assert_close(gradient(conv), gradient(reference), 1e-5)


def test_eager_equals_jitted():
    (x, kernel), _, options = arrays(CASES["dense"])
    np.testing.assert_allclose(
        conv(x, kernel, **options),
        jax.jit(lambda x, k: conv(x, k, **options))(x, kernel),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 4, 4, 2), (3, 3, 2, 2)), {"stride": 0}, "stride must be at least 1"),
        (((4, 4, 2), (3, 3, 2, 2)), {}, "must have 4 axes"),
        (((1, 4, 4, 3), (3, 3, 2, 2)), {}, "does not fit 3 channels in 1 groups"),
        (((1, 4, 4, 4), (3, 3, 2, 3)), {"groups": 2}, "does not fit"),
        (((1, 2, 2, 1), (5, 5, 1, 1)), {"padding": 1}, "larger than the image"),
        (((1, 4, 4, 1), (3, 3, 1, 1)), {"padding": -1}, "padding must be"),
    ],
)
def test_bad_input(shapes, options, message):
    x, kernel = (jnp.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        conv(x, kernel, **options)
