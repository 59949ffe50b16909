"""Properties of the operations on architectures, over random spaces with conditions."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxnas import enumeration
from jaxnas import space as ops
from jaxnas.space import Decision, SearchSpace
from jaxnas.testing import conditional_space, tiny_space

SETTINGS = hypothesis.settings(max_examples=8, deadline=None)


@functools.lru_cache(maxsize=64)
def build(shape):
    """A space of `(choices, parent, allowed)` per decision; cached, for each space compiles."""
    decisions = []
    for position, (num_choices, parent, allowed) in enumerate(shape):
        condition = None if parent is None else (parent, allowed)
        decisions.append(Decision(f"d{position}", tuple(range(num_choices)), active_if=condition))
    return SearchSpace("random", tuple(decisions), network=lambda arch: nn.Dense(1))


@st.composite
def shapes(draw):
    """Up to five decisions, some of which depend on an earlier one."""
    shape = []
    for position in range(draw(st.integers(1, 5))):
        parent = draw(st.none() | st.integers(0, position - 1)) if position else None
        allowed = ()
        if parent is not None:
            choices = st.integers(0, shape[parent][0] - 1)
            allowed = tuple(sorted(draw(st.sets(choices, min_size=1))))
        shape.append((draw(st.integers(1, 4)), parent, allowed))
    return tuple(shape)


@functools.lru_cache(maxsize=64)
def compiled(space):
    """All operations of a space in one compiled function of a seed."""

    @jax.jit
    @jax.vmap
    def run(seed):
        keys = jax.random.split(jax.random.key(seed), 6)
        a, b = ops.sample(keys[0], space), ops.sample(keys[1], space)
        return {
            "a": a,
            "b": b,
            "active": ops.is_active(space, a),
            "canonical": ops.canonical(space, a),
            "mutant": ops.mutate(keys[2], space, a),
            "still": ops.mutate(keys[3], space, a, 0.0),
            "rewritten": ops.mutate(keys[3], space, a, 1.0),
            "uniform": ops.crossover(keys[4], space, a, b),
            "one_point": ops.crossover(keys[5], space, a, b, kind="one_point"),
            "around": ops.neighbours(space, a),
            "encoding": ops.encode(space, a),
            "decoded": ops.decode(space, ops.encode(space, a)),
            "valid": ops.is_valid(space, a),
        }

    return lambda seed: {k: np.asarray(v) for k, v in run(seed + jnp.arange(64)).items()}


@hypothesis.given(shapes(), st.integers(0, 2**20))
@SETTINGS
def test_operations_on_random_spaces(shape, seed):
    space = build(shape)
    found = compiled(space)(seed)
    every = {tuple(row) for row in enumeration.all_architectures(space).tolist()}
    assert len(every) == enumeration.num_architectures(space)
    for name in ("a", "mutant", "rewritten", "uniform", "one_point"):
        assert {tuple(row) for row in found[name].tolist()} <= every
    assert found["valid"].all()
    for name in ("canonical", "still", "decoded"):
        np.testing.assert_array_equal(found[name], found["a"])
    for i, a in enumerate(found["a"]):
        active = space.active_mask(a)
        np.testing.assert_array_equal(found["active"][i], active)
        check_mutant(space, a, found["mutant"][i], active)
        check_children(space, a, found["b"][i], found["uniform"][i], found["one_point"][i])
        check_neighbours(space, a, found["around"][i], active)
        assert found["encoding"][i].sum() == sum(active)
        np.testing.assert_array_equal(space.arch(space.describe(a)), a)


def check_mutant(space, a, mutant, active):
    both = np.array(active) & np.array(space.active_mask(mutant))
    free = [on and n > 1 for on, n in zip(active, space.num_choices, strict=True)]
    assert ((a != mutant) & both).sum() == (1 if any(free) else 0)


def check_children(space, a, b, uniform, one_point):
    in_a, in_b = np.array(space.active_mask(a)), np.array(space.active_mask(b))
    for child in (uniform, one_point):
        # A decision of the child comes from a parent in which it counts.
        on = np.array(space.active_mask(child))
        assert (((child == a) & in_a | (child == b) & in_b) | ~on).all()
    first, second = np.where(in_a, a, b), np.where(in_b, b, a)
    cuts = [np.where(np.arange(len(a)) < cut, first, second) for cut in range(1, max(len(a), 2))]
    wanted = [np.where(space.active_mask(cut), cut, 0) for cut in cuts]
    assert any((one_point == cut).all() for cut in wanted)


def check_neighbours(space, a, around, active):
    assert len(around) == sum(n - 1 for n in space.num_choices)
    real = around[(around != a).any(axis=1)]
    wanted = sum(n - 1 for n, on in zip(space.num_choices, active, strict=True) if on)
    assert len(real) == wanted
    assert len(np.unique(real, axis=0)) == wanted


def test_rewriting_changes_every_free_decision(key):
    space = tiny_space()
    a = ops.sample(key, space)
    assert (np.asarray(ops.mutate(key, space, a, 1.0)) != np.asarray(a)).all()


def test_newly_active_decisions_are_drawn_not_zero():
    space = conditional_space()
    shallow = space.arch({"depth": 1})
    keys = jax.random.split(jax.random.key(0), 400)
    children = np.asarray(jax.vmap(lambda k: ops.mutate(k, space, shallow))(keys))
    deep = children[children[:, 0] == 2]
    assert set(deep[:, 3]) == {0, 1, 2}


def test_validity_rules_are_kept():
    space = conditional_space()
    every = enumeration.all_architectures(space)
    assert not ((every[:, 0] == 2) & (every[:, 1] == 1)).any()
    keys = jax.random.split(jax.random.key(0), 500)
    drawn = np.asarray(jax.vmap(lambda k: ops.sample(k, space))(keys))
    assert jax.vmap(lambda a: ops.is_valid(space, a))(jnp.asarray(drawn)).all()
    around = np.asarray(ops.neighbours(space, space.arch({"depth": 3})))
    assert jax.vmap(lambda a: ops.is_valid(space, a))(jnp.asarray(around)).all()


def test_a_space_without_valid_architectures_does_not_hang(key):
    space = SearchSpace(
        "none", (Decision("a", (0, 1)),), lambda arch: nn.Dense(1), is_valid=lambda a: a[0] > 5
    )
    assert ops.sample(key, space).shape == (1,)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ((), "decisions of space 's' is empty"),
        ((Decision("a", ()),), "choices of decision 'a' is empty"),
        ((Decision("a", (1, 1)),), "duplicates"),
        ((Decision("a", (2, 1), reshapes=True),), "must ascend"),
        ((Decision("a", (1,)), Decision("a", (2,))), "duplicate names"),
        ((Decision("a", (1, 2), active_if=(0, (0,))),), "must name an earlier one"),
        ((Decision("a", (1,)), Decision("b", (1,), active_if=(0, (3,)))), "allows"),
    ],
)
def test_bad_spaces_are_refused(decisions, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace("s", decisions, lambda arch: nn.Dense(1))


def test_bad_values_are_named():
    space = tiny_space()
    with pytest.raises(ValueError, match="no decision 'colour'"):
        space.arch({"colour": 1})
    with pytest.raises(ValueError, match="b = 7 is not one of"):
        space.arch({"b": 7})
    with pytest.raises(ValueError, match="kind must be"):
        ops.crossover(jax.random.key(0), space, jnp.zeros(3), jnp.zeros(3), kind="two_point")


def test_an_isolated_valid_architecture_mutates_to_itself(key):
    space = SearchSpace(
        "island",
        tuple(Decision(name, (0, 1)) for name in "abc"),
        lambda arch: nn.Dense(1),
        is_valid=lambda a: (a.sum() == 0) | (a.sum() == 3),
    )
    np.testing.assert_array_equal(ops.mutate(key, space, jnp.zeros(3, jnp.int32)), [0, 0, 0])


def test_enumeration_makes_canonical_rows_only():
    # The full product has 4**20 rows; only 61 of this chain of conditions are canonical.
    first = Decision("d0", (0, 1, 2, 3))
    chain = [Decision(f"d{i}", (0, 1, 2, 3), active_if=(i - 1, (3,))) for i in range(1, 20)]
    space = SearchSpace("chain", (first, *chain), lambda arch: nn.Dense(1))
    every = enumeration.all_architectures(space)
    assert len(every) == enumeration.num_architectures(space) == 3 * 20 + 1
    assert sorted(every.tolist()) == every.tolist()


def test_enumeration_refuses_large_spaces():
    large = SearchSpace(
        "large", tuple(Decision(f"d{i}", (0, 1)) for i in range(64)), lambda arch: nn.Dense(1)
    )
    assert enumeration.num_architectures(large) == 2**64
    with pytest.raises(ValueError, match="limit is 10,000,000"):
        enumeration.all_architectures(large)


def test_representatives_are_one_per_function():
    plain = tiny_space()
    arch = jnp.asarray([2, 1, 0])
    np.testing.assert_array_equal(ops.representative(plain, arch), arch)
    sorting = SearchSpace("s", plain.decisions, plain.network, representative=jnp.sort)
    np.testing.assert_array_equal(ops.representative(sorting, arch), [0, 1, 2])
