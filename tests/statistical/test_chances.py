"""Random choices have the distributions that the docstrings promise.

Keys are fixed and bounds are those of a one in a million accident, so the tests never flake.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxnas as nas
from jaxnas import counter, enumeration
from jaxnas import space as ops

ACCIDENT = 1e-6
DRAWS = 20_000


def keys(num=DRAWS):
    return jax.random.split(jax.random.key(0), num)


def codes(space, arch):
    return np.ravel_multi_index(np.asarray(arch).T, space.num_choices)


def test_sampling_is_uniform():
    space = nas.testing.tiny_space()
    drawn = codes(space, jax.vmap(lambda k: ops.sample(k, space))(keys()))
    assert stats.chisquare(np.bincount(drawn, minlength=24)).pvalue > ACCIDENT


def test_mutation_picks_decisions_and_alternatives_uniformly():
    space = nas.testing.tiny_space()
    parent = jnp.array([1, 2, 0])
    children = np.asarray(jax.vmap(lambda k: ops.mutate(k, space, parent))(keys()))
    rows, counts = np.unique(children, axis=0, return_counts=True)
    assert len(rows) == 6
    changed = np.argmax(rows != np.asarray(parent), axis=1)
    wanted = DRAWS / 3 / (np.asarray(space.num_choices)[changed] - 1)
    assert stats.chisquare(counts, wanted).pvalue > ACCIDENT


def test_mutation_rate_is_a_probability_per_decision():
    space = nas.testing.tiny_space()
    parent = jnp.array([1, 2, 0])
    children = np.asarray(jax.vmap(lambda k: ops.mutate(k, space, parent, 0.2))(keys()))
    for changes in (children != np.asarray(parent)).sum(axis=0):
        assert stats.binomtest(int(changes), DRAWS, 0.2).pvalue > ACCIDENT


def test_crossover_takes_either_parent_alike_and_cuts_anywhere():
    space = nas.testing.tiny_space()
    a, b = jnp.array([0, 0, 0]), jnp.array([1, 1, 1])
    mixed = np.asarray(jax.vmap(lambda k: ops.crossover(k, space, a, b))(keys()))
    for from_b in mixed.sum(axis=0):
        assert stats.binomtest(int(from_b), DRAWS, 0.5).pvalue > ACCIDENT
    cut = jax.vmap(lambda k: ops.crossover(k, space, a, b, kind="one_point"))(keys())
    places, counts = np.unique(np.asarray(cut).sum(axis=1), return_counts=True)
    assert places.tolist() == [1, 2]
    assert stats.chisquare(counts).pvalue > ACCIDENT


def test_tournament_pressure():
    space, size = nas.testing.tiny_space(), 5
    strategy = nas.strategies.regularized_evolution(
        space, batch_size=4, population_size=8, tournament_size=size, mutation_rate=0.0
    )
    state = strategy.init(jax.random.key(0))
    arch = jnp.asarray(enumeration.all_architectures(space)[:8])
    members = state.members._replace(arch=arch, fitness=jnp.arange(8.0), count=jnp.int32(8))
    state = state._replace(members=members)
    asked = jax.vmap(lambda k: strategy.ask(k, state).arch)(keys(2000)).reshape(-1, 3)
    wins = int((np.asarray(asked) == np.asarray(arch[-1])).all(axis=1).sum())
    assert stats.binomtest(wins, len(asked), 1 - (1 - 1 / 8) ** size).pvalue > ACCIDENT


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("regularized_evolution", {"population_size": 24, "tournament_size": 8}),
        ("genetic", {"population_size": 24, "num_elites": 4}),
        ("reinforce", {"learning_rate": 0.03}),
        ("reinforce", {"learning_rate": 0.1, "policy": "factorised"}),
    ],
)
def test_learning_strategies_beat_random_search(name, options):
    decisions = tuple(nas.Decision(f"d{i}", tuple(range(5))) for i in range(8))
    space = nas.SearchSpace("sum", decisions, nas.testing.tiny_space().network)
    evaluator = nas.evaluators.from_function(lambda key, arch: arch.mean())

    def final(strategy):
        run = jax.vmap(lambda k: nas.search(k, strategy, evaluator, num_steps=24)[1])
        histories = jax.jit(run)(keys(48))
        return np.asarray(jax.vmap(nas.incumbent_curve)(histories))[:, -1]

    learned = final(nas.strategies.ALL[name](space, batch_size=8, **options))
    random = final(nas.strategies.random_search(space, batch_size=8))
    assert stats.ttest_ind(learned, random, alternative="greater").pvalue < ACCIDENT


def test_counter_numbers_are_uniform_and_uncorrelated():
    seed = counter.seed_from_key(jax.random.key(3))
    drawn = np.asarray(counter.uniform(seed, (300, 301)), np.float64)
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > ACCIDENT
    others = [
        np.asarray(counter.uniform(counter.fold(seed, tag), (300, 301)), np.float64)
        for tag in (0, 1, 2)
    ]
    pairs = [
        (drawn[:, 1:], drawn[:, :-1]),
        (drawn[1:], drawn[:-1]),
        (drawn, others[0]),
        (others[0], others[1]),
        (others[1], others[2]),
    ]
    for a, b in pairs:
        assert stats.pearsonr(a.ravel(), b.ravel()).pvalue > ACCIDENT


def test_counter_numbers_depend_on_position_not_on_shape():
    seed = counter.seed_from_key(jax.random.key(3))
    large = counter.uniform(seed, (40, 50))
    np.testing.assert_array_equal(counter.uniform(seed, (20, 30)), large[:20, :30])


def test_counter_permutations_are_permutations_and_uniform():
    seeds = jax.vmap(lambda i: counter.fold(counter.seed_from_key(jax.random.key(0)), i))(
        jnp.arange(4000)
    )
    orders = np.asarray(jax.vmap(lambda s: counter.permutation(s, 6))(seeds))
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    for place in orders.T:
        assert stats.chisquare(np.bincount(place, minlength=6)).pvalue > ACCIDENT


def test_dropout_keeps_the_mean_and_the_rate():
    seed = counter.seed_from_key(jax.random.key(5))
    rate = 0.3
    dropped = np.asarray(counter.uniform(seed, (200, 500)) < rate)
    assert stats.binomtest(int(dropped.sum()), dropped.size, rate).pvalue > ACCIDENT


@pytest.mark.parametrize("num", [2, 11])
def test_counter_draws_are_uniform_and_uncorrelated_between_keys_and_places(num):
    # Keys as strategies have them: of a step, of a candidate, of a purpose.
    steps = counter.split(jax.random.key(3), 100)
    candidates = jax.vmap(lambda k: counter.split(k, 100))(steps).ravel()
    purposes = jax.vmap(lambda k: counter.split(k, 2))(candidates)
    drawn = np.asarray(jax.vmap(jax.vmap(lambda k: counter.draw(k, num)))(purposes), np.float64)
    columns = drawn.reshape(10_000, 2 * num)
    for column in columns.T:
        assert stats.kstest(column, "uniform").pvalue > ACCIDENT
    bound = stats.norm.isf(ACCIDENT) / np.sqrt(10_000)
    correlation = np.corrcoef(columns, rowvar=False) - np.eye(2 * num)
    assert np.abs(correlation).max() < bound
    neighbours = [np.corrcoef(c[:-1], c[1:])[0, 1] for c in columns.T]
    assert np.abs(neighbours).max() < bound


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_counter_keys_differ_and_do_not_depend_on_their_number(implementation):
    key = jax.random.key(5, impl=implementation)
    words = np.asarray(jax.random.key_data(counter.split(key, 5_000)))
    assert len(np.unique(words, axis=0)) == 5_000
    few = counter.split(key, 3)
    assert jax.random.key_impl(few) == jax.random.key_impl(key)
    np.testing.assert_array_equal(jax.random.key_data(few), words[:3])


def test_counter_keys_of_neighbouring_seeds_are_all_different():
    roots = jax.vmap(jax.random.key)(jnp.arange(200))
    children = jax.vmap(lambda k: counter.split(k, 50))(roots)
    grandchildren = jax.vmap(jax.vmap(lambda k: counter.split(k, 2)))(children)
    words = [jax.random.key_data(keys).reshape(-1, 2) for keys in (roots, children, grandchildren)]
    words = np.concatenate([np.asarray(part) for part in words])
    assert len(np.unique(words, axis=0)) == len(words) == 200 * (1 + 50 + 100)
