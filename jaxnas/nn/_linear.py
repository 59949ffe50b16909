"""Linear operations with a hand-written transpose that every transformation can pass through.

`jax.custom_vjp` forbids forward mode, and `jax.custom_derivatives.linear_call` forbids derivatives
with respect to its residuals and batching. A JAX primitive has neither limit: it is linear, so its
tangent is itself; its transpose is another primitive whose transpose is the first; the derivative
with respect to the residuals is that of its plain implementation.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Static = tuple[tuple[str, Any], ...]  # keyword arguments, hashable
Apply = Callable[..., tuple[Array, ...]]  # (residuals, operands, **static) -> results


def is_zero(tangent: Any) -> bool:
    """Whether a tangent inside a primitive's rule is symbolically zero."""
    return type(tangent) is ad.Zero


def define(
    name: str, fun: Callable[..., Any], shape_fn: Callable[..., Any], *, multiple: bool = False
) -> Primitive:
    """A primitive that runs `fun(*arrays, **params)`; the caller adds the derivatives.

    Args:
      name: how it is shown in a jaxpr.
      fun: traceable by JAX.
      shape_fn: `(*avals, **params)` to the `ShapedArray`s of the results.
      multiple: whether it returns a sequence.
    """
    primitive = Primitive(name)
    primitive.multiple_results = multiple
    primitive.def_abstract_eval(shape_fn)

    @cache
    def compiled(static: Static):
        return jax.jit(lambda *arrays: primitive.bind(*arrays, **dict(static)))

    # What runs outside jit; in jit, the lowering below is inlined.
    primitive.def_impl(lambda *arrays, **params: compiled(tuple(params.items()))(*arrays))
    mlir.register_lowering(primitive, mlir.lower_fun(fun, multiple_results=multiple))
    return primitive


def linear_op(name: str, apply: Apply, transpose: Apply) -> Apply:
    """An operation that is linear in its operands, given its residuals.

    Args:
      name: how it is shown in a jaxpr.
      apply: `(residuals, operands, **static)` to a tuple of results; linear in `operands`.
      transpose: `(residuals, cotangents, **static)` to a tuple like `operands`; the transpose of
        `apply`, and linear in `cotangents`.

    Returns:
      A function called like `apply`. Static arguments must be hashable.
    """
    forward = _half(name, apply)
    backward = _half(f"{name}_transpose", transpose)
    _set_transpose(forward, backward)
    _set_transpose(backward, forward)

    def call(residuals: Sequence[Array], operands: Sequence[Array], **static: Any):
        keywords = tuple(sorted(static.items()))
        return tuple(
            forward.bind(*residuals, *operands, num_residuals=len(residuals), static=keywords)
        )

    return call


def _half(name: str, apply: Apply) -> Primitive:
    def fun(*arrays: Array, num_residuals: int, static: Static):
        return apply(arrays[:num_residuals], arrays[num_residuals:], **dict(static))

    @lru_cache(maxsize=4096)
    def shapes(kinds, params):
        inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds]
        results = jax.eval_shape(lambda *arrays: fun(*arrays, **dict(params)), *inputs)
        return [jax.core.ShapedArray(result.shape, result.dtype) for result in results]

    def shape_fn(*avals, **params):
        return shapes(tuple((a.shape, a.dtype) for a in avals), tuple(params.items()))

    primitive = define(name, fun, shape_fn, multiple=True)

    def jvp(primals, tangents, **params):
        count = params["num_residuals"]
        results = primitive.bind(*primals, **params)
        parts = []
        if not all(map(is_zero, tangents[count:])):
            operands = [ad.instantiate_zeros(t) for t in tangents[count:]]
            parts.append(primitive.bind(*primals[:count], *operands, **params))
        moving = [i for i in range(count) if not is_zero(tangents[i])]
        if moving:

            def vary(*values):
                arrays = list(primals)
                for i, value in zip(moving, values, strict=True):
                    arrays[i] = value
                return tuple(fun(*arrays, **params))

            inputs, moved = [primals[i] for i in moving], [tangents[i] for i in moving]
            parts.append(jax.jvp(vary, inputs, moved)[1])
        return results, [sum(part[1:], part[0]) for part in zip(*parts, strict=True)]

    def batch(arrays, axes, **params):
        # The plain implementation, batched: correct under every further transformation.
        axes = [axis if isinstance(axis, int) else None for axis in axes]
        results = jax.vmap(lambda *values: fun(*values, **params), axes)(*arrays)
        return results, [0] * len(results)

    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch
    return primitive


def _set_transpose(primitive: Primitive, other: Primitive) -> None:
    def rule(cotangents, *arrays, num_residuals, static):
        cotangents = [ad.instantiate_zeros(c) for c in cotangents]
        results = other.bind(
            *arrays[:num_residuals], *cotangents, num_residuals=num_residuals, static=static
        )
        # An operand whose tangent was zero is a known array here and gets no cotangent.
        return [None] * num_residuals + [
            result if ad.is_undefined_primal(operand) else None
            for result, operand in zip(results, arrays[num_residuals:], strict=True)
        ]

    ad.primitive_transposes[primitive] = rule
