"""Q-learning: its updates by hand and against a loop, its exploration and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxnas as nas
from jaxnas import enumeration
from jaxnas.strategies import _q_values
from jaxnas.strategies._memory import remember
from jaxnas.strategies._population import empty
from jaxnas.strategies.q_learning import q_learning, replay
from tests.unit import smooth_problem


def test_an_update_by_hand():
    space = nas.testing.tiny_space()
    table = jnp.full((3, 4, 4), 0.5)
    arch, reward = jnp.array([[2, 1, 0], [0, 1, 0]]), jnp.array([0.9, 0.4])
    after = np.asarray(replay(space, table, arch, reward, 0.1, 1.0, 0.0))
    wanted = np.full((3, 4, 4), 0.5)
    # First trajectory, backwards: 0.5 + 0.1 (0.9 - 0.5), then a tenth of the way to what follows.
    wanted[2, 1, 0] = 0.54
    wanted[1, 2, 1] = 0.504
    wanted[0, 0, 2] = 0.5004
    # The second shares the last state: 0.54 + 0.1 (0.4 - 0.54).
    wanted[2, 1, 0] = 0.526
    wanted[1, 0, 1] = 0.5026
    wanted[0, 0, 0] = 0.50026
    np.testing.assert_allclose(after, wanted, rtol=1e-6)


def test_whole_traces_average_the_outcome():
    space = nas.testing.tiny_space()
    arch, reward = jnp.array([[2, 1, 0]]), jnp.array([0.9])
    after = replay(space, jnp.full((3, 4, 4), 0.5), arch, reward, 0.1, 0.9, 1.0)
    got = [float(after[2, 1, 0]), float(after[1, 2, 1]), float(after[0, 0, 2])]
    np.testing.assert_allclose(got, [0.54, 0.531, 0.5229], rtol=1e-6)


@pytest.mark.parametrize("trace_decay", [0.0, 0.7])
def test_updates_on_conditional_decisions_are_the_loop(trace_decay):
    space, rng = nas.testing.conditional_space(), np.random.default_rng(0)
    every = enumeration.all_architectures(space)
    arch = every[rng.integers(0, len(every), 60)]
    reward = rng.uniform(size=60).astype(np.float32)
    rate, discount = 0.3, 0.9
    table = np.full((5, 3, 3), 0.5)
    for row, earned in zip(arch, reward, strict=True):
        active = np.flatnonzero(space.active_mask(row))
        states = [(d, 0 if i == 0 else row[active[i - 1]]) for i, d in enumerate(active)]
        target = earned
        for i in reversed(range(len(active))):
            if i + 1 < len(active):
                following = states[i + 1]
                best = table[following][: space.num_choices[following[0]]].max()
                target = discount * ((1 - trace_decay) * best + trace_decay * target)
            choice = row[active[i]]
            table[states[i]][choice] += rate * (target - table[states[i]][choice])
    start = jnp.full((5, 3, 3), 0.5)
    after = jax.jit(replay, static_argnums=0)(
        space, start, arch, reward, rate, discount, trace_decay
    )
    np.testing.assert_allclose(after, table, rtol=1e-5)


def test_exploration_is_table_2():
    counts = np.asarray(_q_values.exploration_rate(jnp.arange(3000), 2700))
    rates, lengths = np.unique(counts, return_counts=True)
    np.testing.assert_allclose(rates, np.arange(1, 11) / 10, rtol=1e-6)
    assert lengths[::-1].tolist() == [1500, 100, 100, 100, 150, 150, 150, 150, 150, 450]


def test_choices_are_greedy_or_uniform():
    space, draws = nas.testing.tiny_space(), 20_000
    values = jnp.array([[0.0, 0.0, 1.0, 9.0], [0.0, 1.0, 1.0, 0.0], [0.0, 2.0, 9.0, 9.0]])

    def q_fn(arch, index, previous):
        return values[index]

    rate = 0.6
    arch = np.asarray(_q_values.propose(jax.random.key(0), space, q_fn, jnp.full(draws, rate)).arch)
    # Places beyond a decision's choices are never taken, and chance decides between equals.
    greedy = [[0, 0, 1], [0, 0.5, 0.5, 0], [0, 1]]
    for column, best, num in zip(arch.T, greedy, space.num_choices, strict=True):
        chance = rate / num + (1 - rate) * np.asarray(best)
        seen = np.bincount(column, minlength=num)
        assert stats.chisquare(seen, draws * chance).pvalue > smooth_problem.ACCIDENT


def test_walks_see_the_last_active_choice_and_avoid_invalid_ones():
    space = nas.testing.conditional_space()

    def q_fn(arch, index, previous):
        wish = jnp.array([2, 1, 1, 0, 0])[index]  # deep with "b": invalid
        values = jax.nn.one_hot(wish, 3)
        return jnp.where(index == 3, jax.nn.one_hot(2 * previous, 3), values)

    arch = _q_values.propose(jax.random.key(0), space, q_fn, jnp.full(200, 0.2)).arch
    valid = jax.vmap(lambda row: nas.space.is_valid(space, row))(arch)
    assert bool(valid.all())
    # From the choice 1 of width_2 follows the wish for choice 2 of width_3.
    seen = np.asarray(arch)[np.asarray(arch)[:, 0] == 2]
    assert (seen[seen[:, 2] == 1][:, 3] == 2).mean() > 0.7
    assert (seen[seen[:, 2] == 0][:, 3] == 0).mean() > 0.7


def test_no_valid_walk_gives_a_uniform_draw():
    space = nas.testing.conditional_space()

    def q_fn(arch, index, previous):
        return jax.nn.one_hot(jnp.array([2, 1, 0, 0, 0])[index], 3)

    arch = np.asarray(_q_values.propose(jax.random.key(0), space, q_fn, jnp.zeros(64)).arch)
    assert len(np.unique(arch, axis=0)) > 5
    assert not ((arch[:, 0] == 2) & (arch[:, 1] == 1)).any()


def test_failures_are_rewarded_like_the_worst():
    space = nas.testing.tiny_space()
    memory = remember(
        empty(space, 8),
        jnp.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]]),
        jnp.array([0.7, jnp.nan, 0.3]),
    )
    arch, reward = _q_values.recall(jax.random.key(0), memory, 300)
    wanted = np.array([0.7, 0.3, 0.3], np.float32)
    np.testing.assert_array_equal(reward, wanted[np.asarray(arch)[:, 0]])
    assert np.bincount(np.asarray(arch)[:, 0]).min() > 60
    nothing = remember(empty(space, 8), jnp.zeros((2, 3), jnp.int32), jnp.full(2, jnp.nan))
    assert _q_values.recall(jax.random.key(0), nothing, 5)[1].tolist() == [0.0] * 5


@pytest.mark.slow
def test_contract_of_small_batches():
    space = nas.testing.conditional_space()
    options = {"num_evaluations": 40, "num_replays": 5, "capacity": 30}
    strategy = q_learning(space, batch_size=1, **options)
    nas.testing.check_strategy(strategy, space, eager=False)


def test_float_hyperparameters_may_be_swept():
    space = nas.testing.tiny_space()
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))
    names = ("learning_rate", "discount", "trace_decay", "initial_value")

    def search(options):
        strategy = q_learning(space, batch_size=4, num_evaluations=20, num_replays=5, **options)
        state, history = nas.search(jax.random.key(0), strategy, evaluator, 12)
        return state.strategy.table, history.arch

    swept = {name: jnp.array([0.05, 0.9]) for name in names}
    together = jax.jit(jax.vmap(search))(swept)
    for i in range(2):
        table, arch = jax.jit(search)({name: value[i] for name, value in swept.items()})
        np.testing.assert_array_equal(together[1][i], arch)
        np.testing.assert_allclose(together[0][i], table, rtol=1e-5)
    assert (together[1][0] != together[1][1]).any()


@pytest.mark.slow
def test_beats_random_search():
    strategy = q_learning(smooth_problem.space(), batch_size=8, num_evaluations=192)
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_evaluations": 0}, "num_evaluations"),
        ({"learning_rate": 1.5}, "learning_rate"),
        ({"discount": -0.1}, "discount"),
        ({"trace_decay": 1.1}, "trace_decay"),
        ({"num_replays": 0}, "num_replays"),
        ({"batch_size": 4, "capacity": 3}, "capacity"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        q_learning(nas.testing.tiny_space(), **options)
