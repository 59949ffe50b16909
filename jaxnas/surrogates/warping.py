"""Targets a Gaussian process can model, from fitness as searches find it.

Song et al., "The Vizier Gaussian Process Bandit Algorithm", 2024,
https://arxiv.org/abs/2408.11527, warp the worse half of the values by their ranks and leave the
better half as it is: of architectures that do not train at all only the order matters, while
differences between good ones are what the search is about. Failed candidates rank last.

Deviations: equal values share the middle of their ranks; the result is standardised; failures get
the least value of all others rather than one below it.
"""

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri


def half_rank(values: Array, member: Array) -> Array:
    """Warps, then standardises to mean 0 and variance 1.

    Those at or above the median keep their distances from it, in units of the root of their mean
    square. Those below become the normal quantiles of their ranks.

    Args:
      values: f32[C]; infinite or NaN where a candidate failed.
      member: bool[C], which values count.

    Returns:
      f32[C], zero where not a member; all zero where no member succeeded, or all are equal.

    Example:
      >>> warped = half_rank(jnp.array([0.1, 0.88, 0.9, 0.91, jnp.nan]), jnp.ones(5, bool))
      >>> [round(float(value), 2) for value in warped]
      [-1.04, -0.18, 0.81, 1.46, -1.04]
    """
    good = member & jnp.isfinite(values)
    num_good = jnp.maximum(jnp.sum(good), 1)
    values = jnp.where(good, values, jnp.inf)
    ascending = jnp.sort(values)
    median = 0.5 * (ascending[(num_good - 1) // 2] + ascending[num_good // 2])
    above = values >= median
    gain = jnp.where(good & above, values - median, 0.0)
    scale = jnp.sqrt(jnp.sum(gain**2) / jnp.maximum(jnp.sum(good & above), 1))
    below, tied = values < values[:, None], values == values[:, None]
    rank = jnp.sum(below & good, axis=1) + 0.5 * jnp.sum(tied & good, axis=1)
    quantile = ndtri(jnp.clip(rank / num_good, 1e-6, 0.5))
    warped = jnp.where(above, gain / jnp.maximum(scale, 1e-12), quantile)
    warped = jnp.where(good, warped, jnp.min(jnp.where(good, warped, jnp.inf)))
    return jnp.where(good.any(), _standardised(warped, member), 0.0)


def _standardised(values: Array, member: Array) -> Array:
    num = jnp.maximum(jnp.sum(member), 1)
    centred = jnp.where(member, values - jnp.sum(jnp.where(member, values, 0.0)) / num, 0.0)
    return centred / jnp.sqrt(jnp.maximum(jnp.sum(centred**2) / num, 1e-12))
