"""BANANAS: its Thompson samples, its candidates, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas.strategies.bananas import bananas, thompson
from tests.unit import smooth_problem

SMALL = {"num_initial": 8, "num_mutations": 12, "num_draws": 8, "num_members": 2,
         "num_layers": 1, "hidden_size": 4, "num_updates": 4, "capacity": 48}  # fmt: skip


def test_thompson_samples_have_the_moments_of_the_members():
    members = jnp.array([[0.0, 5.0, 1.0], [2.0, 5.0, 4.0], [4.0, 5.0, 1.0]])
    keys = jax.random.split(jax.random.key(0), 40_000)
    drawn = np.asarray(jax.jit(jax.vmap(thompson, in_axes=(0, None)))(keys, members))
    error = 6 / np.sqrt(len(keys))
    mean, deviation = np.mean(members, axis=0), np.std(members, axis=0)
    assert (np.abs(drawn.mean(axis=0) - mean) <= error * deviation).all()
    assert (np.abs(drawn.std(axis=0) - deviation) <= error * deviation).all()
    np.testing.assert_array_equal(drawn[:, 1], 5.0)
    # Independent of one another, whatever the members have in common.
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 2])[0, 1]) < error


@functools.cache
def histories():
    """Architectures i32[seeds, T, D] and fitness of searches one candidate at a time."""
    space = smooth_problem.space()
    evaluator = nas.evaluators.from_function(
        lambda key, arch: jnp.where(arch[0] == 0, jnp.nan, arch.mean() / 4)
    )
    strategy = bananas(space, batch_size=1, refit_every=8, **SMALL)

    @jax.jit
    @jax.vmap
    def run(key):
        return nas.search(key, strategy, evaluator, 40)[1]

    record = run(jax.random.split(jax.random.key(0), 6))
    return np.asarray(record.arch)[:, :, 0], np.asarray(record.evaluation.fitness)[..., 0]


def test_nothing_is_evaluated_twice():
    for arch in histories()[0]:
        assert len(np.unique(arch, axis=0)) == len(arch)


def test_candidates_are_neighbours_of_the_best_or_draws():
    near = 0
    for arch, fitness in zip(*histories(), strict=True):
        ranked = np.where(np.isnan(fitness), -np.inf, fitness)
        for index in range(SMALL["num_initial"], len(arch)):
            best = arch[:index][np.argsort(-ranked[:index], kind="stable")[:5]]
            near += ((best != arch[index]).sum(axis=1) == 1).any()
    # In a space of 390,625 a draw is next to a given architecture in one of 12,000 cases.
    assert near > 0.3 * histories()[0][:, SMALL["num_initial"] :, 0].size


@pytest.mark.slow
def test_beats_random_search():
    strategy = bananas(smooth_problem.space(), batch_size=8, num_initial=16, refit_every=8,
                       num_updates=60, capacity=192)  # fmt: skip
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.slow
def test_contract_where_decisions_depend_on_others():
    space = nas.testing.conditional_space()
    nas.testing.check_strategy(bananas(space, batch_size=4, refit_every=4, **SMALL), space)


@pytest.mark.slow
def test_contract_where_the_space_is_exhausted():
    space = nas.testing.tiny_space()
    strategy = bananas(space, batch_size=4, refit_every=8, **SMALL)
    nas.testing.check_strategy(strategy, space, eager=False)


def test_learning_rates_may_be_swept():
    space = nas.testing.tiny_space()
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))

    @jax.jit
    @jax.vmap
    def search(learning_rate):
        strategy = bananas(space, batch_size=4, refit_every=4, learning_rate=learning_rate, **SMALL)
        return nas.search(jax.random.key(0), strategy, evaluator, 5)[1].arch

    low, high = search(jnp.array([0.0, 0.3]))
    np.testing.assert_array_equal(low[:2], high[:2])
    assert (low[2:] != high[2:]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_initial": 0}, "num_initial"),
        ({"refit_every": 0}, "refit_every"),
        ({"num_parents": 0}, "num_parents"),
        ({"num_mutations": 0}, "num_mutations"),
        ({"batch_size": 8, "num_draws": 7}, "num_draws"),
        ({"num_members": 0}, "num_members"),
        ({"loss": "mape"}, "loss"),
        ({"encoding": "path"}, "'path' is not defined"),
        ({"batch_size": 4, "capacity": 3}, "capacity"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        bananas(nas.testing.tiny_space(), **options)
