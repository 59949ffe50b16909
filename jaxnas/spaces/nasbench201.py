"""The NAS-Bench-201 space: which of five operations stands on each of a cell's six edges.

Dong & Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", 2020,
https://arxiv.org/abs/2001.00326; https://github.com/D-X-Y/AutoDL-Projects. Nodes are numbered 0
(the cell's input) to 3 (its output), and the edges in the order of `EDGES`. Besides the space there
are the published names of an architecture: its string, its index (the row of the benchmark's
tables), and the 6,466 classes into which the paper sorts the 15,625 architectures.
"""

import itertools
import random
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxnas.nn.nasbench201 import EDGES, NASBench201, NASBench201Supernet, count_costs
from jaxnas.nn.operations import OPERATIONS
from jaxnas.space import Decision, SearchSpace
from jaxnas.training.costs import NetworkCost, network_cost

PUBLISHED_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

# The benchmark's authors listed all architectures in the order of their base-5 code and shuffled
# the list with Python's generator from this seed (AutoDL-Projects, exps/NAS-Bench-201/main.py).
_ORDER_SEED = 88

_MAX_TABLE = 2_000_000  # architectures whose classes are worth listing: seconds and megabytes

Choices = ArrayLike | Sequence[int]


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
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number above 0, got {count!r}")
    if image_size % 4:
        raise ValueError(f"image_size must be a multiple of 4, got {image_size}")
    names = _checked_operations(operations)

    def network(arch):
        chosen = tuple(names[int(choice)] for choice in np.asarray(arch))
        return NASBench201(operations=chosen, **counts)

    def supernet(bucket):
        return NASBench201Supernet(operations=names, bucket=bucket, **counts)

    tabulated = len(names) ** len(EDGES) <= _MAX_TABLE
    return SearchSpace(
        "nasbench201",
        tuple(Decision(f"{target}<-{source}", names) for target, source in EDGES),
        network,
        supernet,
        representative=partial(representative, operations=names) if tabulated else None,
        cost=partial(_network_cost, tuple(counts.items()), names),
    )


def _network_cost(counts: tuple, operations: tuple[str, ...], arch: ArrayLike) -> NetworkCost:
    """What the network of a concrete `arch` i32[6] costs: its parts added up."""
    base, *added = _traced_costs(counts, operations)
    edges = np.asarray(added)[np.asarray(arch)].sum(axis=0)
    parameters, flops, activations, products = base + dict(counts)["num_cells"] * edges
    return NetworkCost(int(parameters), float(flops), float(activations), int(products))


@lru_cache(maxsize=64)
def _traced_costs(counts: tuple, operations: tuple[str, ...]) -> list[np.ndarray]:
    """f64[4] each: without edges, then of each operation on one edge of one cell per stage."""

    def cost(first):
        chosen = (first,) + ("none",) * (len(EDGES) - 1)
        sizes: dict[str, Any] = {**dict(counts), "num_cells": 1}
        module = NASBench201(chosen, **sizes)
        return np.asarray(network_cost(module, module.image_shape), np.float64)

    base = cost("none")
    return [base] + [cost(operation) - base for operation in operations]


def _checked_operations(operations: Sequence[str]) -> tuple[str, ...]:
    names = tuple(operations)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"operations must be at least one name, none twice, got {list(names)}")
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise ValueError(f"operations has {unknown[0]!r}; names must be in {sorted(OPERATIONS)}")
    return names


def string_from_arch(arch: Choices, operations: Sequence[str] = PUBLISHED_OPERATIONS) -> str:
    """The published string of a concrete architecture.

    Args:
      arch: i32[6].
      operations: the choices of every edge.

    Returns:
      `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`: nodes 1 to 3, each with its incoming edges.

    Example:
      >>> string_from_arch([4, 3, 0, 1, 2, 1])[:34]
      '|avg_pool_3x3~0|+|nor_conv_3x3~0|n'
    """
    arch = np.asarray(arch)
    if arch.shape != (len(EDGES),) or (arch < 0).any() or (arch >= len(operations)).any():
        raise ValueError(f"arch must be 6 choices from 0 to {len(operations) - 1}, got {arch}")
    nodes: dict[int, str] = {}
    for (target, source), choice in zip(EDGES, arch, strict=True):
        nodes[target] = nodes.get(target, "|") + f"{operations[choice]}~{source}|"
    return "+".join(nodes.values())


def arch_from_string(string: str, operations: Sequence[str] = PUBLISHED_OPERATIONS) -> Array:
    """The architecture i32[6] of a published string; the inverse of `string_from_arch`.

    Args:
      string: as returned by `string_from_arch`.
      operations: the choices of every edge.

    Returns:
      i32[6].

    Raises:
      ValueError: for another form or an unknown operation.

    Example:
      >>> arch_from_string("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|").tolist()
      [0, 0, 0, 1, 0, 0]
    """
    name = r"([^|~+]+)"
    form = rf"\|{name}~0\|\+\|{name}~0\|{name}~1\|\+\|{name}~0\|{name}~1\|{name}~2\|"
    match = re.fullmatch(form, string.strip())
    if match is None:
        raise ValueError(
            f"string must have the form '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|', got {string!r}"
        )
    unknown = [op for op in match.groups() if op not in operations]
    if unknown:
        raise ValueError(f"string has {unknown[0]!r}; operations are {list(operations)}")
    return jnp.asarray([list(operations).index(op) for op in match.groups()], jnp.int32)


