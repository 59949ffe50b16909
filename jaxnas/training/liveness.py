"""Peak memory of a jaxpr, from when its values are written to when they are last read.

This is what a compiler's buffer assignment finds, without compiling; XLA's figure for the same
program is `compiled.memory_analysis()`. What the two have in common:

- elementwise operations are fused into what reads them, so their results take no memory;
- an elementwise result takes the place of an operand that nobody reads any more;
- what an update in place is computed from, if it is a slice of the same buffer, is copied first;
- the state of a loop stays where it is, and a conditional's branches use the same memory;
- what frees memory is done as soon as its operands are there, an optimiser's update for example.
"""

from collections.abc import Callable, Sequence
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
_FUSED = frozenset(_FUSED_NAMES.split())
_FUSES_OPERANDS = _FUSED | {"reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin"}
_IN_PLACE = _FUSED | {"dynamic_update_slice", "scatter", "scatter_add", "add_to_node"}
_CALLS = frozenset(_CALL_NAMES.split())
# Same memory, another shape.
_VIEWS = frozenset(["copy", "copy_p", "expand_dims", "optimization_barrier", "reshape", "squeeze"])
_SMALL = 4096  # bytes that no schedule cares about


class _Value:
    """One array; compared by identity."""

    __slots__ = ("size",)

    def __init__(self, aval: Any):
        self.size = num_bytes(aval)


class _Operation(NamedTuple):
    name: str
    params: dict[str, Any]
    operands: list[_Value | None]  # None for literals
    results: list[_Value]

    @property
    def inputs(self) -> list[_Value]:
        return [v for v in self.operands if v is not None]


class _Step(NamedTuple):
    """An operation that writes memory, and the written values that it reads."""

    operation: _Operation
    reads: set[_Value]
    writes: list[_Value]


def peak_bytes(jaxpr: Jaxpr) -> int:
    """Most bytes alive at once while a jaxpr runs: results count, its own inputs do not.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
      >>> peak_bytes(jax.make_jaxpr(lambda x: (jnp.sin(x) @ x + 1.0) @ x)(x).jaxpr)
      512
    """
    return _peak(jaxpr, _inputs(jaxpr), frozenset())


def operation_names(jaxpr: Jaxpr) -> list[str]:
    """Primitives in a jaxpr, those of loops and branches once: what a compiler has to read.

    Example:
      >>> repeated = lambda x: jax.lax.scan(lambda x, _: (-x, None), x, length=2)[0]
      >>> operation_names(jax.make_jaxpr(repeated)(1.0).jaxpr)
      ['scan', 'neg']
    """
    operations, _ = _operations(jaxpr, _inputs(jaxpr))
    inner = [body for o in operations for body in jaxprs_in_params(o.params)]
    return [o.name for o in operations] + [n for body in inner for n in operation_names(body)]


def inner_jaxpr(jaxpr: Jaxpr, name: str) -> Jaxpr:
    """The body of the first call of primitive `name`, for example of a `shard_map`.

    Raises:
      ValueError: if there is none.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            return next(iter(jaxprs_in_params(equation.params)))
    raise ValueError(f"no {name} in {[e.primitive.name for e in jaxpr.eqns]}")


def num_bytes(aval: Any) -> int:
    """Bytes of an array of a shape and dtype."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None:
        return 0
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return 8 * aval.size  # a key
    return aval.size * dtype.itemsize


def _total(values) -> int:
    return sum(v.size for v in values)


def _inputs(jaxpr: Jaxpr) -> dict[Any, _Value]:
    return {v: _Value(v.aval) for v in [*jaxpr.constvars, *jaxpr.invars]}


# --- from equations to steps ---


