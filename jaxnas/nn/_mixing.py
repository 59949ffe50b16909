"""The operations of a mixed operation as pure functions of their variables."""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnas import counter
from jaxnas.nn._routed_cell import Operation as RoutedOperation
from jaxnas.nn._routed_cell import route_edges
from jaxnas.nn.drop_path import DropPath, drop_output
from jaxnas.nn.pooling import max_pool
from jaxnas.nn.routing import route

PyTree = Any
Operation = tuple[str, Callable[[], nn.Module]]
Variables = dict[str, dict[str, PyTree]]  # operation to collection to variables
Seeds = dict[str, Array]  # PRNG stream to u32[2]

# Numbers of an operand from which operations are sooner run again than kept, as measured on CPU,
# where what all edges of a cell keep is filled with zeros first and does not fit the cache.
_LARGE = 2**15


class Gated(NamedTuple):
    """A routed choice that weighs: `scale` times the operation's output, plus `shift`."""

    op: Array  # i32[...]
    scale: Array  # f32[...]
    shift: Array  # f32[...]


class _Alone(nn.Module):
    """A module made outside of any other, with variables of its own."""

    factory: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x: Array, *, train: bool, drop_path: DropPath | None = None) -> Array:
        module = self.factory()
        nn.share_scope(self, module)
        return drop_output(drop_path, module, module(x, train=train))


class Operations:
    """Named operations of which one is run, or all are and their results summed.

    Args:
      ops: names and factories.
      keep: positions of those in use; None: all.
      residuals: see `jaxnas.nn.mixed`.
      partial: k, where operations see the first of k groups of channels only; the others go past
        them, through 2x2 pooling where they halve the image, and channels are shuffled.
    """

    def __init__(
        self,
        ops: Sequence[Operation],
        keep: Sequence[int] | None,
        residuals: str,
        partial: int = 1,
    ):
        _check_ops(ops, keep)
        if partial < 1:
            raise ValueError(f"partial must be at least 1, got {partial}")
        self._partial = partial
        self._kept = list(range(len(ops))) if keep is None else sorted(keep)
        self._num_ops = len(ops)
        self._residuals = residuals
        self.modules = {ops[k][0]: _Alone(ops[k][1], parent=None) for k in self._kept}

    def init(self, seed: Array, x: Array) -> Variables:
        """Initial variables: each operation's as if initialised alone with a key of its own."""
        x, _ = self._parted(x)
        return {
            name: dict(module.init({"params": _key(seed, name)}, x, train=False))
            for name, module in self.modules.items()
        }

    def run(
        self,
        x: Array,
        choice: Array | Gated,
        variables: Variables,
        seeds: Seeds,
        *,
        mutable: frozenset[str],
        train: bool,
        drop_path: DropPath | None = None,
    ) -> tuple[Array, Variables]:
        """Routes or mixes.

        Args:
          x: the operand.
          choice: i32[], f32[K] or `Gated`.
          variables: of the operations.
          seeds: for the PRNG streams.
          mutable: collections that operations may change.
          train: static.
          drop_path: the draw, one for all operations.

        Returns:
          The result, and the mutable collections of all operations after the call.
        """
        used, past = self._parted(x)
        y, after = self._run(
            used, choice, variables, seeds, mutable=mutable, train=train, drop_path=drop_path
        )
        return (y if past is None else _shuffled(y, past, self._partial)), after

    def run_edges(
        self,
        nodes: Array,
        edges: Sequence[tuple[int, int]],
        choice: Array,
        variables: Variables,
        seeds: Seeds,
        *,
        mutable: frozenset[str],
        train: bool,
        drop_path: DropPath | None = None,
    ) -> tuple[Array, Variables]:
        """Routes on all edges of a cell.

        Args:
          nodes: f[N, ...], the inputs, and zeros for the other nodes.
          edges: see `route_edges`.
          choice: i32[E].
          variables: of the operations, with a leading axis for the edges; as are the following.
          seeds: for the PRNG streams.
          mutable: collections that operations may change.
          train: static.
          drop_path: the draws.

        Returns:
          The nodes' values, and the mutable collections of all operations after the call.
        """

        def operation(name):
            def call(x, fixed, changed, shared):
                seeds, draw = shared
                used, past = self._parted(x)
                own = {**fixed, **changed}
                y, after = self._call(name, own, seeds, used, mutable, train, draw)
                return (y if past is None else _shuffled(y, past, self._partial)), after

            changed = _chosen(variables[name], mutable)
            fixed = _chosen(variables[name], frozenset(variables[name]) - mutable)
            return RoutedOperation(call, fixed, changed)

        operations = [operation(name) for name in self.modules]
        shared, place = (seeds, drop_path), self._place(choice)
        nodes, changed = route_edges(
            operations, place, edges, nodes, shared, residuals=self._residuals
        )
        return nodes, dict(zip(self.modules, changed, strict=True))

    def _parted(self, x: Array) -> tuple[Array, Array | None]:
        """The channels that operations see, and the others."""
        if self._partial == 1:
            return x, None
        if x.shape[-1] % self._partial:
            raise ValueError(
                f"partial must divide the {x.shape[-1]} channels of x, got {self._partial}"
            )
        size = x.shape[-1] // self._partial
        return x[..., :size], x[..., size:]

    def _run(self, x, choice, variables, seeds, *, mutable, train, drop_path):
        before = {name: _chosen(own, mutable) for name, own in variables.items()}

        def call(name, variables, seeds, x, drop_path):
            return self._call(name, variables[name], seeds, x, mutable, train, drop_path)

        operands = (variables, seeds, x, drop_path)
        if isinstance(choice, Gated):
            y, after = self._route(call, before, choice.op, *operands)
            return choice.scale.astype(y.dtype) * y + choice.shift.astype(y.dtype), after
        if jnp.issubdtype(choice.dtype, jnp.integer):
            return self._route(call, before, choice, *operands)
        mix = partial(self._mix, call)
        large = self._residuals == "auto" and x.size >= _LARGE
        mix = jax.checkpoint(mix) if large or self._residuals == "recompute" else mix
        return mix(choice, *operands)

    def _mix(self, call, choice, *operands):
        after, terms = {}, []
        for k, name in zip(self._kept, self.modules, strict=True):
            y, after[name] = call(name, *operands)
            terms.append(choice[k].astype(y.dtype) * y)
        return sum(terms[1:], terms[0]), after

    def _route(self, call, before, choice, *operands):
        def branch(name, variables, *rest):
            y, own = call(name, variables, *rest)
            unchanged = {n: {c: variables[n][c] for c in before[n]} for n in before}
            return y, {**unchanged, name: own}

        branches = [lambda *operands, n=name: branch(n, *operands) for name in self.modules]
        return route(branches, self._place(choice), *operands, residuals=self._residuals)

    def _place(self, choice: Array) -> Array:
        """Positions among the operations in use."""
        if len(self._kept) == self._num_ops:
            return choice
        place = np.zeros(self._num_ops, np.int32)
        place[self._kept] = np.arange(len(self._kept))
        return jnp.asarray(place)[choice]

    def _call(self, name, variables, seeds, x, mutable, train, drop_path):
        """One operation's result, and its collections in `mutable` after the call."""
        y, after = self.modules[name].apply(
            variables,
            x,
            train=train,
            drop_path=drop_path,
            rngs={stream: _key(seed, name) for stream, seed in seeds.items()},
            mutable=list(_chosen(variables, mutable)),
        )
        return y, dict(after)


