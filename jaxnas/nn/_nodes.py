"""Reading nodes of a cell and adding to them, in one array that is updated in place."""

from collections.abc import Sequence

from jax import Array, lax

from jaxnas.nn._linear import linear_op


def _read(residuals: Sequence[Array], operands: Sequence[Array]) -> tuple[Array, Array]:
    (source,), (nodes,) = residuals, operands
    # In a conditional, or XLA would fuse the read into whatever keeps the element, and copy all
    # nodes twice per edge for fear that the addition in place comes before that.
    pick = lambda at: lax.dynamic_index_in_dim(nodes, at, keepdims=False)  # noqa: E731
    return nodes, lax.cond(source > 0, pick, lambda _: nodes[0], source)


def _add(residuals: Sequence[Array], operands: Sequence[Array]) -> tuple[Array]:
    (target,), (nodes, y) = residuals, operands
    old = lax.dynamic_index_in_dim(nodes, target, keepdims=False)
    return (lax.dynamic_update_index_in_dim(nodes, old + y, target, 0),)


# Each is the other's transpose, so cotangents are summed in place. Autodiff would make zeros of the
# shape of all nodes for each node read, and sum those.
_read_node = linear_op("read_node", _read, _add)
_add_to_node = linear_op("add_to_node", _add, _read)


def read(nodes: Array, source: Array) -> tuple[Array, Array]:
    """`nodes` f32[nodes, ...], to be used from here on, and its element `source` i32[]."""
    nodes, x = _read_node((source,), (nodes,))
    return nodes, x


def add(nodes: Array, target: Array, y: Array) -> Array:
    """`nodes` f32[nodes, ...] with y f32[...] added to element `target` i32[], in place."""
    return _add_to_node((target,), (nodes, y))[0]