def _operations(jaxpr: Jaxpr, values: dict[Any, _Value]) -> tuple[list[_Operation], list[_Value]]:
    """The operations that results depend on, calls inlined, and the results."""
    operations: list[_Operation] = []
    found = [v for v in _flatten(jaxpr, values, operations) if v is not None]
    wanted, kept = set(found), []
    for operation in reversed(operations):
        if any(v in wanted for v in operation.results):
            kept.append(operation)
            wanted.update(operation.inputs)
    return kept[::-1], found


def _flatten(
    jaxpr: Jaxpr, values: dict[Any, _Value], operations: list[_Operation]
) -> list[_Value | None]:
    def look_up(atoms):
        return [None if isinstance(atom, Literal) else values[atom] for atom in atoms]

    for equation in jaxpr.eqns:
        operands = look_up(equation.invars)
        name = equation.primitive.name
        if name in _CALLS:
            body = next(iter(jaxprs_in_params(equation.params)))
            own = _inputs(body)
            given = zip(body.invars, operands, strict=True)
            own |= {var: operand for var, operand in given if operand is not None}
            results = _flatten(body, own, operations)
            for var, result in zip(equation.outvars, results, strict=True):
                values[var] = _Value(var.aval) if result is None else result
            continue
        results = [_Value(var.aval) for var in equation.outvars]
        values.update(zip(equation.outvars, results, strict=True))
        operations.append(_Operation(name, equation.params, operands, results))
    return look_up(jaxpr.outvars)


def _virtual(operations: list[_Operation], results: set[_Value]) -> dict[_Value, list[_Value]]:
    """Values that are never written, with those that they are computed from on the fly."""
    unfused = {v for o in operations if o.name not in _FUSES_OPERANDS for v in o.inputs}
    unfused |= results | _copied(operations)
    return {
        v: o.inputs
        for o in operations
        for v in o.results
        if o.name in _VIEWS or (o.name in _FUSED and v not in unfused)
    }


def _copied(operations: list[_Operation]) -> set[_Value]:
    """Slices of a buffer that its own update in place is computed from."""
    makers = {v: o for o in operations if o.name in _FUSED for v in o.results}
    copied = set()
    for operation in operations:
        if operation.name != "dynamic_update_slice":
            continue
        buffer, update = operation.operands[:2]
        stack, seen = [update], {update}
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


def _roots(values: Sequence[_Value], virtual: dict[_Value, list[_Value]]) -> set[_Value]:
    """The written values that others are computed from."""
    stack, seen, roots = list(values), set(values), set()
    while stack:
        value = stack.pop()
        if value not in virtual:
            roots.add(value)
            continue
        new = set(virtual[value]) - seen
        seen |= new
        stack.extend(new)
    return roots


# --- running the steps ---


class _Schedule:
    """Steps in order, and what is in memory while they run.

    Attributes:
      peak: most bytes so far.
    """

    def __init__(self, steps: list[_Step], owned: frozenset[_Value], kept: set[_Value]):
        self._waiting = dict(enumerate(steps))
        self._missing = {v for step in steps for v in step.writes}
        self._kept = kept
        self._readers: dict[_Value, set[int]] = {}
        for index, step in enumerate(steps):
            for v in step.reads:
                self._readers.setdefault(v, set()).add(index)
        self.peak = _total(owned)
        self._live = {v for v in owned if v in self._readers or v in kept}
        self._size = _total(self._live)

    def run(self) -> None:
        """Runs all steps: indices and rates first, which what frees memory may wait for."""
        for only_small in (True, False):
            for index in list(self._waiting):
                step = self._waiting.get(index)
                if step is None:
                    continue
                small = _total(step.writes) < _SMALL and not step.reads & self._missing
                if small or not only_small:
                    self._run(index)

    def _run(self, index: int) -> None:
        queue = [index]
        while queue:
            index = queue.pop()
            step = self._waiting.pop(index, None)
            if step is None:
                continue
            self._execute(index, step)
            touched = [v for v in step.reads if len(self._readers[v]) == 1]
            for v in [*step.writes, *touched]:
                queue.extend(i for i in self._readers.get(v, ()) if self._frees(i))

    def _frees(self, index: int) -> bool:
        step = self._waiting.get(index)
        if step is None or step.reads & self._missing:
            return False
        return _total(step.writes) < _total(self._dying(step)) + _SMALL

    def _dying(self, step: _Step) -> set[_Value]:
        """Values that nobody reads after `step`."""
        last = {v for v in step.reads if len(self._readers[v]) == 1}
        return (last & self._live) - self._kept

    def _execute(self, index: int, step: _Step) -> None:
        dying = self._dying(step)
        freed, needed = _charge(step, dying)
        self.peak = max(self.peak, self._size - freed + needed)
        unread = {v for v in step.writes if v not in self._readers and v not in self._kept}
        self._live.update(step.writes)
        self._live -= dying | unread
        self._size += _total(step.writes) - _total(dying) - _total(unread)
        self._missing.difference_update(step.writes)
        for v in step.reads:
            self._readers[v].discard(index)


