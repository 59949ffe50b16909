"""Scoring many networks at once: what scores depend on, what is refused, what comes after."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import proxies
from jaxnas.proxies.candidate import Candidate
from jaxnas.proxies.epe_nas import FLOOR, MANY, spread
from jaxnas.proxies.frame import finish
from jaxnas.space import Decision, SearchSpace
from jaxnas.spaces import mlp
from jaxnas.training.data import Split

CLASSES = 3


def batch():
    return Split(jax.random.normal(jax.random.key(1), (6, 12)), jnp.arange(6) % CLASSES)


@pytest.fixture(scope="module")
def space():
    return mlp(CLASSES, depths=(1, 2), widths=(4, 8), activations=("tanh", "relu"), dropouts=(0.0,))


@pytest.fixture(scope="module")
def arch(space):
    """Four networks of different sizes."""
    sizes = [(1, 4), (2, 8), (2, 4), (1, 8)]
    return jnp.stack([space.arch({"depth": depth, "width": width}) for depth, width in sizes])


@pytest.fixture(scope="module")
def run(space):
    names = ["grad_norm", "snip", "grasp", "synflow"]
    return jax.jit(lambda key, arch: proxies.score(key, space, arch, batch(), names))


def test_scores_do_not_depend_on_company(run, arch):
    found, turned = (run(jax.random.key(0), rows) for rows in (arch, arch[::-1]))
    for name, column in found.items():
        np.testing.assert_allclose(column, turned[name][::-1], 1e-5)
        assert len(np.unique(column)) == 4


def test_key_decides_the_weights(run, arch):
    found, again, other = (run(jax.random.key(k), arch) for k in (0, 0, 1))
    for name, column in found.items():
        np.testing.assert_array_equal(column, again[name])
        assert (column != other[name]).all()


def test_scores_do_not_depend_on_devices(run, space, arch):
    expected = run(jax.random.key(0), arch)
    names = ["snip", "synflow"]
    for num in (1, None):
        found = proxies.score_population(
            jax.random.key(0), space, arch[:3], batch(), names, candidates_per_call=num
        )
        assert list(found.values) == names and found.compile_seconds > 0.0
        for name in names:
            np.testing.assert_allclose(found.values[name], expected[name][:3], 1e-4)


def test_features_are_ranks(run, space, arch):
    names = ["snip", "grasp"]
    found = jax.jit(lambda key: proxies.features(key, space, arch, batch(), names))(
        jax.random.key(0)
    )
    for column, name in zip(found.T, names, strict=True):
        ranks = stats.rankdata(run(jax.random.key(0), arch)[name])
        np.testing.assert_allclose(column, (ranks - 1.0) / 3.0)
    assert found.shape == (4, 2) and found.dtype == jnp.float32


def test_masked_perceptron_is_the_exact_one(run, arch):
    """The supernet's padding and unused layers change nothing."""
    narrow = mlp(CLASSES, depths=(1,), widths=(4,), activations=("tanh",), dropouts=(0.0,))
    key = jax.random.key(0)
    found = run(key, arch)
    alone = jax.jit(
        lambda key: proxies.score(key, narrow, narrow.arch({})[None], batch(), list(found))
    )(key)
    for name, column in found.items():
        np.testing.assert_allclose(column[0], alone[name][0], 1e-4, err_msg=name)


def refused(space, arch, rows, names, match):
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lambda: proxies.score(jax.random.key(0), space, arch, rows, names))


@pytest.mark.parametrize("name", ["fisher", "naswot", "flops", "zen"])
def test_scores_that_need_layers_are_refused(space, arch, name):
    refused(space, arch, batch(), [name], "MLPSupernet")


def test_bad_arguments_are_refused(space, arch):
    for names in (["nothing"], ["snip", "snip"], "snip"):
        refused(space, arch, batch(), names, "proxies must be different names")
    refused(space, arch, batch(), {}, "proxies is empty")
    targets = Split(batch().x, jnp.zeros((6, CLASSES)))
    refused(space, arch, targets, ["epe_nas"], "needs classes")
    alone = SearchSpace("alone", (Decision("a", (1,)),), network=lambda arch: None)
    refused(alone, arch[:, :1], batch(), ["snip"], "has no supernet")
    with pytest.raises(ValueError, match="P >= 1"):
        proxies.score_population(jax.random.key(0), space, arch[:0], batch())
    with pytest.raises(ValueError, match="num_rows"):
        proxies.ntk(1)
    with pytest.raises(ValueError, match="num_draws"):
        proxies.zen(0)


# What is computed after the passes.


def test_infinite_scores_are_none():
    found = finish({"a": proxies.Proxy(lambda c: c)}, {"a": jnp.array([1.0, -jnp.inf, jnp.nan])})
    np.testing.assert_array_equal(found["a"], [1.0, np.nan, np.nan])


def test_spread_over_many_classes():
    """The second form of EPE-NAS, as a loop."""
    rng = np.random.default_rng(0)
    correlations = np.corrcoef(rng.normal(size=(6, 9))).astype(np.float32)
    labels = np.array([0, 3, 3, 120, 120, 120])
    logs = np.log(np.abs(correlations) + FLOOR)
    means = [
        logs[np.ix_(labels == c, labels == c)].sum() / (labels == c).sum() for c in (0, 3, 120)
    ]
    expected = sum(abs(a - b) for a in means for b in means) / 3
    members = jax.nn.one_hot(labels, MANY + 21)
    np.testing.assert_allclose(spread(jnp.asarray(correlations), members), expected, 1e-4)


def test_synflow_beyond_single_precision():
    """A chain whose flow overflows float32."""

    class Module:
        def apply(self, variables, x, arch, *, train, rngs, mutable):
            y = x.reshape(1, -1)
            for kernel in variables["params"]:
                y = y @ kernel
            return y, {}

    weights = [jnp.full((4, 4), -250.0)] * 15
    rows = Split(jnp.ones((2, 4)), jnp.zeros(2, jnp.int32))
    candidate = Candidate(Module(), {"params": weights}, jnp.zeros(1), rows, jax.random.key(0))
    # Four inputs, each layer multiplies by 1,000, and every layer has the whole flow.
    expected = np.log(15 * 4) + 15 * np.log(1000.0)
    np.testing.assert_allclose(proxies.synflow().measure(candidate), expected, 1e-5)
