"""What the backward pass of a function must be handed, and what it can work out by itself.

`jax.vjp` says which arrays a pullback reads. Here the function that computes them is written out as
a jaxpr and cut: above the cut is the forward pass, below it the equations that the backward pass
runs again. `jax.checkpoint` with a policy cuts by the kind of an equation alone; here an equation
is only run again if what it needs takes no more memory than what it gives.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    jaxpr_as_fun,
    jaxprs_in_params,
)

Kind = Any  # anything with a shape and a dtype

# In mode "auto", a function keeps at most this many times the bytes of its operands and results.
MAX_GROWTH = 4

_MAX_SOURCES = 8  # kept arrays that one recomputed residual may depend on

# Elementwise functions and moves of data: about one pass over memory, which is what writing a
# residual in one pass and reading it in the other costs too.
_CHEAP_NAMES = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bitcast_convert_type broadcast_in_dim
    cbrt ceil clamp concatenate convert_element_type copy copy_p cos cosh div eq erf erfc exp exp2
    expand_dims expm1 floor full ge gt integer_pow iota is_finite le log log1p logistic lt max min
    mul ne neg not or pad pow reduce_precision rem reshape rev round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh slice sqrt square squeeze stop_gradient
    sub tan tanh transpose xor
"""
_CHEAP = frozenset(_CHEAP_NAMES.split())
_CALLS = frozenset(["pjit", "jit", "closed_call", "core_call", "custom_jvp_call"])


class Derivative(NamedTuple):
    """A function of flat arrays with its backward pass.

    Attributes:
      results: kinds of the function's results.
      operands: positions of the operands that the backward pass reads.
      outputs: positions of the results that it reads.
      used: positions of the operands that results or gradients depend on.
      saved: kinds of what else it reads.
      forward: `(*operands) -> [*results, *saved]`.
      backward: `(operands, outputs, saved, cotangents) -> gradients`; the first two are
        dictionaries by position, the cotangents those of all results, and the gradients those of
        the operands asked for.
    """

    results: Sequence[Kind]
    operands: frozenset[int]
    outputs: frozenset[int]
    used: frozenset[int]
    saved: list[Kind]
    forward: Callable[..., Any]
    backward: Callable[..., Any]


def derivative(
    body: Callable[..., tuple[Array, ...]],
    moving: Sequence[int],
    kinds: Sequence[Kind],
    residuals: str = "auto",
) -> Derivative:
    """Cuts the derivative of `body` in two.

    Args:
      body: a pure function from arrays to a tuple of arrays.
      moving: positions of the operands that get a gradient.
      kinds: of the operands.
      residuals: "auto", "union" or "recompute", see `jaxnas.nn.routing.route`.
    """
    closed, num_results, pull = _trace(body, moving, kinds)
    jaxpr = closed.jaxpr
    results, wanted = jaxpr.outvars[:num_results], jaxpr.outvars[num_results:]
    operands = {v: k for k, v in enumerate(jaxpr.invars)}
    given = {*operands, *jaxpr.constvars}
    outputs = {v: j for j, v in enumerate(results) if _is_var(v) and v not in given}
    saved = []
    if residuals != "recompute":
        saved = _choose_saved(jaxpr, wanted, {*given, *outputs})
    if residuals == "auto" and _size(saved) > MAX_GROWTH * _size([*jaxpr.invars, *results]):
        residuals, saved = "recompute", []
    if residuals == "recompute":
        outputs = {}
    again, read = _needed(jaxpr.eqns, wanted, {*given, *outputs, *saved})
    operands = {v: k for v, k in operands.items() if v in read}
    outputs = {v: j for v, j in outputs.items() if v in read and v not in saved}
    above, _ = _needed(jaxpr.eqns, [*results, *saved], given)
    forward = _function(closed, jaxpr.invars, above, [*results, *saved])
    rebuild = _function(closed, [*operands, *outputs, *saved], again, wanted)

    def backward(kept_operands, kept_outputs, kept, cotangents):
        arrays = [kept_operands[k] for k in operands.values()]
        arrays += [kept_outputs[j] for j in outputs.values()]
        return pull(rebuild(*arrays, *kept), cotangents)

    return Derivative(
        results=[v.aval for v in results],
        operands=frozenset(operands.values()),
        outputs=frozenset(outputs.values()),
        used=_used(jaxpr),
        saved=[v.aval for v in saved],
        forward=forward,
        backward=backward,
    )


