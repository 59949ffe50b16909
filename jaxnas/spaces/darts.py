"""The DARTS space of convolutional networks: which edges two kinds of cells have, and of what.

Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", 2019,
https://arxiv.org/abs/1806.09055, Section 2.1; structure and references in `jaxnas.nn.darts`. Each
of a cell's four nodes takes from two earlier nodes, through one of seven operations each, which
makes 180 x 7**8 cells of a kind and about 1.1e18 architectures. `none`, the eighth operation, is in
the supernet only.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from jaxnas._checks import check_count, check_option
from jaxnas.nn._darts_cells import (
    EDGES,
    INPUTS,
    KINDS,
    NODES,
    PAIRS,
    PER_KIND,
    concrete_edges,
    stages_of,
)
from jaxnas.nn.darts import DARTS, edge_operation
from jaxnas.nn.darts_supernet import DARTSSupernet
from jaxnas.nn.operations import OPERATIONS
from jaxnas.nn.routing import RESIDUALS
from jaxnas.space import Decision, SearchSpace
from jaxnas.spaces._darts_genotypes import DARTS_OPERATIONS as DARTS_OPERATIONS
from jaxnas.spaces._darts_genotypes import GENOTYPES as GENOTYPES
from jaxnas.spaces._darts_genotypes import Genotype as Genotype
from jaxnas.spaces._darts_genotypes import arch_from_genotype as arch_from_genotype
from jaxnas.spaces._darts_genotypes import chosen_operations
from jaxnas.spaces._darts_genotypes import genotype_from_arch as genotype_from_arch
from jaxnas.training.costs import NetworkCost, network_cost


def darts(
    num_classes: int = 10,
    *,
    num_channels: int = 36,
    num_cells: int = 20,
    image_size: int = 32,
    in_channels: int = 3,
    operations: Sequence[str] = DARTS_OPERATIONS,
    auxiliary: bool = False,
    search: bool = False,
    residuals: str = "auto",
) -> SearchSpace:
    """Image classifiers from normal and reduction cells; the two cells are the architecture.

    The defaults are the networks that the paper trains on CIFAR-10 in the end, with
    `auxiliary=True` as it trains them; `num_channels=16, num_cells=8, search=True` are those that
    it searches in. Architectures mean the same in both, so one is found in the one space and
    trained in the other.

    Args:
      num_classes: outputs, at least 1.
      num_channels: channels of the first cells' nodes, at least 1; the two reduction cells double
        them.
      num_cells: cells in all, at least 3, of which those at a third and two thirds are reduction
        cells.
      image_size: height and width of the images, a multiple of 4.
      in_channels: channels of the images, at least 1.
      operations: of every edge of the supernet, names in `jaxnas.nn.operations.OPERATIONS`;
        architectures choose among all but `none`, which may be left out.
      auxiliary: whether networks have an auxiliary head for `Recipe.auxiliary_weight`, see
        `jaxnas.nn.auxiliary`; costs never count it.
      search: whether batch normalisation is that of the published search, without scale and bias,
        and one more behind pooling; see `jaxnas.nn.darts`.
      residuals: what the supernet keeps for gradients. "recompute": every edge computes its
        operations again on the way back, which takes far less memory; "union": nothing is computed
        again; "auto": whichever is faster on CPU. See `jaxnas.nn.mixed`.

    Returns:
      A `SearchSpace` with decisions `normal_2_inputs`, `normal_2_op_1`, `normal_2_op_2` and so on
      to `reduce_5_op_2`: per node the two nodes that it takes from, and the operations on these
      edges. Its supernet mixes 28 rows, an edge each; see `DARTSSupernet`.

    Raises:
      ValueError: for a number out of range, operations that are unknown, repeated or none but
        `none`, or another `residuals`.

    Example:
      >>> space = darts(image_size=8, num_channels=4, num_cells=3)
      >>> found = space.describe(arch_from_genotype(GENOTYPES["DARTS_V1"]))
      >>> found["normal_3_inputs"], found["normal_3_op_1"], found["normal_3_op_2"]
      ((0, 1), 'skip_connect', 'sep_conv_3x3')
    """
    sizes = {
        "num_classes": num_classes,
        "num_channels": num_channels,
        "num_cells": num_cells,
        "image_size": image_size,
        "in_channels": in_channels,
    }
    for name, size in sizes.items():
        check_count(name, size, 3 if name == "num_cells" else 1)
    if image_size % 4:
        raise ValueError(f"image_size must be a multiple of 4, got {image_size}")
    check_option("residuals", residuals, RESIDUALS)
    names = _checked_operations(operations)
    options: dict[str, Any] = {**sizes, "search": search}

    def network(arch):
        return _network(names, arch, auxiliary=auxiliary, **options)

    def supernet(bucket):
        return DARTSSupernet(
            operations=names, bucket=bucket, auxiliary=auxiliary, residuals=residuals, **options
        )

    return SearchSpace(
        "darts",
        _decisions(chosen_operations(names)),
        network,
        supernet,
        cost=partial(_cost, names, tuple(options.items())),
    )


def _checked_operations(operations: Sequence[str]) -> tuple[str, ...]:
    names = tuple(operations)
    if not chosen_operations(names) or len(set(names)) != len(names):
        raise ValueError(
            f"operations must be at least one besides 'none', and none twice, got {list(names)}"
        )
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise ValueError(f"operations has {unknown[0]!r}; names must be in {sorted(OPERATIONS)}")
    return names


def _decisions(chosen: tuple[str, ...]) -> tuple[Decision, ...]:
    decisions = []
    for kind in KINDS:
        for target in NODES:
            decisions.append(Decision(f"{kind}_{target}_inputs", PAIRS[target]))
            decisions += [Decision(f"{kind}_{target}_op_{i}", chosen) for i in (1, 2)]
    return tuple(decisions)


def _network(names: tuple[str, ...], arch: ArrayLike, **options: Any) -> DARTS:
    chosen = chosen_operations(names)
    normal, reduce = (
        tuple((chosen[operation], *EDGES[edge]) for edge, operation in concrete_edges(own))
        for own in np.asarray(arch).reshape(-1, PER_KIND)
    )
    return DARTS(normal=normal, reduce=reduce, **options)


def _cost(names: tuple[str, ...], options: tuple, arch: ArrayLike) -> NetworkCost:
    """What the network of a concrete `arch` i32[24] costs, without tracing it.

    Edges of one kind of cell and one stride have one shape, so a network costs what it costs
    without operations plus what each of them adds.
    """
    base, added = _parts(names, options)
    parameters, flops, activations, products = base + _of_edges(added, arch)
    return NetworkCost(int(parameters), float(flops), float(activations), int(products))


def _of_edges(added: dict[tuple[str, bool], np.ndarray], arch: ArrayLike) -> np.ndarray:
    """What the edges of `arch` add."""
    total = np.zeros(len(NetworkCost._fields))
    for kind, own in zip(KINDS, np.asarray(arch).reshape(-1, PER_KIND), strict=True):
        for edge, operation in concrete_edges(own):
            strided = kind == "reduce" and EDGES[edge][0] in INPUTS
            total += added[kind, strided][operation]
    return total


@lru_cache(maxsize=64)
def _parts(names: tuple[str, ...], options: tuple):
    """Costs without operations, and of each on one edge of all cells, by kind and stride."""
    settings, chosen = dict(options), chosen_operations(names)
    shape = len(chosen), len(NetworkCost._fields)
    added = {(kind, strided): np.zeros(shape) for kind in KINDS for strided in (False, True)}
    for stage in stages_of(settings["num_channels"], settings["num_cells"]):
        size = settings["image_size"] * settings["num_channels"] // stage.features
        for strided in (False, True) if stage.reduces else (False,):
            image = (size * (1 + strided),) * 2 + (stage.features,)
            for operation, name in enumerate(chosen):
                edge = edge_operation(name, image[-1], 1 + strided, search=settings["search"])
                cost = np.asarray(network_cost(edge, image))
                added[KINDS[stage.reduces], strided][operation] += stage.num_cells * cost
    arch = np.zeros(len(KINDS) * PER_KIND, int)
    module = _network(names, arch, **settings)
    whole = np.asarray(network_cost(module, module.image_shape))
    return whole - _of_edges(added, arch), added
