"""Candidates, recipes and data that cannot work: a clear error, or a failure that stays alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import spaces
from jaxnas.retrain import specialise
from jaxnas.training import Recipe, plan, population
from jaxnas.training.data import from_arrays, from_splits

KEY = jax.random.key(0)
WILD = [3, 3, 3, 3, 3, 3]  # diverges: see `image_space`
EMPTY = [0, 0, 0, 0, 0, 0]
SOUND = [3, 2, 4, 1, 3, 2]
RECIPE = Recipe(epochs=3, batch_size=16, optimizer="nesterov", curves=True)


def images(num_rows=96, size=8, seed=0):
    """Rows of three classes, each bright in a row of its own."""
    rng = np.random.default_rng(seed)
    y = np.arange(num_rows) % 3
    x = rng.normal(size=(num_rows, size, size, 1)) * 0.3
    x[np.arange(num_rows), y + 2, :, 0] += 2.0
    return x, y


@pytest.fixture(scope="module")
def data():
    return from_arrays(KEY, *images())


def image_space(**options: Any):
    sizes: dict[str, Any] = {
        "num_channels": 4,
        "num_cells": 1,
        "image_size": 8,
        "in_channels": 1,
    }
    space = spaces.nasbench201(3, **(sizes | options))

    def hyperparameters(arch):
        wild = jnp.all(arch == jnp.asarray(WILD))
        return {"learning_rate": jnp.where(wild, 1e30, 0.05)}

    return dataclasses.replace(space, hyperparameters=hyperparameters)


@pytest.fixture(scope="module")
def train_images(data):
    """`arches -> Training`, always by the same program."""
    space = image_space()
    made = plan.choose(space, RECIPE, data, 3, num_devices=1, chunk=4)

    def train(*arches):
        return population.train(space, np.asarray(arches), data, RECIPE, KEY, made)

    return train


@pytest.fixture(scope="module")
def sound(train_images):
    return train_images(SOUND, SOUND[::-1])


def assert_untouched(found, alone):
    """The first candidates are, to the bit, those of the run without the others."""
    count = len(alone.train_curve)
    for name in ("loss", "accuracy", "train_loss", "epochs"):
        np.testing.assert_array_equal(found.metrics[name][:count], alone.metrics[name])
    np.testing.assert_array_equal(found.train_curve[:count], alone.train_curve)
    np.testing.assert_array_equal(found.valid_curve[:count], alone.valid_curve)
    assert np.isfinite(alone.train_curve).all() and np.isfinite(alone.valid_curve).all()


def test_cells_of_none_guess_one_class(train_images, sound, data):
    found = train_images(SOUND, SOUND[::-1], EMPTY)
    assert_untouched(found, sound)
    shares = np.bincount(data.valid.y) / len(data.valid.y)
    assert found.metrics["accuracy"][2] in shares.astype(np.float32)
    assert np.isfinite(found.train_curve[2]).all() and np.isfinite(found.metrics["loss"][2])


def test_a_diverged_network_stops_at_once_and_stays_alone(train_images, sound):
    found = train_images(SOUND, SOUND[::-1], WILD)
    assert_untouched(found, sound)
    for name in ("loss", "accuracy", "train_loss"):
        assert np.isnan(found.metrics[name][2])
    assert found.metrics["epochs"].tolist() == [3.0, 3.0, 1.0]
    assert not np.isfinite(found.train_curve[2]).any()
    assert np.isnan(found.valid_curve[2, 1:]).all()


@pytest.mark.parametrize("options", [{"num_devices": 2}, {"num_devices": 1, "group_size": 4}])
def test_a_diverged_network_stays_alone_under_every_plan(options):
    data = from_arrays(KEY, *images())
    space = spaces.mlp(
        3, depths=(2,), widths=(8,), learning_rates=(1e-2, 1e30), optimizers=("sgd",)
    )
    made = plan.choose(space, RECIPE, data, 4, **options)
    calm = np.stack([np.asarray(space.arch({"dropout": rate})) for rate in (0.0, 0.2, 0.4, 0.6)])
    wild = np.asarray(space.arch({"learning_rate": 1e30}))
    alone = population.train(space, calm, data, RECIPE, KEY, made)
    found = population.train(space, np.stack([*calm[:3], wild]), data, RECIPE, KEY, made)
    first = alone._replace(
        metrics={name: column[:3] for name, column in alone.metrics.items()},
        train_curve=alone.train_curve[:3],
        valid_curve=alone.valid_curve[:3],
    )
    assert_untouched(found, first)
    assert np.isnan(found.metrics["loss"][3]) and found.metrics["epochs"][3] < RECIPE.epochs


# Errors.


def test_images_that_the_blocks_cannot_halve_are_refused():
    with pytest.raises(ValueError, match="image_size must be a multiple of 4, got 6"):
        image_space(image_size=6)


def test_images_of_another_size_are_refused(data):
    space = image_space(image_size=12)
    message = r"images of shape \(12, 12, 1\), got \(8, 8, 1\)"
    with pytest.raises(ValueError, match=message):
        population.train(space, np.asarray([SOUND]), data, RECIPE, KEY)
    with pytest.raises(ValueError, match=message):
        specialise(space, np.asarray(SOUND), data, RECIPE, KEY)


def test_a_batch_larger_than_the_data_is_refused(data):
    recipe = dataclasses.replace(RECIPE, batch_size=1000)
    message = "batch_size = 1000 is larger than the 58 training rows"
    with pytest.raises(ValueError, match=message):
        population.train(image_space(), np.asarray([SOUND]), data, recipe, KEY)
    with pytest.raises(ValueError, match=message):
        specialise(image_space(), np.asarray(SOUND), data, recipe, KEY)


@pytest.mark.parametrize("num_outputs", [1, 10])
def test_a_space_with_other_outputs_than_the_task_is_refused(data, num_outputs):
    space = spaces.mlp(num_outputs)
    with pytest.raises(ValueError, match="number of classes or outputs must be the task's"):
        population.train(space, np.zeros((1, 6), np.int32), data, RECIPE, KEY)


def test_a_class_too_rare_to_be_in_every_part_is_refused():
    x, y = images()
    with pytest.raises(ValueError, match=r"too few rows of some classes \(7 in 2 rows\)"):
        from_arrays(KEY, x, np.where(np.arange(len(y)) < 2, 7, y))


def test_labels_outside_the_classes_are_refused():
    x, y = images()
    with pytest.raises(ValueError, match=r"labels outside the classes 0, 1: 2 in 32 rows"):
        from_arrays(KEY, x, y, num_classes=2)
    train, rest = (x[y < 2], y[y < 2]), (x, y)
    with pytest.raises(ValueError, match="y of valid has labels outside the classes 0, 1"):
        from_splits(train, rest, rest)


def test_a_class_may_be_missing_where_the_classes_are_known():
    x, y = images()
    train, valid, test = (x[y > 0], y[y > 0]), (x[y < 2], y[y < 2]), (x, y)
    data = from_splits(train, valid, test, num_classes=3)
    space = spaces.mlp(
        3, depths=(1,), widths=(16,), learning_rates=(0.01,), optimizers=("adam",), dropouts=(0.0,)
    )
    recipe = Recipe(epochs=20, batch_size=16)
    found = specialise(space, np.zeros(6, np.int32), data, recipe, KEY)
    # Class 0, which training has not seen, is half of the validation rows and a third of the test.
    assert 0.4 < found.training.metrics["accuracy"][0] < 0.7
    assert 0.6 < found.test["accuracy"] < 0.8
    assert np.isfinite(found.test["loss"])