def _trace(body, moving, kinds):
    """A jaxpr from operands to results and residuals, and the pullback as a function of both."""
    structure = None

    def with_residuals(*arrays):
        nonlocal structure

        def moved(*values):
            every = list(arrays)
            for k, value in zip(moving, values, strict=True):
                every[k] = value
            return body(*every)

        results, pullback = jax.vjp(moved, *(arrays[k] for k in moving))
        residuals, structure = jax.tree.flatten(pullback)
        return list(results), residuals

    closed, shapes = jax.make_jaxpr(with_residuals, return_shape=True)(*kinds)

    def pull(residuals, cotangents):
        return jax.tree.unflatten(structure, residuals)(tuple(cotangents))

    return closed, len(shapes[0]), pull


def _choose_saved(jaxpr: Jaxpr, wanted: Sequence[Any], free: set[Var]) -> list[Var]:
    """The values to save so that all wanted ones follow, in the order they are computed in."""
    residuals = {v for v in wanted if _is_var(v)} - free
    order = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    saved = {v for v in residuals if not _is_cheap(jaxpr.eqns[order[v]])}
    # Per variable, what would have to be kept for it to be computed again.
    needs: dict[Var, frozenset[Var]] = {}
    for eqn in jaxpr.eqns:
        inputs = [v for v in eqn.invars if not isinstance(v, Literal)]
        below = frozenset[Var]().union(*(needs[v] for v in inputs if v in needs)) - saved
        cheap = _is_cheap(eqn) and len(below) <= _MAX_SOURCES
        for var in eqn.outvars:
            if var in free or var in saved:
                continue
            own = below if cheap else frozenset([var])
            if var in residuals:
                saved |= own if _size(own) <= _size([var]) else {var}
                own = frozenset()
            needs[var] = own
    return sorted(saved, key=order.__getitem__)


def _is_cheap(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name in _CALLS:
        return all(_is_cheap(e) for inner in jaxprs_in_params(eqn.params) for e in inner.eqns)
    return eqn.primitive.name in _CHEAP


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, Literal)


def _size(variables: Iterable[Any]) -> int:
    """Bytes."""
    return sum(v.aval.size * v.aval.dtype.itemsize for v in variables)


def _needed(
    eqns: Sequence[JaxprEqn], wanted: Sequence[Any], known: set[Var]
) -> tuple[list[JaxprEqn], set[Var]]:
    """The equations that lead from known variables to the wanted, and which of them they read."""
    reach = {v for v in wanted if _is_var(v)}
    chosen = []
    for eqn in reversed(eqns):
        if any(v in reach and v not in known for v in eqn.outvars):
            chosen.append(eqn)
            reach |= {v for v in eqn.invars if _is_var(v)}
    return chosen[::-1], reach & known


def _used(jaxpr: Jaxpr) -> frozenset[int]:
    read = {v for eqn in jaxpr.eqns for v in eqn.invars if _is_var(v)}
    read |= {v for v in jaxpr.outvars if _is_var(v)}
    return frozenset(k for k, v in enumerate(jaxpr.invars) if v in read)


def _function(
    closed: ClosedJaxpr, inputs: Sequence[Var], eqns: list[JaxprEqn], outputs: Sequence[Any]
) -> Callable[..., list[Array]]:
    """Some of a jaxpr's equations as a function from some of its values to others."""
    part = closed.jaxpr.replace(invars=list(inputs), eqns=eqns, outvars=list(outputs))
    return jaxpr_as_fun(ClosedJaxpr(part, closed.consts))
