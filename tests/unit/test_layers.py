"""Layers: initial weights, values, running averages, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxnas.nn.layers import BatchNorm, Conv, Dense

X = jax.random.normal(jax.random.key(1), (4, 6, 6, 4))


def test_conv_equals_flax(key):
    layer = Conv(8, 3, stride=2, groups=2, use_bias=True)
    variables = layer.init(key, X)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.shape == (3, 3, 2, 8) and bias.shape == (8,)
    flax = nn.Conv(8, (3, 3), (2, 2), padding=1, feature_group_count=2)
    np.testing.assert_allclose(layer.apply(variables, X), flax.apply(variables, X), atol=1e-5)


def test_dense_equals_flax(key):
    layer = Dense(5)
    variables = layer.init(key, X)
    wanted = nn.Dense(5).apply(variables, X)
    np.testing.assert_allclose(layer.apply(variables, X), wanted, atol=1e-5)


def test_initial_weights_are_uniform_by_fan_in(key):
    kernel = Conv(64, 3).init(key, jnp.zeros((1, 4, 4, 32)))["params"]["kernel"]
    bound = 1.0 / np.sqrt(9 * 32)
    assert np.abs(kernel).max() < bound
    values = np.sort(np.asarray(kernel).ravel() / bound)
    wanted = np.linspace(-1.0, 1.0, values.size)
    # Kolmogorov and Smirnov's distance at the level of 0.001.
    assert np.abs(values - wanted).max() / 2 < 1.95 / np.sqrt(values.size)
    assert len(np.unique(values)) > 0.99 * values.size  # no tap or channel repeats another
    spread = np.asarray(kernel).std((2, 3)) / bound
    np.testing.assert_allclose(spread, 1.0 / np.sqrt(3.0), atol=0.03)


def test_initial_weights_do_not_depend_on_padding(key):
    narrow, wide = (Conv(n, 3).init(key, X)["params"]["kernel"] for n in (4, 7))
    np.testing.assert_array_equal(narrow, wide[..., :4])
    more = Conv(4, 3).init(key, jnp.zeros((1, 4, 4, 6)))["params"]["kernel"]
    np.testing.assert_allclose(more[:, :, :4] * np.sqrt(6 / 4), narrow, rtol=1e-5)


def test_layers_of_a_network_start_differently(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Conv(4, 3)(Conv(4, 3)(x))

    params = Net().init(key, X)["params"]
    first, second = (params[name]["kernel"] for name in ("Conv_0", "Conv_1"))
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.3
    assert not np.array_equal(first, Net().init(jax.random.key(1), X)["params"]["Conv_0"]["kernel"])


@pytest.mark.parametrize("make", [lambda: Conv(4, 3, dtype=jnp.bfloat16, use_bias=True),
                                  lambda: Dense(4, dtype=jnp.bfloat16)])  # fmt: skip
def test_bfloat16_computes_on_float32_parameters(key, make):
    layer = make()
    variables = layer.init(key, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    y = layer.apply(variables, X)
    assert y.dtype == jnp.bfloat16
    exact = layer.clone(dtype=None).apply(variables, X)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05)
    gradient = jax.grad(lambda v: jnp.sum(layer.apply(v, X).astype(jnp.float32)))(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


def test_running_averages_are_those_of_torch(key):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm1d(4)
    layer = BatchNorm()
    variables = layer.init(key, X, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(4))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(4))
    for step in range(3):
        x = (step + 1.0) * X[0, 0] + step
        y, moved = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        variables = {**variables, **moved}
        wanted = theirs(torch.tensor(np.asarray(x)))
        np.testing.assert_allclose(y, wanted.detach().numpy(), atol=1e-5)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], theirs.running_var.numpy(), rtol=1e-5)
    theirs.eval()
    wanted = theirs(torch.tensor(np.asarray(X[0, 0]))).detach().numpy()
    np.testing.assert_allclose(layer.apply(variables, X[0, 0], train=False), wanted, atol=1e-5)


def test_batch_norm_without_affine_has_no_parameters(key):
    layer = BatchNorm(affine=False)
    variables = layer.init(key, X, train=True)
    assert set(variables) == {"batch_stats"}
    y = layer.apply(variables, X, train=True)  # nothing mutable: averages stay as they are
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1.0, atol=1e-4)


def test_network_transforms(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.relu(BatchNorm()(Conv(3, 3)(x), train=train))
            return Dense(2)(x.mean((1, 2)))

    net = Net()
    variables = net.init(key, X, train=True)
    params, stats = variables["params"], variables["batch_stats"]

    def loss(params, x):
        y, _ = net.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=True)
        return jnp.sum(y**2)

    def curvature(params, x):
        gradient = jax.grad(lambda p: loss(p, x))
        return jax.jvp(gradient, (params,), (params,))[1]

    xs = jnp.stack([X, X**2])
    wanted = jax.tree.map(lambda *parts: jnp.stack(parts), *[curvature(params, x) for x in xs])
    for batched in (jax.vmap(curvature, (None, 0)), lambda p, xs: lax.map(lambda x: curvature(p, x), xs)):  # noqa: E501  # fmt: skip
        found = jax.jit(batched)(params, xs)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * (1.0 + float(jnp.abs(b).max())))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Conv(0, 3), "features must be at least 1, got 0"),
        (Conv(4, 0), "kernel_size must be at least 1, got 0"),
        (Conv(4, 3, groups=0), "groups must be at least 1, got 0"),
        (Conv(4, 3, groups=3), "groups"),
        (Conv(4, 3, stride=0), "stride must be at least 1, got 0"),
        (Dense(0), "features must be at least 1, got 0"),
    ],
)
def test_bad_attributes(key, layer, message):
    with pytest.raises(ValueError, match=message):
        layer.init(key, X)
