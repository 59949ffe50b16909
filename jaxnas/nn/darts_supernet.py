"""The supernet of the DARTS space: every network of the space in one set of weights.

See `jaxnas.nn.darts` for the source. All edges of one shape run in one `lax.scan`, and so do all
cells of one stage, so a program holds 7 copies of the operations however deep the network is: one
for each of three stages of normal cells, and two for each of two reduction cells, whose edges from
the inputs have stride 2. Only what brings a stage's first inputs to its shape differs from cell to
cell: it runs before the scan, which then ignores what its own would have made of them.

Routing runs the chosen 8 of a normal cell's 14 edges. In a reduction cell any number of them may
have stride 2, so there all edges run, 6 of them as `none`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnas.nn._darts_cells import (
    EDGES,
    INPUTS,
    KINDS,
    PER_KIND,
    chosen_edges,
    concrete_edges,
    stages_of,
    strongest,
)
from jaxnas.nn._darts_stage import STRIDED, SupernetStage
from jaxnas.nn.darts import Skeleton
from jaxnas.nn.drop_path import DropPath
from jaxnas.nn.mixed import operation_variables
from jaxnas.space import Bucket

NONE = "none"


class DARTSSupernet(Skeleton):
    """Every network of the space in one set of weights.

    A row is an edge: first the 14 of normal cells in the order of `EDGES`, then those of reduction
    cells.

    Attributes:
      operations: of every edge, names in `OPERATIONS`; all but `none` are choices.
      bucket: per decision, the choices to serve; (): all.
      residuals: see `jaxnas.nn.mixed`.

    Example:
      >>> net = DARTSSupernet(10, operations=("none", "skip_connect", "sep_conv_3x3"))
      >>> net.derive(net.mixture(jnp.array([0, 1, 0] * 8))).tolist()[:6]
      [0, 1, 0, 0, 1, 0]
    """

    operations: tuple[str, ...] = ()
    bucket: Bucket = ()
    residuals: str = "auto"

    @nn.compact
    def __call__(
        self, x: Array, choice: Array, *, train: bool, drop_path: DropPath | None = None
    ) -> Array:
        """Maps images f32[batch, height, width, channels] to logits f32[batch, num_classes].

        `choice` is i32[24], an architecture, or f32[28, K], weights of all operations of every row.
        """
        choices = self._per_kind(choice)
        names = self.operations + (NONE,) * (NONE not in self.operations)
        kept = self._kept(names)

        def run_stage(stage, older, newer):
            cells = SupernetStage(
                stage,
                names,
                kept[stage.reduces],
                self.search,
                self.residuals,
                name=stage.name,
            )
            own = choices[stage.reduces]
            return cells(older, newer, own, train=train, drop_path=drop_path)

        return self.run(x, run_stage, train=train)

    @property
    def rows(self) -> tuple[int, ...]:
        """Operations of every row."""
        return (len(self.operations),) * (len(KINDS) * len(EDGES))

    @property
    def row_operations(self) -> tuple[tuple[str, ...], ...]:
        """Their names."""
        return (self.operations,) * len(self.rows)

    def derive(self, strengths: Array) -> Array:
        """The architecture i32[24] of the strongest operations and edges f32[28, K]; traceable.

        A node takes from the two earlier ones whose edges have the strongest operations other than
        `none`. Of equals the first counts.
        """
        kinds = strengths[:, self._chosen].reshape(len(KINDS), len(EDGES), -1)
        return jnp.concatenate([strongest(own) for own in kinds])

    def mixture(self, arch: Array) -> Array:
        """The weights f32[28, K] that mix to what `arch` i32[24] routes to; traceable.

        Edges that do not run have all their weight on `none`, or none at all where there is none.
        """
        weights = []
        for own in jnp.asarray(arch).reshape(len(KINDS), PER_KIND):
            edges, operations = chosen_edges(own)
            idle = jnp.zeros(len(self.operations))
            if NONE in self.operations:
                idle = idle.at[self.operations.index(NONE)].set(1.0)
            on = jax.nn.one_hot(jnp.asarray(self._chosen)[operations], len(self.operations))
            weights.append(jnp.tile(idle, (len(EDGES), 1)).at[edges].set(on))
        return jnp.concatenate(weights)

    def weights(self, params: dict) -> dict:
        """Which parameters are weights rather than scales and biases."""
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    def charged(self, arch: np.ndarray) -> np.ndarray:
        """The architecture whose exact network costs what `arch` costs here: itself."""
        return np.asarray(arch)

    def extract(self, variables: dict, arch: np.ndarray) -> dict:
        """The variables of the stand-alone `DARTS` of a concrete `arch` i32[24]."""
        stages = stages_of(self.num_channels, self.num_cells)
        names = {stage.name for stage in stages}
        found = {c: {k: v for k, v in t.items() if k not in names} for c, t in variables.items()}
        genes = np.asarray(arch).reshape(len(KINDS), PER_KIND)
        for stage in stages:
            own = {c: t[stage.name] for c, t in variables.items() if stage.name in t}
            for cell in range(stage.num_cells):
                for place, tree in self._cell(own, stage, cell, genes[int(stage.reduces)]):
                    for collection, leaves in tree.items():
                        at = found[collection].setdefault(f"cell_{stage.first + cell}", {})
                        at[place] = leaves
        return found

    def _cell(self, own, stage, cell, genes):
        """(name, collections) of everything in one stand-alone cell."""
        for name in ("older", "newer"):
            firsts = sorted(k for k in own["params"] if k.startswith(f"{name}_"))
            if cell < len(firsts):
                yield name, {c: t[firsts[cell]] for c, t in own.items() if firsts[cell] in t}
            else:
                yield name, operation_variables(own, name, cell=cell - len(firsts))
        for edge, operation in concrete_edges(genes):
            source, target = EDGES[edge]
            name = self.operations[self._chosen[operation]]
            group = [e for e, (s, _) in enumerate(EDGES) if (s in INPUTS) == (source in INPUTS)]
            if stage.reduces:
                edge = group.index(edge)
                name = STRIDED * (source in INPUTS) + name
            yield f"{target}<-{source}", operation_variables(own, name, edge=edge, cell=cell)

    @property
    def _chosen(self) -> np.ndarray:
        """Positions in `operations` of those that an architecture may choose."""
        return np.array([k for k, name in enumerate(self.operations) if name != NONE])

    def _per_kind(self, choice: Array) -> list:
        """The choice of normal and that of reduction cells, for `SupernetStage`."""
        routes = jnp.issubdtype(choice.dtype, jnp.integer)
        rows = len(self.rows), len(self.operations)
        if choice.shape != ((len(KINDS) * PER_KIND,) if routes else rows):
            raise ValueError(
                f"choice must be integers of shape {(len(KINDS) * PER_KIND,)} or floats of shape "
                f"{rows}, got {choice.dtype}{choice.shape}"
            )
        if routes:
            edges = [chosen_edges(own) for own in choice.reshape(len(KINDS), PER_KIND)]
            return [(at, jnp.asarray(self._chosen, jnp.int32)[k]) for at, k in edges]
        if NONE not in self.operations:
            choice = jnp.pad(choice, ((0, 0), (0, 1)))
        return list(choice.reshape(len(KINDS), len(EDGES), -1))

    def _kept(self, names: tuple[str, ...]) -> list[tuple[int, ...]]:
        """Positions in `names` of what normal and reduction cells serve."""
        kept = []
        for kind in range(len(KINDS)):
            own = self.bucket[PER_KIND * kind : PER_KIND * (kind + 1)]
            choices = [c for d, each in enumerate(own) if d % 3 for c in each]
            served = {int(self._chosen[c]) for c in choices or range(len(self._chosen))}
            # Only routing in reduction cells ever runs it.
            kept.append(tuple(sorted(served | ({names.index(NONE)} if kind else set()))))
        return kept
