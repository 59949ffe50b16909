"""Entropy search: its weights by hand and against SciPy, its fit, and what it avoids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import jaxnas as nas
from jaxnas.strategies._memory import remember
from jaxnas.strategies._population import empty
from jaxnas.strategies.entropy_search import (
    UPDATES,
    _propose,
    elite_weights,
    entropy_search,
    fit,
    relative_entropy_weights,
)
from jaxnas.strategies.random_search import random_search
from tests.unit import smooth_problem

reps_weights = jax.jit(relative_entropy_weights)


def run(strategy, evaluator, num_steps, key=0):
    return jax.jit(lambda k: nas.search(k, strategy, evaluator, num_steps))(jax.random.key(key))


def test_elites_by_hand():
    fitness = jnp.array([0.4, -jnp.inf, 0.9, 0.4, 0.1, 0.8])
    for rate, elites in [(0.0, [2]), (0.2, [2]), (0.21, [2, 5]), (0.6, [2, 5, 0, 3])]:
        wanted = np.zeros(6)
        wanted[elites] = 1 / len(elites)
        np.testing.assert_allclose(elite_weights(fitness, rate), wanted, rtol=1e-6)
    assert elite_weights(jnp.full(3, -jnp.inf), 0.5).tolist() == [0.0] * 3


def test_relative_entropy_is_the_minimum_of_the_dual():
    rng = np.random.default_rng(0)
    fitness, bound = 70 * rng.beta(5, 1, size=40), 1.2

    def dual(log_temperature):  # of Peters et al. 2010, without states
        temperature = np.exp(log_temperature)
        gap = (fitness - fitness.max()) / temperature
        return temperature * (bound + np.log(np.mean(np.exp(gap))) + fitness.max() / temperature)

    found = optimize.minimize_scalar(
        dual, bounds=(-8, 8), method="bounded", options={"xatol": 1e-9}
    )
    wanted = np.exp((fitness - fitness.max()) / np.exp(found.x))
    wanted = wanted / wanted.sum()
    weights = np.asarray(
        reps_weights(jnp.append(jnp.asarray(fitness, jnp.float32), -jnp.inf), bound)
    )
    np.testing.assert_allclose(weights[:-1], wanted, atol=2e-4)
    assert weights[-1] == 0
    assert stats.entropy(weights[:-1], np.full(40, 1 / 40)) == pytest.approx(bound, abs=1e-3)


def test_relative_entropy_at_its_limits():
    few = jnp.array([0.2, 0.9, 0.5])
    np.testing.assert_allclose(reps_weights(few, 5.0), [0, 1, 0], atol=1e-6)  # log 3 is the most
    np.testing.assert_allclose(reps_weights(few, 0.0), [1 / 3] * 3, atol=1e-3)
    np.testing.assert_allclose(reps_weights(jnp.full(4, 0.3), 1.0), [0.25] * 4, rtol=1e-6)
    assert reps_weights(jnp.full(2, -jnp.inf), 1.0).tolist() == [0.0, 0.0]


def test_a_decision_learns_where_it_is_active():
    space = nas.testing.conditional_space()
    before, update = jnp.full((5, 3), 1 / 3), jax.jit(fit, static_argnums=0)
    arch = jnp.array([[2, 0, 1, 2, 1], [0, 2, 0, 0, 0], [1, 0, 0, 0, 0], [2, 0, 0, 0, 0]])
    after = np.asarray(update(space, before, arch, jnp.array([0.5, 0.3, 0.2, 0.0]), 0.5))
    moved = [
        [0.3, 0.2, 0.5],
        [0.7, 0, 0.3],
        [2 / 7, 5 / 7, 0],  # active in the first and the third
        [0, 0, 1],  # in the first alone, for the last weighs nothing
        [0, 1, 0],
    ]
    np.testing.assert_allclose(after, (1 / 3 + np.asarray(moved)) / 2, rtol=1e-5)
    alone = update(space, before, arch, jnp.array([0.0, 1.0, 0.0, 0.0]), 1.0)
    np.testing.assert_array_equal(alone[2:], before[2:])


def test_one_step_is_the_tutorials_update():
    space = smooth_problem.space()
    evaluator = nas.evaluators.from_function(lambda key, arch: arch.mean() / 4)
    options = {"smoothing": 0.7, "elite_rate": 0.2, "exploration_rate": 0.0, "unseen_tries": 0}
    strategy = entropy_search(space, batch_size=50, population_size=50, **options)
    state, history = run(strategy, evaluator, 2)
    probability = np.full((8, 5), 0.2)
    for arch, fitness in zip(history.arch, history.evaluation.fitness, strict=True):
        arch, fitness = np.asarray(arch), np.asarray(fitness)
        elites = arch[fitness >= np.sort(fitness)[-10]]
        frequency = (elites[:, :, None] == np.arange(5)).mean(axis=0)
        probability = 0.3 * probability + 0.7 * frequency
    np.testing.assert_allclose(state.strategy.probability, probability, atol=1e-5)


def test_draws_follow_the_distribution_and_avoid_the_window():
    space = nas.testing.tiny_space()
    probability = jnp.array([[0.2, 0.5, 0.3, 0], [0.1, 0.2, 0.3, 0.4], [0.9, 0.1, 0, 0]])
    nothing = empty(space, 4)
    keys = jax.random.split(jax.random.key(0), 5000)

    @jax.jit
    def draw(window):
        def one(key):
            return _propose(space, probability, window, 9, key)

        return jax.vmap(one)(keys)

    arch = np.asarray(draw(nothing))
    for column, p, num in zip(arch.T, np.asarray(probability), space.num_choices, strict=True):
        seen = np.bincount(column, minlength=num)
        assert stats.chisquare(seen, 5000 * p[:num] / p[:num].sum()).pvalue > 1e-6
    known = jnp.array([[1, 3, 0], [1, 2, 0], [2, 3, 0], [0, 3, 0]])  # half of the draws
    avoided = np.asarray(draw(remember(nothing, known, jnp.zeros(4))))
    assert (avoided[:, None] == np.asarray(known)).all(axis=-1).any(axis=1).mean() < 0.01


def test_both_updates_beat_random_search():
    space = smooth_problem.space()
    random = smooth_problem.finals(random_search(space, batch_size=smooth_problem.BATCH))
    for update in UPDATES:
        strategy = entropy_search(space, batch_size=smooth_problem.BATCH, update=update)
        found = smooth_problem.finals(strategy)
        test = stats.mannwhitneyu(found, random, alternative="greater")
        assert test.pvalue < smooth_problem.ACCIDENT


@pytest.mark.slow
def test_contract_of_relative_entropy():
    space = nas.testing.conditional_space()
    options = {"update": "relative_entropy", "population_size": 12, "unseen_tries": 2}
    nas.testing.check_strategy(entropy_search(space, batch_size=4, **options), space, eager=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update": "gradient"}, "update"),
        ({"elite_rate": 1.5}, "elite_rate"),
        ({"information_gain": -1.0}, "information_gain"),
        ({"smoothing": 2.0}, "smoothing"),
        ({"exploration_rate": -0.1}, "exploration_rate"),
        ({"unseen_tries": -1}, "unseen_tries"),
        ({"population_size": 3}, "population_size"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        entropy_search(nas.testing.tiny_space(), batch_size=4, **options)
