"""NSGA-II: sorting, crowding and hypervolume against loops as the paper writes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxnas as nas
from jaxnas.objectives.hypervolume import hypervolume
from jaxnas.search import start, step, step_key
from jaxnas.strategies.nsga2 import nsga2
from jaxnas.types import Evaluation, Evaluator, Proposal
from tests.unit import smooth_problem
from tests.unit.pareto_loops import crowding_distance_assignment, fast_non_dominated_sort


def two_objectives(objectives_fn):
    """An evaluator with the objectives `(arch) -> f32[2]` and the first of them as fitness."""

    def evaluate(key, state, proposal: Proposal):
        del key
        objectives = jax.vmap(objectives_fn)(proposal.arch)
        cost = jnp.ones(objectives.shape[0])
        return Evaluation(objectives[:, 0], objectives, {}, cost), state

    return Evaluator(lambda key: (), evaluate, traceable=True)


def hills(arch):
    """A front of many points: the first objective wants large choices, the second small ones."""
    x = arch / 4.0
    return jnp.stack([jnp.mean(x), 1.0 - jnp.mean(x * x)])


def rows(values):
    return [tuple(row) for row in np.asarray(values).tolist()]


def test_the_best_of_parents_and_children_survive():
    strategy = nsga2(smooth_problem.space(), batch_size=5, population_size=12)
    weights = jax.random.uniform(jax.random.key(9), (2, 8, 5))
    evaluator = two_objectives(lambda arch: weights[:, jnp.arange(8), arch].mean(axis=1))
    k_steps, state = start(jax.random.key(0), strategy, evaluator)
    advance = jax.jit(lambda key, state: step(key, state, strategy, evaluator))
    pool = {}
    for index in range(12):
        state, record = advance(step_key(k_steps, index), state)
        pool |= dict(zip(rows(record.arch), rows(record.evaluation.objectives), strict=True))
        archs, values = list(pool), np.asarray(list(pool.values()))
        ranks = fast_non_dominated_sort(values)
        distance = crowding_distance_assignment(values, ranks)
        size = min(12, 5 * (index + 1))
        survivors = [archs.index(row) for row in rows(state.strategy.arch[:size])]
        # By value, for chance decides between equals.
        got = [(ranks[i], -distance[i]) for i in survivors]
        wanted = sorted(zip(ranks, -distance, strict=True))[:size]
        np.testing.assert_allclose(got, wanted, rtol=1e-4)
        pool = {archs[i]: pool[archs[i]] for i in survivors}


def test_copies_rank_with_the_failures_and_failures_last():
    strategy = nsga2(nas.testing.tiny_space(), batch_size=4, population_size=5)
    state = strategy.init(jax.random.key(0))
    for arch, objectives, fitness in (
        # A copy, a failed objective and a failed fitness.
        ([[0, 0, 0], [0, 0, 0], [1, 0, 0], [2, 0, 0]],
         [[1.0, 2.0], [1.0, 2.0], [9.0, np.nan], [9.0, 9.0]], [1.0, 1.0, 1.0, np.nan]),
        # What failed before may succeed now.
        ([[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]],
         [[3.0, 0.0], [2.0, 1.0], [0.0, 0.0], [8.0, 8.0]], [1.0] * 4),
    ):  # fmt: skip
        proposal = Proposal(jnp.array(arch), jnp.ones(4))
        evaluation = Evaluation(jnp.array(fitness), jnp.array(objectives), {}, jnp.ones(4))
        state = strategy.tell(jax.random.key(1), state, proposal, evaluation)
    members = list(zip(rows(state.arch), rows(state.objectives), strict=True))
    assert members[3] == ((0, 1, 0), (0.0, 0.0))  # dominated, but before all failures
    assert ((0, 0, 0), (1.0, 2.0)) in members
    assert ((1, 0, 0), (3.0, 0.0)) in members
    assert members[4][1] == (-np.inf, -np.inf)


def test_parents_win_binary_tournaments():
    strategy = nsga2(
        nas.testing.tiny_space(),
        batch_size=4,
        population_size=6,
        crossover_rate=0.0,
        mutation_rate=0.0,
    )
    state = strategy.init(jax.random.key(0))
    arch = jnp.array([[0, b, c] for b in range(3) for c in range(2)])
    state = state._replace(arch=arch, objectives=jnp.zeros((6, 2)), count=jnp.int32(6))
    ask = jax.jit(jax.vmap(lambda k: strategy.ask(k, state).arch))
    asked = ask(jax.random.split(jax.random.key(0), 4000))
    # A copy of its parent changes in one decision: a change of the first one leaves the rest.
    children = np.asarray(asked).reshape(-1, 3)
    parents = children[children[:, 0] != 0][:, 1:] @ [2, 1]
    seen = np.bincount(parents, minlength=8)[:6]
    chance = [(2 * (5 - i) + 1) / 36 for i in range(6)]  # of being the first of two
    assert seen.sum() > 4000
    assert stats.chisquare(seen, seen.sum() * np.array(chance)).pvalue > smooth_problem.ACCIDENT


@pytest.mark.slow
def test_contract_of_small_batches():
    space = nas.testing.conditional_space()
    strategy = nsga2(space, batch_size=1, num_objectives=1, population_size=12)
    nas.testing.check_strategy(strategy, space, eager=False)


def test_finds_more_of_the_front_than_random_search():
    space, evaluator = smooth_problem.space(), two_objectives(hills)

    def areas(strategy):
        @jax.jit
        @jax.vmap
        def run(key):
            history = nas.search(key, strategy, evaluator, smooth_problem.STEPS)[1]
            found = history.evaluation.objectives.reshape(-1, 2)
            return hypervolume(found, jnp.zeros(2))

        return np.asarray(run(jax.random.split(jax.random.key(0), smooth_problem.SEEDS)))

    learned = areas(nsga2(space, batch_size=smooth_problem.BATCH, population_size=24))
    random = areas(nas.strategies.random_search(space, batch_size=smooth_problem.BATCH))
    p_value = stats.mannwhitneyu(learned, random, alternative="greater").pvalue
    assert p_value < smooth_problem.ACCIDENT


def test_float_hyperparameters_may_be_swept():
    space, evaluator = nas.testing.tiny_space(), two_objectives(hills)

    def search(crossover_rate, mutation_rate):
        strategy = nsga2(
            space,
            batch_size=4,
            population_size=8,
            crossover_rate=crossover_rate,
            mutation_rate=mutation_rate,
        )
        return nas.search(jax.random.key(0), strategy, evaluator, 8)[1].arch

    low, high = jnp.array([0.1, 0.9]), jnp.array([0.05, 0.9])
    together = jax.jit(jax.vmap(search))(low, high)
    alone = jnp.stack([jax.jit(search)(a, b) for a, b in zip(low, high, strict=True)])
    np.testing.assert_array_equal(together, alone)
    assert (together[0] != together[1]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4, "population_size": 3}, "population_size"),
        ({"num_objectives": 0}, "num_objectives"),
        ({"crossover_rate": 1.5}, "crossover_rate"),
        ({"mutation_rate": -0.5}, "mutation_rate"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        nsga2(nas.testing.tiny_space(), **options)


def test_another_number_of_objectives_is_named():
    space = nas.testing.tiny_space()
    evaluator = nas.evaluators.from_function(lambda key, arch: arch.sum())
    with pytest.raises(ValueError, match="num_objectives must be the evaluator's 1, got 3"):
        nas.search(jax.random.key(0), nsga2(space, num_objectives=3), evaluator, 2)