def _chosen(variables: dict[str, PyTree], collections: frozenset[str]) -> dict[str, PyTree]:
    return {c: tree for c, tree in variables.items() if c in collections}


def _shuffled(y: Array, past: Array, groups: int) -> Array:
    """`y` and the channels `past` the operations, interleaved group by group."""
    if y.shape[1:-1] != past.shape[1:-1]:
        past = max_pool(past, 2, stride=2)
    both = jnp.concatenate([y, past], axis=-1)
    lead = both.shape[:-1]
    return both.reshape(*lead, groups, -1).swapaxes(-1, -2).reshape(*lead, -1)


def create_variables(module: nn.Module, variables: Variables) -> None:
    """Makes initial variables a module's own, each operation's under its name."""
    for name, own in variables.items():
        for collection, tree in own.items():
            if collection == "params":
                module.param(name, lambda _, tree=tree: tree)
            else:
                module.variable(collection, name, lambda tree=tree: tree)


def load_variables(module: nn.Module, ops: Operations) -> tuple[Variables, frozenset[str]]:
    """The operations' variables, and the collections that they may change."""
    found = module.variables
    variables = {
        name: {collection: tree[name] for collection, tree in found.items() if name in tree}
        for name in ops.modules
    }
    mutable = [c for c in found if c != "params" and module.is_mutable_collection(c)]
    return variables, frozenset(mutable)


def update_variables(module: nn.Module, updates: Variables) -> None:
    """Puts the changed variables of operations where `create_variables` made them."""
    if module.is_initializing():
        return
    for name, own in updates.items():
        for collection, tree in own.items():
            module.put_variable(collection, name, tree)


def stream_seeds(module: nn.Module) -> Seeds:
    """The seeds of the module's PRNG streams for everything but initialisation."""
    streams = () if module.scope is None else module.scope.rngs
    return {s: counter.module_seed(module, s) for s in streams if s != "params"}


def spread(seed: Array, *sizes: int) -> Array:
    """Seeds u32[..., *sizes, 2] out of seed u32[..., 2], one per index; `sizes` are static."""
    for size in sizes:
        each = jax.vmap(lambda s, size=size: jax.vmap(partial(counter.fold, s))(jnp.arange(size)))
        seed = each(seed.reshape(-1, 2)).reshape(*seed.shape[:-1], size, 2)
    return seed


def init_stacked(ops: Operations, seeds: Array, x: Array) -> Variables:
    """Variables for seeds u32[..., 2], with the same leading axes."""
    flat = jax.vmap(lambda seed: ops.init(seed, x))(seeds.reshape(-1, 2))
    return jax.tree.map(lambda leaf: leaf.reshape(*seeds.shape[:-1], *leaf.shape[1:]), flat)


def _key(seed: Array, name: str) -> Array:
    own = counter.fold(seed, zlib.crc32(name.encode()))
    return jax.random.wrap_key_data(own, impl="threefry2x32")


def _check_ops(ops: Sequence[Operation], keep: Sequence[int] | None) -> None:
    names = [name for name, _ in ops]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"ops must be at least one, under different names, got {names}")
    allowed = range(len(ops))
    if keep is not None and (not keep or len(set(keep)) < len(keep) or set(keep) - set(allowed)):
        raise ValueError(
            f"keep must be different positions from 0 to {len(ops) - 1}, at least one, "
            f"got {tuple(keep)}"
        )
