"""One network in every form it is trained in, and the winner trained on its own."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import RunError, datasets, spaces
from jaxnas.retrain import specialise
from jaxnas.space import sample
from jaxnas.training import Recipe, plan, population
from jaxnas.training.data import from_arrays

KEY = jax.random.key(0)
SPACE = spaces.mlp(
    3, depths=(1, 3), widths=(4, 12), learning_rates=(0.01, 0.001), dropouts=(0.0, 0.3)
)
RECIPE = Recipe(epochs=8, batch_size=16, curves=True)


@pytest.fixture(scope="module")
def data():
    return datasets.wine(KEY)


def test_masked_bucketed_and_stand_alone_networks_agree(data):
    """Initial weights come from positions, so a bucket's are a part of the supernet's."""
    assert SPACE.supernet is not None
    masked = SPACE.supernet(SPACE.full_bucket)
    x = data.valid.x[:8]
    variables = jax.jit(lambda c: masked.init(KEY, x, c, train=False))
    logits = jax.jit(lambda v, c: masked.apply(v, x, c, train=False))
    for arch in np.array(jax.vmap(lambda k: sample(k, SPACE))(jax.random.split(KEY, 3))):
        choice = jnp.asarray(arch)
        exact = SPACE.supernet(tuple((int(c),) for c in arch))
        own = exact.init(KEY, x, choice, train=False)
        wanted = exact.apply(own, x, choice, train=False)
        np.testing.assert_allclose(logits(variables(choice), choice), wanted, rtol=1e-4, atol=1e-5)
        for module, held in ((masked, variables(choice)), (exact, own)):
            alone = SPACE.network(arch).apply(module.extract(held, arch), x, train=False)
            np.testing.assert_allclose(alone, wanted, rtol=1e-4, atol=1e-5)


def test_the_best_of_several_seeds_is_kept_and_tested(data):
    arch = np.asarray(SPACE.arch({"depth": 3, "width": 12, "learning_rate": 0.01}))
    found = specialise(SPACE, arch, data, RECIPE, KEY, num_seeds=3)
    score = found.training.metrics["accuracy"]
    assert score.shape == (3,) and len(np.unique(found.training.metrics["loss"])) == 3
    assert score[found.chosen] == score.max() > 0.8
    assert found.training.valid_curve.shape == (3, RECIPE.epochs)
    np.testing.assert_allclose(found.training.valid_curve[:, -1], score, atol=1e-6)
    network = SPACE.network(arch)
    for part, wanted in ((data.valid, score[found.chosen]), (data.test, found.test["accuracy"])):
        outputs = network.apply(found.variables, part.x, train=False)
        accuracy = np.mean(np.argmax(outputs, axis=1) == part.y)
        np.testing.assert_allclose(accuracy, wanted, atol=1e-6)
    again = specialise(SPACE, arch, data, RECIPE, KEY, num_seeds=1)
    assert again.training.metrics["loss"][0] == found.training.metrics["loss"][0]


def test_the_network_is_that_of_the_space_without_a_supernet(data):
    arch = np.asarray(SPACE.arch({"depth": 1}))
    found = specialise(SPACE, arch, data, RECIPE, KEY)
    plain = dataclasses.replace(SPACE, supernet=None)
    trained = population.train(plain, arch[None], data, RECIPE, KEY, keep_variables=True)
    assert trained.variables is not None
    jax.tree.map(np.testing.assert_array_equal, found.variables, trained.variables[0])


def test_errors(data):
    arch = np.zeros(6, np.int32)
    with pytest.raises(ValueError, match="num_seeds must be at least 1, got 0"):
        specialise(SPACE, arch, data, RECIPE, KEY, num_seeds=0)
    space = spaces.mlp(3, depths=(2,), widths=(8,), learning_rates=(1e30,), optimizers=("sgd",))
    with pytest.raises(RunError, match="every network diverged"):
        specialise(space, arch, data, RECIPE, KEY, num_seeds=2)


def test_a_network_that_does_not_fit_is_no_divergence(data, monkeypatch):
    monkeypatch.setattr(plan, "choose", partial(plan.choose, memory_limit=1000))
    with pytest.raises(RunError, match="training it alone takes about"):
        specialise(SPACE, np.zeros(6, np.int32), data, RECIPE, KEY)


@pytest.mark.slow
def test_cells_trained_on_their_own_with_everything():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    x = rng.normal(size=(200, 8, 8, 1)) * 0.3
    x[np.arange(200), 3 * y, :, 0] += 2.0  # so far apart that a crop does not mix them up
    data = from_arrays(KEY, x, y)
    space = spaces.nasbench201(
        3, num_channels=4, num_cells=1, image_size=8, in_channels=1, auxiliary=True
    )
    recipe = Recipe(
        epochs=15,
        batch_size=16,
        optimizer="nesterov",
        learning_rate=0.05,
        schedule="cosine",
        warmup=0.1,
        weight_decay=3e-4,
        clip_norm=5.0,
        average=0.9,
        crop=1,
        flip=True,
        cutout=2,
        mixup=0.2,
        label_smoothing=0.1,
        drop_path=0.2,
        auxiliary_weight=0.4,
        curves=True,
    )
    arch = np.asarray([3, 1, 2, 4, 0, 3])
    found = specialise(space, arch, data, recipe, KEY)
    assert found.test["accuracy"] > 0.7
    assert np.isfinite(found.training.train_curve).all()
    assert np.isfinite(found.training.valid_curve).all()
    network = space.network(arch)
    made = jax.eval_shape(lambda: network.init(KEY, x[:1].astype(np.float32), train=False))
    assert jax.tree.map(jnp.shape, found.variables) == jax.tree.map(jnp.shape, made)
    logits = jax.jit(lambda v: network.apply(v, data.test.x, train=False))(found.variables)
    accuracy = float((jnp.argmax(logits, -1) == data.test.y).mean())
    np.testing.assert_allclose(accuracy, found.test["accuracy"], atol=1e-6)
