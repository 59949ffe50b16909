"""What the chains of a bucket have in common, and what one of them does block by block."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnas.nn._chain_design import ChainDesign, deal_blocks, needs_kernel, parse_operation
from jaxnas.nn.chain_cnn import CONVOLUTIONS, WEIGHTED
from jaxnas.space import Bucket


class Schedule(NamedTuple):
    """What every block does: S stages of T blocks, of which an architecture may use fewer."""

    branch: Array  # i32[S, T], position in the bucket's branches
    kind: Array  # i32[S, T], position in WEIGHTED, or -1
    size: Array  # i32[S, T], side of the kernel
    shortcut: Array  # f32[S, T], 0 or 1
    before: Array  # i32[S, T], channels of the input
    after: Array  # i32[S, T], channels of the output


@dataclass(frozen=True)
class ChainBucket:
    """A design and the choices of it that one program serves."""

    design: ChainDesign
    bucket: Bucket

    def served(self, name: str) -> list[int]:
        """The choices of decision `name`, of any layer."""
        positions = {self.design.position(name, layer) for layer in range(self.design.num_layers)}
        if None in positions:
            return [0]
        return sorted(set().union(*(self.bucket[p] for p in positions if p is not None)))

    def values(self, name: str) -> list:
        """Their values."""
        return [self.design.values(name)[choice] for choice in self.served(name)]

    @cached_property
    def slots(self) -> list[int]:
        """Most blocks of every stage."""
        most = max(self.values("depth")) * max(self.values("repeats"))
        return deal_blocks(most, self.design.num_stages).tolist()

    @cached_property
    def widths(self) -> list[int]:
        """Numbers of channels in the first stage, ascending."""
        filters = set(self.served("filters"))
        if self.design.filters_per_layer:
            filters.add(0)  # the stem's
        table = self.design.channels[np.ix_(sorted(filters), self.served("width_multiplier"))]
        return np.unique(table).tolist()

    def capacity(self, stage: int) -> int:
        """Channels that hold those of all chains."""
        return max(self.widths) * self.design.growth**stage

    @cached_property
    def branches(self) -> list[tuple[str, int]]:
        """Kind and kernel size of everything that a block may do; doing nothing comes first."""
        found = {branch for name in self.values("operation") for branch in self._branches_of(name)}
        if len(self.values("depth")) > 1 or len(self.values("repeats")) > 1:
            found.add(("skip", 0))
        return sorted(found, key=lambda branch: (branch[0] != "skip", branch))

    def _branches_of(self, name: str) -> list[tuple[str, int]]:
        kind, size = parse_operation(name)
        return [(kind, k) for k in self.values("kernel")] if needs_kernel(name) else [(kind, size)]

    @cached_property
    def kinds(self) -> list[str]:
        """Those with parameters."""
        return [kind for kind in WEIGHTED if any(kind == k for k, _ in self.branches)]

    def largest_kernel(self, kind: str) -> int:
        """The largest kernel of operations of this kind in the bucket; 0 without one."""
        return max(size for k, size in self.branches if k == kind)

    def schedule(self, choice: Array) -> Schedule:
        """What the blocks of architecture `choice` i32[D] do."""
        design, num_stages = self.design, self.design.num_stages
        repeats = jnp.asarray(design.values("repeats"))[design.choice(choice, "repeats")]
        depth = jnp.asarray(design.values("depth"))[design.choice(choice, "depth")]
        counts = deal_blocks(depth * repeats, num_stages)
        place = jnp.arange(max(self.slots))
        block = (jnp.cumsum(counts) - counts)[:, None] + place
        active = place < counts[:, None]
        layer = jnp.minimum(block // repeats, design.num_layers - 1)

        operation, kernel, skip = (
            self._of_layers(choice, name)[layer]
            for name in ("operation", "kernel", "skip_connection")
        )
        before, after = self._channels(choice, layer, active & self._convolves[operation])
        return Schedule(
            branch=jnp.where(active, self._branch_table[operation, kernel], 0),
            kind=jnp.where(active, self._kind_table[operation], -1),
            size=self._size_table[operation, kernel],
            shortcut=jnp.asarray(design.values("skip_connection"), jnp.float32)[skip],
            before=before,
            after=after,
        )

    def _of_layers(self, choice: Array, name: str) -> Array:
        """The choices of `name`: i32[layers]."""
        layers = range(self.design.num_layers)
        return jnp.stack([jnp.asarray(self.design.choice(choice, name, i)) for i in layers])

    def _channels(self, choice: Array, layer: Array, changes: Array) -> tuple[Array, Array]:
        """Channels before and after every block, given which blocks may change them."""
        design = self.design
        table = jnp.asarray(design.channels, jnp.int32)
        table = table[:, design.choice(choice, "width_multiplier")]
        first = 0 if design.filters_per_layer else design.choice(choice, "filters")
        own = table[self._of_layers(choice, "filters")][layer].ravel()
        # Each block has the channels of the last one that changed them.
        order = jnp.where(changes.ravel(), jnp.arange(own.size), -1)
        last = lax.cummax(order)
        after = jnp.where(last < 0, table[first], own[last])
        before = jnp.concatenate([table[first][None], after[:-1]])
        scale = design.growth ** np.arange(design.num_stages)[:, None]
        return before.reshape(layer.shape) * scale, after.reshape(layer.shape) * scale

    # Tables over the choices of an operation, and of a kernel.

    @property
    def _convolves(self) -> Array:
        kinds = [parse_operation(name)[0] for name in self.design.values("operation")]
        return jnp.asarray([kind in CONVOLUTIONS for kind in kinds])

    @property
    def _kind_table(self) -> Array:
        kinds = [parse_operation(name)[0] for name in self.design.values("operation")]
        return jnp.asarray([WEIGHTED.index(k) if k in WEIGHTED else -1 for k in kinds])

    @property
    def _size_table(self) -> Array:
        return jnp.asarray([[size for _, size in row] for row in self._table()])

    @property
    def _branch_table(self) -> Array:
        place = {branch: position for position, branch in enumerate(self.branches)}
        return jnp.asarray([[place.get(branch, 0) for branch in row] for row in self._table()])

    def _table(self) -> list[list[tuple[str, int]]]:
        """Kind and kernel size per operation and kernel of the design."""
        kernels = self.design.values("kernel")
        rows = []
        for name in self.design.values("operation"):
            kind, size = parse_operation(name)
            rows.append([(kind, k if needs_kernel(name) else size) for k in kernels])
        return rows
