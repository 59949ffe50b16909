"""Architectures of the DARTS space in the form in which papers publish them, and some of these."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxnas.nn._darts_cells import EDGES, KINDS, NODES, PAIRS, PER_KIND, concrete_edges

DARTS_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


class Genotype(NamedTuple):
    """Both kinds of cells, as (operation, source) for the two edges into each of nodes 2 to 5."""

    normal: tuple[tuple[str, int], ...]
    reduce: tuple[tuple[str, int], ...]


def genotype_from_arch(arch: ArrayLike, operations: Sequence[str] = DARTS_OPERATIONS) -> Genotype:
    """The published form of a concrete architecture; of two edges the earlier source comes first.

    Args:
      arch: i32[24].
      operations: of the space.

    Returns:
      A `Genotype`.

    Raises:
      ValueError: for choices that the space does not have.

    Example:
      >>> genotype_from_arch([0, 3, 2, 2, 6, 0] + [0] * 18).normal[:4]
      (('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_5x5', 1), ('max_pool_3x3', 2))
    """
    chosen = chosen_operations(operations)
    given = np.asarray(arch)
    counts = [c for target in NODES for c in (len(PAIRS[target]), len(chosen), len(chosen))]
    counts *= len(KINDS)
    if given.shape != (len(counts),) or (given < 0).any() or (given >= counts).any():
        raise ValueError(f"arch must be {len(counts)} choices below {counts}, got {given.tolist()}")
    kinds = [
        tuple((chosen[operation], EDGES[edge][0]) for edge, operation in concrete_edges(own))
        for own in given.reshape(len(KINDS), PER_KIND)
    ]
    return Genotype(*kinds)


def arch_from_genotype(genotype: Any, operations: Sequence[str] = DARTS_OPERATIONS) -> Array:
    """The architecture of a published form; the inverse of `genotype_from_arch`.

    Args:
      genotype: anything with attributes `normal` and `reduce`, as in `Genotype`; the two edges of a
        node in any order. What else published forms say, that all four nodes are the output, holds
        for every architecture of the space.
      operations: of the space.

    Returns:
      i32[24].

    Raises:
      ValueError: for another number of edges, unknown operations, a source that is not an earlier
        node, or a node with one source twice.

    Example:
      >>> arch_from_genotype(GENOTYPES["DARTS_V2"]).tolist()[:12]
      [0, 3, 3, 0, 3, 3, 0, 2, 3, 1, 2, 5]
    """
    chosen = chosen_operations(operations)
    arch = []
    for kind in KINDS:
        genes = [(str(operation), int(source)) for operation, source in getattr(genotype, kind)]
        if len(genes) != 2 * len(NODES):
            raise ValueError(f"{kind} must be {2 * len(NODES)} edges, got {len(genes)}")
        for place, target in enumerate(NODES):
            edges = sorted(genes[2 * place : 2 * place + 2], key=lambda gene: gene[1])
            names, sources = zip(*edges, strict=True)
            if sources not in PAIRS[target]:
                raise ValueError(
                    f"{kind}: sources of node {target} must be one of {PAIRS[target]}, "
                    f"got {sources}"
                )
            unknown = [name for name in names if name not in chosen]
            if unknown:
                raise ValueError(f"{kind}: operations must be among {chosen}, got {unknown[0]!r}")
            arch += [PAIRS[target].index(sources), *(chosen.index(name) for name in names)]
    return jnp.asarray(arch, jnp.int32)


def chosen_operations(operations: Sequence[str]) -> tuple[str, ...]:
    """Those that an architecture may choose: all but `none`."""
    return tuple(name for name in operations if name != "none")


# Found on CIFAR-10. DARTS: first and second order (https://github.com/quark0/darts); P_DARTS: Chen
# et al. 2019, https://arxiv.org/abs/1904.12760; PC_DARTS: Xu et al. 2020,
# https://arxiv.org/abs/1907.05737.
GENOTYPES: MappingProxyType[str, Genotype] = MappingProxyType(
    {
        "DARTS_V1": Genotype(
            normal=(
                ("sep_conv_3x3", 1), ("sep_conv_3x3", 0),
                ("skip_connect", 0), ("sep_conv_3x3", 1),
                ("skip_connect", 0), ("sep_conv_3x3", 1),
                ("sep_conv_3x3", 0), ("skip_connect", 2),
            ),
            reduce=(
                ("max_pool_3x3", 0), ("max_pool_3x3", 1),
                ("skip_connect", 2), ("max_pool_3x3", 0),
                ("max_pool_3x3", 0), ("skip_connect", 2),
                ("skip_connect", 2), ("avg_pool_3x3", 0),
            ),
        ),
        "DARTS_V2": Genotype(
            normal=(
                ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
                ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
                ("sep_conv_3x3", 1), ("skip_connect", 0),
                ("skip_connect", 0), ("dil_conv_3x3", 2),
            ),
            reduce=(
                ("max_pool_3x3", 0), ("max_pool_3x3", 1),
                ("skip_connect", 2), ("max_pool_3x3", 1),
                ("max_pool_3x3", 0), ("skip_connect", 2),
                ("skip_connect", 2), ("max_pool_3x3", 1),
            ),
        ),
        "P_DARTS": Genotype(
            normal=(
                ("skip_connect", 0), ("dil_conv_3x3", 1),
                ("skip_connect", 0), ("sep_conv_3x3", 1),
                ("sep_conv_3x3", 1), ("sep_conv_3x3", 3),
                ("sep_conv_3x3", 0), ("dil_conv_5x5", 4),
            ),
            reduce=(
                ("avg_pool_3x3", 0), ("sep_conv_5x5", 1),
                ("sep_conv_3x3", 0), ("dil_conv_5x5", 2),
                ("max_pool_3x3", 0), ("dil_conv_3x3", 1),
                ("dil_conv_3x3", 1), ("dil_conv_5x5", 3),
            ),
        ),
        "PC_DARTS": Genotype(
            normal=(
                ("sep_conv_3x3", 1), ("skip_connect", 0),
                ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
                ("sep_conv_5x5", 0), ("sep_conv_3x3", 1),
                ("avg_pool_3x3", 0), ("dil_conv_3x3", 1),
            ),
            reduce=(
                ("sep_conv_5x5", 1), ("max_pool_3x3", 0),
                ("sep_conv_5x5", 1), ("sep_conv_5x5", 2),
                ("sep_conv_3x3", 0), ("sep_conv_3x3", 3),
                ("sep_conv_3x3", 1), ("sep_conv_3x3", 2),
            ),
        ),
    }
)  # fmt: skip
