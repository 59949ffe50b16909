"""Early stops: when architecture parameters are final, and which ones."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxnas._checks import check_count, check_number
from jaxnas.oneshot.parts import EarlyStop
from jaxnas.types import PyTree


class _Watch(NamedTuple):
    """What has been seen of the curvature; T measurements at most."""

    values: Array  # f32[T], magnitudes of dominant eigenvalues
    kept: Array  # f32[T, R, K], strengths at those times
    count: Array  # i32[], measurements made
    stopped: Array  # bool[]
    final: Array  # f32[R, K], strengths that stand once stopped


def curvature(
    *,
    num_steps: int,
    period: int,
    begin: float | Array,
    window: int = 5,
    lookback: int = 4,
    ratio: float | Array = 1.3,
    num_iterations: int = 8,
) -> EarlyStop:
    """Stops when the upper loss bends more and more in alpha.

    The largest magnitude of its second derivative's eigenvalues is measured again and again; where
    the mean of the last `window` exceeds `ratio` times what that mean was `lookback` measurements
    before, the strengths of that earlier time are final.

    Args:
      num_steps: updates of the search. Static.
      period: updates between measurements. Static.
      begin: share of the updates before which it goes on in any case.
      window: measurements that are averaged. Static.
      lookback: measurements between the two that are compared. Static.
      ratio: above 0.
      num_iterations: of the power method. Static.

    Returns:
      An `EarlyStop` that reports `eigenvalue`, the last mean, NaN before the first.

    Raises:
      ValueError: for a number out of range.
    """
    sizes = {"period": period, "window": window, "lookback": lookback}
    for name, size in {**sizes, "num_iterations": num_iterations}.items():
        check_count(name, size)
    check_number("ratio", ratio)
    capacity = max(1, num_steps // period)

    def smoothed(watch: _Watch, last: Array) -> Array:
        """Mean of the `window` measurements up to number `last`."""
        index = jnp.arange(capacity)
        inside = (index <= last) & (index > last - window)
        return jnp.sum(jnp.where(inside, watch.values, 0.0)) / jnp.sum(inside)

    def measure(key, step, watch: _Watch, alpha, strengths, upper_fn) -> _Watch:
        value = dominant_eigenvalue(key, upper_fn, alpha, num_iterations=num_iterations)
        last = jnp.minimum(watch.count, capacity - 1)
        watch = watch._replace(
            values=watch.values.at[last].set(jnp.abs(value)),
            kept=watch.kept.at[last].set(strengths),
            count=last + 1,
        )
        before = jnp.maximum(last - lookback, 0)
        bent = smoothed(watch, last) > ratio * smoothed(watch, before)
        stopped = bent & (last >= lookback) & (step >= begin * num_steps)
        return watch._replace(stopped=stopped, final=watch.kept[before])

    def init(strengths: Array) -> _Watch:
        kept = jnp.zeros((capacity, *strengths.shape))
        zero = jnp.zeros(capacity)
        return _Watch(zero, kept, jnp.int32(0), jnp.asarray(False), jnp.zeros_like(strengths))

    def update(key, step, watch: _Watch, alpha, strengths, upper_fn):
        due = ((step + 1) % period == 0) & ~watch.stopped
        watch = jax.lax.cond(
            due,
            lambda watch: measure(key, step, watch, alpha, strengths, upper_fn),
            lambda watch: watch,
            watch,
        )
        mean = jnp.where(watch.count > 0, smoothed(watch, watch.count - 1), jnp.nan)
        standing = jnp.where(watch.stopped, watch.final, strengths)
        return watch, standing, {"eigenvalue": mean}

    return EarlyStop(init, lambda watch: watch.stopped, update)


def dominant_eigenvalue(
    key: Array, fn: Callable[[PyTree], Array], at: PyTree, *, num_iterations: int = 8
) -> Array:
    """The eigenvalue of largest magnitude of a function's second derivative, by the power method.

    Args:
      key: of the first direction.
      fn: `x -> f32[]`, twice differentiable.
      at: where.
      num_iterations: products with the second derivative, each about four evaluations. Static.

    Returns:
      f32[], the Rayleigh quotient of the last direction.

    Example:
      >>> fn = lambda x: x[0] ** 2 - 3.0 * x[1] ** 2
      >>> float(dominant_eigenvalue(jax.random.key(0), fn, jnp.ones(2), num_iterations=20))
      -6.0
    """
    flat, unravel = ravel_pytree(at)
    slope = jax.grad(lambda x: fn(unravel(x)))

    def normed(v: Array) -> Array:
        return v / jnp.maximum(jnp.linalg.norm(v), 1e-20)

    def body(carry, _):
        v, _ = carry
        product = jax.jvp(slope, (flat,), (v,))[1]
        return (normed(product), jnp.vdot(v, product)), None

    start = normed(jax.random.normal(key, flat.shape))
    (_, value), _ = jax.lax.scan(body, (start, jnp.float32(0.0)), length=num_iterations)
    return value
