"""The arrays of a jaxpr: those written to memory, and those computed where they are read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params

_FUSED_NAMES = """
    abs add add_any and atan2 broadcast_in_dim cbrt ceil clamp convert_element_type copy copy_p cos
    div dynamic_slice eq erf exp exp2 expand_dims expm1 floor ge gt integer_pow iota is_finite le
    log log1p logistic lt max min mul ne neg not optimization_barrier or pad pow random_unwrap
    random_wrap reduce_precision rem reshape rev round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin slice sqrt square squeeze stop_gradient sub
    tan tanh transpose xor
"""
_CALL_NAMES = """
    checkpoint closed_call core_call custom_jvp_call custom_vjp_call jit pjit remat2
"""
FUSED = frozenset(_FUSED_NAMES.split())
_FUSES_OPERANDS = FUSED | {"reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin"}
_CALLS = frozenset(_CALL_NAMES.split())
# Same memory, another shape.
_VIEWS = frozenset(["copy", "copy_p", "expand_dims", "optimization_barrier", "reshape", "squeeze"])


class Value:
    """One array; compared by identity."""

    __slots__ = ("size",)

    def __init__(self, aval: Any):
        self.size = num_bytes(aval)


class Operation(NamedTuple):
    """An equation, and the arrays that it reads and makes."""

    name: str
    params: dict[str, Any]
    operands: list[Value | None]  # None for literals
    results: list[Value]

    @property
    def inputs(self) -> list[Value]:
        return [v for v in self.operands if v is not None]


def num_bytes(aval: Any) -> int:
    """Bytes of an array of a shape and dtype."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None:
        return 0
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return 8 * aval.size  # a key
    return aval.size * dtype.itemsize


def input_values(jaxpr: Jaxpr) -> dict[Any, Value]:
    """The constants and arguments of a jaxpr, by variable."""
    return {v: Value(v.aval) for v in [*jaxpr.constvars, *jaxpr.invars]}


def operations_of(jaxpr: Jaxpr, values: dict[Any, Value]) -> tuple[list[Operation], list[Value]]:
    """The operations that results depend on, calls inlined, and the results."""
    operations: list[Operation] = []
    found = [v for v in _flatten(jaxpr, values, operations) if v is not None]
    wanted, kept = set(found), []
    for operation in reversed(operations):
        if any(v in wanted for v in operation.results):
            kept.append(operation)
            wanted.update(operation.inputs)
    return kept[::-1], found


def _flatten(
    jaxpr: Jaxpr, values: dict[Any, Value], operations: list[Operation]
) -> list[Value | None]:
    def look_up(atoms):
        return [None if isinstance(atom, Literal) else values[atom] for atom in atoms]

    for equation in jaxpr.eqns:
        operands = look_up(equation.invars)
        name = equation.primitive.name
        if name in _CALLS:
            body = next(iter(jaxprs_in_params(equation.params)))
            own = input_values(body)
            given = zip(body.invars, operands, strict=True)
            own |= {var: operand for var, operand in given if operand is not None}
            results = _flatten(body, own, operations)
            for var, result in zip(equation.outvars, results, strict=True):
                values[var] = Value(var.aval) if result is None else result
            continue
        results = [Value(var.aval) for var in equation.outvars]
        values.update(zip(equation.outvars, results, strict=True))
        operations.append(Operation(name, equation.params, operands, results))
    return look_up(jaxpr.outvars)


def virtual_values(operations: list[Operation], results: set[Value]) -> dict[Value, list[Value]]:
    """Values that are never written, with those that they are computed from on the fly."""
    unfused = {v for o in operations if o.name not in _FUSES_OPERANDS for v in o.inputs}
    unfused |= results | _copied(operations)
    return {
        v: o.inputs
        for o in operations
        for v in o.results
        if o.name in _VIEWS or (o.name in FUSED and v not in unfused)
    }


def _copied(operations: list[Operation]) -> set[Value]:
    """Slices of a buffer that its own update in place is computed from."""
    makers = {v: o for o in operations if o.name in FUSED for v in o.results}
    copied = set()
    for operation in operations:
        if operation.name != "dynamic_update_slice":
            continue
        buffer, *update = operation.operands[:2]
        stack = [v for v in update if v is not None]
        seen = set(stack)
        while stack:
            maker = makers.get(stack.pop())
            if maker is None:
                continue
            if maker.name == "dynamic_slice" and maker.operands[0] is buffer:
                copied.update(maker.results)
            new = set(maker.inputs) - seen
            seen |= new
            stack.extend(new)
    return copied


def roots(values: Sequence[Value], virtual: dict[Value, list[Value]]) -> set[Value]:
    """The written values that others are computed from."""
    stack, seen, found = list(values), set(values), set()
    while stack:
        value = stack.pop()
        if value not in virtual:
            found.add(value)
            continue
        new = set(virtual[value]) - seen
        seen |= new
        stack.extend(new)
    return found
