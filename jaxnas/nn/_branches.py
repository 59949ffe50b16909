"""Functions of which one is run: their traces, and the arrays that they share.

What the branch that runs hands to its backward pass lies in slots shared by all branches. There are
as many slots of a shape and dtype as the neediest branch fills.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxnas.nn._residuals import Kind

Flat = Callable[..., tuple[Array, ...]]  # arrays to arrays, no pytrees

RESIDUALS = ("auto", "union", "recompute")


def check_residuals(residuals: str) -> None:
    """Raises ValueError unless there is this way to keep residuals, see `jaxnas.nn.routing`."""
    if residuals not in RESIDUALS:
        raise ValueError(f"residuals must be one of {RESIDUALS}, got {residuals!r}")


def trace(branch: Callable[..., Any], tree: Any, leaves: Sequence[Any]) -> tuple[ClosedJaxpr, Any]:
    """The branch as a jaxpr of flat arrays, and its results' shapes; weak types become strong.

    Args:
      branch: `(*operands) -> pytree`.
      tree: structure of its tuple of operands.
      leaves: the operands' arrays, or their kinds.
    """

    def flat(*leaves):
        results = branch(*jax.tree.unflatten(tree, leaves))
        return jax.tree.map(_strong, results)

    return jax.make_jaxpr(flat, return_shape=True)(*leaves)


def _strong(result: Any) -> Array:
    result = jnp.asarray(result)
    extended = jnp.issubdtype(result.dtype, jax.dtypes.extended)
    return result if extended else lax.convert_element_type(result, result.dtype)


def lift_tracers(traced: Sequence[ClosedJaxpr], num_leaves: int) -> tuple[list[Flat], list[Array]]:
    """Flat functions that close over no tracers, and the tracers that are operands instead.

    Args:
      traced: of `num_leaves` operands each.
      num_leaves: operands before those that are added, which all functions take.
    """
    captured: dict[int, Array] = {}
    for closed in traced:
        captured |= {id(c): c for c in closed.consts if isinstance(c, jax.core.Tracer)}
    position = {identity: num_leaves + i for i, identity in enumerate(captured)}

    def body(closed):
        places = [position.get(id(const)) for const in closed.consts]
        fixed = [c if p is None else None for c, p in zip(closed.consts, places, strict=True)]

        def run(*arrays):
            consts = [c if p is None else arrays[p] for c, p in zip(fixed, places, strict=True)]
            function = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))
            return tuple(function(*arrays[:num_leaves]))

        return run

    return [body(closed) for closed in traced], list(captured.values())


def union(saved: Sequence[Sequence[Kind]]) -> list[Kind]:
    """The fewest slots that hold the saved arrays of any one branch."""
    slots: list[Kind] = []
    for kinds in saved:
        for kind in kinds:
            short = _count(kinds, kind) - _count(slots, kind)
            slots += [kind] * max(0, short)
    return slots


def _count(kinds: Sequence[Kind], kind: Kind) -> int:
    return sum(_is_same(kind, other) for other in kinds)


def _is_same(a: Kind, b: Kind) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def places(kinds: Sequence[Kind], slots: Sequence[Kind]) -> list[int]:
    """The slot of each saved array, no two the same."""
    free = list(range(len(slots)))
    found = []
    for kind in kinds:
        place = next(s for s in free if _is_same(slots[s], kind))
        free.remove(place)
        found.append(place)
    return found


def zeros(kind: Kind) -> Array:
    """Zeros of a shape and dtype."""
    return lax.full(kind.shape, 0, kind.dtype)


def zero_cotangent(kind: Kind) -> Any:
    """The cotangent of a result that nothing depends on."""
    if jnp.issubdtype(kind.dtype, jnp.inexact):
        return zeros(kind)
    return np.zeros(kind.shape, jax.dtypes.float0)


def moves(primal: Any) -> bool:
    """Whether a gradient is asked for, given an operand of a `custom_vjp` with symbolic zeros."""
    return primal.perturbed and jnp.issubdtype(primal.value.dtype, jnp.inexact)