def _peak(jaxpr: Jaxpr, values: dict[Any, _Value], owned: frozenset[_Value]) -> int:
    """`owned` are inputs whose memory may be used again; they count."""
    operations, results = _operations(jaxpr, values)
    virtual = _virtual(operations, set(results))
    steps = []
    for operation in operations:
        writes = [v for v in operation.results if v not in virtual]
        if writes:
            steps.append(_Step(operation, _roots(operation.inputs, virtual), writes))
    schedule = _Schedule(steps, owned, _roots(results, virtual))
    schedule.run()
    return schedule.peak


def _charge(step: _Step, dying: set[_Value]) -> tuple[int, int]:
    """Bytes free before results are written, and bytes of the results and what they need."""
    operation, size = step.operation, _total(step.writes)
    if operation.name in _CHARGES:
        return _CHARGES[operation.name](operation, dying, size)
    if operation.name in _IN_PLACE:
        return sum(min(v.size, size) for v in dying), size
    if operation.name.startswith("average_pool"):
        return 0, 2 * size  # rows, then columns
    return 0, size


def _charge_conditional(operation: _Operation, dying: set[_Value], size: int) -> tuple[int, int]:
    inner = 0
    for body in jaxprs_in_params(operation.params):
        own = _inputs(body)
        given = zip(body.invars, operation.operands[1:], strict=True)
        owned = frozenset(own[var] for var, operand in given if operand in dying)
        inner = max(inner, _peak(body, own, owned))
    return _total(dying), max(size, inner)


def _charge_loop(
    operation: _Operation, dying: set[_Value], size: int, body: Jaxpr, first: int, state: int
) -> tuple[int, int]:
    """`first` operands of the body are constants, then comes the state, then slices."""
    own = _inputs(body)
    inner = _peak(body, own, frozenset(own[var] for var in body.invars[first:]))
    stacked = _total(operation.results[state:])
    # Initial values that nobody reads any more become the state.
    free = [own[var].size for var in body.invars[first : first + state]]
    freed = 0
    for v in dying:
        if v.size in free:
            free.remove(v.size)
            freed += v.size
    return freed, max(size, stacked + inner)


def _charge_while(operation: _Operation, dying: set[_Value], size: int) -> tuple[int, int]:
    body, first = operation.params["body_jaxpr"].jaxpr, operation.params["body_nconsts"]
    return _charge_loop(operation, dying, size, body, first, len(operation.results))


def _charge_scan(operation: _Operation, dying: set[_Value], size: int) -> tuple[int, int]:
    params = operation.params
    body = params["jaxpr"].jaxpr
    return _charge_loop(operation, dying, size, body, params["num_consts"], params["num_carry"])


_CHARGES: dict[str, Callable[[_Operation, set[_Value], int], tuple[int, int]]] = {
    "cond": _charge_conditional,
    "while": _charge_while,
    "scan": _charge_scan,
}
