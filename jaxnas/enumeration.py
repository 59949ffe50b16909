"""Counts and lists the architectures of a space; host code, for spaces that are small enough."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.space import SearchSpace, is_valid

_ROWS = 1 << 16  # architectures whose validity is asked at once


def num_architectures(space: SearchSpace) -> int:
    """How many canonical architectures there are, before `is_valid` is asked.

    Args:
      space: the space.

    Returns:
      A Python integer, which may be far beyond 64 bits.

    Example:
      >>> from jaxnas.testing import conditional_space
      >>> num_architectures(conditional_space())
      39
    """
    children: dict[int, list[int]] = {d: [] for d in range(space.num_decisions)}
    for d, decision in enumerate(space.decisions):
        if decision.active_if is not None:
            children[decision.active_if[0]].append(d)

    def count(d: int) -> int:
        total = 0
        for choice in range(space.num_choices[d]):
            product = 1
            for child in children[d]:
                condition = space.decisions[child].active_if
                product *= count(child) if condition and choice in condition[1] else 1
            total += product
        return total

    return prod(count(d) for d, each in enumerate(space.decisions) if each.active_if is None)


def all_architectures(space: SearchSpace, limit: int = 10_000_000) -> np.ndarray:
    """Every canonical valid architecture, in lexicographic order.

    Args:
      space: the space.
      limit: the most canonical architectures to list.

    Returns:
      i32[N, D].

    Raises:
      ValueError: if the space has more than `limit` of them.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> all_architectures(tiny_space())[:2].tolist()
      [[0, 0, 0], [0, 0, 1]]
    """
    total = num_architectures(space)
    if total > limit:
        raise ValueError(f"space {space.name!r} has {total:,} architectures, limit is {limit:,}")
    arch = np.zeros((1, 0), np.int32)
    active = np.zeros((1, 0), bool)
    # Decision by decision: only canonical rows are ever made, however large the full product is.
    for decision, num_choices in zip(space.decisions, space.num_choices, strict=True):
        on = np.ones(len(arch), bool)
        if decision.active_if is not None:
            parent, allowed = decision.active_if
            on = active[:, parent] & np.isin(arch[:, parent], allowed)
        copies = np.where(on, num_choices, 1)
        row = np.repeat(np.arange(len(arch)), copies)
        choice = np.arange(len(row)) - np.repeat(np.cumsum(copies) - copies, copies)
        arch = np.column_stack([arch[row], choice.astype(np.int32)])
        active = np.column_stack([active[row], on[row]])
    if space.is_valid is None:
        return arch
    return arch[_valid_rows(space, arch)]


def _valid_rows(space: SearchSpace, arch: np.ndarray) -> np.ndarray:
    """bool[N], asked in pieces of one size, so that one compilation serves all."""
    ask = jax.jit(jax.vmap(lambda row: is_valid(space, row)))
    size = min(_ROWS, len(arch))
    padded = np.concatenate([arch, np.repeat(arch[:1], -len(arch) % size, axis=0)])
    pieces = [
        np.asarray(ask(jnp.asarray(part))) for part in padded.reshape(-1, size, arch.shape[1])
    ]
    return np.concatenate(pieces)[: len(arch)]
