"""LaNAS: its regressions against NumPy's least squares, its regions, its selection, its pool."""

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import enumeration
from jaxnas.strategies._memory import remember
from jaxnas.strategies._partition import learn, leaves, select
from jaxnas.strategies._population import empty
from jaxnas.strategies.lanas import lanas, scaled
from tests.unit import smooth_problem

ROOT = Path(__file__).parents[2]
TABLE = Path(os.environ.get("JAXNAS_DATA", ROOT.parent / "shared" / "data")) / "nasbench201.npz"


def encodings(space):
    every = jnp.asarray(enumeration.all_architectures(space))
    return np.asarray(jax.vmap(lambda row: nas.space.encode(space, row))(every))


def reference(samples, values, rows, num_levels, ridge):
    """Leaves of rows by ridge regressions node after node: least squares of augmented systems."""
    if num_levels == 0:
        return np.zeros(len(rows), int)
    middle = samples.mean(axis=0) if len(samples) else np.zeros(rows.shape[1])
    left = np.vstack([samples - middle, math.sqrt(ridge) * np.eye(rows.shape[1])])
    right = np.append(values - values.mean() if len(values) else values, np.zeros(rows.shape[1]))
    weight = np.linalg.lstsq(left, right, rcond=None)[0]
    good_sample, good_row = ((x - middle) @ weight >= -1e-9 for x in (samples, rows))
    found = np.zeros(len(rows), int)
    for side, (mine, theirs) in enumerate([(good_sample, good_row), (~good_sample, ~good_row)]):
        below = reference(samples[mine], values[mine], rows[theirs], num_levels - 1, ridge)
        found[theirs] = side * 2 ** (num_levels - 1) + below
    return found


def test_regions_are_those_of_least_squares():
    rows = encodings(nas.testing.conditional_space())
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(rows), 25)
    values, counts = rng.normal(size=25), rng.uniform(size=25) < 0.8
    learned = jax.jit(learn, static_argnums=3)(
        jnp.asarray(rows[drawn]), jnp.asarray(values, jnp.float32), jnp.asarray(counts), 3, 0.7
    )
    got = np.asarray(jax.jit(leaves)(learned, jnp.asarray(rows)))
    wanted = reference(rows[drawn][counts], values[counts], rows, 3, 0.7)
    np.testing.assert_array_equal(got, wanted)
    assert len(np.unique(got)) > 4
    # An architecture and a sample of it are in one region.
    np.testing.assert_array_equal(leaves(learned, jnp.asarray(rows[drawn])), got[drawn])


def test_one_split_by_hand():
    # Two features, of which the first tells good from bad.
    encoding = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    value = jnp.array([1.0, 0.0, 0.8, 0.2, 50.0])
    learned = learn(encoding, value, jnp.array([True] * 4 + [False]), 1, 1.0)
    # Centred features are 1/2 and -1/2: w = (0.4, -0.4) / (1 + 1 + 1).
    np.testing.assert_allclose(learned.weight[0, 0], [0.8 / 3, -0.8 / 3], rtol=1e-5)
    np.testing.assert_allclose(learned.threshold, [[0.0]], atol=1e-6)
    assert leaves(learned, encoding[:4]).tolist() == [0, 1, 0, 1]


def test_selection_is_ucb_over_the_regions_with_room():
    rng, choose = np.random.default_rng(1), jax.jit(select)
    reached = set()
    for _ in range(60):
        num = rng.integers(0, 5, 8).astype(np.float32)
        pending = rng.integers(0, 2, 8).astype(np.float32)
        total = num * rng.uniform(size=8).astype(np.float32)
        room = rng.integers(0, 2, 8).astype(np.float32)
        room[rng.integers(8)] = 1
        exploration = rng.uniform(0, 0.5)
        low, high = 0, 8  # the leaves below a node
        while high - low > 1:
            middle = (low + high) // 2
            visits = num + pending
            bounds = []
            for side in (slice(low, middle), slice(middle, high)):
                mean = total[side].sum() / max(num[side].sum(), 1)
                around = math.log(max(visits[low:high].sum(), 1))
                explore = 2 * exploration * math.sqrt(2 * around / max(visits[side].sum(), 1))
                bound = mean + explore if visits[side].sum() else math.inf
                bounds.append(bound if room[side].sum() else -math.inf)
            if bounds[0] == bounds[1]:
                break
            low, high = (low, middle) if bounds[0] > bounds[1] else (middle, high)
        leaf = int(choose(jax.random.key(0), total, num, pending, room, exploration))
        assert low <= leaf < high
        assert room[leaf] > 0
        reached.add(leaf)
    assert len(reached) > 4


