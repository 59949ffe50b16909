"""The problem of a space, and searches as scans over updates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import Recipe, datasets, spaces
from jaxnas._testing_one_shot import tiny_data
from jaxnas.oneshot.problem import from_space, strongest
from jaxnas.oneshot.search import resume, search
from jaxnas.testing import tiny_problem, tiny_space, tiny_supernet_space
from jaxnas.training.data import Split
from jaxnas.types import OneShot

PROBLEM, DATA = tiny_problem(), tiny_data()
BATCH = Split(DATA.train.x[:16], DATA.train.y[:16])


class Counted(NamedTuple):
    step: jax.Array


def recorder() -> OneShot:
    """A method that learns nothing and reports which rows it was given."""

    def update(key, state, train_batch, valid_batch):
        info = {"train": train_batch.y, "valid": valid_batch.y, "noise": jax.random.uniform(key)}
        return Counted(state.step + 1), info

    return OneShot(lambda key: Counted(jnp.int32(0)), update, lambda state: jnp.zeros(1, jnp.int32))


METHOD = recorder()
TRAIN = Split(jnp.zeros((10, 1)), jnp.arange(10))
VALID = Split(jnp.zeros((7, 1)), jnp.arange(7))


def test_every_epoch_is_a_permutation():
    _, seen = search(jax.random.key(0), METHOD, TRAIN, VALID, num_steps=15, batch_size=2)
    train = np.asarray(seen["train"]).reshape(3, 10)  # five batches of two each
    assert (np.sort(train, axis=1) == np.arange(10)).all()
    assert len({tuple(row) for row in train}) == 3
    valid = np.asarray(seen["valid"]).reshape(5, 6)  # three of two, one row is left over
    assert all(len(set(row)) == 6 for row in valid)
    assert len(np.unique(seen["noise"])) == 15


@pytest.mark.parametrize("first", [1, 4, 5, 7])
def test_a_resumed_search_is_the_same(first):
    key = jax.random.key(1)
    _, whole = search(key, METHOD, TRAIN, VALID, num_steps=12, batch_size=2)
    state, start = search(key, METHOD, TRAIN, VALID, num_steps=first, batch_size=2)
    _, rest = resume(key, METHOD, state, TRAIN, VALID, num_steps=12 - first, batch_size=2)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), start, rest)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_without_shuffling_rows_come_in_their_order():
    options = {"num_steps": 7, "batch_size": 2, "shuffle": False}
    _, seen = search(jax.random.key(0), METHOD, TRAIN, VALID, **options)
    np.testing.assert_array_equal(np.asarray(seen["train"]).ravel(), np.arange(14) % 10)
    np.testing.assert_array_equal(np.asarray(seen["valid"]).ravel(), np.arange(14) % 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0, "batch_size": 2}, "num_steps"),
        ({"num_steps": 1, "batch_size": 0}, "batch_size"),
        ({"num_steps": 1, "batch_size": 8}, "batch_size must be at most the 7 rows of valid"),
    ],
)
def test_sizes_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        search(jax.random.key(0), METHOD, TRAIN, VALID, **options)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(PROBLEM.init)(jax.random.key(0))


def run(problem, variables, choice, train, batch=BATCH, key=None):
    key = jax.random.key(1) if key is None else key
    return jax.jit(lambda c: problem.loss(key, *variables, c, batch, train))(choice)


def test_mixing_by_one_hot_weights_is_routing(variables):
    arch = jnp.array([2, 3, 1])
    for train in (False, True):
        routed = run(PROBLEM, variables, arch, train)
        mixed = run(PROBLEM, variables, jax.nn.one_hot(arch, 4), train)
        np.testing.assert_allclose(routed[0], mixed[0], rtol=1e-5)
        assert routed[1][1] == mixed[1][1]


def test_only_training_moves_statistics(variables):
    weights = jnp.full((3, 4), 0.25)
    _, (same, _) = run(PROBLEM, variables, weights, False)
    _, (moved, _) = run(PROBLEM, variables, weights, True)
    jax.tree.map(np.testing.assert_array_equal, same, variables[1])
    assert jax.tree.structure(moved) == jax.tree.structure(variables[1])
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), moved, variables[1])))


def test_recipe_counts_in_training_only(variables):
    smooth = from_space(tiny_supernet_space(), DATA, Recipe(label_smoothing=0.4))
    arch = jnp.array([2, 3, 1])
    assert run(smooth, variables, arch, False)[0] == run(PROBLEM, variables, arch, False)[0]
    assert (
        abs(run(smooth, variables, arch, True)[0] - run(PROBLEM, variables, arch, True)[0]) > 0.01
    )


def test_what_is_decayed_and_where_operations_are():
    weights, _ = jax.eval_shape(PROBLEM.init, jax.random.key(0))
    marks = PROBLEM.decayed(weights)
    assert marks["head"] == {"kernel": True, "bias": False}
    assert PROBLEM.where("none", "normed").tolist() == [
        [True, False, False, False],
        [True, False, False, True],
        [True, False, False, True],
    ]
    assert PROBLEM.mask[0].tolist() == [True, True, True, False]


def test_samples_are_architectures():
    arch = jax.vmap(PROBLEM.sample)(jax.random.split(jax.random.key(0), 200))
    assert (arch >= 0).all() and (arch.max(axis=0) == jnp.array([2, 3, 3])).all()


def test_strongest_ignores_empty_places_and_nan():
    strengths = jnp.array([[0.1, jnp.nan, 9.0], [jnp.nan, jnp.nan, jnp.nan]])
    assert strongest(strengths, (2, 3)).tolist() == [0, 0]


def test_unusable_problems_are_refused():
    with pytest.raises(ValueError, match="space must have a supernet"):
        from_space(tiny_space(), DATA)
    with pytest.raises(ValueError, match="auxiliary_weight = 0"):
        from_space(tiny_supernet_space(), DATA, Recipe(auxiliary_weight=0.4))


def test_rows_lead_to_the_nodes_of_nasbench201():
    space = spaces.nasbench201(num_channels=4, num_cells=1, image_size=8, in_channels=1)
    data = datasets.digits(jax.random.key(0), images=True)
    assert from_space(space, data).nodes == (1, 2, 2, 3, 3, 3)
