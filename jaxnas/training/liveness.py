"""Peak memory of a jaxpr, from when its values are written to when they are last read.

This is what a compiler's buffer assignment finds, without compiling; XLA's figure for the same
program is `compiled.memory_analysis()`. What the two have in common:

- elementwise operations are fused into what reads them, so their results take no memory;
- an elementwise result takes the place of an operand that nobody reads any more;
- what an update in place is computed from, if it is a slice of the same buffer, is copied first;
- the state of a loop stays where it is, and a conditional's branches use the same memory;
- what frees memory is done as soon as its operands are there, an optimiser's update for example.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, jaxprs_in_params

from jaxnas.training._dataflow import (
    FUSED,
    Operation,
    Value,
    input_values,
    operations_of,
    roots,
    virtual_values,
)
from jaxnas.training._dataflow import num_bytes as num_bytes

_IN_PLACE = FUSED | {"dynamic_update_slice", "scatter", "scatter_add", "add_to_node"}
_SMALL = 4096  # bytes that no schedule cares about


class _Step(NamedTuple):
    """An operation that writes memory, and the written values that it reads."""

    operation: Operation
    reads: set[Value]
    writes: list[Value]


def peak_bytes(jaxpr: Jaxpr) -> int:
    """Most bytes alive at once while a jaxpr runs: results count, its own inputs do not.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
      >>> peak_bytes(jax.make_jaxpr(lambda x: (jnp.sin(x) @ x + 1.0) @ x)(x).jaxpr)
      512
    """
    return _peak(jaxpr, input_values(jaxpr), frozenset())


def operation_names(jaxpr: Jaxpr) -> list[str]:
    """Primitives in a jaxpr, those of loops and branches once: what a compiler has to read.

    Example:
      >>> import jax
      >>> repeated = lambda x: jax.lax.scan(lambda x, _: (-x, None), x, length=2)[0]
      >>> operation_names(jax.make_jaxpr(repeated)(1.0).jaxpr)
      ['scan', 'neg']
    """
    operations, _ = operations_of(jaxpr, input_values(jaxpr))
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


def _total(values) -> int:
    return sum(v.size for v in values)


class _Schedule:
    """Steps in order, and what is in memory while they run.

    Attributes:
      peak: most bytes so far.
    """

    def __init__(self, steps: list[_Step], owned: frozenset[Value], kept: set[Value]):
        self._waiting = dict(enumerate(steps))
        self._missing = {v for step in steps for v in step.writes}
        self._kept = kept
        self._readers: dict[Value, set[int]] = {}
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

    def _dying(self, step: _Step) -> set[Value]:
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


def _peak(jaxpr: Jaxpr, values: dict[Any, Value], owned: frozenset[Value]) -> int:
    """`owned` are inputs whose memory may be used again; they count."""
    operations, results = operations_of(jaxpr, values)
    virtual = virtual_values(operations, set(results))
    steps = []
    for operation in operations:
        writes = [v for v in operation.results if v not in virtual]
        if writes:
            steps.append(_Step(operation, roots(operation.inputs, virtual), writes))
    schedule = _Schedule(steps, owned, roots(results, virtual))
    schedule.run()
    return schedule.peak


def _charge(step: _Step, dying: set[Value]) -> tuple[int, int]:
    """Bytes free before results are written, and bytes of the results and what they need."""
    operation, size = step.operation, _total(step.writes)
    if operation.name in _CHARGES:
        return _CHARGES[operation.name](operation, dying, size)
    if operation.name in _IN_PLACE:
        return sum(min(v.size, size) for v in dying), size
    if operation.name.startswith("average_pool"):
        return 0, 2 * size  # rows, then columns
    return 0, size


def _charge_conditional(operation: Operation, dying: set[Value], size: int) -> tuple[int, int]:
    inner = 0
    for body in jaxprs_in_params(operation.params):
        own = input_values(body)
        given = zip(body.invars, operation.operands[1:], strict=True)
        owned = frozenset(own[var] for var, operand in given if operand in dying)
        inner = max(inner, _peak(body, own, owned))
    return _total(dying), max(size, inner)


def _charge_loop(
    operation: Operation, dying: set[Value], size: int, body: Jaxpr, first: int, state: int
) -> tuple[int, int]:
    """`first` operands of the body are constants, then comes the state, then slices."""
    own = input_values(body)
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


def _charge_while(operation: Operation, dying: set[Value], size: int) -> tuple[int, int]:
    body, first = operation.params["body_jaxpr"].jaxpr, operation.params["body_nconsts"]
    return _charge_loop(operation, dying, size, body, first, len(operation.results))


def _charge_scan(operation: Operation, dying: set[Value], size: int) -> tuple[int, int]:
    params = operation.params
    body = params["jaxpr"].jaxpr
    return _charge_loop(operation, dying, size, body, params["num_consts"], params["num_carry"])


_CHARGES: dict[str, Callable[[Operation, set[Value], int], tuple[int, int]]] = {
    "cond": _charge_conditional,
    "while": _charge_while,
    "scan": _charge_scan,
}
