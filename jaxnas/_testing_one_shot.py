"""The conformance kit's part about one-shot methods."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnas._requirements import (
    assert_traced_once,
    check_array,
    check_layout,
    check_parameters,
    check_same,
    require,
)
from jaxnas.nn.layers import BatchNorm, Dense
from jaxnas.nn.mixed import MixedOp
from jaxnas.nn.operations import Identity
from jaxnas.oneshot.problem import Problem, from_space
from jaxnas.oneshot.search import resume, search
from jaxnas.space import Decision, SearchSpace, is_valid
from jaxnas.training.data import Data, Split, from_arrays
from jaxnas.types import OneShot, split_like

_FEATURES, _CLASSES = 4, 3
_OPERATIONS = ("none", "skip_connect", "dense", "normed")
_ROWS = (3, 4, 4)  # operations of each row


class _None(nn.Module):
    def __call__(self, x: Array, *, train: bool) -> Array:
        return jnp.zeros_like(x)


class _Layer(nn.Module):
    normed: bool

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        y = Dense(x.shape[-1], name="dense")(x)
        return jnp.tanh(BatchNorm(name="norm")(y, train=train) if self.normed else y)


_FACTORIES = {
    "none": lambda: _None(),
    "skip_connect": lambda: Identity(),
    "dense": lambda: _Layer(False),
    "normed": lambda: _Layer(True),
}


class _Supernet(nn.Module):
    """Three layers in a row, each a choice."""

    @nn.compact
    def __call__(self, x: Array, choice: Array, *, train: bool) -> Array:
        for row, count in enumerate(_ROWS):
            ops = tuple((name, _FACTORIES[name]) for name in _OPERATIONS[:count])
            own = jax.tree.map(lambda leaf: leaf[row], choice)  # noqa: B023
            if isinstance(own, Array) and own.ndim:
                own = own[:count]
            x = x + MixedOp(ops, name=f"row_{row}")(x, own, train=train)
        return Dense(_CLASSES, name="head")(x)


class _Network(nn.Module):
    arch: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for row, op in enumerate(self.arch):
            layer = _FACTORIES[_OPERATIONS[op]]()
            x = x + layer.clone(name=f"row_{row}")(x, train=train)
        return Dense(_CLASSES, name="head")(x)


def tiny_supernet_space() -> SearchSpace:
    """Three layers with 3, 4 and 4 operations on flat rows of 4 features; compiles in a second."""
    return SearchSpace(
        "tiny_supernet",
        tuple(Decision(f"layer_{row}", _OPERATIONS[:count]) for row, count in enumerate(_ROWS)),
        network=lambda arch: _Network(tuple(map(int, np.asarray(arch)))),
        supernet=lambda bucket: _Supernet(),
    )


def tiny_data() -> Data:
    """96 rows of noise with 4 features; which of 3 projections is largest is the class."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, _FEATURES))
    y = np.argmax(np.tanh(x @ rng.normal(size=(_FEATURES, _CLASSES))) + 0.5 * x[:, :3], axis=1)
    return from_arrays(jax.random.key(0), x, y)


def tiny_problem() -> Problem:
    """The problem of `tiny_supernet_space`, to test one-shot methods on.

    Example:
      >>> tiny_problem().rows
      (3, 4, 4)
    """
    return from_space(tiny_supernet_space(), tiny_data())


def check_one_shot(method: OneShot, *, batch_size: int = 8, eager: bool = True) -> None:
    """Checks that a one-shot method on `tiny_problem` keeps the contract.

    Looked at: names of parameters; fields of the state and of `Info`; `update` keeps the state's
    structure, is traced once, gives the same outside `jit`, and depends on the key; a search equals
    one that was interrupted; a batch of NaN does not stop it; derived architectures are valid.

    Args:
      method: made for `tiny_problem()` and at least 8 steps.
      batch_size: rows of both batches. Static.
      eager: whether to compare with `update` outside `jit`, and an interrupted search with a whole
        one, the slowest parts.

    Raises:
      AssertionError: naming what is wrong.

    Example:
      >>> from jaxnas.oneshot import darts
      >>> check_one_shot(darts(tiny_problem(), num_steps=8), eager=False)
    """
    kind = type(method).__name__
    require(isinstance(method, OneShot), f"not a jaxnas OneShot but {kind}")
    check_parameters(method.init, ("key",), "init")
    check_parameters(method.update, ("key", "state", "train_batch", "valid_batch"), "update")
    check_parameters(method.derive, ("state",), "derive")
    space, data, key = tiny_supernet_space(), tiny_data(), jax.random.key(0)
    update, state = assert_traced_once(method.update), jax.jit(method.init)(key)
    for name in ("step", "weights", "rest", "alpha"):
        require(hasattr(state, name), f"init's state has no field {name!r}")
    batches = [
        Split(split.x[:batch_size], split.y[:batch_size]) for split in (data.train, data.valid)
    ]
    for index in range(4):
        before = state
        if index == 3:  # what follows a batch of NaN is NaN, but goes on
            batches = [Split(jnp.full_like(batch.x, jnp.nan), batch.y) for batch in batches]
        state, info = update(jax.random.fold_in(key, index), state, *batches)
        check_layout(state, before, "update(…)")
        _check_info(info)
        require(int(state.step) == index + 1, f"step is {state.step} after {index + 1} updates")
        _check_derived(method, state, space)
        if eager and index == 1:
            again, _ = method.update(jax.random.fold_in(key, index), before, *batches)
            check_same(again, state, "update without jit", tolerance=1e-4)
    _check_searches(method, data, key, batch_size, eager)


def _check_info(info: dict[str, Array]) -> None:
    for name in ("train_loss", "valid_loss", "valid_score"):
        require(name in info, f"update's info has no {name!r}")
    for name, value in info.items():
        check_array(value, (), jnp.float32, f"info[{name!r}]")


def _check_derived(method: OneShot, state, space: SearchSpace) -> None:
    arch = jax.jit(method.derive)(state)
    check_array(arch, (space.num_decisions,), jnp.int32, "derive(…)")
    require(bool(is_valid(space, arch)), f"derive(…) gives {arch}, which is not valid")


def _check_searches(method: OneShot, data: Data, key: Array, batch_size: int, whole: bool) -> None:
    """Searches of 8 updates in two parts, and as a whole."""
    splits = (data.train, data.valid)
    go_on = jax.jit(lambda k, s: resume(k, method, s, *splits, num_steps=4, batch_size=batch_size))

    def halves(key: Array):
        state = jax.jit(method.init)(split_like(key, 2)[0])
        return go_on(key, go_on(key, state)[0])

    state, history = halves(key)
    losses = history["train_loss"]
    require(np.isfinite(losses).all(), f"train_loss is not finite in a search: {losses}")
    other, _ = halves(jax.random.key(1))
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), state.weights, other.weights)
    require(any(jax.tree.leaves(differs)), "searches with different keys are the same")
    if whole:
        run = jax.jit(lambda k: search(k, method, *splits, num_steps=8, batch_size=batch_size))
        check_same(state, run(key)[0], "a search in two parts: ", tolerance=1e-4)
