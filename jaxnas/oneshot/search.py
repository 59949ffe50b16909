"""A one-shot search as a `lax.scan` over updates; pure, the caller jits.

Both data sets are drawn from epoch by epoch, each in permutations of its own that follow from the
key and the epoch alone. A search of 200 updates is therefore a search of 100 that is resumed for
100 more, to the bit: a driver outside can save the state in between.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas import counter
from jaxnas._checks import check_count
from jaxnas.training.data import Split
from jaxnas.types import OneShot, split_like

State = Any
History = dict[str, Array]  # what each update reported: name to f32[T]


class _Order(NamedTuple):
    """The rows of an epoch of one data set in the order in which they are drawn."""

    seed: Array  # u32[2]
    epoch: Array  # i32[]
    rows: Array  # i32[N]


def search(
    key: Array,
    method: OneShot,
    train: Split,
    valid: Split,
    *,
    num_steps: int,
    batch_size: int,
    shuffle: bool = True,
) -> tuple[State, History]:
    """Trains a supernet and its architecture parameters from the start.

    Args:
      key: PRNG key; the same one resumes the search.
      method: the one-shot method, made for at least as many steps.
      train: rows that weights are trained on.
      valid: rows that architecture parameters are trained on.
      num_steps: updates T. Static.
      batch_size: rows of both batches; what is left of an epoch is dropped. Static.
      shuffle: whether epochs are permuted. Without, row `i * batch_size + b` of the data follows
        row `b` of batch `i - 1`, as a hidden state that is handed on wants it. Static.

    Returns:
      The last state, and what every update reported.

    Raises:
      ValueError: for a size below 1, or a batch larger than either data set.
    """
    k_init, _ = split_like(key, 2)
    options = {"num_steps": num_steps, "batch_size": batch_size, "shuffle": shuffle}
    return resume(key, method, method.init(k_init), train, valid, **options)


def resume(
    key: Array,
    method: OneShot,
    state: State,
    train: Split,
    valid: Split,
    *,
    num_steps: int,
    batch_size: int,
    shuffle: bool = True,
) -> tuple[State, History]:
    """Goes on with a search for `num_steps` more updates, from `state.step`.

    Args:
      key: the key that the search was started with.
      method: see `search`, as all others.
      state: of the method, from `method.init`, `search` or `resume`.
      train: likewise.
      valid: likewise.
      num_steps: likewise.
      batch_size: likewise.
      shuffle: likewise.

    Returns:
      The state afterwards, and what these updates reported.

    Raises:
      ValueError: as `search`.
    """
    check_count("num_steps", num_steps)
    check_count("batch_size", batch_size)
    for name, split in (("train", train), ("valid", valid)):
        if len(split.y) < batch_size:
            raise ValueError(
                f"batch_size must be at most the {len(split.y)} rows of {name}, got {batch_size}"
            )
    _, k_steps = split_like(key, 2)
    seed = counter.seed_from_key(k_steps)

    def start(tag: int, split: Split) -> _Order:
        num_rows, own = len(split.y), counter.fold(seed, tag)
        epoch = state.step // (num_rows // batch_size)
        return _Order(own, epoch, _permuted(own, epoch, num_rows, shuffle))

    def body(carry, _):
        state, orders = carry
        drawn = [
            _draw(order, split, state.step, batch_size, shuffle)
            for order, split in zip(orders, (train, valid), strict=True)
        ]
        orders, (train_batch, valid_batch) = zip(*drawn, strict=True)
        k_update = jax.random.fold_in(k_steps, state.step)
        state, info = method.update(k_update, state, train_batch, valid_batch)
        return (state, orders), info

    carry = (state, (start(0, train), start(1, valid)))
    (state, _), history = jax.lax.scan(body, carry, length=num_steps)
    return state, history


def _permuted(seed: Array, epoch: Array, num_rows: int, shuffle: bool) -> Array:
    if not shuffle:
        return jnp.arange(num_rows, dtype=jnp.int32)
    return counter.permutation(counter.fold(seed, epoch), num_rows)


def _draw(
    order: _Order, split: Split, step: Array, batch_size: int, shuffle: bool
) -> tuple[_Order, Split]:
    """The batch of `step`, and the order of its epoch."""
    num_rows = len(split.y)
    per_epoch = num_rows // batch_size
    epoch = step // per_epoch
    # A sort per epoch, not per step.
    rows = jax.lax.cond(
        epoch == order.epoch,
        lambda: order.rows,
        lambda: _permuted(order.seed, epoch, num_rows, shuffle),
    )
    first = (step % per_epoch) * batch_size
    picked = jax.lax.dynamic_slice(rows, [first], [batch_size])
    return _Order(order.seed, epoch, rows), Split(split.x[picked], split.y[picked])
