"""Evaluators that train less: `racing` and `low_fidelity`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import Proposal, Recipe, datasets, spaces
from jaxnas.evaluators import low_fidelity, racing, train_from_scratch
from jaxnas.evaluators.low_fidelity import fewer_rows, rank_agreement, smaller_images
from jaxnas.space import sample
from jaxnas.training import plan
from jaxnas.types import split_like

KEY = jax.random.key(5)
NUM = 9


@pytest.fixture(scope="module")
def data():
    return datasets.wine(jax.random.key(0))


def perceptrons(**options):
    usual = {"depths": (1,), "widths": (4,), "optimizers": ("adam",), "dropouts": (0.0,)}
    return spaces.mlp(3, **{**usual, "learning_rates": (0.03, 0.001), **options})


@pytest.fixture(scope="module")
def space():
    return perceptrons()


@pytest.fixture(scope="module")
def proposal(space):
    arch = jax.vmap(lambda key: sample(key, space))(split_like(KEY, NUM))
    return Proposal(arch, jnp.ones(NUM))


RECIPE = Recipe(epochs=9, batch_size=16, curves=True)


def test_racing_keeps_the_contract(space, data):
    evaluator = racing(space, data, RECIPE, num_candidates=NUM)
    nas.testing.check_evaluator(evaluator, space, batch_size=NUM)


def test_survivors_score_as_if_trained_from_scratch(space, data, proposal):
    given = plan.choose(space, RECIPE, data, NUM)
    raced, _ = racing(space, data, RECIPE, plan=given).evaluate(KEY, (), proposal)
    full, _ = train_from_scratch(space, data, RECIPE, plan=given).evaluate(KEY, (), proposal)
    ended = np.asarray(raced.metrics["budget"]) == 1.0
    assert ended.sum() == 1
    np.testing.assert_array_equal(raced.fitness[ended], full.fitness[ended])
    for name in ("loss", "accuracy", "train_loss", "epochs", "parameters"):
        np.testing.assert_array_equal(raced.metrics[name][ended], full.metrics[name][ended])
    assert int(raced.fitness.argmax()) == int(np.flatnonzero(ended)[0])
    np.testing.assert_allclose(sorted(raced.metrics["epochs"]), [1] * 6 + [3] * 2 + [9])
    np.testing.assert_allclose(raced.metrics["budget"], raced.metrics["epochs"] / 9, rtol=1e-6)
    np.testing.assert_array_equal(raced.cost, raced.metrics["train_seconds"])


def test_strategies_race(space, data):
    strategy = nas.strategies.random_search(space, batch_size=4)
    evaluator = racing(space, data, RECIPE, eta=2, min_budget=0.25, num_candidates=4)
    state = strategy.init(KEY)
    asked = strategy.ask(KEY, state)
    evaluation, _ = evaluator.evaluate(KEY, (), asked)
    strategy.tell(KEY, state, asked, evaluation)
    assert np.bincount(np.asarray(evaluation.metrics["epochs"], int)).tolist() == (
        [0, 0, 0, 2, 0, 1, 0, 0, 0, 1]
    )


def test_a_chance_of_one_leaves_one(space, data, proposal):
    evaluator = racing(space, data, RECIPE, chance=1.0, num_candidates=NUM)
    evaluation, _ = evaluator.evaluate(KEY, (), proposal)
    assert (np.asarray(evaluation.metrics["budget"]) == 1.0).sum() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1}, "eta must be an integer of at least 2"),
        ({"min_budget": 0.0}, "min_budget must be a number in"),
        ({"chance": -0.1}, "chance must be in"),
        ({"chance": 0.1, "recipe": Recipe(epochs=9)}, "curves=True"),
        ({"num_candidates": 0}, "num_candidates must be an integer of at least 1"),
        ({"recipe": Recipe(batch_size=5000)}, "batch_size = 5000 is larger"),
    ],
)
def test_bad_races(space, data, options, message):
    with pytest.raises(ValueError, match=message):
        racing(space, data, **{"recipe": RECIPE, **options})


def test_low_fidelity_keeps_the_contract(space, data):
    evaluator = low_fidelity(space, data, RECIPE, epochs=2, rows=40, num_candidates=3)
    nas.testing.check_evaluator(evaluator, space)


def test_low_fidelity_is_a_training_on_the_smaller_problem(space, data, proposal):
    cheap = perceptrons(widths=(2,))
    assert cheap.decisions != space.decisions  # the width is a decision of these spaces
    cheap = dataclasses.replace(cheap, decisions=space.decisions)
    evaluator = low_fidelity(
        space, data, RECIPE, epochs=3, rows=60, cheap_space=cheap, num_candidates=NUM
    )
    half = proposal._replace(budget=jnp.where(jnp.arange(NUM) < 4, 1 / 3, 1.0))
    found, _ = evaluator.evaluate(KEY, (), half)
    recipe = dataclasses.replace(RECIPE, epochs=3)
    smaller = train_from_scratch(cheap, fewer_rows(data, 60), recipe, num_candidates=NUM)
    wanted, _ = smaller.evaluate(KEY, (), half)
    np.testing.assert_array_equal(found.fitness, wanted.fitness)
    assert found.metrics["epochs"].tolist() == [1.0] * 4 + [3.0] * 5
    assert (np.asarray(found.metrics["parameters"]) == 13 * 2 + 2 + 2 * 3 + 3).all()


def test_rows_are_stratified_and_always_the_same(data):
    whole = np.bincount(data.train.y)
    for rows in (3, 10, 57, len(data.train.y)):
        few = fewer_rows(data, rows)
        counts = np.bincount(few.train.y, minlength=3)
        assert counts.sum() == rows and counts.min() >= 1
        assert np.abs(counts - rows * whole / whole.sum()).max() <= 1.0
        again = fewer_rows(data, rows)
        np.testing.assert_array_equal(again.train.x, few.train.x)
        pairs = {tuple(row) for row in np.asarray(data.train.x).tolist()}
        assert len({tuple(row) for row in np.asarray(few.train.x).tolist()} & pairs) == rows
    assert few.valid is data.valid and few.test is data.test


def test_rows_of_a_regression_are_random():
    data = datasets.diabetes(jax.random.key(0))
    few = fewer_rows(data, 50)
    assert few.train.y.shape == (50, 1)
    assert not np.array_equal(few.train.y, data.train.y[:50])


def test_images_are_averaged():
    digits = datasets.digits(jax.random.key(0), images=True)
    small = smaller_images(digits, 2)
    assert small.train.x.shape[1:] == (2, 2, 1)
    x = np.asarray(digits.valid.x)
    np.testing.assert_allclose(small.valid.x[:, 0, 1, 0], x[:, :4, 4:, 0].mean((1, 2)), atol=1e-5)
    np.testing.assert_array_equal(small.test.y, digits.test.y)


@pytest.mark.slow
def test_cells_see_smaller_images_with_fewer_channels():
    digits = datasets.digits(jax.random.key(0), images=True)
    options = {"num_cells": 1, "in_channels": 1}
    space = spaces.nasbench201(10, num_channels=8, image_size=8, **options)
    cheap = spaces.nasbench201(10, num_channels=2, image_size=4, **options)
    evaluator = low_fidelity(
        space,
        digits,
        Recipe(epochs=1, batch_size=128),
        rows=256,
        resolution=4,
        cheap_space=cheap,
        num_candidates=2,
    )
    arch = jnp.array([[3, 0, 2, 1, 0, 3], [1, 1, 1, 1, 1, 1]])
    found, _ = evaluator.evaluate(KEY, (), Proposal(arch, jnp.ones(2)))
    assert np.isfinite(found.fitness).all()
    wanted = [cheap.cost(row).parameters for row in np.asarray(arch)]
    np.testing.assert_array_equal(found.metrics["parameters"], wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 10}, "epochs must be at most the recipe's 9, got 10"),
        ({"epochs": 0}, "epochs must be an integer of at least 1"),
        ({"rows": 2}, "rows must be an integer of at least 3"),
        ({"rows": 5000}, "rows must be at most the"),
        ({"rows": 12}, "batch_size = 16 is larger than the 12"),
        ({"resolution": 4}, "resolution needs square images"),
        ({"cheap_space": nas.testing.tiny_space()}, "cheap_space must have the decisions"),
    ],
)
def test_bad_fidelities(space, data, options, message):
    with pytest.raises(ValueError, match=message):
        low_fidelity(space, data, RECIPE, **options)


def test_bad_resolutions():
    digits = datasets.digits(jax.random.key(0), images=True)
    with pytest.raises(ValueError, match="must divide the images' side 8, got 3"):
        smaller_images(digits, 3)


def test_agreement_is_that_of_the_ranks():
    space = nas.testing.tiny_space()
    arch = jax.vmap(lambda key: sample(key, space))(split_like(KEY, 12))

    def evaluator(sign):
        def fitness(key, arch):
            total = sign * arch.sum()
            return jnp.where(arch[0] == 0, jnp.nan, total)

        return nas.evaluators.from_function(fitness)

    up, down = evaluator(1.0), evaluator(-1.0)
    assert float(rank_agreement(KEY, up, up, arch)) == pytest.approx(1.0)
    assert float(rank_agreement(KEY, up, down, arch)) < 0.9
