"""The edges of a cell, one operation run on each, in buffers that are updated in place.

`jaxnas.nn.routing.route` gives a branch copies of all that any branch reads, and takes from it all
that any branch returns: residual slots full of zeros, unchanged variables, zero gradients. In a
cell of small images that costs as much as the convolutions. Here every branch takes the buffers
that hold the rows of all edges (nodes, changed variables, residual slots; in the backward pass the
gradients of nodes and variables) and returns them with the rows changed that it has something for.
XLA does that without a copy, so what an operation lacks costs nothing. An edge's input is no
residual, for when all edges are done, the nodes still hold it.

Both passes are scans of JAX's own operations, so derivatives of all orders exist.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnas.nn._branches import (
    Flat,
    check_residuals,
    lift_tracers,
    moves,
    places,
    trace,
    union,
    zero_cotangent,
    zeros,
)
from jaxnas.nn._edge_loop import Edges, Step, put, row, scan_edges
from jaxnas.nn._residuals import Derivative, Kind, derivative

PyTree = Any
Rows = dict[int, Array]  # buffers by position


class Operation(NamedTuple):
    """One of the functions to choose from, and its rows of variables, E per array.

    Attributes:
      call: `(x, fixed, changed, shared) -> (y, changed)` for one edge, `y` like `x`.
      fixed: pytree of arrays [E, ...] that it reads.
      changed: pytree of arrays [E, ...] that it replaces.
    """

    call: Callable[..., tuple[Array, PyTree]]
    fixed: PyTree
    changed: PyTree


def route_edges(
    operations: Sequence[Operation],
    choice: Array,
    edges: Edges,
    nodes: Array,
    shared: PyTree,
    *,
    residuals: str = "auto",
) -> tuple[Array, list[PyTree]]:
    """Adds to the target of every edge what its operation makes of the source.

    Differentiable as `jaxnas.nn.routing.route` is.

    Args:
      operations: to choose from.
      choice: i32[E], positions in `operations`.
      edges: E of them, such that all edges into a node precede those out of it. Static.
      nodes: f[N, ...], the inputs, and zeros for the other nodes.
      shared: pytree of arrays [E, ...] that all operations read.
      residuals: see `jaxnas.nn.routing.route`. Static.

    Returns:
      The nodes, and per operation `changed` with new rows for the edges that chose it.

    Raises:
      ValueError: for another `residuals`, or operations that return something else than above.
    """
    check_residuals(residuals)
    branches, buffers = _flatten(operations, jax.typeof(nodes), shared, len(edges))
    nodes, written = _route(branches, residuals, edges, choice, nodes, buffers)
    changed = []
    for operation, branch in zip(operations, branches, strict=True):
        tree = jax.tree.structure(operation.changed)
        changed.append(jax.tree.unflatten(tree, [written[w] for w in branch.writes]))
    return nodes, changed


class _Branch(NamedTuple):
    """An operation as a function `(x, *rows) -> (y, *rows)` of one edge's rows of buffers."""

    body: Flat
    reads: tuple[int, ...]  # positions of the buffers whose rows it takes
    writes: tuple[int, ...]  # and of those among them whose rows it returns

    def positions(self, buffers: set[int]) -> list[int]:
        """Positions among the operands of the rows of these buffers."""
        return [i for i, r in enumerate(self.reads, 1) if r in buffers]


def _flatten(
    operations: Sequence[Operation], nodes: Kind, shared: PyTree, num_edges: int
) -> tuple[list[_Branch], list[Array]]:
    """Branches, and the buffers that they read."""
    buffers: list[Array] = []

    def put(tree: PyTree) -> tuple[int, ...]:
        start = len(buffers)
        buffers.extend(map(jnp.asarray, jax.tree.leaves(tree)))
        return tuple(range(start, len(buffers)))

    common = put(shared)
    x = _row_kind(nodes)
    branches = []
    for call, fixed, changed in operations:
        reads, writes = put(fixed), put(changed)
        reads = (*reads, *writes, *common)
        kinds = [x, *(_row_kind(buffers[r]) for r in reads)]
        tree = jax.tree.structure((x, fixed, changed, shared))
        closed, (y, new) = trace(call, tree, kinds)
        check_result(x, y)
        _check_changed(changed, new)
        (body,), captured = lift_tracers([closed], len(kinds))
        spread = [jnp.broadcast_to(c, (num_edges, *c.shape)) for c in captured]
        branches.append(_Branch(body, (*reads, *put(spread)), writes))
    return branches, buffers


def check_result(x: Kind, y: Kind) -> None:
    """Raises ValueError unless an operation's result `y` fits on the edge that `x` came from."""
    if (y.shape, y.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"ops must return the shape and dtype of their input, {x.dtype}{x.shape}, "
            f"got {y.dtype}{y.shape}"
        )


def _check_changed(changed: PyTree, new: PyTree) -> None:
    before, after = (
        (jax.tree.structure(tree), [(a.shape, a.dtype) for a in jax.tree.leaves(tree)])
        for tree in (jax.tree.map(_row_kind, changed), new)
    )
    if before != after:
        raise ValueError(f"ops must keep the kinds of their variables, {before}, got {after}")


def _route(branches, residuals, edges, choice, nodes, buffers) -> tuple[Array, Rows]:
    """The nodes, and the buffers that branches write to."""

    @jax.custom_vjp
    def routed(choice, nodes, *buffers):
        steps = [_forward(branch, branch.body, ()) for branch in branches]
        return scan_edges(steps, edges, choice, buffers, (nodes, _written(branches, buffers), []))[
            :2
        ]

    def forward(choice, nodes, *buffers):
        moving = {r for r, buffer in enumerate(buffers) if moves(buffer)}
        values = [buffer.value for buffer in buffers]
        plan = _Plan(branches, residuals, edges, moving, nodes.value, values)
        return plan.forward(choice.value, nodes.value, values)

    def backward(pull, cotangents):
        return (None, *pull(cotangents))

    routed.defvjp(forward, backward, symbolic_zeros=True)
    return routed(choice, nodes, *buffers)


