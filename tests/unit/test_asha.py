"""ASHA against Algorithm 2 in plain Python, and a first few decisions by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas.strategies.asha import asha, promotable
from tests.unit.halving_problem import batches, evaluator, space


def test_first_decisions_by_hand():
    """With eta = 2 a rung of two has one to promote, the better, and of three still only one."""
    strategy = asha(space(), batch_size=1, eta=2, min_budget=1 / 4)
    ask, tell = jax.jit(strategy.ask), jax.jit(strategy.tell)
    state = strategy.init(jax.random.key(0))
    archs = []
    script = [  # budget, the job whose candidate it is (None: a new one), fitness
        (0.25, None, 0.5),  # 0
        (0.25, None, 0.7),  # 1
        (0.5, 1, 0.2),  # 2: the better of two
        (0.25, None, 0.6),  # 3: of three only one, who went on already
        (0.25, None, np.nan),  # 4
        (0.5, 3, 0.9),  # 5: of four two, 1 and 3
        (1.0, 3, 0.1),  # 6: at once to the top, from the highest rung first
        (0.25, None, 0.1),  # 7
        (0.25, None, 0.8),  # 8
        (0.5, 8, 0.3),  # 9: of six three, 8, 1 and 3
        (0.25, None, 0.2),  # 10: 0 is fourth
    ]
    for index, (budget, parent, fitness) in enumerate(script):
        proposal = ask(jax.random.key(index), state)
        assert proposal.budget.tolist() == [budget]
        archs.append(proposal.arch[0].tolist())
        if parent is not None:
            assert archs[-1] == archs[parent]
        value = jnp.asarray([fitness], jnp.float32)
        evaluation = nas.Evaluation(value, value[:, None], {}, jnp.ones(1))
        state = tell(jax.random.key(index), state, proposal, evaluation)


def check_algorithm_2(steps, eta, num_rungs):
    """Replays `get_job` for each place with the results of the steps before; counts rungs."""
    rungs = [[] for _ in range(num_rungs)]
    promoted = [set() for _ in range(num_rungs)]
    counts = [0] * num_rungs

    def get_job():
        for k in reversed(range(num_rungs - 1)):
            best = sorted(rungs[k], key=lambda result: -result[1])[: len(rungs[k]) // eta]
            for number, fitness, arch in best:
                if number not in promoted[k] and fitness > -np.inf:
                    promoted[k].add(number)
                    return arch, k + 1
        return None, 0

    number = 0
    for step in steps:
        jobs = [get_job() for _ in step]
        for (expected, rung), (arch, budget, fitness) in zip(jobs, step, strict=True):
            np.testing.assert_allclose(budget, eta ** (rung + 1.0 - num_rungs), rtol=1e-6)
            if expected is not None:
                assert arch == expected
            rungs[rung].append((number, fitness, arch))
            counts[rung] += 1
            number += 1
    return counts


@pytest.mark.parametrize(("batch_size", "failures"), [(1, 0.0), (4, 0.6)])
def test_it_is_algorithm_2(batch_size, failures):
    strategy = asha(space(), batch_size=batch_size, min_budget=1 / 9, capacity=200)
    steps = batches(strategy, 120 // batch_size, failures=failures)
    counts = check_algorithm_2(steps, 3, 3)
    assert counts[0] > counts[1] > counts[2] > 2


def test_full_memory_is_a_sliding_window():
    capacity = 12
    strategy = asha(space(), batch_size=3, eta=2, min_budget=1 / 4, capacity=capacity)
    run = jax.jit(lambda key: nas.search(key, strategy, evaluator(), 30))
    state, history = run(jax.random.key(0))
    memory, rung = state.strategy.memory, np.asarray(state.strategy.rung)
    np.testing.assert_array_equal(memory.arch, history.arch.reshape(-1, 6)[-capacity:])
    np.testing.assert_allclose(0.25 * 2.0**rung, history.budget.ravel()[-capacity:])
    assert set(rung.tolist()) == {0, 1, 2}
    # Nobody but the best half of the window's own rung is promoted next.
    places = np.asarray(promotable(state.strategy, 2, 2, capacity))
    for place in places[places < capacity]:
        rivals = np.asarray(memory.fitness)[rung == rung[place]]
        assert (rivals > memory.fitness[place]).sum() < rivals.size // 2


@pytest.mark.slow
def test_contract_with_a_memory_that_overflows():
    conditional = nas.testing.conditional_space()
    strategy = asha(conditional, batch_size=4, min_budget=1 / 9, capacity=20)
    nas.testing.check_strategy(strategy, conditional, eager=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be"),
        ({"eta": 1}, "eta must be"),
        ({"min_budget": 0}, "min_budget must be"),
        ({"batch_size": 8, "capacity": 7}, "capacity must be at least batch_size = 8"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        asha(space(), **options)
