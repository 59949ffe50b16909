"""Votes, the evaluator of zero-cost proxies, and warm starts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxnas as nas
from jaxnas import proxies, strategies
from jaxnas.evaluators import zero_cost
from jaxnas.proxies.vote import ranks, vote
from jaxnas.spaces import mlp, nasbench201
from jaxnas.testing import check_evaluator, check_strategy, tiny_space
from jaxnas.training.data import Split
from jaxnas.types import Evaluation, Proposal, Strategy

ROWS = Split(jax.random.normal(jax.random.key(1), (6, 12)), jnp.arange(6) % 3)
NAMES = ("snip", "grad_norm")


@pytest.fixture(scope="module")
def space():
    return mlp(3, depths=(1, 2), widths=(4, 8), activations=("tanh", "relu"), dropouts=(0.0,))


# Votes.


@pytest.fixture
def columns():
    """Three scores of seven networks, with ties and failures."""
    table = np.random.default_rng(0).integers(0, 4, (3, 7)).astype(np.float32)
    table[0, 2] = table[2, 5] = table[:, 6] = np.nan
    return {str(i): jnp.asarray(column) for i, column in enumerate(table)}


def test_majority_is_the_loop(columns):
    table = np.nan_to_num(np.stack(list(columns.values())), nan=-np.inf)
    expected = np.zeros(7)
    for i, j in itertools.permutations(range(7), 2):
        above, below = (table[:, i] > table[:, j]).sum(), (table[:, i] < table[:, j]).sum()
        expected[i] += 1.0 if above > below else 0.5 if above == below else 0.0
    np.testing.assert_allclose(vote(columns), expected / 6.0, atol=1e-6)
    assert vote(columns)[6] == 0.0 and len(np.unique(expected)) > 3


def test_rank_sum_is_the_loop(columns):
    table = np.nan_to_num(np.stack(list(columns.values())), nan=-np.inf)
    expected = np.mean([(stats.rankdata(row) - 1.0) / 6.0 for row in table], axis=0)
    np.testing.assert_allclose(vote(columns, "ranks"), expected, atol=1e-6)


def test_monotone_transformations_change_no_vote(columns):
    bent = {name: jnp.exp(3.0 * column) for name, column in columns.items()}
    for kind in ("majority", "ranks"):
        np.testing.assert_allclose(vote(columns, kind), vote(bent, kind))
    assert ranks(jnp.array([5.0])).tolist() == [0.0]


def test_bad_votes_are_refused(columns):
    with pytest.raises(ValueError, match="kind must be one of"):
        vote(columns, "median")
    with pytest.raises(ValueError, match="scores is empty"):
        vote({})


# The evaluator.


@pytest.mark.parametrize("fitness", [pytest.param("vote", marks=pytest.mark.slow), "snip"])
def test_evaluator_keeps_the_contract(space, fitness):
    evaluator = zero_cost(
        space, ROWS, proxies=NAMES, fitness=fitness, num_references=4, seconds=2.0
    )
    check_evaluator(evaluator, space)


def test_fitness_is_the_share_of_references_beaten(space):
    evaluator = zero_cost(space, ROWS, proxies=NAMES, num_references=8, seconds=2.0)
    state = jax.jit(evaluator.init)(jax.random.key(0))
    arch = jnp.stack([space.arch({"depth": 1, "width": 4}), space.arch({"depth": 2, "width": 8})])
    run = jax.jit(evaluator.evaluate)
    evaluation, _ = run(jax.random.key(1), state, Proposal(arch, jnp.ones(2)))
    for row, fitness in enumerate(evaluation.fitness):
        shares = []
        for name, reference in zip(NAMES, state.scores, strict=True):
            value = evaluation.metrics[name][row]
            beaten = value > reference
            equal = np.isclose(value, reference, 1e-5)
            shares.append(np.mean(np.where(equal, 0.5, beaten)))
        np.testing.assert_allclose(fitness, np.mean(shares), atol=1e-6)
    again, _ = run(jax.random.key(2), state, Proposal(arch[::-1], jnp.ones(2)))
    np.testing.assert_allclose(again.fitness, evaluation.fitness[::-1])
    assert evaluation.cost.tolist() == [2.0, 2.0]


def test_search_by_proxies(space):
    evaluator = zero_cost(space, ROWS, proxies=NAMES, fitness="snip")
    strategy = strategies.regularized_evolution(
        space, batch_size=4, population_size=8, tournament_size=3
    )
    run = jax.jit(lambda key: nas.search(key, strategy, evaluator, 8))
    _, history = run(jax.random.key(0))
    arch, fitness = nas.best(history)
    direct = proxies.score_population(jax.random.key(7), space, arch[None], ROWS, ["snip"])
    assert np.isfinite(direct.values["snip"][0])
    assert fitness == history.evaluation.fitness.max() > history.evaluation.fitness[0].max()


def test_network_without_a_path_fails():
    space = nasbench201(3, num_channels=2, num_cells=1, image_size=4)
    rows = Split(jax.random.normal(jax.random.key(1), (4, 4, 4, 3)), jnp.arange(4) % 3)
    evaluator = zero_cost(space, rows, proxies=["synflow"], fitness="synflow")
    state = evaluator.init(jax.random.key(0))
    arch = jnp.array([[0] * 6, [3] * 6], jnp.int32)
    run = jax.jit(evaluator.evaluate)
    evaluation, _ = run(jax.random.key(1), state, Proposal(arch, jnp.ones(2)))
    assert np.isnan(evaluation.fitness).tolist() == [True, False]


def test_bad_evaluators_are_refused(space):
    for options, match in (
        ({"fitness": "flops"}, "fitness must be one of"),
        ({"num_references": 0}, "num_references"),
        ({"seconds": -1.0}, "seconds"),
        ({"proxies": ["nothing"]}, "proxies must be different names"),
    ):
        with pytest.raises(ValueError, match=match):
            zero_cost(space, ROWS, **options)


# Warm starts.

GIVEN = jnp.array([[2, 3, 1], [2, 3, 0], [1, 3, 1]], jnp.int32)


@pytest.mark.parametrize(
    "name", ["random_search", pytest.param("regularized_evolution", marks=pytest.mark.slow)]
)
def test_warm_started_strategy_keeps_the_contract(name):
    strategy = strategies.ALL[name](tiny_space(), batch_size=4)
    check_strategy(proxies.warm_start(strategy, GIVEN), tiny_space())


def jitted(strategy):
    return Strategy(*(jax.jit(fn) for fn in strategy))


def told(arch):
    fitness = jnp.asarray(arch, jnp.float32).sum(axis=1)
    return Evaluation(fitness, fitness[:, None], {}, jnp.ones_like(fitness))


@pytest.mark.parametrize("name", ["genetic", "monte_carlo_tree_search"])
def test_given_architectures_come_first(name):
    inner = strategies.ALL[name](tiny_space(), batch_size=2)
    strategy = jitted(proxies.warm_start(inner, GIVEN))
    state = strategy.init(jax.random.key(0))
    proposed = []
    for index in range(3):
        key = jax.random.key(index)
        proposal = strategy.ask(key, state)
        proposed += proposal.arch.tolist()
        state = strategy.tell(key, state, proposal, told(proposal.arch))
    assert proposed[:3] == GIVEN.tolist()
    assert int(state.position) == 3


def test_strategy_learns_from_what_was_given():
    """Its population is the given one; a strategy with an `info` has not moved instead."""
    inner = strategies.genetic(tiny_space(), batch_size=2)
    strategy = jitted(proxies.warm_start(inner, GIVEN[:2]))
    key = jax.random.key(0)
    state = strategy.init(key)
    after = strategy.tell(key, state, strategy.ask(key, state), told(GIVEN[:2]))
    leaves = jax.tree.leaves(after.strategy)
    assert any(leaf.shape[-1:] == (3,) and (leaf == GIVEN[0]).all(-1).any() for leaf in leaves)

    inner = strategies.ALL["dehb"](tiny_space(), batch_size=2)
    strategy = jitted(proxies.warm_start(inner, GIVEN[:2]))
    state = strategy.init(key)
    after = strategy.tell(key, state, strategy.ask(key, state), told(GIVEN[:2]))
    jax.tree.map(np.testing.assert_array_equal, after.strategy, state.strategy)


def test_foreign_candidates_are_marked():
    strategy = strategies.reinforce(tiny_space(), batch_size=2)
    warm = jitted(proxies.warm_start(strategy, GIVEN[:2], foreign=jnp.zeros_like))
    key = jax.random.key(0)
    state = warm.init(key)
    first = warm.ask(key, state)
    state = warm.tell(key, state, first, told(first.arch))
    assert not first.info.any() and warm.ask(key, state).info.all()


def test_best_drawn_is_the_head_of_the_vote(space):
    draw = jax.jit(
        lambda key, num: nas.proxies.best_drawn(
            key, space, ROWS, num_draws=12, num_best=num, proxies=["snip"]
        ),
        static_argnums=1,
    )
    few, many = draw(jax.random.key(3), 3), draw(jax.random.key(3), 12)
    np.testing.assert_array_equal(few, many[:3])
    values = proxies.score_population(jax.random.key(9), space, many, ROWS, ["snip"]).values["snip"]
    assert len(np.unique(few, axis=0)) == 3
    assert np.mean(values[:3]) > np.mean(values)


def test_bad_warm_starts_are_refused(space):
    with pytest.raises(ValueError, match="N >= 1"):
        proxies.warm_start(strategies.random_search(tiny_space()), jnp.zeros((0, 3), jnp.int32))
    with pytest.raises(ValueError, match="num_draws"):
        proxies.best_drawn(jax.random.key(0), space, ROWS, num_draws=2, num_best=3)
