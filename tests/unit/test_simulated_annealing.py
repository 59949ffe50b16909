"""Simulated annealing: the Metropolis rule, its schedules and its chains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxnas as nas
from jaxnas import enumeration
from jaxnas.strategies.simulated_annealing import AnnealingState, simulated_annealing
from jaxnas.types import Evaluation, Proposal
from tests.unit import smooth_problem


def tell(strategy, state, arch, fitness, seed=0):
    fitness = jnp.asarray(fitness, jnp.float32)
    evaluation = Evaluation(fitness, fitness[:, None], {}, jnp.ones_like(fitness))
    proposal = Proposal(jnp.asarray(arch), jnp.ones_like(fitness))
    return strategy.tell(jax.random.key(seed), state, proposal, evaluation)


def at(fitness, count=0):
    fitness = jnp.asarray(fitness, jnp.float32)
    return AnnealingState(jnp.zeros((fitness.size, 3), jnp.int32), fitness, jnp.int32(count))


@pytest.mark.parametrize(
    ("schedule", "count", "temperature"),
    [
        ("geometric", 0, 0.4),
        ("geometric", 50, 0.2),
        ("geometric", 100, 0.1),
        ("geometric", 1000, 0.1),
        ("linear", 50, 0.25),
        ("linear", 1000, 0.1),
    ],
)
def test_a_loss_is_accepted_as_often_as_the_temperature_says(schedule, count, temperature):
    chains, loss = 20_000, 0.3
    strategy = simulated_annealing(
        nas.testing.tiny_space(),
        batch_size=chains,
        num_evaluations=100 * chains,
        schedule=schedule,
        initial_temperature=0.4,
        final_temperature=0.1,
    )
    arch = jnp.ones((chains, 3), jnp.int32)
    before = at(jnp.full(chains, 0.8), count * chains - chains // 2)
    after = tell(strategy, before, arch, jnp.full(chains, 0.8 - loss))
    moved = int((after.arch[:, 0] == 1).sum())
    np.testing.assert_allclose(after.fitness, jnp.where(after.arch[:, 0] == 1, 0.5, 0.8))
    chance = np.exp(-loss / temperature)
    assert stats.binomtest(moved, chains, chance).pvalue > smooth_problem.ACCIDENT
    assert int(after.count) == before.count + chains


def test_gains_are_always_and_failures_never_accepted():
    strategy = simulated_annealing(nas.testing.tiny_space(), batch_size=4)
    rows = [[1, 0, 0]] * 4
    after = tell(strategy, at([0.5, 0.5, 0.5, -jnp.inf]), rows, [0.6, 0.5, jnp.nan, 0.1])
    assert after.arch[:, 0].tolist() == [1, 1, 0, 1]
    np.testing.assert_allclose(after.fitness, [0.6, 0.5, 0.5, 0.1])


def test_zero_temperature_climbs():
    strategy = simulated_annealing(
        nas.testing.tiny_space(), batch_size=3, initial_temperature=0.0, final_temperature=0.0
    )
    after = tell(strategy, at([0.5, 0.5, 0.5], 100), [[1, 0, 0]] * 3, [0.499, 0.5, 0.501])
    assert after.arch[:, 0].tolist() == [0, 1, 1]


def test_a_chain_takes_the_first_accepted_of_its_candidates():
    options = {"initial_temperature": 0.0, "final_temperature": 0.0}
    strategy = simulated_annealing(nas.testing.tiny_space(), batch_size=6, num_chains=2, **options)
    rows = [[i % 3, i % 2, 1] for i in range(6)]
    after = tell(strategy, at([0.5, 0.5], 6), rows, [0.4, 0.6, 0.9, 0.1, 0.2, 0.3])
    assert after.arch.tolist() == [rows[1], [0, 0, 0]]
    # Before its first success a chain takes the best.
    after = tell(strategy, at([-jnp.inf] * 2), rows, [0.4, 0.6, 0.9, jnp.nan, 0.2, jnp.nan])
    assert after.arch.tolist() == [rows[2], rows[4]]


def test_chains_stay_apart_and_propose_neighbours():
    strategy = simulated_annealing(nas.testing.tiny_space(), batch_size=40, num_chains=4)
    arch = jnp.asarray(enumeration.all_architectures(nas.testing.tiny_space())[[0, 7, 14, 21]])
    state = AnnealingState(arch, jnp.array([0.1, 0.2, 0.3, -jnp.inf]), jnp.int32(80))
    asked = np.asarray(strategy.ask(jax.random.key(0), state).arch).reshape(4, 10, 3)
    changes = (asked != np.asarray(arch)[:, None]).sum(axis=2)
    assert (changes[:3] == 1).all()
    assert (changes[3] != 1).any()  # without a success: uniform draws


def test_a_cold_chain_visits_what_boltzmann_says():
    # At a constant temperature the chain's stationary distribution is known: exp(fitness / T).
    decisions = (nas.Decision("a", (0, 1)), nas.Decision("b", (0, 1)))
    space = nas.SearchSpace("square", decisions, nas.testing.tiny_space().network)
    levels = jnp.array([[0.0, 0.3], [0.5, 0.1]])
    evaluator = nas.evaluators.from_function(lambda key, arch: levels[tuple(arch)])
    options = {"initial_temperature": 0.4, "final_temperature": 0.4}
    strategy = simulated_annealing(space, batch_size=1, **options)

    def last(key):
        return nas.search(key, strategy, evaluator, 60)[0].strategy.arch[0]

    arch = np.asarray(jax.jit(jax.vmap(last))(jax.random.split(jax.random.key(0), 5000)))
    seen = np.bincount(arch @ [2, 1], minlength=4)
    wanted = np.exp(np.asarray(levels, np.float64).ravel() / 0.4)
    assert stats.chisquare(seen, 5000 * wanted / wanted.sum()).pvalue > smooth_problem.ACCIDENT


@pytest.mark.slow
def test_contract_of_several_candidates_per_chain():
    space = nas.testing.conditional_space()
    strategy = simulated_annealing(space, batch_size=4, num_chains=2, num_evaluations=40)
    nas.testing.check_strategy(strategy, space, eager=False)


def test_float_hyperparameters_may_be_swept():
    space = nas.testing.tiny_space()
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))

    def search(initial, final):
        strategy = simulated_annealing(
            space, batch_size=4, initial_temperature=initial, final_temperature=final
        )
        return nas.search(jax.random.key(0), strategy, evaluator, 12)[1].arch

    low, high = jnp.array([0.001, 5.0]), jnp.array([0.0, 4.0])
    together = jax.jit(jax.vmap(search))(low, high)
    alone = jnp.stack([jax.jit(search)(a, b) for a, b in zip(low, high, strict=True)])
    np.testing.assert_array_equal(together, alone)
    assert (together[0] != together[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("num_chains", [None, 2])
def test_beats_random_search(num_chains):
    strategy = simulated_annealing(
        smooth_problem.space(), batch_size=8, num_chains=num_chains, num_evaluations=192
    )
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4, "num_chains": 3}, "num_chains"),
        ({"num_evaluations": 0}, "num_evaluations"),
        ({"schedule": "cosine"}, "schedule"),
        ({"initial_temperature": -1.0}, "initial_temperature"),
        ({"final_temperature": -1.0}, "final_temperature"),
        ({"mutation_rate": 1.5}, "mutation_rate"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        simulated_annealing(nas.testing.tiny_space(), **options)
