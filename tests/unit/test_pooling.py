"""Pooling against XLA's windows: values and derivatives of first and second order."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.nn.pooling import avg_pool, max_pool

SETTINGS = hypothesis.settings(max_examples=4, deadline=None)

# image, size, stride, padding
CASES = {
    "cell": ((6, 5), 3, 1, 1),
    "cell reduction": ((7, 8), 3, 2, 1),
    "even": ((6, 7), 2, 2, 0),
    "far apart": ((9, 8), 2, 3, 1),
    "large": ((6, 6), 5, 1, 2),
    "global": ((4, 4), 4, 1, 0),
    "single": ((3, 3), 1, 1, 0),
}


def windows(x, size, stride, padding, start, fun):
    side = (padding, padding)
    pads = [(0, 0), side, side, (0, 0)]
    return lax.reduce_window(x, start, fun, (1, size, size, 1), (1, stride, stride, 1), pads)


def xla_max(x, size, stride, padding):
    return windows(x, size, stride, padding, -jnp.inf, lax.max)


def xla_avg(x, size, stride, padding, count_include_pad):
    ones = jnp.ones_like(x)
    total, counts = (windows(a, size, stride, padding, 0.0, lax.add) for a in (x, ones))
    return total / (size**2 if count_include_pad else counts)


def derivatives(fun, x, along):
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(fun(x))))
    value, moved = jax.jvp(fun, (x,), (along,))
    second = jax.jvp(gradient, (x,), (along,))[1]
    return value, moved, gradient(x), second, jax.grad(lambda x: jnp.vdot(gradient(x), along))(x)


def check(case):
    image, *options = case
    size, stride, padding = options
    x, along = jax.random.normal(jax.random.key(0), (2, 2, *image, 3))
    pairs = [(lambda x: max_pool(x, size, stride=stride, padding=padding),
              lambda x: xla_max(x, *options))]  # fmt: skip
    for count in (True, False):
        ours = lambda x, c=count: avg_pool(  # noqa: E731
            x, size, stride=stride, padding=padding, count_include_pad=c
        )
        pairs.append((ours, lambda x, c=count: xla_avg(x, *options, c)))

    @jax.jit
    def run(x, along):
        return [[derivatives(fun, x, along) for fun in pair] for pair in pairs]

    for found, wanted in run(x, along):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_all_derivatives_are_those_of_xla(name):
    check(CASES[name])


@st.composite
def cases(draw):
    size, stride = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, size // 2))
    low = max(1, size - 2 * padding)
    image = (low + draw(st.integers(0, 5)), low + draw(st.integers(0, 5)))
    return image, size, stride, padding


@pytest.mark.slow
@hypothesis.given(cases())
@SETTINGS
def test_any_geometry(case):
    check(case)


def test_gradient_goes_to_the_first_maximum():
    x = jnp.ones((1, 3, 3, 1))
    found = jax.grad(lambda x: jnp.sum(max_pool(x, 3, padding=1)))(x)[0, :, :, 0]
    # The first element inside the image of each of the nine windows, row by row.
    assert found.tolist() == [[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_ties_agree_with_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).integers(0, 3, (2, 7, 6, 3)).astype(np.float32)
    dy = np.random.default_rng(1).normal(size=(2, 4, 3, 3)).astype(np.float32)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = torch.nn.functional.max_pool2d(theirs, 3, 2, 1)
    y.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    value, pull = jax.vjp(lambda x: max_pool(x, 3, stride=2, padding=1), jnp.asarray(x))
    np.testing.assert_array_equal(value, y.detach().numpy().transpose(0, 2, 3, 1))
    gradient = theirs.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pull(jnp.asarray(dy))[0], gradient, atol=1e-6)


def test_not_a_number_wins():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x, 3, padding=1)).sum() == 9


def test_bfloat16():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 2), jnp.bfloat16)
    exact = x.astype(jnp.float32)
    found = avg_pool(x, 3, padding=1)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, xla_avg(exact, 3, 1, 1, False).astype(jnp.bfloat16))
    found = max_pool(x, 3, padding=1)
    np.testing.assert_array_equal(found, xla_max(exact, 3, 1, 1).astype(jnp.bfloat16))
    assert jax.grad(lambda x: max_pool(x, 3).sum())(x).dtype == jnp.bfloat16


def test_inside_loops_and_under_vmap():
    xs = jax.random.normal(jax.random.key(0), (3, 2, 5, 5, 2))

    def gradient(x):
        fun = lambda x: avg_pool(max_pool(x, 3, padding=1), 2, stride=2)  # noqa: E731
        return jax.grad(lambda x: jnp.sum(fun(x) ** 2))(x)

    wanted = jnp.stack([gradient(x) for x in xs])
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(xs), wanted, atol=1e-6)
    np.testing.assert_allclose(lax.map(gradient, xs), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 4, 1), (3, 1, 1), "x must be floats of 4 axes"),
        ((1, 4, 4, 1), (0, 1, 0), "size must be at least 1, got 0"),
        ((1, 4, 4, 1), (3, 0, 1), "stride must be at least 1, got 0"),
        ((1, 4, 4, 1), (3, 1, -1), "padding must be at least 0, got -1"),
        ((1, 4, 4, 1), (3, 1, 2), "padding must be at most half of size 3, got 2"),
        ((1, 2, 2, 1), (3, 1, 0), "size 3 is more than image"),
    ],
)
@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_bad_input(pool, shape, options, message):
    size, stride, padding = options
    with pytest.raises(ValueError, match=message):
        pool(jnp.zeros(shape), size, stride=stride, padding=padding)
