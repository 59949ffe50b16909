"""The volume of objective space that points dominate above a reference point.

Zitzler & Thiele, "Multiobjective Evolutionary Algorithms: A Comparative Case Study and the Strength
Pareto Approach", IEEE Transactions on Evolutionary Computation 1999,
https://doi.org/10.1109/4235.797969, section III. Exact for one to three objectives: sorted sweeps,
slabs along the third. Beyond, exact algorithms take time exponential in the objectives, and the
volume is estimated from uniform points (Bader & Zitzler, "HypE", Evolutionary Computation 2011,
https://doi.org/10.1162/EVCO_a_00009, section 4).
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count

MAX_EXACT = 3  # objectives


def hypervolume(objectives: Array, reference: Array) -> Array:
    """The volume that points dominate above a reference point, exactly.

    Args:
      objectives: f32[N, M] with M up to 3, all maximised; points that do not exceed the reference
        everywhere, and NaN, add nothing.
      reference: f32[M], a point that is worse than what is worth having.

    Returns:
      f32[].

    Raises:
      ValueError: for shapes that do not fit, or more objectives (see `sampled_hypervolume`).

    Example:
      >>> points = jnp.array([[2.0, 1.0], [1.0, 3.0], [1.0, 1.0]])
      >>> float(hypervolume(points, jnp.zeros(2)))
      4.0
      >>> float(hypervolume(jnp.array([[2.0, 1.0, 1.0], [1.0, 1.0, 3.0]]), jnp.zeros(3)))
      4.0
    """
    above = _above(objectives, reference)
    num_objectives = above.shape[1]
    if num_objectives > MAX_EXACT:
        raise ValueError(
            f"objectives must have at most {MAX_EXACT} columns, got {num_objectives}; "
            "sampled_hypervolume estimates the volume of more"
        )
    if num_objectives == 1:
        return jnp.max(above, initial=0.0)
    above = above[jnp.argsort(-above[:, 0])]
    if num_objectives == 2:
        return _area(above[:, 0], above[:, 1])
    width, height, depth = above.T
    # Between two depths, the cross-section is that of the points which reach the deeper one.
    levels = jnp.sort(depth)
    areas = jax.lax.map(lambda level: _area(width, jnp.where(depth >= level, height, 0.0)), levels)
    return jnp.sum(areas * jnp.diff(levels, prepend=0.0))


def sampled_hypervolume(
    key: Array, objectives: Array, reference: Array, *, num_samples: int = 10_000
) -> Array:
    """An unbiased estimate of the hypervolume from uniform points in the box that holds it.

    Its standard error is `box * sqrt(share * (1 - share) / num_samples)`, where `box` is the volume
    between the reference and the best value of each objective, `share` the dominated part of it.

    Args:
      key: PRNG key.
      objectives: f32[N, M], as in `hypervolume`, for any M.
      reference: f32[M].
      num_samples: uniform points, at least 1. Static.

    Returns:
      f32[].

    Raises:
      ValueError: for shapes that do not fit, or no samples.

    Example:
      >>> cube = 2.0 * jnp.ones((1, 4))
      >>> float(sampled_hypervolume(jax.random.key(0), cube, jnp.zeros(4), num_samples=10))
      16.0
    """
    check_count("num_samples", num_samples)
    above = _above(objectives, reference)
    box = jnp.max(above, axis=0, initial=0.0)

    def hit(key):
        point = jax.random.uniform(key, box.shape) * box
        return jnp.any(jnp.all(above >= point, axis=1) & jnp.any(above > 0, axis=1))

    hits = jax.lax.map(hit, jax.random.split(key, num_samples), batch_size=min(num_samples, 256))
    return jnp.prod(box) * jnp.mean(hits)


def _above(objectives: Array, reference: Array) -> Array:
    """Points relative to the reference, zeros for those that do not exceed it: f32[N, M]."""
    objectives, reference = jnp.asarray(objectives), jnp.asarray(reference)
    if objectives.ndim != 2 or reference.shape != objectives.shape[1:]:
        raise ValueError(
            "objectives must have the shape [points, objectives] and reference [objectives], "
            f"got {objectives.shape} and {reference.shape}"
        )
    above = objectives - reference
    return jnp.where(jnp.all(above > 0, axis=1, keepdims=True), above, 0.0)


def _area(width: Array, height: Array) -> Array:
    """The union of rectangles at one corner, sorted by falling width: f32[]."""
    # From the widest on, each gain in height is as wide as the rectangle that brings it.
    top = jax.lax.cummax(height)
    return jnp.sum(width * jnp.diff(top, prepend=0.0))
