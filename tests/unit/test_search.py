"""The search loop: pure, the same by hand and under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas.search import start, step, step_key


def problem():
    space = nas.testing.tiny_space()
    strategy = nas.strategies.regularized_evolution(
        space, batch_size=4, population_size=8, tournament_size=3
    )
    fitness = nas.testing.trap_fitness(space)

    def noisy(key, arch):
        return fitness(key, arch) + 0.01 * jax.random.normal(key)

    return strategy, nas.evaluators.from_function(noisy, cost_fn=lambda arch: 1.0 + arch.sum())


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_64_searches_under_vmap_equal_64_single_ones_with_one_compilation():
    strategy, evaluator = problem()
    traces = []

    def run(key):
        traces.append(key)
        return nas.search(key, strategy, evaluator, num_steps=10)[1]

    keys = jax.random.split(jax.random.key(0), 64)
    together = jax.jit(jax.vmap(run))
    many = together(keys)
    assert_equal(together(keys), many)
    assert len(traces) == 1
    alone = jax.jit(run)
    for i in range(64):
        assert_equal(alone(keys[i]), jax.tree.map(lambda leaf, i=i: leaf[i], many))
    assert len(traces) == 2
    assert len(np.unique(np.asarray(many.arch).reshape(64, -1), axis=0)) == 64


def test_search_equals_a_loop_over_step(key):
    strategy, evaluator = problem()
    _, history = nas.search(key, strategy, evaluator, num_steps=6)
    k_steps, state = start(key, strategy, evaluator)
    for index in range(6):
        state, record = step(step_key(k_steps, index), state, strategy, evaluator)
        assert_equal(record, jax.tree.map(lambda leaf, i=index: leaf[i], history))


def test_a_longer_search_begins_with_the_shorter_one(key):
    strategy, evaluator = problem()
    short = nas.search(key, strategy, evaluator, num_steps=5)[1]
    long = nas.search(key, strategy, evaluator, num_steps=10)[1]
    assert_equal(jax.tree.map(lambda leaf: leaf[:5], long), short)


def test_best_and_incumbent_curve_rank_failures_last():
    fitness = jnp.array([[jnp.nan, 0.2], [0.5, jnp.nan], [jnp.nan, jnp.nan], [0.4, 0.7]])
    arch = jnp.arange(8).reshape(4, 2, 1)
    evaluation = nas.Evaluation(fitness, fitness[..., None], {}, jnp.ones((4, 2)))
    history = nas.Record(arch, jnp.ones((4, 2)), evaluation)
    assert [a.item() for a in nas.best(history)] == [7, pytest.approx(0.7)]
    np.testing.assert_allclose(nas.incumbent_curve(history), [0.2, 0.5, 0.5, 0.7])
    failed = history._replace(evaluation=evaluation._replace(fitness=jnp.full((4, 2), jnp.nan)))
    assert np.isnan(nas.best(failed)[1])
    assert (np.asarray(nas.incumbent_curve(failed)) == -np.inf).all()


def test_best_is_among_the_longest_trained():
    fitness = jnp.array([[0.9, 0.3], [0.4, jnp.nan]])
    evaluation = nas.Evaluation(fitness, fitness[..., None], {}, jnp.ones((2, 2)))
    budget = jnp.array([[0.1, 0.5], [0.5, 1.0]])  # the only full training failed
    history = nas.Record(jnp.arange(4).reshape(2, 2, 1), budget, evaluation)
    assert [a.item() for a in nas.best(history)] == [2, pytest.approx(0.4)]


def test_costs_and_budgets_are_charged(key):
    _, evaluator = problem()
    proposal = nas.Proposal(jnp.array([[0, 0, 0], [1, 2, 1]]), jnp.array([1.0, 0.5]))
    evaluation, _ = evaluator.evaluate(key, (), proposal)
    np.testing.assert_allclose(evaluation.cost, [1.0, 2.5])


def test_bad_arguments_are_named(key):
    strategy, evaluator = problem()
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        nas.search(key, strategy, evaluator, num_steps=0)
    with pytest.raises(ValueError, match="not traceable"):
        nas.search(key, strategy, evaluator._replace(traceable=False), num_steps=1)


def test_search_runs_without_key_reuse(key):
    strategy, evaluator = problem()
    with jax.debug_key_reuse(True):
        k_steps, state = start(key, strategy, evaluator)
        state, _ = step(step_key(k_steps, 0), state, strategy, evaluator)
    assert int(state.strategy.members.count) == 4