def _code(arch: Array, base: int) -> Array:
    """The number whose base-`base` digits are `arch` i32[..., 6]: i32[...]."""
    powers = base ** np.arange(len(EDGES) - 1, -1, -1)
    return jnp.sum(jnp.asarray(arch, jnp.int32) * jnp.asarray(powers, jnp.int32), axis=-1)


def _digits(code: Array, base: int) -> Array:
    """The inverse of `_code`."""
    powers = base ** np.arange(len(EDGES) - 1, -1, -1)
    return code[..., None] // jnp.asarray(powers, jnp.int32) % base


@lru_cache(maxsize=1)
def _official_order() -> tuple[np.ndarray, np.ndarray]:
    """The base-5 code of every official index, and the index of every code: i32[15625] each."""
    codes = list(range(len(PUBLISHED_OPERATIONS) ** len(EDGES)))
    random.Random(_ORDER_SEED).shuffle(codes)
    return np.asarray(codes, np.int32), np.argsort(codes).astype(np.int32)


def arch_from_index(index: ArrayLike) -> Array:
    """The architecture in a row of the published tables; traceable.

    Args:
      index: i32[...], 0 to 15,624. Traced values outside are clipped.

    Returns:
      i32[..., 6], choices among `PUBLISHED_OPERATIONS`.

    Raises:
      ValueError: for a concrete index outside.

    Example:
      >>> arch_from_index(0).tolist()
      [4, 2, 1, 2, 1, 1]
    """
    codes = _official_order()[0]
    if not isinstance(index, jax.core.Tracer):
        given = np.asarray(index)
        if (given < 0).any() or (given >= len(codes)).any():
            raise ValueError(f"index must be in 0 to {len(codes) - 1}, got {index}")
    code = jnp.take(jnp.asarray(codes), jnp.asarray(index, jnp.int32), mode="clip")
    return _digits(code, len(PUBLISHED_OPERATIONS))


def index_from_arch(arch: Choices) -> Array:
    """The row of the published tables that holds an architecture; traceable.

    Args:
      arch: i32[..., 6], choices among `PUBLISHED_OPERATIONS`.

    Returns:
      i32[...].

    Example:
      >>> index_from_arch([4, 2, 1, 2, 1, 1]).tolist()
      0
    """
    indices = jnp.asarray(_official_order()[1])
    return indices[_code(jnp.asarray(arch), len(PUBLISHED_OPERATIONS))]


def _term(operation: str, node: str) -> str:
    """What an edge adds to its target, as an expression of its source's expression."""
    if operation == "none" or node == "#":
        return "#"
    return node if operation == "skip_connect" else f"({node})@{operation}"


@lru_cache(maxsize=8)
def _representatives(operations: tuple[str, ...]) -> np.ndarray:
    """Per base-K code, the least code whose output has the same expression: i32[K**6]."""

    def terms(node):
        return [_term(operation, node) for operation in operations]

    table = []
    first: dict[str, int] = {}
    for one in terms("0"):
        for two in itertools.product(terms("0"), terms(one)):
            for three in itertools.product(terms("0"), terms(one), terms("+".join(sorted(two)))):
                table.append(first.setdefault("+".join(sorted(three)), len(table)))
    return np.asarray(table, np.int32)


def representative(arch: Choices, operations: Sequence[str] = PUBLISHED_OPERATIONS) -> Array:
    """The first of all architectures that the paper counts as the same network; traceable.

    The paper writes what a node computes as an expression: the sorted sum of its incoming edges,
    in which `skip_connect` repeats the source's expression and `none`, or a source that is nothing
    but 0, gives 0. Architectures whose outputs have equal expressions form a class, 6,466 in all.
    That is the published partition to the letter, so its shortcomings stay. It parts some equal
    networks, for zeros within a sum are not dropped and a sum within a sum is not sorted anew (with
    both mended, 4,930 classes remain). And it merges networks that count one edge twice with those
    that have two such edges, each with weights of its own.

    Args:
      arch: i32[..., 6].
      operations: the choices of every edge.

    Returns:
      i32[..., 6], the first in lexicographic order; the same for the whole class.

    Example:
      >>> representative([3, 1, 0, 1, 0, 0]).tolist()  # nothing leads on from nodes 1 and 2
      [0, 0, 0, 1, 0, 0]
    """
    table = jnp.asarray(_representatives(tuple(operations)))
    return _digits(table[_code(jnp.asarray(arch), len(operations))], len(operations))


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

    All edges of a cell have one shape, so a network costs what the one with `none` everywhere costs
    plus what each edge adds; those are traced once.

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
    shape = (num_classes, num_channels, image_size, in_channels)
    base, *added = _edge_costs(shape, tuple(operations))
    total = base + num_cells * np.asarray(added)[np.asarray(arch)].sum(axis=-2)
    return PublishedCosts(total[..., 0], total[..., 1])


@lru_cache(maxsize=64)
def _edge_costs(shape: tuple[int, ...], operations: tuple[str, ...]) -> list[np.ndarray]:
    """Costs without edges, then of an edge with each operation in a cell per stage: i64[2] each."""
    num_classes, num_channels, image_size, in_channels = shape

    def cost(first):
        chosen = (first,) + ("none",) * (len(EDGES) - 1)
        module = NASBench201(chosen, num_classes, num_channels, 1, image_size, in_channels)
        return np.asarray(count_costs(module), np.int64)

    base = cost("none")
    return [base] + [cost(operation) - base for operation in operations]
