"""Batch normalisation against plain formulas in NumPy and under autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.nn.norm import batch_norm, normalise

SHAPE = (3, 4, 5, 2)


def plain(x, scale, bias, epsilon=1e-5):
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    var = jnp.mean((x - mean) ** 2, axes)
    y = (x - mean) / jnp.sqrt(var + epsilon)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def arrays(shape=SHAPE, offset=0.5):
    keys = jax.random.split(jax.random.key(0), 3)
    channels = shape[-1:]
    x, scale, bias = (jax.random.normal(k, s) for k, s in zip(keys, (shape, channels, channels)))  # noqa: B905
    return 2.0 * x + offset, scale, bias


def derivatives(fun, at, along):
    gradient = jax.grad(lambda at: jnp.sum(jnp.sin(fun(at))))
    value, moved = jax.jvp(fun, (at,), (along,))
    second = jax.jvp(gradient, (at,), (along,))[1]

    def directional(at):
        pairs = zip(jax.tree.leaves(gradient(at)), jax.tree.leaves(along), strict=True)
        return sum(jnp.vdot(a, b) for a, b in pairs)

    return value, moved, gradient(at), second, jax.grad(directional)(at)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_all_derivatives_are_those_of_the_formula(scaled, shifted):
    x, scale, bias = arrays()
    at = (x, scale if scaled else None, bias if shifted else None)
    along = jax.tree.map(lambda a: jnp.cos(3.0 * a), at)

    @jax.jit
    def both(at, along):
        ours = derivatives(lambda at: batch_norm(*at)[0], at, along)
        return ours, derivatives(lambda at: plain(*at), at, along)

    found, wanted = both(at, along)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_statistics_are_those_of_numpy():
    x, scale, bias = arrays()
    y, mean, var = batch_norm(x, scale, bias)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(normalise(x, mean, var, scale, bias), y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("offset", [1e4, -3e5])
def test_large_means_keep_their_digits(offset):
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype(np.float32) + np.float32(offset)
    exact = x.astype(np.float64)
    y, mean, var = batch_norm(jnp.asarray(x), None, None)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-3)
    wanted = (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2))
    np.testing.assert_allclose(y, wanted, atol=0.05 * abs(offset) / 3e5 + 1e-3)


def test_no_gradient_through_the_statistics():
    x, _, _ = arrays()

    def loss(x):
        _, mean, var = batch_norm(x, None, None)
        return jnp.sum(mean + var)

    assert not jnp.any(jax.grad(loss)(x))


def test_bfloat16_and_any_rank():
    x, scale, bias = arrays((40, 3))
    y, mean, _ = batch_norm(x.astype(jnp.bfloat16), scale, bias)
    assert (y.dtype, mean.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(y.astype(jnp.float32), plain(x, scale, bias), atol=0.05)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(batch_norm(x, scale, bias)[0])))
    assert gradient(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_one_pixel_gives_the_bias():
    y, _, var = batch_norm(jnp.array([[3.0, -1.0]]), None, jnp.array([0.5, 2.0]))
    assert y.tolist() == [[0.5, 2.0]] and var.tolist() == [0.0, 0.0]


def test_inside_loops_and_under_vmap():
    x, scale, bias = arrays()
    xs = jnp.stack([x, x**2, jnp.sin(x)])

    def gradient(x, epsilon):
        return jax.grad(lambda x: jnp.sum(jnp.sin(batch_norm(x, scale, bias, epsilon=epsilon)[0])))(
            x
        )

    epsilons = jnp.array([1e-5, 1e-3, 0.1])  # a traced hyperparameter
    wanted = jnp.stack([gradient(x, e) for x, e in zip(xs, epsilons, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(xs, epsilons), wanted, atol=1e-5)
    mapped = jax.jit(lambda xs, es: lax.map(lambda pair: gradient(*pair), (xs, es)))
    np.testing.assert_allclose(mapped(xs, epsilons), wanted, atol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="at least two axes"):
        batch_norm(jnp.zeros(3), None, None)
    with pytest.raises(ValueError, match=r"scale must have shape \(3,\)"):
        batch_norm(jnp.zeros((2, 3)), jnp.zeros(2), None)
    with pytest.raises(ValueError, match=r"var must have shape \(3,\)"):
        normalise(jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros(()))
