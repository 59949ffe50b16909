"""Perturbations: the mixture that weights are trained against is not quite alpha's.

Each is `(key, choice f32[R, K], mask, progress, loss_fn) -> choice`, where `loss_fn(choice)` is the
loss of the training batch. The result is a mixture again: clipped at 0, and divided by its sum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number

Perturbation = Callable[..., Array]


def uniform_noise(radius: float | Array) -> Perturbation:
    """Noise from U(-r, r) on every weight, where r rises linearly to `radius`.

    Args:
      radius: at the end of the search, at least 0.
    """
    check_number("radius", radius)

    def perturb(key, choice, mask, progress, loss_fn):
        del loss_fn
        noise = jax.random.uniform(key, choice.shape, minval=-1.0, maxval=1.0)
        return _mixture(choice + radius * progress * noise, mask)

    return perturb


def adversarial(radius: float | Array, *, num_ascents: int = 7) -> Perturbation:
    """The worst one inside [-r, r], by projected ascent from a random start.

    Args:
      radius: r at the end of the search, to which it rises linearly, at least 0.
      num_ascents: steps, each r / 4 in the direction of the gradient's sign. Static.
    """
    check_number("radius", radius)
    check_count("num_ascents", num_ascents)

    def perturb(key, choice, mask, progress, loss_fn: Callable[[Array], Any]):
        now = radius * progress
        start = now * jax.random.uniform(key, choice.shape, minval=-1.0, maxval=1.0)

        def body(offset, _):
            slope = jax.grad(lambda offset: loss_fn(_mixture(choice + offset, mask)))(offset)
            return jnp.clip(offset + 0.25 * now * jnp.sign(slope), -now, now), None

        offset, _ = jax.lax.scan(body, start, length=num_ascents)
        return _mixture(choice + offset, mask)

    return perturb


def _mixture(weights: Array, mask: Array) -> Array:
    positive = jnp.where(mask, jnp.maximum(weights, 0.0), 0.0)
    total = jnp.sum(positive, axis=-1, keepdims=True)
    even = mask / jnp.sum(mask, axis=-1, keepdims=True)
    return jnp.where(total > 0.0, positive / jnp.where(total > 0.0, total, 1.0), even)
