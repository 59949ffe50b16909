"""Checkpoints of states."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxnas import checkpoints


class State(NamedTuple):
    count: Any
    key: Any
    nested: Any


def a_state(count):
    return State(
        jnp.asarray(count, jnp.int32),
        jax.random.key(count),
        {"weights": (jnp.full((2, 3), count / 3, jnp.float32), ()), "flag": jnp.asarray(True)},
    )


def damage(folder, step):
    for file in (folder / str(step)).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:7])


def test_a_state_comes_back_to_the_bit(tmp_path):
    checkpoints.save(tmp_path, 3, a_state(7))
    step, state = checkpoints.restore(tmp_path, a_state(0), at_most=3)
    assert step == 3
    chex.assert_trees_all_equal(state, a_state(7))
    chex.assert_trees_all_equal_dtypes(state, a_state(7))
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)


def test_an_empty_state_can_be_saved(tmp_path):
    checkpoints.save(tmp_path, 5, ((), ()))
    assert checkpoints.restore(tmp_path, ((), ()), at_most=9) == (5, ((), ()))


def test_nothing_saved_means_from_the_start(tmp_path):
    assert checkpoints.restore(tmp_path / "none", (), at_most=4) == (0, ())
    assert not (tmp_path / "none").exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    for step in (2, 4):
        checkpoints.save(tmp_path, step, a_state(step))
    damage(tmp_path, 4)
    step, state = checkpoints.restore(tmp_path, a_state(0), at_most=10)
    assert step == 2
    chex.assert_trees_all_equal(state, a_state(2))
    checkpoints.save(tmp_path, 4, a_state(4))  # its place is free again
    assert checkpoints.restore(tmp_path, a_state(0), at_most=10)[0] == 4


def test_all_damaged_means_from_the_start(tmp_path):
    checkpoints.save(tmp_path, 1, a_state(1))
    damage(tmp_path, 1)
    assert checkpoints.restore(tmp_path, a_state(0), at_most=10)[0] == 0


def test_checkpoints_ahead_of_the_journal_are_not_used(tmp_path):
    for step in (2, 4):
        checkpoints.save(tmp_path, step, a_state(step))
    assert checkpoints.restore(tmp_path, a_state(0), at_most=3)[0] == 2


@pytest.mark.parametrize(
    "other",
    [a_state(0)._replace(count=jnp.zeros(2, jnp.int32)), a_state(0)._replace(nested={}), ()],
)
def test_a_checkpoint_of_another_state_is_not_used(tmp_path, other):
    checkpoints.save(tmp_path, 2, a_state(2))
    assert checkpoints.restore(tmp_path, other, at_most=3)[0] == 0


def test_only_the_newest_are_kept(tmp_path):
    for step in range(1, 6):
        checkpoints.save(tmp_path, step, a_state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "5"]
