"""Local search against a loop in plain Python, and its promise not to ask twice."""

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas.search import start, step, step_key
from jaxnas.strategies._memory import is_known, remember
from jaxnas.strategies._population import empty
from jaxnas.strategies.local_search import local_search
from tests.unit import smooth_problem

ROOT = Path(__file__).parents[2]
TABLE = Path(os.environ.get("JAXNAS_DATA", ROOT.parent / "shared" / "data")) / "nasbench201.npz"
NUM_INIT = 3
VARIANTS = [(n, a) for n in ("first", "full") for a in ("restart", "continue")]


def rugged_space():
    decisions = tuple(nas.Decision(f"d{i}", (0, 1, 2)) for i in range(4))
    return nas.SearchSpace("rugged", decisions, nas.testing.tiny_space().network)


def rugged_evaluator():
    """Every architecture has its own random fitness, so there are many local optima."""
    fitness = jax.random.uniform(jax.random.key(42), (3, 3, 3, 3))
    return nas.evaluators.from_function(lambda key, arch: fitness[tuple(arch)])


def histories(strategy, evaluator, num_steps, num_seeds=4):
    """Per seed the (arch, fitness) pairs in the order of their evaluation."""
    run = jax.jit(jax.vmap(lambda key: nas.search(key, strategy, evaluator, num_steps)[1]))
    record = run(jax.random.split(jax.random.key(0), num_seeds))
    for arch, fitness in zip(record.arch, record.evaluation.fitness, strict=True):
        rows = np.asarray(arch).reshape(-1, arch.shape[-1]).tolist()
        yield list(zip(map(tuple, rows), fitness.ravel().tolist(), strict=True))


def are_neighbours(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True)) == 1


def check_is_algorithm_1(pairs, neighbourhood, at_optimum):
    """Replays the paper's loop, in which only the order of neighbours is free."""
    everything = {(a, b, c, d) for a in range(3) for b in range(3) for c in range(3)
                  for d in range(3)}  # fmt: skip
    queue, seen, expanded, centres = list(pairs), {}, set(), 0

    def query():
        arch, fitness = queue.pop(0)
        assert arch not in seen
        seen[arch] = fitness
        return arch

    try:
        while True:
            centre = max((query() for _ in range(NUM_INIT)), key=seen.__getitem__)
            climbing = True
            if at_optimum == "continue":
                centre = max(seen.keys() - expanded, key=seen.__getitem__)
            while climbing:
                centres += 1
                expanded.add(centre)
                around = {a for a in everything - seen.keys() if are_neighbours(a, centre)}
                if not around and at_optimum == "continue":
                    query()  # a uniform draw in the place of a neighbour
                born = []
                while around:
                    born.append(query())
                    assert born[-1] in around
                    around.remove(born[-1])
                    if neighbourhood == "first" and seen[born[-1]] > seen[centre]:
                        break
                best = max(born, key=seen.__getitem__, default=centre)
                if at_optimum == "continue":
                    centre = max(seen.keys() - expanded, key=seen.__getitem__)
                else:
                    climbing = seen[best] > seen[centre]
                    centre = best
    except IndexError:
        assert not queue
    return centres


@pytest.mark.parametrize(("neighbourhood", "at_optimum"), VARIANTS)
def test_one_at_a_time_it_is_the_papers_loop(neighbourhood, at_optimum):
    strategy = local_search(
        rugged_space(),
        batch_size=1,
        num_init=NUM_INIT,
        neighbourhood=neighbourhood,
        at_optimum=at_optimum,
        capacity=100,
    )
    for pairs in histories(strategy, rugged_evaluator(), 60):
        assert check_is_algorithm_1(pairs, neighbourhood, at_optimum) > 3