def test_values_are_ranks_or_shares_of_the_range():
    space = nas.testing.tiny_space()
    fitness = jnp.array([30.0, jnp.nan, 70.0, 30.0, 40.0])
    memory = remember(empty(space, 6), jnp.zeros((5, 3), jnp.int32), fitness)
    np.testing.assert_allclose(scaled(memory, "range"), [0, 0, 0, 1, 0, 0.25], rtol=1e-6)
    np.testing.assert_allclose(scaled(memory, "rank"), [0, 0.25, 0, 0.875, 0.25, 0.625], rtol=1e-6)


@pytest.mark.parametrize("limit", [24, 0])
def test_the_whole_space_is_proposed_once(limit):
    space = nas.testing.tiny_space()
    strategy = lanas(
        space, batch_size=4, num_init=6, capacity=32, enumeration_limit=limit, pool_size=256
    )
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))
    history = jax.jit(lambda key: nas.search(key, strategy, evaluator, 8)[1])(jax.random.key(0))
    arch = np.asarray(history.arch).reshape(-1, 3)
    assert len(np.unique(arch[:24], axis=0)) == 24
    assert len(np.unique(arch[24:], axis=0)) > 1  # then anything


@pytest.mark.slow
def test_beats_random_search_where_the_space_is_not_listed():
    strategy = lanas(smooth_problem.space(), batch_size=8, capacity=192, pool_size=256)
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.slow
def test_contract_of_a_space_that_is_not_listed():
    space = nas.testing.conditional_space()
    options = {"num_init": 6, "tree_height": 3, "capacity": 32, "scale": "range"}
    strategy = lanas(space, batch_size=4, enumeration_limit=0, pool_size=16, **options)
    nas.testing.check_strategy(strategy, space, eager=False)


def test_a_listed_space_with_a_rule_may_be_made_while_tracing():
    space = nas.testing.conditional_space()
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))

    @jax.jit
    def run(exploration):
        strategy = lanas(space, batch_size=4, num_init=6, capacity=32, exploration=exploration)
        return nas.search(jax.random.key(0), strategy, evaluator, 7)[1].arch

    arch = np.asarray(run(0.1)).reshape(-1, 5)
    assert len(np.unique(arch, axis=0)) == 28


@pytest.mark.slow
@pytest.mark.skipif(not TABLE.is_file(), reason="no nasbench201.npz in JAXNAS_DATA")
def test_quality_on_nasbench201():
    """Random search has 71.8 % test accuracy after 150 evaluations, local search 73.2 %."""
    table = nas.tables.nasbench201("cifar100", TABLE)

    @jax.jit
    def run(table, keys):
        evaluator = nas.evaluators.tabular(table, seed="mean", report=("test_accuracy",))
        strategy = lanas(table.space, batch_size=10, capacity=150)

        def one(key):
            evaluation = nas.search(key, strategy, evaluator, 15)[1].evaluation
            best = jnp.argmax(evaluation.fitness.ravel())
            return evaluation.metrics["test_accuracy"].ravel()[best]

        return jax.lax.map(one, keys)

    found = 100 * np.asarray(run(table, jax.random.split(jax.random.key(0), 20)))
    assert found.mean() - 1.96 * found.std() / math.sqrt(20) > 73.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_init": 0}, "num_init"),
        ({"tree_height": 1}, "tree_height"),
        ({"exploration": -0.1}, "exploration"),
        ({"ridge": -1.0}, "ridge"),
        ({"scale": "log"}, "scale"),
        ({"capacity": 3}, "capacity"),
        ({"enumeration_limit": -1}, "enumeration_limit"),
        ({"pool_size": 7}, "pool_size"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        lanas(nas.testing.tiny_space(), batch_size=4, **options)
