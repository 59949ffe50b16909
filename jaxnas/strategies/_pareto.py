"""Pareto dominance, ranks, crowding and hypervolume, for objectives that are all maximised.

Deb, Pratap, Agarwal & Meyarivan, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II",
IEEE Transactions on Evolutionary Computation 2002, https://doi.org/10.1109/4235.996017: sections
III-A (ranks) and III-B (crowding distance). Deviation: the fronts are peeled off one matrix of
dominances, the same O(M N^2) comparisons without lists.

No number may be NaN; minus infinity in every column makes a failure the worst there is.
"""

import jax
import jax.numpy as jnp
from jax import Array


def dominates(objectives: Array) -> Array:
    """Who dominates whom: at least as good everywhere, better somewhere.

    Args:
      objectives: f32[N, M].

    Returns:
      bool[N, N]; `[i, j]` says that i dominates j.

    Example:
      >>> dominates(jnp.array([[2.0, 2.0], [1.0, 2.0], [3.0, 0.0]]))[0].tolist()
      [False, True, False]
    """
    one, other = objectives[:, None], objectives[None]
    return jnp.all(one >= other, axis=-1) & jnp.any(one > other, axis=-1)


def front_ranks(objectives: Array) -> Array:
    """The front of each point: 0 for those that nobody dominates, 1 once these are removed, ...

    Args:
      objectives: f32[N, M].

    Returns:
      i32[N].

    Example:
      >>> front_ranks(jnp.array([[2.0, 2.0], [1.0, 2.0], [3.0, 0.0]])).tolist()
      [0, 1, 0]
    """
    above = dominates(objectives)
    unranked = objectives.shape[0]

    def peel(carry):
        ranks, front = carry
        left = ranks == unranked
        held = jnp.any(above & left[:, None], axis=0)
        return jnp.where(left & ~held, front, ranks), front + 1

    start = jnp.full(unranked, unranked, jnp.int32), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[0] == unranked), peel, start)[0]


def crowding_distance(objectives: Array, ranks: Array) -> Array:
    """How far the neighbours on the same front are; infinite at a front's ends.

    Along each objective the distance between the next better and the next worse point of the front,
    as a share of the front's range, summed over objectives. An objective in which a front does not
    vary, or is not finite, counts nothing inside the front.

    Args:
      objectives: f32[N, M].
      ranks: i32[N], of fronts.

    Returns:
      f32[N].

    Example:
      >>> line = jnp.array([[0.0, 4.0], [1.0, 3.0], [4.0, 0.0]])
      >>> crowding_distance(line, jnp.zeros(3, jnp.int32)).tolist()
      [inf, 2.0, inf]
    """
    size = ranks.shape[0]

    def along(values):
        order = jnp.lexsort((values, ranks))
        value, rank = values[order], ranks[order]
        starts = jnp.concatenate([jnp.ones(1, bool), rank[1:] != rank[:-1]])
        ends = jnp.concatenate([starts[1:], jnp.ones(1, bool)])
        place = jnp.arange(size)
        low = jax.lax.cummax(jnp.where(starts, place, 0))
        high = jax.lax.cummin(jnp.where(ends, place, size), reverse=True)
        extent = value[high] - value[low]
        gap = jnp.roll(value, -1) - jnp.roll(value, 1)
        share = jnp.where((extent > 0) & jnp.isfinite(extent), gap / extent, 0.0)
        return jnp.zeros(size).at[order].set(jnp.where(starts | ends, jnp.inf, share))

    return jax.vmap(along, in_axes=1)(objectives).sum(axis=0)


def hypervolume_2d(objectives: Array, reference: Array) -> Array:
    """The area that points dominate above a reference point, exactly.

    Args:
      objectives: f32[N, 2]; points that do not exceed the reference, and NaN, add nothing.
      reference: f32[2], a point that is worse than what is worth having.

    Returns:
      f32[].

    Example:
      >>> float(hypervolume_2d(jnp.array([[2.0, 1.0], [1.0, 3.0], [1.0, 1.0]]), jnp.zeros(2)))
      4.0
    """
    above = objectives - reference
    above = jnp.where(jnp.all(above > 0, axis=1, keepdims=True), above, 0.0)
    width, height = above[jnp.argsort(-above[:, 0])].T
    # From the widest point on, each gain in height is as wide as the point that brings it.
    top = jax.lax.cummax(height)
    return jnp.sum(width * jnp.diff(top, prepend=0.0))
