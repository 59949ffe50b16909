"""A loop over the edges of a cell whose steps change rows of buffers in place."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

PyTree = Any
Edges = Sequence[tuple[int, int]]  # source and target nodes
Step = Callable[..., PyTree]  # (known, edge, source, target, carry) -> carry


def scan_edges(
    steps: Sequence[Step],
    edges: Edges,
    choice: Array,
    known: PyTree,
    carry: PyTree,
    *,
    reverse: bool = False,
) -> PyTree:
    """The carry after the chosen step of every edge.

    Args:
      steps: to choose from.
      edges: E of them.
      choice: i32[E], positions in `steps`.
      known: what steps read; none of it changes.
      carry: what they change.
      reverse: whether the last edge comes first.
    """
    sources, targets = jnp.asarray(edges, jnp.int32).T

    def placed(step: Step):
        def run(known, edge, carry):
            places, known = known
            return step(known, edge, *(row(place, edge) for place in places), carry)

        return run

    def body(carry, own):
        edge, op = own
        for k, step in enumerate(steps):
            carry = _run_if(op == k, placed(step), ((sources, targets), known), edge, carry)
        return carry, None

    return lax.scan(body, carry, (jnp.arange(len(edges)), choice), reverse=reverse)[0]


def _run_if(chosen: Array, step: Callable[..., PyTree], known: PyTree, edge: Array, carry: PyTree):
    """`step(known, edge, carry)` if `chosen`, else the carry.

    XLA updates the state of a loop in place, where it would copy that of a conditional: hence a
    loop of one turn or none. All that it reads depends on its counter, or XLA would compute what
    does not even if there is no turn. Its derivatives are the conditional's.
    """

    @jax.custom_jvp
    def run(known, first, last, carry):
        turn = lambda state: (state[0] + 1, step(known, *state))  # noqa: E731
        return lax.while_loop(lambda state: state[0] < last, turn, (first, carry))[1]

    @run.defjvp
    def run_jvp(primals, tangents):
        def choose(known, first, last, carry):
            keep = lambda known, first, carry: carry  # noqa: E731
            return lax.cond(first < last, step, keep, known, first, carry)

        return jax.jvp(choose, primals, tangents)

    return run(known, edge, edge + chosen, carry)


def row(array: Array, index: Array) -> Array:
    """Element `index` i32[] along the first axis."""
    return lax.dynamic_index_in_dim(array, index, keepdims=False)


def put(array: Array, index: Array, value: Array) -> Array:
    """The array with `value` as that element."""
    return lax.dynamic_update_index_in_dim(array, value, index, 0)
