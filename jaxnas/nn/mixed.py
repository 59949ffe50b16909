"""Several operations in one place: a mixed operation, and a cell whose edges are mixed operations.

Both take `choice`. Integers route: the chosen operation alone is run, and only its statistics are
updated. Floats mix: the weighted sum of all operations, as in DARTS (Liu et al., 2019,
https://arxiv.org/abs/1806.09055, equation 2, where the weights are a softmax). `Gated` routes and
weighs: the chosen operation's output is scaled and shifted, so that one-hot weights keep their
gradients while one operation is run, as in GDAS (Dong & Yang, 2019,
https://arxiv.org/abs/1910.04465, section 3.2). The variables of an operation lie under its name and
are those of its own module, so taking an architecture out of a supernet is picking from
dictionaries: see `operation_variables`.

With `partial=k`, operations see the first of k groups of channels, and the others pass by; the
channels are shuffled afterwards, so that the next place sees others. That is the partial channel
connection of PC-DARTS (Xu et al., 2020, https://arxiv.org/abs/1907.05737, equation 2), with `1/k`
of the channels as in the authors' code, https://github.com/yuhuixu1993/PC-DARTS.

`residuals` says what is kept for gradients. Routing keeps what `jaxnas.nn.routing.route` says.
Mixing keeps whatever its operations' gradients read with "union"; with "recompute" all operations
of a place run again on the way back, and in a `Cell` one edge's intermediate results are in memory
at a time, in gradients of gradients too; "auto" runs them again where operands are large.

Under `jax.vmap` over integer choices every operation is computed and one is selected. A `Cell` that
is told so by `vmapped` selects one edge's results, where it would select among buffers of all.

An operation is a pair of a name and a function of no arguments that makes a Flax module with
`__call__(x, *, train)`. Any module will do: with or without parameters, with batch statistics or
other collections, with dropout. All operations of one place must return the same shape.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxnas import counter
from jaxnas.nn._graph import check_graph, check_stack, output_nodes
from jaxnas.nn._mixing import Gated as Gated
from jaxnas.nn._mixing import (
    Operation,
    Operations,
    create_variables,
    init_stacked,
    load_variables,
    spread,
    stream_seeds,
    update_variables,
)
from jaxnas.nn._nodes import add, read
from jaxnas.nn._routed_cell import check_result
from jaxnas.nn.drop_path import DropPath

PyTree = Any


class MixedOp(nn.Module):
    """One of several operations, or a weighted sum of them.

    Initialisation makes the variables of all operations, whatever the choice. Initial values depend
    on the module's path, the key and the operation's name, not on which others are there.

    Attributes:
      ops: the operations, under different names.
      keep: positions in `ops` of those that may be chosen, the others are left out of the program;
        None: all. Choices still count all of `ops`.
      residuals: see above.
      partial: k as above; operations are made for `channels / k`.

    Raises:
      ValueError: when called, for no operations, repeated names, or `keep` out of range.

    Example:
      >>> class Scale(nn.Module):
      ...     factor: float
      ...
      ...     def __call__(self, x, *, train):
      ...         return self.factor * x
      >>> ops = (("double", lambda: Scale(2.0)), ("negate", lambda: Scale(-1.0)))
      >>> x = jnp.ones(1)
      >>> MixedOp(ops).apply({}, x, jnp.int32(1), train=False).tolist()
      [-1.0]
      >>> MixedOp(ops).apply({}, x, jnp.array([0.5, 3.0]), train=False).tolist()
      [-2.0]
    """

    ops: tuple[Operation, ...]
    keep: tuple[int, ...] | None = None
    residuals: str = "auto"
    partial: int = 1

    @nn.compact
    def __call__(
        self, x: Array, choice: Array | Gated, *, train: bool, drop_path: DropPath | None = None
    ) -> Array:
        """Runs the operations on x.

        Args:
          x: f32[...], whatever the operations take.
          choice: i32[], the operation to run, in `keep`; or f32[K], the weight of every operation;
            or `Gated` of one operation.
          train: static, passed on to the operations.
          drop_path: rows that this place drops, the same of all operations; None: none.

        Returns:
          What the operations return.
        """
        _check_choice(choice, (), len(self.ops))
        ops = Operations(self.ops, self.keep, self.residuals, self.partial)
        if self.is_initializing():
            create_variables(self, ops.init(counter.module_seed(self, "params"), x))
        variables, mutable = load_variables(self, ops)
        seeds = stream_seeds(self)
        options = {"mutable": mutable, "train": train, "drop_path": drop_path}
        y, updates = ops.run(x, choice, variables, seeds, **options)
        update_variables(self, updates)
        return y


class Cell(nn.Module):
    """A directed acyclic graph whose edges are mixed operations of one shape.

    The first nodes are the inputs; every other node is the sum of its incoming edges. Edges run in
    one `lax.scan`, so a program holds every operation once however many edges there are; variables
    have a leading axis for the edges. With `num_cells`, that many equal cells with weights of their
    own follow one another, in a scan as well, and variables have an axis for the cells before that.

    Initial values are those of `MixedOp`, with a seed per cell and edge.

    Attributes:
      ops: the operations of every edge; they keep the shape and dtype of their input.
      num_nodes: nodes, inputs included.
      edges: (source, target) each, sources before targets, such that all edges into a node come
        before the first out of it.
      num_inputs: the nodes that are inputs.
      output: "last" node; "concat" of all nodes that are not inputs, along the last axis; or a
        tuple of nodes to concatenate.
      num_cells: cells in a row, for one input and the output "last"; None: one, without the axis.
      keep: see `MixedOp`; the same for all edges.
      residuals: see above.
      partial: see `MixedOp`.
      vmapped: whether choices are mapped over by `jax.vmap`; values are the same, see above.

    Raises:
      ValueError: when called, for attributes that contradict the above.

    Example:
      >>> class Scale(nn.Module):
      ...     factor: float
      ...
      ...     def __call__(self, x, *, train):
      ...         return self.factor * x
      >>> ops = (("double", lambda: Scale(2.0)), ("negate", lambda: Scale(-1.0)))
      >>> cell = Cell(ops, num_nodes=3, edges=((0, 1), (0, 2), (1, 2)))
      >>> cell.apply({}, jnp.ones(1), jnp.array([0, 1, 0]), train=False).tolist()
      [3.0]
    """

    ops: tuple[Operation, ...]
    num_nodes: int
    edges: tuple[tuple[int, int], ...]
    num_inputs: int = 1
    output: str | tuple[int, ...] = "last"
    num_cells: int | None = None
    keep: tuple[int, ...] | None = None
    residuals: str = "auto"
    partial: int = 1
    vmapped: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array | Sequence[Array],
        choice: Array | Gated,
        *,
        train: bool,
        drop_path: DropPath | None = None,
    ) -> Array:
        """Runs the cell.

        Args:
          x: f32[..., channels], or a sequence of `num_inputs` such.
          choice: i32[E], an operation per edge; or f32[E, K], weights; or `Gated` of E operations.
            With `num_cells`, the same for all cells, or with a leading axis for the cells.
          train: static, passed on to the operations.
          drop_path: is folded per cell and then per edge, and says which rows edges drop; None:
            none.

        Returns:
          f32[..., channels times the number of output nodes].
        """
        check_graph(self.num_inputs, self.num_nodes, self.edges)
        outputs = output_nodes(self.output, self.num_inputs, self.num_nodes)
        if self.num_cells is not None:
            check_stack(self.num_cells, self.num_inputs, outputs)
        inputs = tuple(x) if isinstance(x, Sequence) else (x,)
        if len(inputs) != self.num_inputs:
            raise ValueError(f"x must be {self.num_inputs} arrays, got {len(inputs)}")
        per_cell = self._check_choice(choice)
        ops = Operations(self.ops, self.keep, self.residuals, self.partial)
        if self.is_initializing():
            seeds = self._spread(counter.module_seed(self, "params"))
            create_variables(self, init_stacked(ops, seeds, inputs[0]))
        variables, mutable = load_variables(self, ops)
        seeds = jax.tree.map(self._spread, stream_seeds(self))
        draws = drop_path
        if drop_path is not None:
            spread = self._spread(drop_path.seed)
            draws = DropPath(jnp.broadcast_to(drop_path.rate, spread.shape[:-1]), spread)

        run = partial(self._run, ops, outputs, {"mutable": mutable, "train": train})
        if self.num_cells is None:
            y, updates = run(inputs, choice, variables, seeds, draws)
        else:
            if not per_cell:
                spread = lambda leaf: jnp.broadcast_to(leaf, (self.num_cells, *leaf.shape))  # noqa: E731
                choice = jax.tree.map(spread, choice)
            every = (choice, variables, seeds, draws)
            y, updates = lax.scan(lambda x, own: run((x,), *own), inputs[0], every)
        update_variables(self, updates)
        return y

    def _run(self, ops, outputs, options, inputs, choice, variables, seeds, draws):
        """One cell: its output, and the changed variables with their axis of edges."""
        empty = jnp.zeros_like(inputs[0])
        nodes = jnp.stack([*inputs, *[empty] * (self.num_nodes - self.num_inputs)])
        routes = not isinstance(choice, Gated) and jnp.issubdtype(choice.dtype, jnp.integer)
        in_place = routes and not self.vmapped
        run = ops.run_edges if in_place else partial(self._run_each, ops.run)
        nodes, updates = run(
            nodes, self.edges, choice, variables, seeds, drop_path=draws, **options
        )
        if len(outputs) == 1:
            return nodes[outputs[0]], updates
        return jnp.concatenate([nodes[node] for node in outputs], axis=-1), updates

    def _run_each(self, op, nodes, edges, *own, drop_path, **options):
        """Runs one edge after the other, each by `op`; see `Operations.run_edges`."""

        def edge(nodes, own):
            source, target, choice, variables, seeds, draw = own
            nodes, x = read(nodes, source)
            y, updates = op(x, choice, variables, seeds, drop_path=draw, **options)
            check_result(x, y)
            return add(nodes, target, y), updates

        sources, targets = jnp.asarray(edges, jnp.int32).T
        return lax.scan(edge, nodes, (sources, targets, *own, drop_path))

    def _check_choice(self, choice: Array | Gated) -> bool:
        """Whether there is a choice for each cell."""
        first = choice.op if isinstance(choice, Gated) else choice
        mixes = not jnp.issubdtype(first.dtype, jnp.integer)
        per_cell = self.num_cells is not None and first.ndim == 2 + mixes
        lead = (self.num_cells, len(self.edges)) if per_cell else (len(self.edges),)
        _check_choice(choice, lead, len(self.ops))
        return per_cell

    def _spread(self, seed: Array) -> Array:
        """A seed per edge, or per cell and edge: u32[..., 2]."""
        seeds = spread(seed, self.num_cells or 1, len(self.edges))
        return seeds[0] if self.num_cells is None else seeds


def operation_variables(
    variables: dict[str, PyTree], op: str, *, edge: int | None = None, cell: int | None = None
) -> dict[str, PyTree]:
    """The variables of one operation's own module, taken from a `MixedOp` or a `Cell`.

    Args:
      variables: collections of the `MixedOp` or `Cell`.
      op: the operation's name.
      edge: position among the cell's edges; None for a `MixedOp`.
      cell: position among `num_cells`; None where there is no such axis.

    Returns:
      Collections without leading axes; those that the operation has nothing in are left out.

    Example:
      >>> found = {"params": {"conv": {"kernel": jnp.array([[1.0], [2.0]])}}}
      >>> operation_variables(found, "conv", edge=1)["params"]["kernel"].tolist()
      [2.0]
    """
    index = tuple(i for i in (cell, edge) if i is not None)
    return {
        collection: jax.tree.map(lambda leaf: leaf[index], tree[op])
        for collection, tree in variables.items()
        if op in tree
    }


def _check_choice(choice: Array | Gated, lead: tuple[int | None, ...], num_ops: int) -> None:
    if isinstance(choice, Gated):
        shapes = [leaf.shape for leaf in choice]
        if shapes != [lead] * 3:
            raise ValueError(f"choice must be Gated of shape {lead}, got {shapes}")
        return
    routes = jnp.issubdtype(choice.dtype, jnp.integer)
    if choice.shape != (lead if routes else (*lead, num_ops)):
        raise ValueError(
            f"choice must be integers of shape {lead} or floats of shape {(*lead, num_ops)}, "
            f"got {choice.dtype}{choice.shape}"
        )
