"""DEHB against its loop in plain Python, and single steps of differential evolution by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas.strategies import _brackets
from jaxnas.strategies.dehb import dehb, evolve, mutant, random_vector, to_arch
from tests.unit.halving_problem import evaluator, space

SIZES = np.array([9, 3, 3])  # of the populations for eta 3 and budgets from 1/9


def steps(strategy, num_steps, failures=0.0):
    """Yields the proposal, the fitness with minus infinity for failures, and the states around."""
    scored = evaluator(failures)
    ask, tell, score = map(jax.jit, (strategy.ask, strategy.tell, scored.evaluate))
    state = strategy.init(jax.random.key(0))
    for index in range(num_steps):
        key = jax.random.key(index)
        proposal = ask(key, state)
        evaluation, _ = score(key, (), proposal)
        before, state = state, tell(key, state, proposal, evaluation)
        fitness = np.asarray(evaluation.fitness)
        yield proposal, np.where(np.isnan(fitness), -np.inf, fitness), before, state


def jobs(brackets):
    """(first round, bracket, rung, number in the rung), for ever."""
    for bracket in itertools.count():
        sizes = brackets[bracket % len(brackets)].sizes
        for rung, size in enumerate(sizes):
            for number in range(size):
                yield bracket < len(brackets), bracket % len(brackets), rung, number


def promotion_list(lower, lower_fitness, own):
    order = np.argsort(-lower_fitness, kind="stable")
    ranked = [lower[i] for i in order if lower_fitness[i] > -np.inf]
    return [v for v in ranked if not (own == v).all(axis=1).any()]


def test_one_at_a_time_it_is_the_documented_loop():
    """Without mutation and with full crossover a child is one of its parents."""
    options = {"min_budget": 1 / 9, "mutation_factor": 0.0, "crossover_rate": 1.0}
    strategy = dehb(space(), batch_size=1, **options)
    brackets = _brackets.balanced_brackets(3, 1 / 9)
    turns, seen, queue = [0, 0, 0], set(), []
    todo = zip(jobs(brackets), steps(strategy, 75, failures=0.2), strict=False)
    for (is_first, bracket, rung, number), (proposal, (born,), before, after) in todo:
        sizes = brackets[bracket].sizes
        level = 3 - len(sizes) + rung
        lower = level - (rung > 0)
        members, fitness = np.array(before.vectors), np.array(before.fitness)
        target = turns[level] % SIZES[level]
        turns[level] += 1
        vector = np.asarray(proposal.info.vector[0])
        np.testing.assert_allclose(proposal.budget, [3.0 ** (level - 2)], rtol=1e-6)
        assert proposal.info.target.tolist() == [target]
        if rung > 0 and number == 0:
            own = members[level]
            queue = promotion_list(members[lower][: SIZES[lower]], fitness[lower], own)
        if is_first and rung > 0 and number < len(queue):
            kind, expected = "promoted", [queue[number]]
        elif is_first and rung > 0:
            kind, expected = "promoted again", [members[lower][fitness[lower].argmax()]]
        elif is_first and bracket == 0:
            kind, expected = "first", [members[level, target]]
        elif sizes[rung] >= 3:
            best = np.argsort(-fitness[lower][: SIZES[lower]], kind="stable")[: sizes[rung]]
            kind, expected = "child", members[lower][best]
        else:
            everyone = [members[v][: SIZES[v]] for v in range(3)]
            kind, expected = "child of few", np.concatenate(everyone)
        assert any((vector == row).all() for row in expected), kind
        seen.add(kind)
        if born >= fitness[level, target]:
            members[level, target], fitness[level, target] = vector, born
        np.testing.assert_array_equal(after.vectors, members)
        np.testing.assert_array_equal(after.fitness, fitness)
    assert {"first", "promoted", "child", "child of few"} <= seen


def test_challengers_of_one_batch_follow_each_other():
    strategy = dehb(space(), batch_size=11, min_budget=1 / 3)
    shared = 0
    for proposal, born, before, after in steps(strategy, 6, failures=0.2):
        vectors, fitness = np.array(before.vectors), np.array(before.fitness)
        level = np.asarray(proposal.budget > 0.5, int)
        target = np.asarray(proposal.info.target)
        shared += len(level) - len({*zip(level.tolist(), target.tolist(), strict=True)})
        for v, place, vector, value in zip(level, target, proposal.info.vector, born, strict=True):
            if value >= fitness[v, place]:
                vectors[v, place], fitness[v, place] = vector, value
        np.testing.assert_array_equal(after.vectors, vectors)
        np.testing.assert_array_equal(after.fitness, fitness)
    assert shared > 10


def test_mutant_by_hand():
    vectors = jnp.array([[0.1, 0.2], [0.5, 0.9], [0.3, 0.3], [0.7, 0.6]])
    uniform = jnp.array([0.2, 0.9, 0.8, 0.4])
    is_parent = jnp.array([True, True, False, True])
    found = mutant(uniform, vectors, is_parent, 0.5)  # a, b, c are members 1, 3 and 0
    np.testing.assert_allclose(found, [0.5 + 0.5 * 0.6, 0.9 + 0.5 * 0.4], rtol=1e-6)


def test_child_by_hand():
    strategy = dehb(space(), batch_size=1, min_budget=1 / 9)
    state = strategy.init(jax.random.key(0))
    fitness = jnp.where(jnp.arange(9) < SIZES[:, None], jnp.arange(27.0).reshape(3, 9), -jnp.inf)
    state = state._replace(fitness=fitness)
    job = _brackets.Jobs(
        budget=1 / 3, level=1, bracket=0, size=3, rank=0, row=0, parent_row=0, parent_size=9,
        opens=True, first_round=False,
    )  # fmt: skip
    job = jax.tree.map(jnp.asarray, job)
    target = jnp.full(6, 0.123)
    keys = jax.random.split(jax.random.key(0), 300)

    @jax.jit
    def children(factor, rate):
        return jax.vmap(lambda k: evolve(k, state, job, target, SIZES, factor, rate))(keys)

    one = np.asarray(children(0.5, 0.0)) != 0.123
    assert (one.sum(axis=1) == 1).all() and (one.sum(axis=0) > 20).all()
    half = np.asarray(children(0.5, 0.5)) != 0.123
    assert abs(half.mean() - 0.5) < 0.06
    parents = np.asarray(state.vectors[0, 6:9])  # the best three of the next lower budget
    whole = np.array([a + 0.9 * (b - c) for a, b, c in itertools.permutations(parents)])
    inside = (whole >= 0) & (whole <= 1)
    assert not inside.all()
    for child in np.asarray(children(0.9, 1.0)):
        assert (np.isclose(child, whole, atol=1e-6) | ~inside).all(axis=1).any()
        assert ((child >= 0) & (child <= 1)).all()


def test_vectors_and_architectures():
    conditional = nas.testing.conditional_space()
    keys = jax.random.split(jax.random.key(0), 2000)
    vectors = jax.vmap(lambda k: random_vector(k, conditional))(keys)
    drawn = jax.vmap(lambda v: to_arch(conditional, v))(vectors)
    assert jax.vmap(lambda row: nas.space.is_valid(conditional, row))(drawn).all()
    assert abs(float(vectors[:, 2].mean()) - 0.5) < 0.03  # active or not
    corners = jax.vmap(lambda v: to_arch(space(), v))(jnp.array([[0.0] * 6, [1.0] * 6, [0.5] * 6]))
    assert corners.tolist() == [[0] * 6, [2] * 6, [1] * 6]


def test_it_learns_and_its_rates_may_be_traced():
    fitness = nas.evaluators.from_function(lambda key, arch: arch.mean())
    rates = jnp.array([[0.5, 0.5], [0.5, 0.0], [0.0, 0.5]])

    def last(key, rate):
        strategy = dehb(
            space(), batch_size=4, mutation_factor=rate[0], crossover_rate=rate[1], min_budget=1 / 9
        )
        return nas.search(key, strategy, fitness, 30)[1].evaluation.fitness

    keys = jax.random.split(jax.random.key(0), 16)
    found = jax.jit(jax.vmap(lambda r: jax.vmap(lambda k: last(k, r))(keys)))(rates)
    assert (found[0] != found[1]).any() and (found[0] != found[2]).any()
    early, late = found[0, :, :5].mean(), found[0, :, 20:].mean()
    assert late > early + 0.3


@pytest.mark.slow
def test_contract():
    conditional = nas.testing.conditional_space()
    strategy = dehb(conditional, batch_size=5, min_budget=1 / 3)
    nas.testing.check_strategy(strategy, conditional, eager=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_budget": 0.5}, "min_budget must be at most 1 / eta"),
        ({"mutation_factor": -1.0}, "mutation_factor must be"),
        ({"crossover_rate": 1.5}, "crossover_rate must be"),
        ({"eta": 0}, "eta must be"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dehb(space(), **options)
