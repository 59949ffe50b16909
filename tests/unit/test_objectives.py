"""Scalarisations, objectives with limits, constraints and screens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import objectives
from jaxnas.objectives.objective import Objective, constrain, screened, with_objectives
from jaxnas.space import is_valid
from jaxnas.testing import check_evaluator, tiny_space
from jaxnas.types import Evaluation, Evaluator, Proposal

SPACE = tiny_space()
EVERY = jnp.asarray(np.stack(np.meshgrid(range(3), range(4), range(2)), -1).reshape(-1, 3))


def accuracy(key, arch):
    del key
    return arch.sum() / 10.0


def size(arch):
    return {"size": 1.0 + 2.0 * arch[1]}


def test_scalarisations_by_hand():
    values = np.array([[0.9, -30.0], [0.8, -10.0]], np.float32)
    weights, ideal = np.array([1.0, 0.01]), np.array([1.0, 0.0])
    np.testing.assert_allclose(objectives.weighted_sum(values, weights), [0.6, 0.7], rtol=1e-6)
    short = np.array([max(0.1, 0.3), max(0.2, 0.1)])
    np.testing.assert_allclose(objectives.tchebycheff(values, weights, ideal), -short, rtol=1e-5)
    both = objectives.tchebycheff(values, weights, ideal, augmentation=0.5)
    np.testing.assert_allclose(both, -(short + 0.5 * np.array([0.4, 0.3])), rtol=1e-5)
    soft = objectives.mnasnet(0.75, jnp.array([40.0, 160.0]), 80.0)
    np.testing.assert_allclose(soft, 0.75 * np.array([0.5, 2.0]) ** -0.07, rtol=1e-6)
    hard = objectives.mnasnet(0.75, jnp.array([40.0, 160.0]), 80.0, below=0.0, above=-1.0)
    np.testing.assert_allclose(hard, [0.75, 0.375], rtol=1e-6)
    np.testing.assert_allclose(objectives.absolute(0.75, 80.0, 80.0), 0.75)
    slope = jax.grad(lambda cost: objectives.absolute(0.75, cost, 80.0, weight=-0.5))
    np.testing.assert_allclose(slope(100.0), -0.5 / 80.0, rtol=1e-6)


def test_tchebycheff_reaches_what_a_weighted_sum_cannot():
    front = jnp.array([[1.0, 0.0], [0.4, 0.4], [0.0, 1.0]])
    share = jnp.linspace(0.01, 0.99, 99)
    weights = jnp.stack([share, 1.0 - share], axis=1)
    linear = jnp.argmax(jax.vmap(lambda w: objectives.weighted_sum(front, w))(weights), axis=1)
    largest = jax.vmap(lambda w: objectives.tchebycheff(front, w, jnp.ones(2)))(weights)
    assert 1 not in np.asarray(linear)
    assert set(np.asarray(jnp.argmax(largest, axis=1)).tolist()) == {0, 1, 2}


def make(**options):
    chosen = [Objective("fitness"), Objective("size", minimise=True, limit=5.0)]
    inner = nas.evaluators.from_function(accuracy)
    return with_objectives(inner, chosen, metrics_fn=size, **options)


def test_objectives_and_limits():
    evaluator = make()
    found, _ = evaluator.evaluate(jax.random.key(0), (), Proposal(EVERY, jnp.ones(len(EVERY))))
    expected = np.asarray([[a.sum() / 10, -(1 + 2 * a[1])] for a in np.asarray(EVERY)])
    expected[expected[:, 1] < -5.0] = np.nan
    np.testing.assert_allclose(found.objectives, expected, rtol=1e-6)
    np.testing.assert_allclose(found.fitness, expected[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(found.metrics["feasible"], ~np.isnan(expected[:, 0]))
    np.testing.assert_allclose(found.metrics["size"], 1 + 2 * np.asarray(EVERY)[:, 1])
    check_evaluator(evaluator, SPACE)


def test_scalarised_fitness_steers_a_strategy():
    reward = lambda m: objectives.mnasnet(m["fitness"], m["size"], 3.0, below=0.0, above=-1.0)  # noqa: E731
    evaluator = make(scalarise=reward)
    strategy = nas.strategies.regularized_evolution(SPACE, batch_size=4, population_size=8)
    _, history = jax.jit(lambda key: nas.search(key, strategy, evaluator, 20))(jax.random.key(1))
    arch, fitness = nas.best(history)
    assert arch.tolist() == [2, 1, 1]
    np.testing.assert_allclose(fitness, 0.4, rtol=1e-6)


def test_a_failed_candidate_stays_failed():
    inner = nas.evaluators.from_function(lambda key, arch: jnp.where(arch[0] == 1, jnp.nan, 0.5))
    evaluator = with_objectives(inner, [Objective("size", minimise=True)], metrics_fn=size)
    proposal = Proposal(jnp.array([[1, 0, 0], [0, 0, 0]]), jnp.ones(2))
    found, _ = evaluator.evaluate(jax.random.key(0), (), proposal)
    np.testing.assert_array_equal(np.isnan(found.fitness), [True, False])


def test_bad_objectives_are_refused():
    inner = nas.evaluators.from_function(accuracy)
    with pytest.raises(ValueError, match="none twice"):
        with_objectives(inner, [Objective("fitness"), Objective("fitness")])
    with pytest.raises(ValueError, match="at least one"):
        with_objectives(inner, [])
    evaluator = with_objectives(inner, [Objective("speed")])
    with pytest.raises(ValueError, match="'speed' is not a metric"):
        evaluator.evaluate(jax.random.key(0), (), Proposal(EVERY, jnp.ones(len(EVERY))))


@pytest.mark.parametrize("name", ["random_search", "regularized_evolution", "local_search"])
def test_no_strategy_proposes_what_is_ruled_out(name):
    small = constrain(SPACE, lambda arch: arch.sum() <= 2)
    strategy = nas.strategies.ALL[name](small, batch_size=4)
    evaluator = nas.evaluators.from_function(accuracy)
    _, history = jax.jit(lambda key: nas.search(key, strategy, evaluator, 15))(jax.random.key(0))
    archs = np.asarray(history.arch).reshape(-1, 3)
    assert archs.sum(axis=1).max() == 2
    assert not bool(is_valid(small, jnp.array([2, 3, 1])))


def test_constraints_add_up():
    once = constrain(SPACE, lambda arch: arch[0] > 0)
    twice = constrain(once, lambda arch: arch[1] > 0)
    valid = [bool(is_valid(twice, arch)) for arch in EVERY]
    assert valid == [bool(a[0] > 0 and a[1] > 0) for a in np.asarray(EVERY)]


def counting(calls):
    """A host evaluator that notes what it is asked for."""

    def evaluate(key, state, proposal):
        calls.append(np.asarray(proposal.arch).tolist())
        fitness = jnp.asarray(proposal.arch).sum(axis=1) / 10.0
        return Evaluation(fitness, fitness[:, None], {}, jnp.ones(len(fitness))), state

    return Evaluator(lambda key: (), evaluate, traceable=False)


def test_screen_pays_only_for_those_let_through():
    calls: list = []
    evaluator = screened(counting(calls), lambda arch: arch[0] < 2)
    proposal = Proposal(jnp.array([[2, 3, 1], [1, 1, 0], [2, 0, 0], [0, 2, 1]]), jnp.ones(4))
    found, _ = evaluator.evaluate(jax.random.key(0), (), proposal)
    assert calls == [[[1, 1, 0], [0, 2, 1]]]
    np.testing.assert_allclose(found.fitness, [np.nan, 0.2, np.nan, 0.3])
    assert found.cost.tolist() == [0.0, 1.0, 0.0, 1.0]
    none, _ = evaluator.evaluate(jax.random.key(0), (), Proposal(proposal.arch[:1], jnp.ones(1)))
    assert np.isnan(none.fitness).all() and none.cost.tolist() == [0.0]


def test_screen_of_a_traceable_evaluator():
    inner = nas.evaluators.from_function(accuracy)
    check_evaluator(screened(inner, lambda arch: arch[0] < 2), SPACE)
