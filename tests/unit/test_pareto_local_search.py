"""Pareto local search: whose neighbours it looks at, and that it finds the front."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxnas as nas
from jaxnas.search import start, step, step_key
from jaxnas.strategies.pareto_local_search import pareto_local_search
from jaxnas.types import Evaluation, Evaluator
from tests.unit import smooth_problem

SPACE = smooth_problem.space()


def objectives_of(arch):
    """Two objectives that pull every decision in opposite directions, at different strength."""
    x = arch / 4.0
    pull = jnp.linspace(0.5, 2.0, arch.size)
    return jnp.stack([jnp.mean(x * pull), jnp.mean(1.0 - x**2)])


def evaluator(objectives_fn=objectives_of):
    def evaluate(key, state, proposal):
        del key
        values = jax.vmap(objectives_fn)(proposal.arch)
        return Evaluation(values[:, 0], values, {}, jnp.ones(len(values))), state

    return Evaluator(lambda key: (), evaluate, traceable=True)


def run(strategy, num_steps, seed=0, **options):
    judge = evaluator(**options)
    search = jax.jit(lambda key: nas.search(key, strategy, judge, num_steps))
    return search(jax.random.key(seed))


def test_every_candidate_is_new_and_next_to_an_efficient_one():
    strategy = pareto_local_search(SPACE, batch_size=1, num_init=5, capacity=128)
    judge = evaluator()
    keys, state = start(jax.random.key(3), strategy, judge)
    advance = jax.jit(lambda key, state: step(key, state, strategy, judge))
    seen: list = []
    values: list = []
    ever_efficient: list = []
    for index in range(80):
        before = np.asarray(state.strategy.is_open).any()
        state, record = advance(step_key(keys, index), state)
        arch = np.asarray(record.arch)[0]
        if index >= 5:
            assert before
            assert not any((arch == other).all() for other in seen)
            # A centre was efficient when it was picked.
            assert any((arch != other).sum() == 1 for other in ever_efficient)
        seen.append(arch)
        values.append(np.asarray(record.evaluation.objectives)[0])
        every = np.stack(values)
        for other, value in zip(seen, every, strict=True):
            worse = (every >= value).all(axis=1) & (every > value).any(axis=1)
            if not worse.any():
                ever_efficient.append(other)


def test_finds_more_of_the_front_than_random_search():
    strategy = pareto_local_search(SPACE, batch_size=4, num_init=8)
    random = nas.strategies.random_search(SPACE, batch_size=4)
    reference = jnp.zeros(2)

    def volumes(strategy):
        def one(key):
            _, history = nas.search(key, strategy, evaluator(), 250)
            values = history.evaluation.objectives.reshape(-1, 2)
            return nas.objectives.hypervolume(values, reference)

        return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 16)))

    ours, theirs = volumes(strategy), volumes(random)
    assert stats.mannwhitneyu(ours, theirs, alternative="greater").pvalue < 1e-4


def test_begins_again_where_the_front_is_exhausted():
    space = nas.testing.tiny_space()
    strategy = pareto_local_search(space, batch_size=2, num_init=2)
    judge = nas.evaluators.from_function(lambda key, arch: -1.0 * arch.sum())
    single = pareto_local_search(space, batch_size=2, num_init=2, num_objectives=1)
    search = jax.jit(lambda key: nas.search(key, single, judge, 30))
    state, history = search(jax.random.key(0))
    assert nas.best(history)[0].tolist() == [0, 0, 0]
    assert bool(state.strategy.expanded.any())
    with pytest.raises(ValueError, match="num_objectives must be the evaluator's 1, got 2"):
        nas.search(jax.random.key(0), strategy, judge, 2)


def test_failures_are_never_centres():
    def broken(arch):
        values = objectives_of(arch)
        return jnp.where(arch[0] == 2, jnp.nan, values)

    strategy = pareto_local_search(SPACE, batch_size=4, num_init=4)
    state, history = run(strategy, 40, objectives_fn=broken)
    expanded = np.asarray(state.strategy.memory.arch)[np.asarray(state.strategy.expanded)]
    assert len(expanded) > 3 and (expanded[:, 0] != 2).all()
    assert np.isnan(np.asarray(history.evaluation.objectives)).any()


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"num_objectives": 0}, {"num_init": 0}, {"capacity": 3, "batch_size": 4}],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        pareto_local_search(SPACE, **options)
