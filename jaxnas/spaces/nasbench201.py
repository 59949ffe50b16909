"""The NAS-Bench-201 space: which of five operations stands on each of a cell's six edges.

Dong & Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", 2020,
https://arxiv.org/abs/2001.00326; https://github.com/D-X-Y/AutoDL-Projects. Nodes are numbered 0
(the cell's input) to 3 (its output), and the edges in the order of `EDGES`. Besides the space there
are the published names of an architecture: its string, its index (the row of the benchmark's
tables), and the 6,466 classes into which the paper sorts the 15,625 architectures.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnas.nn.nasbench201 import EDGES, NASBench201, NASBench201Supernet, count_costs
from jaxnas.nn.operations import OPERATIONS
from jaxnas.space import Decision, SearchSpace
from jaxnas.spaces._nasbench201_names import PUBLISHED_OPERATIONS as PUBLISHED_OPERATIONS
from jaxnas.spaces._nasbench201_names import Choices
from jaxnas.spaces._nasbench201_names import arch_from_index as arch_from_index
from jaxnas.spaces._nasbench201_names import arch_from_string as arch_from_string
from jaxnas.spaces._nasbench201_names import index_from_arch as index_from_arch
from jaxnas.spaces._nasbench201_names import representative as representative
from jaxnas.spaces._nasbench201_names import string_from_arch as string_from_arch
from jaxnas.training.costs import NetworkCost, network_cost

_MAX_TABLE = 2_000_000  # architectures whose classes are worth listing: seconds and megabytes


class PublishedCosts(NamedTuple):
    """Size of a network, counted as in the benchmark's tables.

    Attributes:
      parameters: trainable scalars, those of edges that lead nowhere included.
      flops: multiply-adds of convolutions and of the last layer, plus one addition per output with
        a bias; batch normalisation, pooling, rectifiers and sums are free.
    """

    parameters: np.ndarray  # i64[...]
    flops: np.ndarray  # i64[...], per image


def nasbench201(
    num_classes: int = 10,
    *,
    num_channels: int = 16,
    num_cells: int = 5,
    image_size: int = 32,
    in_channels: int = 3,
    operations: Sequence[str] = PUBLISHED_OPERATIONS,
    auxiliary: bool = False,
    affine: bool = True,
    partial: int = 1,
) -> SearchSpace:
    """Image classifiers from three stages of equal cells; a cell is the architecture.

    The defaults are the published network for CIFAR-10; 100 classes give the one for CIFAR-100,
    120 classes with `image_size=16` the one for ImageNet16-120.

    Args:
      num_classes: outputs, at least 1.
      num_channels: channels of the first stage, at least 1; later stages double them.
      num_cells: cells per stage, at least 1.
      image_size: height and width of the images, a multiple of 4 since two blocks halve them.
      in_channels: channels of the images, at least 1.
      operations: the choices of every edge, names in `jaxnas.nn.operations.OPERATIONS`.
      auxiliary: whether networks have an auxiliary head for `Recipe.auxiliary_weight`, see
        `jaxnas.nn.auxiliary`; costs never count it.
      affine: whether normalisation in the supernet's operations has a learned scale and bias, for
        the published one-shot searches have none; networks always have them.
      partial: k, where the supernet's operations see every k-th channel, see
        `jaxnas.nn.mixed`; networks are as ever, and cannot be extracted. It divides
        `num_channels`.

    Returns:
      A `SearchSpace` with decisions `1<-0`, `2<-0`, `2<-1`, `3<-0`, `3<-1`, `3<-2`: 15,625
      architectures by default. Its `representative` tells the paper's classes apart; it is None
      where there are more than two million architectures.

    Raises:
      ValueError: for a number out of range, or operations that are unknown, repeated or none.

    Example:
      >>> space = nasbench201(image_size=8, num_channels=4, num_cells=1)
      >>> space.describe(arch_from_index(3))["1<-0"]
      'avg_pool_3x3'
    """
    counts = {
        "num_classes": num_classes,
        "num_channels": num_channels,
        "num_cells": num_cells,
        "image_size": image_size,
        "in_channels": in_channels,
    }
    for name, count in {**counts, "partial": partial}.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number above 0, got {count!r}")
    if image_size % 4:
        raise ValueError(f"image_size must be a multiple of 4, got {image_size}")
    if num_channels % partial:
        raise ValueError(f"partial must divide num_channels = {num_channels}, got {partial}")
    names = _checked_operations(operations)

    def network(arch):
        chosen = tuple(names[int(choice)] for choice in np.asarray(arch))
        return NASBench201(operations=chosen, auxiliary=auxiliary, **counts)

    def supernet(bucket):
        return NASBench201Supernet(
            operations=names,
            bucket=bucket,
            auxiliary=auxiliary,
            affine=affine,
            partial=partial,
            **counts,
        )

    tabulated = len(names) ** len(EDGES) <= _MAX_TABLE
    return SearchSpace(
        "nasbench201",
        tuple(Decision(f"{target}<-{source}", names) for target, source in EDGES),
        network,
        supernet,
        representative=functools.partial(representative, operations=names) if tabulated else None,
        cost=functools.partial(_network_cost, tuple(counts.items()), names),
    )


def _traced_cost(module: NASBench201) -> NetworkCost:
    return network_cost(module, module.image_shape)


def _network_cost(counts: tuple, operations: tuple[str, ...], arch: Choices) -> NetworkCost:
    """What the network of a concrete `arch` i32[6] costs, without tracing it."""
    parameters, flops, activations, products = _sum_of_parts(_traced_cost, counts, operations, arch)
    return NetworkCost(int(parameters), float(flops), float(activations), int(products))


def _sum_of_parts(count_fn, counts: tuple, operations: tuple[str, ...], arch: Choices):
    """What `count_fn` counts in the networks of concrete `arch` i32[..., 6]: [..., counted].

    All edges of a cell have one shape, so a network costs what the one with `none` everywhere costs
    plus what each edge adds.
    """
    base, *added = _parts(count_fn, counts, operations)
    edges = np.asarray(added)[np.asarray(arch)].sum(axis=-2)
    return base + dict(counts)["num_cells"] * edges


@functools.lru_cache(maxsize=64)
def _parts(count_fn, counts: tuple, operations: tuple[str, ...]) -> list[np.ndarray]:
    """Counts without edges, then of each operation on one edge of one cell per stage."""

    def count(first):
        chosen = (first,) + ("none",) * (len(EDGES) - 1)
        sizes: dict[str, Any] = {**dict(counts), "num_cells": 1}
        return np.asarray(count_fn(NASBench201(chosen, **sizes)))

    base = count("none")
    return [base] + [count(operation) - base for operation in operations]


def _checked_operations(operations: Sequence[str]) -> tuple[str, ...]:
    names = tuple(operations)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"operations must be at least one name, none twice, got {list(names)}")
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise ValueError(f"operations has {unknown[0]!r}; names must be in {sorted(OPERATIONS)}")
    return names


def published_costs(
    arch: Choices,
    num_classes: int = 10,
    *,
    num_channels: int = 16,
    num_cells: int = 5,
    image_size: int = 32,
    in_channels: int = 3,
    operations: Sequence[str] = PUBLISHED_OPERATIONS,
) -> PublishedCosts:
    """Parameters and FLOPs of concrete architectures as the benchmark's tables count them.

    Args:
      arch: i32[..., 6].
      num_classes: see `nasbench201`, as the others.
      num_channels: likewise.
      num_cells: likewise.
      image_size: likewise.
      in_channels: likewise.
      operations: likewise.

    Returns:
      `PublishedCosts` of shape [...].

    Example:
      >>> published_costs([0, 1, 2, 3, 4, 0]).parameters.tolist()
      344346
    """
    counts = {
        "num_classes": num_classes,
        "num_channels": num_channels,
        "num_cells": num_cells,
        "image_size": image_size,
        "in_channels": in_channels,
    }
    total = _sum_of_parts(count_costs, tuple(counts.items()), tuple(operations), arch)
    return PublishedCosts(total[..., 0], total[..., 1])
