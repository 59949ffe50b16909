"""The networks of the DARTS space: one architecture's own, and what the supernet shares with it.

Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", 2019,
https://arxiv.org/abs/1806.09055, Sections 2.1 and 3.1 and Appendix A; details from the authors'
code, https://github.com/quark0/darts (`cnn/model.py`, `cnn/model_search.py`). A 3x3 convolution to
three times the channels, cells, mean over the pixels, linear layer. A cell brings both inputs to
its own channels by 1x1 convolutions, and returns its four nodes next to each other. The auxiliary
head hangs on the second reduction cell.

While they search, the authors use another batch normalisation than in the network they train in the
end: without scale and bias in all cells, and one more behind every pooling. `search` says which of
the two a network has. The network of an architecture exists in both, for there are no other
variables to take out of a supernet that was searched.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxnas.nn._darts_cells import EDGES, NODES, Stage, stages_of
from jaxnas.nn.auxiliary import auxiliary_logits
from jaxnas.nn.drop_path import DropPath, drop_output
from jaxnas.nn.layers import BatchNorm, Conv, Dense
from jaxnas.nn.operations import OPERATIONS, FactorizedReduce, Pool, ReluConvNorm

STEM_MULTIPLIER = 3
Gene = tuple[str, int, int]  # operation, source, target


class NormedPool(nn.Module):
    """3x3 pooling, and batch normalisation without scale and bias.

    Attributes:
      kind: "avg" or "max".
      stride: 1 or 2.
    """

    kind: str
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x f32[batch, height, width, channels] to f32[batch, h, w, channels]."""
        x = Pool(self.kind, self.stride, name="pool")(x, train=train)
        return BatchNorm(affine=False, name="norm")(x, train=train)


def edge_operation(
    operation: str, features: int, stride: int, *, search: bool, **flax_options: Any
) -> nn.Module:
    """The module of an edge.

    Args:
      operation: a name in `OPERATIONS`.
      features: channels of input and output.
      stride: 1 or 2.
      search: which batch normalisation, see above.
      **flax_options: Flax's own `name` and `parent`.
    """
    if search and "_pool_" in operation:
        return NormedPool(operation.split("_")[0], stride, **flax_options)
    return OPERATIONS[operation](features, stride, not search, **flax_options)


def input_operation(features: int, *, halves: bool, search: bool, **flax_options: Any) -> nn.Module:
    """The module that brings an input of a cell to `features` channels, and to half its size."""
    if halves:
        return FactorizedReduce(features, not search, **flax_options)
    return ReluConvNorm(features, 1, affine=not search, **flax_options)


class FixedCell(nn.Module):
    """A cell with two edges into every node.

    Attributes:
      genes: (operation, source, target) per edge, ordered by target.
      features: channels of every node.
      reduces: whether edges out of the inputs have stride 2.
      halved: whether input 0 is twice as high and wide as input 1.
      search: which batch normalisation, see the top of the file.
    """

    genes: tuple[Gene, ...]
    features: int
    reduces: bool
    halved: bool
    search: bool

    @nn.compact
    def __call__(
        self, older: Array, newer: Array, *, train: bool, drop_path: DropPath | None = None
    ) -> Array:
        """Maps two images f32[batch, height, width, channels] to f32[batch, h, w, 4 features]."""
        bring = input_operation(self.features, halves=self.halved, search=self.search, name="older")
        nodes = {0: bring(older, train=train)}
        bring = input_operation(self.features, halves=False, search=self.search, name="newer")
        nodes[1] = bring(newer, train=train)
        for operation, source, target in self.genes:
            stride = 2 if self.reduces and source < 2 else 1
            name = f"{target}<-{source}"
            edge = edge_operation(operation, self.features, stride, search=self.search, name=name)
            draw = None
            if drop_path is not None:
                draw = drop_path.fold(EDGES.index((source, target)))
            y = drop_output(draw, edge, edge(nodes[source], train=train))
            nodes[target] = nodes[target] + y if target in nodes else y
        return jnp.concatenate([nodes[node] for node in NODES], axis=-1)


class Skeleton(nn.Module):
    """What the networks share.

    Attributes:
      num_classes: outputs.
      num_channels: channels of the first cells; reduction cells double them.
      num_cells: cells in all.
      image_size: height and width of the images, a multiple of 4.
      in_channels: channels of the images.
      auxiliary: whether there is an auxiliary head, see `jaxnas.nn.auxiliary`.
      search: which batch normalisation, see the top of the file.
    """

    num_classes: int
    num_channels: int = 36
    num_cells: int = 20
    image_size: int = 32
    in_channels: int = 3
    auxiliary: bool = False
    search: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return self.image_size, self.image_size, self.in_channels

    def run(
        self,
        x: Array,
        stage_fn: Callable[[Stage, Array, Array], tuple[Array, Array]],
        *,
        train: bool,
    ) -> Array:
        """Stem, stages of cells, and head; called from a compact method.

        Args:
          x: f32[batch, height, width, channels].
          stage_fn: `(stage, older, newer) -> (older, newer)`, the outputs of the last two cells.
          train: static.

        Returns:
          Logits f32[batch, num_classes].

        Raises:
          ValueError: for images of another shape than the network's.
        """
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"x must be images of shape {self.image_shape}, got {x.shape[1:]}; "
                "the space's image_size and in_channels say which"
            )
        x = Conv(STEM_MULTIPLIER * self.num_channels, 3, name="stem")(x)
        older = newer = BatchNorm(name="stem_norm")(x, train=train)
        for stage in stages_of(self.num_channels, self.num_cells):
            older, newer = stage_fn(stage, older, newer)
            if self.auxiliary and stage.name == "reduce_2":
                auxiliary_logits(self, newer, self.num_classes, train=train)
        return Dense(self.num_classes, name="head")(newer.mean(axis=(1, 2)))


class DARTS(Skeleton):
    """The stand-alone network of one architecture; nothing is masked.

    Attributes:
      normal: (operation, source, target) per edge of the normal cells, ordered by target.
      reduce: likewise of the reduction cells.
    """

    normal: Sequence[Gene] = ()
    reduce: Sequence[Gene] = ()

    @nn.compact
    def __call__(self, x: Array, *, train: bool, drop_path: DropPath | None = None) -> Array:
        """Maps images f32[batch, height, width, channels] to logits f32[batch, num_classes]."""

        def run_stage(stage, older, newer):
            genes = tuple(self.reduce if stage.reduces else self.normal)
            for index in range(stage.first, stage.first + stage.num_cells):
                halved = stage.halved and index == stage.first
                cell = FixedCell(
                    genes, stage.features, stage.reduces, halved, self.search, name=f"cell_{index}"
                )
                draw = None if drop_path is None else drop_path.fold(index)
                older, newer = newer, cell(older, newer, train=train, drop_path=draw)
            return older, newer

        return self.run(x, run_stage, train=train)