class _Plan:
    """How both passes share the work; everything here is static."""

    def __init__(self, branches, residuals, edges, moving, nodes, buffers):
        self._branches, self._edges, self._moving = branches, edges, moving
        self._kinds = [jax.typeof(buffer) for buffer in buffers]
        self._derivatives = []
        for branch in branches:
            kinds = [_row_kind(array) for array in (nodes, *(buffers[r] for r in branch.reads))]
            graded = [0, *branch.positions(moving)]
            self._derivatives.append(derivative(branch.body, graded, kinds, residuals))
        # What a backward pass reads of its results is a residual: nodes keep sums of them only.
        saved = [[*(d.results[j] for j in sorted(d.outputs)), *d.saved] for d in self._derivatives]
        self._slots = union(saved)
        self._places = [places(kinds, self._slots) for kinds in saved]

    def forward(self, choice: Array, nodes: Array, buffers: Sequence[Array]) -> Any:
        """The results, and the backward pass with what it needs."""
        steps = [
            _forward(branch, _with_residuals(own), place) for branch, own, place in self._each()
        ]
        written = _written(self._branches, buffers)
        slots = [jnp.zeros((len(self._edges), *k.shape), k.dtype) for k in self._slots]
        nodes, written, slots = scan_edges(
            steps, self._edges, choice, buffers, (nodes, written, slots)
        )
        read = {b.reads[i - 1] for b, own, _ in self._each() for i in own.operands if i > 0}
        kept = {r: buffers[r] for r in read}
        return (nodes, written), Partial(self._pull, choice, nodes, kept, slots)

    def _pull(self, choice, nodes, kept, slots, cotangents):
        """Gradients of nodes and buffers, None for the buffers that do not move."""
        d_nodes, given = cotangents
        d_nodes = jnp.zeros_like(nodes) if _is_zero(d_nodes) else d_nodes
        given = {w: c for w, c in given.items() if not _is_zero(c)}
        # An edge's row of a cotangent is read before it becomes a row of the gradient.
        found = {r: given[r] if r in given else zeros(self._kinds[r]) for r in self._moving}
        steps = [_backward(branch, own, place, self._moving) for branch, own, place in self._each()]
        known, carry = (nodes, kept, slots, given), (d_nodes, found)
        d_nodes, found = scan_edges(steps, self._edges, choice, known, carry, reverse=True)
        return d_nodes, *(found.get(r) for r in range(len(self._kinds)))

    def _each(self):
        return zip(self._branches, self._derivatives, self._places, strict=True)


def _with_residuals(own: Derivative) -> Flat:
    """`(x, *rows)` to all results, those of them that are residuals, and the other residuals."""

    def run(*arrays):
        found = own.forward(*arrays)
        count = len(own.results)
        return (*found[:count], *(found[j] for j in sorted(own.outputs)), *found[count:])

    return run


def _forward(branch: _Branch, body: Flat, place: Sequence[int]) -> Step:
    """One edge's step; what `body` returns behind the branch's results fills its slots."""

    def run(buffers, edge, source, target, carry):
        nodes, written, slots = carry
        rows = [row(written[r] if r in written else buffers[r], edge) for r in branch.reads]
        old = row(nodes, target)
        y, *found = body(row(nodes, source), *rows)
        new, saved = found[: len(branch.writes)], found[len(branch.writes) :]
        nodes = put(nodes, target, old + y)
        slots = list(slots)
        for w, value in zip(branch.writes, new, strict=True):
            written = written | {w: put(written[w], edge, value)}
        for p, value in zip(place, saved, strict=True):
            slots[p] = put(slots[p], edge, value)
        return nodes, written, slots

    return run


def _backward(branch: _Branch, own: Derivative, place: Sequence[int], moving: set[int]) -> Step:
    """One edge's step of the backward pass."""

    def run(known, edge, source, target, carry):
        (nodes, kept, slots, given), (d_nodes, found) = known, carry
        operands = {
            i: row(kept[branch.reads[i - 1]], edge) if i else row(nodes, source)
            for i in own.operands
        }
        rows = [row(slots[p], edge) for p in place]
        outputs = dict(zip(sorted(own.outputs), rows, strict=False))
        cotangents = [row(d_nodes, target)]
        for kind, w in zip(own.results[1:], branch.writes, strict=True):
            slope = found.get(w, given.get(w))
            cotangents.append(zero_cotangent(kind) if slope is None else row(slope, edge))
        dx, *slopes = own.backward(operands, outputs, rows[len(outputs) :], cotangents)
        if 0 in own.used:
            d_nodes = put(d_nodes, source, row(d_nodes, source) + dx)
        for i, slope in zip(branch.positions(moving), slopes, strict=True):
            r = branch.reads[i - 1]
            if i in own.used or r in branch.writes:
                found = found | {r: put(found[r], edge, slope)}
        return d_nodes, found

    return run


def _written(branches: Sequence[_Branch], buffers: Sequence[Array]) -> Rows:
    return {w: buffers[w] for branch in branches for w in branch.writes}


def _is_zero(cotangent: Any) -> bool:
    """Whether a cotangent is known to be zero, as that of an integer is."""
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return True
    return not jnp.issubdtype(cotangent.dtype, jnp.inexact)


def _row_kind(array: Kind) -> Kind:
    return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