@pytest.mark.parametrize(("neighbourhood", "at_optimum"), VARIANTS[1:3])
def test_batches_visit_the_whole_space_once(neighbourhood, at_optimum):
    strategy = local_search(
        rugged_space(), batch_size=3, neighbourhood=neighbourhood, at_optimum=at_optimum
    )
    for pairs in histories(strategy, rugged_evaluator(), 40):
        archs = [arch for arch, _ in pairs]
        assert len(set(archs[:60])) == 60
        assert len(set(archs)) > 78  # of 81: the last few are left to chance


def test_first_moves_at_once_and_full_waits():
    evaluator = nas.evaluators.from_function(lambda key, arch: arch.mean())
    for neighbourhood, shared in (("first", False), ("full", True)):
        strategy = local_search(
            smooth_problem.space(), batch_size=8, num_init=8, neighbourhood=neighbourhood
        )
        k_steps, state = start(jax.random.key(0), strategy, evaluator)
        advance = jax.jit(partial(step, strategy=strategy, evaluator=evaluator))
        centres = []
        for index in range(4):
            state, _ = advance(step_key(k_steps, index), state)
            centres.append(tuple(np.asarray(state.strategy.centre).tolist()))
        assert (centres[1] == centres[0]) == shared
        assert centres[3] == centres[0] if shared else centres[3] != centres[1]


def test_the_memory_forgets_the_oldest():
    space = nas.testing.tiny_space()
    rows = jnp.asarray([[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 1, 0]])
    memory = empty(space, 3)
    assert not is_known(memory, rows).any()  # empty places hold zeros but nothing
    memory = remember(memory, rows[:2], jnp.array([1.0, 2.0]))
    assert is_known(memory, rows).tolist() == [True, True, False, False]
    memory = remember(memory, rows[2:], jnp.array([3.0, np.nan]))
    assert is_known(memory, rows).tolist() == [False, True, True, True]
    assert memory.fitness.tolist() == [2.0, 3.0, -np.inf]


@pytest.mark.slow
def test_contract_of_the_other_variant():
    space = nas.testing.conditional_space()
    options = {"neighbourhood": "full", "at_optimum": "continue", "capacity": 30}
    strategy = local_search(space, batch_size=3, num_init=4, **options)
    nas.testing.check_strategy(strategy, space, eager=False)


@pytest.mark.slow
def test_beats_random_search():
    strategy = local_search(smooth_problem.space(), batch_size=8)
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.slow
@pytest.mark.skipif(not TABLE.is_file(), reason="no nasbench201.npz in JAXNAS_DATA")
@pytest.mark.parametrize(("neighbourhood", "mean"), [("first", 65), ("full", 101)])
def test_queries_to_the_best_of_nasbench201(neighbourhood, mean):
    """The means are those of 600 runs of a plain loop on the same CIFAR-100 test accuracies."""
    with np.load(TABLE) as data:
        fitness = np.zeros((5,) * 6, np.float32)
        fitness[tuple(data["ops"].T)] = data["test_c100_e200"]
    table, num_seeds, num_evaluations = jnp.asarray(fitness), 100, 800
    decisions = tuple(nas.Decision(f"edge_{i}", tuple(range(5))) for i in range(6))
    space = nas.SearchSpace("cells", decisions, nas.testing.tiny_space().network)
    strategy = local_search(space, batch_size=1, neighbourhood=neighbourhood)
    evaluator = nas.evaluators.from_function(lambda key, arch: table[tuple(arch)])
    found = []
    for pairs in histories(strategy, evaluator, num_evaluations, num_seeds):
        found.append(1 + [value for _, value in pairs].index(fitness.max()))
    error = np.std(found) / np.sqrt(num_seeds)
    assert abs(np.mean(found) - mean) < 5 * error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_init": 0}, "num_init"),
        ({"neighbourhood": "half"}, "neighbourhood"),
        ({"at_optimum": "stop"}, "at_optimum"),
        ({"batch_size": 4, "capacity": 3}, "capacity"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        local_search(nas.testing.tiny_space(), **options)
