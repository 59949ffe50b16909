"""One of several functions, chosen by data, with the derivative of the chosen one alone.

Autodiff of `lax.switch` makes the residuals of every branch outputs of the forward conditional,
zero-filled for the branches not taken, so an identity pays for its sibling convolutions. Here both
passes are a conditional of their own, and what the first hands to the second is small:

- operands and outputs that a pullback reads are kept once, outside the conditional;
- residuals that follow from kept values by elementwise arithmetic or by moving data (a rectifier's
  output, its mask, a normalised activation) are computed again where they are needed;
- what is left goes into slots shared by all branches: a branch fills its own and leaves zeros in
  the rest, so there are as many slots of a shape as the neediest branch has residuals of it.

Both passes are ordinary conditionals, so derivatives of higher order are JAX's own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial

from jaxnas.nn._branches import RESIDUALS as RESIDUALS
from jaxnas.nn._branches import (
    Flat,
    check_residuals,
    lift_tracers,
    moves,
    places,
    trace,
    union,
    zero_cotangent,
    zeros,
)
from jaxnas.nn._residuals import Derivative, derivative


def route(
    branches: Sequence[Callable[..., Any]], index: Array, *operands: Any, residuals: str = "auto"
) -> Any:
    """Runs `branches[index](*operands)`, that branch alone, forward and backward.

    Differentiable in reverse mode with respect to floating-point operands and to traced arrays that
    branches close over, and its gradient again in either mode; `jax.jvp` of the function itself is
    refused. Custom derivatives inside branches are respected. `jax.vmap` over operands keeps a
    conditional; over `index` it computes all branches and selects. `jax.shard_map` around it needs
    `check_vma=False`.

    Args:
      branches: pure functions of the operands, with equal structure, shapes and dtypes of results.
        Static.
      index: i32[], clipped to the branches there are.
      *operands: pytrees of arrays. An operand that a branch does not read gets a zero gradient.
      residuals: what the forward pass keeps. "union": shared slots as above. "recompute": operands
        only; the backward pass runs the chosen branch again. "auto": slots, except that branches
        that would fill more bytes than four times those of operands and results are run again.
        Static.

    Returns:
      What the branch returns.

    Raises:
      ValueError: for no branches, unequal results, or another `residuals`.

    Example:
      >>> double, square = (lambda x: 2.0 * x), (lambda x: x * x)
      >>> jax.value_and_grad(lambda x: route([double, square], 1, x))(jnp.float32(3.0))
      (Array(9., dtype=float32), Array(6., dtype=float32))
    """
    if not branches:
        raise ValueError("branches must hold at least one function, got none")
    check_residuals(residuals)
    if len(branches) == 1:
        return branches[0](*operands)
    leaves, tree = jax.tree.flatten(operands)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    traced = [trace(branch, tree, leaves) for branch in branches]
    _check_equal([shape for _, shape in traced])
    bodies, captured = lift_tracers([closed for closed, _ in traced], len(leaves))
    results = _switch(bodies, residuals, jnp.asarray(index), leaves + captured)
    return jax.tree.unflatten(jax.tree.structure(traced[0][1]), results)


def _check_equal(shapes: list[Any]) -> None:
    def describe(shape):
        kinds = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shape)]
        return jax.tree.structure(shape), kinds

    for position, shape in enumerate(shapes[1:], 1):
        if describe(shape) != describe(shapes[0]):
            raise ValueError(
                f"branches must return equal structures, shapes and dtypes, got {shapes[0]} from "
                f"branches[0] and {shape} from branches[{position}]"
            )


def _switch(bodies: Sequence[Flat], residuals: str, index: Array, arrays: list[Array]) -> Any:
    """`bodies[index](*arrays)` with the derivative described above."""

    @jax.custom_vjp
    def routed(index, *arrays):
        return lax.switch(index, bodies, *arrays)

    def forward(index, *arrays):
        # A gradient is only asked for where an operand depends on what is differentiated.
        moving = tuple(k for k, array in enumerate(arrays) if moves(array))
        values = [array.value for array in arrays]
        if not moving:
            return lax.switch(index.value, bodies, *values), None
        plan = _Plan(bodies, residuals, moving, values)
        results = lax.switch(index.value, plan.forwards, *values)
        return plan.keep(index.value, values, results)

    def backward(kept, cotangents):
        if kept is None:
            return (None,) * (1 + len(arrays))
        return (None, *kept(cotangents))

    routed.defvjp(forward, backward, symbolic_zeros=True)
    return routed(index, *arrays)


class _Plan:
    """How the two passes of a routed operation share the work; everything here is static.

    Attributes:
      forwards: per branch, arrays to its results followed by all slots.
      slots: kinds of the arrays that branches share, besides operands and results.
    """

    def __init__(self, bodies, residuals, moving, arrays):
        kinds = [jax.typeof(array) for array in arrays]
        self._derivatives = [derivative(body, moving, kinds, residuals) for body in bodies]
        first = self._derivatives[0]
        self._num_arrays = len(arrays)
        self._results = first.results
        self.slots = union([d.saved for d in self._derivatives])
        self._operands = sorted(set().union(*(d.operands for d in self._derivatives)))
        self._outputs = sorted(set().union(*(d.outputs for d in self._derivatives)))
        # The position among the moving operands, and among all, of those with a gradient.
        used = set().union(*(d.used for d in self._derivatives))
        self._graded = [(m, k) for m, k in enumerate(moving) if k in used]
        self.forwards = [self._forward(d) for d in self._derivatives]

    def keep(self, index: Array, arrays: Sequence[Array], results: Sequence[Array]) -> Any:
        """The results of the branch, and the backward pass with what it needs."""
        outs, slots = results[: len(self._results)], results[len(self._results) :]
        kept = [arrays[k] for k in self._operands] + [outs[j] for j in self._outputs]
        return outs, Partial(self._pull, index, *kept, *slots)

    def _pull(self, index, *arguments):
        """`(index, *kept, *slots, cotangents)` to one gradient or None per operand."""
        *kept, cotangents = arguments
        live = tuple(
            j
            for j, (kind, cotangent) in enumerate(zip(self._results, cotangents, strict=True))
            if jnp.issubdtype(kind.dtype, jnp.inexact)
            and not isinstance(cotangent, jax.custom_derivatives.SymbolicZero)
        )
        backwards = [self._backward(d, live) for d in self._derivatives]
        found = lax.switch(index, backwards, *kept, *(cotangents[j] for j in live))
        gradients: list[Array | None] = [None] * self._num_arrays
        for (_, k), gradient in zip(self._graded, found, strict=True):
            gradients[k] = gradient
        return gradients

    def _forward(self, own: Derivative) -> Flat:
        own_slots = places(own.saved, self.slots)

        def run(*arrays):
            found = own.forward(*arrays)
            outs, saved = found[: len(self._results)], found[len(self._results) :]
            filled = dict(zip(own_slots, saved, strict=True))
            slots = [filled[s] if s in filled else zeros(k) for s, k in enumerate(self.slots)]
            return (*outs, *slots)

        return run

    def _backward(self, own: Derivative, live: tuple[int, ...]) -> Flat:
        own_slots = places(own.saved, self.slots)

        def run(*arrays):
            rest = iter(arrays)
            operands = {k: next(rest) for k in self._operands}
            outputs = {j: next(rest) for j in self._outputs}
            slots = [next(rest) for _ in self.slots]
            given = {j: next(rest) for j in live}
            cotangents = [
                given[j] if j in given else zero_cotangent(kind)
                for j, kind in enumerate(self._results)
            ]
            found = own.backward(operands, outputs, [slots[s] for s in own_slots], cotangents)
            return tuple(found[m] for m, _ in self._graded)

        return run
