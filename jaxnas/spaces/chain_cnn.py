"""Chains of convolutional blocks: the macro spaces that came before cells, and scaled networks.

A network is a 3x3 stem, then `depth` layers, each `repeats` times in a row with weights of its own,
then the mean over the pixels and a linear layer. Every decision is a list that can be replaced, and
a list of one value takes its decision out of the space. The presets are spaces of the literature,
each one call: `conv_relu_pool`, `nasnet_table`, `compound_scaling`.

How images shrink. The blocks (depth times repeats of them) are dealt to `num_stages` stages as
equally as possible, earlier stages get what is left over; between two stages images are halved by
2x2 pooling, an odd last row and column are dropped. Nothing else changes their size: the pooling
*operations* are 3x3 windows with stride 1, as in the cells of Liu et al., "DARTS", 2019,
https://arxiv.org/abs/1806.09055. So a network of any depth halves its images equally often, and an
image must measure at least 2 ** (num_stages - 1) pixels.

How channels change. Convolutions have `filters` times `width_multiplier` channels (rounded, half
up); pooling, skipping and attention keep those of their input. With `growth` above 1, a 1x1
convolution behind every halving multiplies them.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnas._checks import check_count, check_option
from jaxnas.nn._chain_design import ChainDesign, write_out
from jaxnas.nn.chain_cnn import DOWNSAMPLINGS, ChainCNN
from jaxnas.nn.chain_supernet import ChainSupernet
from jaxnas.space import SearchSpace
from jaxnas.spaces._chain_costs import chain_cost
from jaxnas.spaces._chain_decisions import PER_LAYER, checked_lists, decisions_of

OPERATIONS = (  # the cheap before the dear, for planners look at the last
    "skip",
    "max_pool",
    "avg_pool",
    "attention",
    "separable_3x3",
    "separable_5x5",
    "conv_3x3",
    "conv_5x5",
)


def chain_cnn(
    num_classes: int = 10,
    *,
    image_size: int = 32,
    in_channels: int = 3,
    depths: Sequence[int] = tuple(range(4, 13)),
    operations: Sequence[str] = OPERATIONS,
    filters: Sequence[int] = (16, 32, 64, 128, 256, 512),
    kernels: Sequence[int] | None = (3, 5, 7),
    width_multipliers: Sequence[float] | None = (0.5, 0.75, 1.0, 1.25, 1.5),
    resolutions: Sequence[int] | None = None,
    repeats: Sequence[int] | None = None,
    skip_connections: Sequence[bool] | None = (False, True),
    dropouts: Sequence[float] | None = None,
    learning_rates: Sequence[float] | None = None,
    optimizers: Sequence[str] | None = None,
    per_layer: Sequence[str] = ("operation",),
    num_stages: int = 3,
    growth: int = 1,
    downsampling: str = "max_pool",
) -> SearchSpace:
    """Image classifiers that are a chain of blocks, with how to train them if wished.

    A list of one value fixes its decision, which then is not one of the space's; None or an empty
    list stands for what is said below. Only `learning_rates` and `optimizers` are decisions even
    with one value, for the trainer to find, and none without any.

    Filters, width multipliers and resolutions reshape parameters or images, so programs are built
    for one or several of them. Depth, repeats, operation and kernel are data to a program.

    Args:
      num_classes: outputs, at least 1.
      image_size: height and width of the images, at least 2 ** (num_stages - 1).
      in_channels: channels of the images, at least 1.
      depths: numbers of layers, at least 1.
      operations: `conv` and `separable`, with the kernel decision's size or one of their own as in
        `conv_3x3`, any odd one; `max_pool`, `avg_pool`, `skip`, `attention`. See
        `jaxnas.nn.chain_cnn.Block`.
      filters: channels of convolutions, ascending, at least 1.
      kernels: sides of the kernels of `conv` and `separable`, odd; there is no such decision
        without these operations, as by default. None: 3.
      width_multipliers: factors of the filters, ascending, above 0. None: 1.
      resolutions: sizes to which images are brought first, ascending, at least
        2 ** (num_stages - 1). None: `image_size`.
      repeats: how many times each layer stands in the chain, at least 1. None: once.
      skip_connections: whether convolutions add their input to their result. None: no.
      dropouts: rates in [0, 1) before the last layer. None: 0.
      learning_rates: positive numbers. None: the recipe's own value holds.
      optimizers: names in `jaxnas.training.OPTIMIZERS`. None: the recipe's own.
      per_layer: which of `PER_LAYER` every layer decides for itself; the others hold for all
        layers. Decisions that a layer's operation does not heed are inactive, as are those of
        layers beyond the depth. With filters per layer, the stem has the fewest.
      num_stages: at least 1.
      growth: factor of the channels between stages, at least 1.
      downsampling: "max_pool" or "avg_pool", between stages.

    Returns:
      A `SearchSpace` with decisions `depth`, `width_multiplier`, `resolution`, `repeats`,
      `operation`, `filters`, `kernel`, `skip_connection`, `dropout`, `learning_rate`, `optimizer`,
      as far as they are left; those of a layer are called `operation_1` and so on.

    Raises:
      ValueError: for a value out of range, an unknown name, an image or resolution too small to be
        halved, or where no decision is left.

    Example:
      >>> space = chain_cnn(10, image_size=8, in_channels=1, depths=(1, 2), filters=(8,))
      >>> [d.name for d in space.decisions][:4]
      ['depth', 'width_multiplier', 'skip_connection', 'operation_1']
    """
    for name, count in (
        ("num_classes", num_classes),
        ("in_channels", in_channels),
        ("num_stages", num_stages),
        ("growth", growth),
    ):
        check_count(name, count)
    check_count("image_size", image_size, 2 ** (num_stages - 1))
    check_option("downsampling", downsampling, DOWNSAMPLINGS)
    for name in per_layer:
        check_option("per_layer", name, PER_LAYER)
    lists = checked_lists(
        depth=depths,
        operation=operations,
        filters=filters,
        kernel=kernels or (3,),
        width_multiplier=width_multipliers or (1.0,),
        resolution=resolutions or (image_size,),
        repeats=repeats or (1,),
        skip_connection=skip_connections or (False,),
        dropout=dropouts or (0.0,),
        learning_rate=learning_rates or (),
        optimizer=optimizers or (),
        smallest=2 ** (num_stages - 1),
    )
    decisions = decisions_of(lists, per_layer)
    positions = {decision.name: position for position, decision in enumerate(decisions)}
    design = ChainDesign(
        num_classes=num_classes,
        image_size=image_size,
        in_channels=in_channels,
        num_stages=num_stages,
        growth=growth,
        downsampling=downsampling,
        lists=tuple(lists.items()),
        positions=tuple(positions.items()),
    )
    return SearchSpace(
        "chain_cnn",
        decisions,
        partial(_network, design),
        partial(ChainSupernet, design),
        partial(_hyperparameters, design),
        cost=_cost_fn(design),
    )


def conv_relu_pool(
    num_classes: int = 10, *, image_size: int = 32, in_channels: int = 3, **options: Any
) -> SearchSpace:
    """Stacks of convolutions with pooling between: kernel and filters of each, and how many.

    Baker et al., "Designing Neural Network Architectures using Reinforcement Learning", 2017,
    https://arxiv.org/abs/1611.02167, Table 1: kernels 1, 3, 5, filters 64 to 512, up to 12 layers.
    Deviations: pooling stands between stages rather than anywhere, every convolution has batch
    normalisation, and a stem and the mean over the pixels replace the free choice of first and last
    layers.

    Args:
      num_classes: see `chain_cnn`, as all others.
      image_size: likewise.
      in_channels: likewise.
      **options: of `chain_cnn`, replace the settings here.

    Returns:
      A `SearchSpace` with decisions `depth`, `filters_1`, `kernel_1`, `filters_2` and so on.

    Example:
      >>> conv_relu_pool(image_size=8, depths=(1, 2)).num_choices
      (2, 4, 3, 4, 3)
    """
    settings: dict[str, Any] = {
        "depths": tuple(range(1, 13)),
        "operations": ("conv",),
        "filters": (64, 128, 256, 512),
        "kernels": (1, 3, 5),
        "width_multipliers": None,
        "skip_connections": None,
        "per_layer": ("filters", "kernel"),
    }
    sizes = {"image_size": image_size, "in_channels": in_channels}
    return chain_cnn(num_classes, **sizes, **(settings | options))


def nasnet_table(
    num_classes: int = 10, *, image_size: int = 32, in_channels: int = 3, **options: Any
) -> SearchSpace:
    """One layer for the whole network: its kernel, channels, skip connection and repeats.

    The numbers that are left once a cell is found: Zoph et al., "Learning Transferable
    Architectures for Scalable Image Recognition", 2018, https://arxiv.org/abs/1707.07012, Section 3
    (repeats N and initial filters are free, separable convolutions of 3, 5 and 7 pixels are the
    operations that its cells are made of), with the skip connections of Zoph & Le, "Neural
    Architecture Search with Reinforcement Learning", 2017, https://arxiv.org/abs/1611.01578,
    Section 3.3. Deviations: the cell is one convolution, applied once rather than twice, and
    channels do not double where images are halved; `growth=2` does that.

    Args:
      num_classes: see `chain_cnn`, as all others.
      image_size: likewise.
      in_channels: likewise.
      **options: of `chain_cnn`, replace the settings here.

    Returns:
      A `SearchSpace` with decisions `repeats`, `filters`, `kernel`, `skip_connection`: 324
      architectures by default.

    Example:
      >>> nasnet_table(image_size=8).num_choices
      (9, 6, 3, 2)
    """
    settings: dict[str, Any] = {
        "depths": (1,),
        "operations": ("separable",),
        "width_multipliers": None,
        "repeats": tuple(range(4, 13)),
        "per_layer": (),
    }
    sizes = {"image_size": image_size, "in_channels": in_channels}
    return chain_cnn(num_classes, **sizes, **(settings | options))


def compound_scaling(
    num_classes: int = 10, *, image_size: int = 32, in_channels: int = 3, **options: Any
) -> SearchSpace:
    """How deep, how wide and at which resolution: one baseline network, scaled.

    Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019,
    https://arxiv.org/abs/1905.11946, Section 3.2: the factors of equation 3 are searched on a grid.
    Deviations: the baseline is a chain of residual separable convolutions rather than of inverted
    bottlenecks, and the equation's budget of flops is left to the search's objectives.

    Args:
      num_classes: see `chain_cnn`, as all others.
      image_size: likewise; the resolutions are half of it, three quarters, and all.
      in_channels: likewise.
      **options: of `chain_cnn`, replace the settings here.

    Returns:
      A `SearchSpace` with decisions `depth`, `width_multiplier`, `resolution`: 135 architectures by
      default.

    Example:
      >>> space = compound_scaling(image_size=8)
      >>> space.num_choices, space.decisions[2].choices
      ((9, 5, 3), (4, 6, 8))
    """
    shares = (image_size // 2, image_size * 3 // 4, image_size)
    smallest = 2 ** (options.get("num_stages", 3) - 1)
    settings: dict[str, Any] = {
        "operations": ("separable_3x3",),
        "filters": (16,),
        "resolutions": tuple(sorted({size for size in shares if size >= smallest})) or None,
        "skip_connections": (True,),
        "growth": 2,
    }
    sizes = {"image_size": image_size, "in_channels": in_channels}
    return chain_cnn(num_classes, **sizes, **(settings | options))


def _network(design: ChainDesign, arch) -> ChainCNN:
    chain = write_out(design, np.asarray(arch))
    return ChainCNN(
        stages=chain.stages,
        stem_channels=chain.stem_channels,
        transitions=chain.channels[1:] if design.growth > 1 else (0,) * (design.num_stages - 1),
        num_classes=design.num_classes,
        resolution=chain.resolution,
        downsampling=design.downsampling,
        dropout=chain.dropout,
    )


def _hyperparameters(design: ChainDesign, arch) -> dict:
    positions = dict(design.positions)
    found = {}
    if "learning_rate" in positions:
        rates = jnp.asarray(design.values("learning_rate"))
        found["learning_rate"] = rates[arch[positions["learning_rate"]]]
    if "optimizer" in positions:
        found["optimizer"] = arch[positions["optimizer"]]
    return found


def _cost_fn(design: ChainDesign):
    """`chain_cost` of this design, which a planner asks for the same architectures many times."""
    known = lru_cache(maxsize=2**16)(partial(chain_cost, design))
    return lambda arch: known(tuple(int(choice) for choice in np.asarray(arch)))
