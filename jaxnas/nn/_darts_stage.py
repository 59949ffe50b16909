"""Equal cells of the DARTS supernet, one after another in one scan; see `darts_supernet`."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from jaxnas import counter
from jaxnas.nn._darts_cells import EDGES, INPUTS, NODES, Stage
from jaxnas.nn._mixing import (
    Operations,
    Variables,
    create_variables,
    init_stacked,
    load_variables,
    spread,
    update_variables,
)
from jaxnas.nn._nodes import add, read
from jaxnas.nn.darts import edge_operation, input_operation
from jaxnas.nn.drop_path import DropPath

STRIDED = "strided_"  # precedes the names of operations of stride 2
Chosen = tuple[Array, Array]  # edges i32[8], and their operations i32[8]


class _Part(NamedTuple):
    """Operations of one shape in every cell; every field is static.

    Attributes:
      ops: all operations.
      late: cells at the beginning of the stage that have none.
      edges: positions in `EDGES` i64[E]; None: what brings an input to the cell's shape.
      strided: whether the edges have stride 2.
    """

    ops: Operations
    late: int = 0
    edges: np.ndarray | None = None
    strided: bool = False


class SupernetStage(nn.Module):
    """Equal cells one after another, every edge with all operations.

    Attributes:
      stage: which cells.
      operations: the choices of every edge, `none` among them.
      keep: positions in `operations` of those to serve.
      search: which batch normalisation, see `jaxnas.nn.darts`.
      residuals: see `jaxnas.nn.mixed`.
    """

    stage: Stage
    operations: tuple[str, ...]
    keep: tuple[int, ...]
    search: bool
    residuals: str

    @nn.compact
    def __call__(
        self,
        older: Array,
        newer: Array,
        choice: Array | Chosen,
        *,
        train: bool,
        drop_path: DropPath | None = None,
    ) -> tuple[Array, Array]:
        """Maps the last two cells' outputs f32[batch, height, width, channels] to the next two.

        Args:
          older: output of the cell before the last one, or what stands for it.
          newer: output of the last cell.
          choice: weights f32[14, K] of every edge's operations; or the edges that run i32[8] and
            their operations i32[8]. All cells share it.
          train: static.
          drop_path: is folded per cell of the network and then per edge of `EDGES`.

        Returns:
          The outputs of the last two cells.
        """
        stage, parts = self.stage, self._parts()
        firsts = self._firsts(older, newer, train)
        image = firsts["newer"][0]
        if self.is_initializing():
            self._create(parts, image)
        picked = {name: self._pick(part, choice) for name, part in parts.items()}
        held = {name: load_variables(self, part.ops) for name, part in parts.items()}
        run = {
            name: partial(part.ops.run, mutable=held[name][1], train=train)
            for name, part in parts.items()
        }
        own = {
            name: _align(part, held[name][0], stage.num_cells, picked[name][0])
            for name, part in parts.items()
        }
        blank = self._blank(image)
        # Later stages begin behind a cell of their own shape, the input 0 of their second cell.
        start = newer if newer.shape == blank.shape else blank
        every = (jnp.arange(stage.num_cells), own, self._draws(drop_path))
        cell = partial(self._run, parts, run, firsts, picked)
        (before, last), updates = lax.scan(cell, (blank, start), every)
        for name, part in parts.items():
            update_variables(self, _restore(part, held[name][0], updates[name], picked[name][0]))
        return (newer if stage.num_cells == 1 else before), last

    @property
    def _late(self) -> int:
        """Cells at the beginning whose input 0 has another shape than what the cells return."""
        return min(self.stage.num_cells, 2 if self.stage.first == 0 else 1)

    def _blank(self, image: Array) -> Array:
        """Zeros in the shape of what the cells return, from an input in the stage's channels."""
        size = [length // 2 if self.stage.reduces else length for length in image.shape[1:3]]
        shape = (image.shape[0], *size, len(NODES) * self.stage.features)
        return jnp.zeros(shape, image.dtype)

    def _firsts(self, older: Array, newer: Array, train: bool) -> dict[str, list[Array]]:
        """Inputs of the first cells, brought to the stage's shape: per name, one per late cell."""
        features, found = self.stage.features, {"older": [], "newer": []}
        sources = [("older", self.stage.halved, older)]
        sources += [("older", False, newer)] * (self._late - 1)
        sources += [("newer", False, newer)]
        for name, halves, x in sources:
            place = f"{name}_{len(found[name])}"
            bring = input_operation(features, halves=halves, search=self.search, name=place)
            found[name].append(bring(x, train=train))
        return found

    def _parts(self) -> dict[str, _Part]:
        stage, parts = self.stage, {}
        bring = partial(input_operation, stage.features, halves=False, search=self.search)
        for name, late in (("older", self._late), ("newer", 1)):
            if late < stage.num_cells:
                parts[name] = _Part(Operations([(name, bring)], None, self.residuals), late)
        from_input = np.array([source in INPUTS for source, _ in EDGES])
        for strided in (True, False) if stage.reduces else (False,):
            prefix, stride = (STRIDED, 2) if strided else ("", 1)
            make = partial(edge_operation, features=stage.features, stride=stride)
            ops = [(prefix + o, partial(make, o, search=self.search)) for o in self.operations]
            edges = np.flatnonzero(from_input == strided if stage.reduces else from_input >= 0)
            kept = Operations(ops, self.keep, self.residuals)
            parts[prefix + "edges"] = _Part(kept, edges=edges, strided=strided)
        return parts

    def _create(self, parts: dict[str, _Part], image: Array) -> None:
        """Initial variables: a seed per part, cell and edge."""
        seed, num_cells = counter.module_seed(self, "params"), self.stage.num_cells
        wide = jnp.zeros((*image.shape[:3], len(NODES) * image.shape[3]), image.dtype)
        for tag, part in enumerate(parts.values()):
            lead = () if part.edges is None else (len(part.edges),)
            seeds = spread(counter.fold(seed, tag), num_cells - part.late, *lead)
            x = wide if part.edges is None else image
            create_variables(self, init_stacked(part.ops, seeds, x))

    def _pick(self, part: _Part, choice: Array | Chosen) -> tuple[Array | None, Array]:
        """Which of a part's edges run, None for all; and an operation or weights for each."""
        if part.edges is None:
            return None, jnp.int32(0)
        if not isinstance(choice, tuple):
            return None, choice[part.edges]
        if not self.stage.reduces:
            return choice
        nothing = jnp.full(len(EDGES), self.operations.index("none"), jnp.int32)
        return None, nothing.at[choice[0]].set(choice[1])[part.edges]

    def _draws(self, drop_path: DropPath | None) -> DropPath | None:
        """Draws for all cells and all edges of `EDGES`."""
        if drop_path is None:
            return None
        cells = self.stage.first + jnp.arange(self.stage.num_cells)
        seeds = spread(jax.vmap(partial(counter.fold, drop_path.seed))(cells), len(EDGES))
        return DropPath(jnp.broadcast_to(drop_path.rate, seeds.shape[:-1]), seeds)

    def _run(self, parts, run, firsts, picked, carry, own):
        """One cell, from the outputs of the last two to those of the next two."""
        index, variables, draws = own
        inputs, updates = [], {}
        for name, x in zip(("older", "newer"), carry, strict=True):
            y = firsts[name][-1]
            if name in parts:
                y, updates[name] = run[name](x, picked[name][1], variables[name], {})
            for place, first in enumerate(firsts[name]):
                y = jnp.where(index == place, first, y)
            inputs.append(y)
        inputs = jnp.stack(inputs)
        shape = (*carry[1].shape[:3], self.stage.features)
        heads = jnp.zeros((len(INPUTS), *shape), inputs.dtype) if self.stage.reduces else inputs
        nodes = jnp.concatenate([heads, jnp.zeros((len(NODES), *shape), inputs.dtype)])
        for name, part in parts.items():
            if part.edges is not None:
                positions, choice = picked[name]
                places = (jnp.asarray(EDGES, jnp.int32), draws)
                places = jax.tree.map(lambda leaf, at=part.edges: leaf[at], places)
                if positions is not None:
                    places = jax.tree.map(lambda leaf, at=positions: leaf[at], places)
                each = (*places[0].T, choice, variables[name], places[1])
                nodes, updates[name] = _run_edges(run[name], inputs, nodes, each, part.strided)
        y = jnp.concatenate([nodes[node] for node in NODES], axis=-1)
        return (carry[1], y), updates


def _run_edges(run, inputs, nodes, each, strided):
    """`nodes` f32[6, ...] with what edges add to them, and the changed variables."""

    def edge(carry, own):
        source, target, choice, variables, draw = own
        *rest, nodes = carry
        if strided:
            kept, x = read(rest[0], source)
            rest = [kept]
        else:
            nodes, x = read(nodes, source)
        y, updates = run(x, choice, variables, {}, drop_path=draw)
        return (*rest, add(nodes, target, y)), updates

    carry, updates = lax.scan(edge, (inputs, nodes) if strided else (nodes,), each)
    return carry[-1], updates


def _align(part: _Part, variables: Variables, num_cells: int, positions: Array | None) -> Variables:
    """Variables with an axis for all cells, and one for the edges that run."""
    if part.edges is None:
        # What late cells compute with another's variables is not used.
        rows = np.maximum(np.arange(num_cells) - part.late, 0)
        return jax.tree.map(lambda leaf: leaf[rows], variables)
    if positions is None:
        return variables
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, positions], variables)


def _restore(
    part: _Part, before: Variables, updates: Variables, positions: Array | None
) -> Variables:
    """Changed variables in the layout of those `before`."""
    if part.edges is None:
        return jax.tree.map(lambda leaf: leaf[part.late :], updates)
    if positions is None:
        return updates
    return {
        name: {
            collection: jax.tree.map(
                lambda old, new: old.at[:, positions].set(new), before[name][collection], tree
            )
            for collection, tree in own.items()
        }
        for name, own in updates.items()
    }
