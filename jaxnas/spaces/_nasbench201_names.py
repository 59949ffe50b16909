"""Published names of NAS-Bench-201 architectures: strings, indices and isomorphism classes.

Dong & Yang, 2020, https://arxiv.org/abs/2001.00326; https://github.com/D-X-Y/AutoDL-Projects.
"""

import itertools
import random
import re
from collections.abc import Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxnas.nn.nasbench201 import EDGES

PUBLISHED_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

# The benchmark's authors listed all architectures in the order of their base-5 code and shuffled
# the list with Python's generator from this seed (AutoDL-Projects, exps/NAS-Bench-201/main.py).
_ORDER_SEED = 88

Choices = ArrayLike | Sequence[int]


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
