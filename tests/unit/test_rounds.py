"""The frame of model-based strategies: when it trains, on what, and what counts as unseen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas.strategies import _rounds as rounds
from jaxnas.strategies._memory import remember
from jaxnas.strategies._population import empty
from jaxnas.types import Evaluation


def counting_model(space, batch_size):
    """Parameters that tell how often and on which rows the model was trained last."""

    def init(key):
        return {"fits": jnp.zeros(()), "rows": jnp.zeros(()), "sum": jnp.zeros(())}

    def fit(key, params, arch, fitness, mask):
        total = jnp.sum(fitness, where=mask)
        return {"fits": params["fits"] + 1.0, "rows": mask.sum() * 1.0, "sum": total}

    def propose(key, params, memory):
        return jnp.tile(jnp.array([2, 3, 1], jnp.int32), (batch_size, 1))

    return rounds.Model(init, fit, propose)


def run(batch_size, num_steps, **options):
    """Per step, how often the model has been trained, and the last state."""
    space = nas.testing.tiny_space()
    strategy = rounds.search_in_rounds(
        space, counting_model(space, batch_size), batch_size=batch_size, **options
    )
    ask, tell = jax.jit(strategy.ask), jax.jit(strategy.tell)
    state, fits, asked = strategy.init(jax.random.key(0)), [], []
    for index in range(num_steps):
        proposal = ask(jax.random.key(index), state)
        fitness = jnp.where(jnp.arange(batch_size) == 0, jnp.nan, 1.0)
        evaluation = Evaluation(fitness, fitness[:, None], {}, jnp.ones(batch_size))
        state = tell(jax.random.key(index), state, proposal, evaluation)
        fits.append(int(state.params["fits"]))
        asked.append(np.asarray(proposal.arch))
    return fits, asked, state


@pytest.mark.parametrize(
    ("batch_size", "refit_every", "wanted"),
    [
        (4, 4, [0, 0, 1, 2, 3, 4]),  # num_initial = 10 falls inside the third batch
        (4, 8, [0, 0, 1, 1, 2, 2]),
        (4, 1, [0, 0, 1, 2, 3, 4]),
        (4, None, [0, 0, 1, 1, 1, 1]),
        (1, 3, [0] * 9 + [1, 1, 1, 2, 2, 2, 3]),
    ],
)
def test_when_it_trains(batch_size, refit_every, wanted):
    options = {"num_initial": 10, "refit_every": refit_every, "capacity": 64}
    assert run(batch_size, len(wanted), **options)[0] == wanted


def test_what_it_trains_on_and_when_it_proposes():
    options = {"num_initial": 8, "refit_every": 4, "capacity": 12}
    fits, asked, state = run(4, 5, **options)
    assert fits[-1] == 4
    assert float(state.params["rows"]) == float(state.params["sum"]) == 9  # 3 of 12 failed
    for index, arch in enumerate(asked):
        from_model = (arch == [2, 3, 1]).all()
        assert from_model == (index >= 2)
    assert len(np.unique(np.concatenate(asked[:2]), axis=0)) == 8  # unseen draws


def test_training_stays_conditional_under_vmap():
    space = nas.testing.tiny_space()
    strategy = rounds.search_in_rounds(
        space, counting_model(space, 4), batch_size=4, num_initial=8, refit_every=4, capacity=16
    )
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))
    search = jax.vmap(lambda key: nas.search(key, strategy, evaluator, 6)[1].arch)
    text = str(jax.make_jaxpr(search)(jax.random.split(jax.random.key(0), 3)))
    assert text.count("= cond[") == 2  # one in `ask`, one in `tell`, neither became a select


def test_best_unseen_ranks_in_tiers():
    space = nas.testing.tiny_space()
    rows = jnp.array([[0, b, c] for b in range(4) for c in range(2)], jnp.int32)
    memory = remember(empty(space, 5), rows[:3], jnp.array([0.5, jnp.nan, 0.7]))
    # Unseen: rows 3, 4 and 5; row 4 twice. Known: 0, 1 (failed), 2.
    pool = rows[jnp.array([0, 1, 2, 3, 4, 4, 5])]
    score = jnp.array([5.0, 9.0, 6.0, 1.0, 2.0, 8.0, jnp.nan])
    got = rounds.best_unseen(memory, pool, score, 7).tolist()
    order = [4, 3, 5, 2, 0]  # unseen by score, NaN last; then known; then failed and repeats
    assert got[:5] == [rows[i].tolist() for i in order]
    assert sorted(got[5:]) == sorted([rows[1].tolist(), rows[4].tolist()])


def test_an_empty_memory_knows_nothing():
    space = nas.testing.tiny_space()
    pool = jnp.zeros((1, 3), jnp.int32)  # like the rows of empty places
    both = jnp.concatenate([pool, pool + 1])
    got = rounds.best_unseen(empty(space, 4), both, jnp.array([1.0, 0.0]), 1)
    np.testing.assert_array_equal(got, pool)


def test_best_members_repeat_where_successes_are_few():
    space = nas.testing.tiny_space()
    rows = jnp.array([[0, 0, 0], [1, 1, 1], [2, 2, 0]], jnp.int32)
    memory = remember(empty(space, 4), rows, jnp.array([0.2, jnp.nan, 0.9]))
    got = rounds.best_members(memory, 6).tolist()
    assert got == [[2, 2, 0], [0, 0, 0]] * 3


@pytest.mark.parametrize("name", ["batch_size", "num_initial", "refit_every", "capacity"])
def test_bad_sizes_are_named(name):
    space = nas.testing.tiny_space()
    options = {"batch_size": 4, "num_initial": 4, "refit_every": 4, "capacity": 8} | {name: 0}
    with pytest.raises(ValueError, match=name):
        rounds.search_in_rounds(space, counting_model(space, 4), **options)


def test_capacity_must_hold_the_uniform_draws():
    space = nas.testing.tiny_space()
    options = {"batch_size": 4, "num_initial": 9, "refit_every": 4, "capacity": 8}
    with pytest.raises(ValueError, match="capacity must be at least batch_size = 4"):
        rounds.search_in_rounds(space, counting_model(space, 4), **options)
