"""Mixed: its rewards and bounds by hand, who gets the budget, and who learns from what."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas.strategies.genetic import genetic
from jaxnas.strategies.mixed import mixed, rewards, upper_bounds
from jaxnas.strategies.random_search import random_search
from tests.unit import smooth_problem

SPACE = nas.testing.tiny_space()
EVALUATOR = nas.evaluators.from_function(lambda key, arch: 1.0 * arch.sum())


def constant(choice, batch_size=4):
    """Proposes one architecture, counts its turns, and checks that it is told of its own."""

    def init(key):
        return {"turns": jnp.zeros((), jnp.int32), "wrong": jnp.zeros((), bool)}

    def ask(key, state):
        arch = jnp.tile(jnp.asarray(choice, jnp.int32), (batch_size, 1))
        return nas.Proposal(arch, jnp.full(batch_size, 0.5), {"mark": state["turns"]})

    def tell(key, state, proposal, evaluation):
        wrong = (proposal.info["mark"] != state["turns"]) | jnp.any(
            proposal.arch != jnp.asarray(choice)
        )
        return {"turns": state["turns"] + 1, "wrong": state["wrong"] | wrong}

    return nas.Strategy(init, ask, tell)


def run(strategy, evaluator=EVALUATOR, num_steps=60):
    return jax.jit(lambda key: nas.search(key, strategy, evaluator, num_steps))(jax.random.key(0))


def test_rewards_are_shares_of_the_other_steps():
    chosen = jnp.array([-1, 0, 1, 0, 1])
    best = jnp.array([-jnp.inf, 5.0, 9.0, 5.0, -jnp.inf])
    wanted = [0, (0.5 + 1) / 3, 1, (0.5 + 1) / 3, 0]
    np.testing.assert_allclose(rewards(chosen, best), wanted, rtol=1e-6)
    alone = rewards(jnp.array([-1, 0]), jnp.array([-jnp.inf, 5.0]))
    assert alone.tolist() == [0.0, 0.5]


def test_bounds_by_hand():
    chosen = jnp.array([-1, 0, 1, 0, 1, 1])
    best = jnp.array([-jnp.inf, 1.0, 2.0, 3.0, 4.0, 5.0])
    got = upper_bounds(chosen, best, 3, 0.6)
    first = (0 + 0.5) / 2 + math.sqrt(0.6 * math.log(5) / 2)
    second = (0.25 + 0.75 + 1) / 3 + math.sqrt(0.6 * math.log(5) / 3)
    np.testing.assert_allclose(got, [first, second, np.inf], rtol=1e-6)


def test_the_better_arm_gets_most_and_none_starves():
    arms = (constant((0, 0, 0)), random_search, constant((1, 1, 1)))
    strategy = mixed(SPACE, batch_size=4, arms=arms, window_size=20)
    state, history = run(strategy)
    first = np.asarray(history.arch)[:, 0]
    low, mid = (int((np.asarray(history.arch) == c).all(axis=(1, 2)).sum()) for c in (0, 1))
    assert low + mid < 30  # random search finds the best of 24
    assert low < mid + 5
    for arm, turns in ((0, low), (2, mid)):
        assert int(state.strategy.arms[arm]["turns"]) == turns
        assert not bool(state.strategy.arms[arm]["wrong"])
    waits = np.diff(np.flatnonzero((first == 0).all(axis=1)))
    assert waits.max() <= 21
    assert (np.asarray(history.budget) == 0.5).all(axis=1).sum() == low + mid


def test_failures_lose():
    arms = (constant((2, 3, 1)), constant((0, 0, 0)))
    failing = nas.evaluators.from_function(lambda key, arch: jnp.where(arch[0] == 2, jnp.nan, 1.0))
    state, _ = run(mixed(SPACE, batch_size=4, arms=arms, exploration=0.6), failing, 40)
    turns = [int(arm["turns"]) for arm in state.strategy.arms]
    assert turns[1] > 2 * turns[0]
    assert turns[0] > 1


def test_an_arm_that_turns_bad_is_left():
    chosen = jnp.array([0] * 10 + [1] * 10)
    best = jnp.concatenate([jnp.linspace(9.0, 8.0, 10), jnp.full(10, 5.0)])
    assert jnp.argmax(upper_bounds(chosen, best, 2, 0.1)) == 0
    worse = jnp.concatenate([jnp.linspace(4.0, 3.0, 10), jnp.full(10, 5.0)])
    assert jnp.argmax(upper_bounds(chosen, worse, 2, 0.1)) == 1


def test_arms_are_names_factories_or_strategies():
    by_name = mixed(SPACE, batch_size=4, arms=("random_search", "genetic"))
    small = partial(genetic, population_size=64)
    by_value = mixed(SPACE, batch_size=4, arms=[random_search(SPACE, batch_size=4), small])
    key = jax.random.key(3)
    states = [strategy.init(key) for strategy in (by_name, by_value)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    archs = [s.ask(key, state).arch for s, state in zip((by_name, by_value), states, strict=True)]
    np.testing.assert_array_equal(*archs)


@pytest.mark.slow
def test_beats_random_search():
    strategy = mixed(smooth_problem.space(), batch_size=8)
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.slow
def test_contract_of_arms_with_info():
    space = nas.testing.conditional_space()
    arms = (constant((1, 1, 1, 0, 0)), "random_search")
    strategy = mixed(space, batch_size=4, arms=arms, window_size=8)
    nas.testing.check_strategy(strategy, space, eager=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ()}, "arms"),
        ({"arms": "genetic"}, "arms"),
        ({"arms": ("gradient_descent",)}, "arms"),
        ({"arms": (random_search(SPACE, batch_size=3),)}, "arms"),
        ({"exploration": -1.0}, "exploration"),
        ({"window_size": 1}, "window_size"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixed(SPACE, batch_size=4, **options)
