"""Pareto dominance, ranks, crowding, hypervolume and knee, for objectives that are all maximised.

Deb, Pratap, Agarwal & Meyarivan, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II",
IEEE Transactions on Evolutionary Computation 2002, https://doi.org/10.1109/4235.996017: sections
III-A (ranks) and III-B (crowding distance). Deviation: the fronts are peeled off one matrix of
dominances, the same O(M N^2) comparisons without lists. Epsilon dominance after Laumanns, Thiele,
Deb & Zitzler, "Combining Convergence and Diversity in Evolutionary Multiobjective Optimization",
Evolutionary Computation 2002, https://doi.org/10.1162/106365602760234108, definition 3 (additive).

No number may be NaN unless a function says so; minus infinity in every column makes a failure the
worst there is. `hypervolume` has a file of its own.
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
    return beats(objectives, objectives)


def beats(objectives: Array, others: Array) -> Array:
    """Which points of one set dominate which of another.

    Args:
      objectives: f32[N, M].
      others: f32[L, M].

    Returns:
      bool[N, L]; `[i, j]` says that `objectives[i]` dominates `others[j]`.

    Example:
      >>> beats(jnp.array([[2.0, 2.0]]), jnp.array([[1.0, 2.0], [3.0, 0.0]])).tolist()
      [[True, False]]
    """
    one, other = objectives[:, None], others[None]
    return jnp.all(one >= other, axis=-1) & jnp.any(one > other, axis=-1)


def is_efficient(objectives: Array) -> Array:
    """Which points nobody dominates: the Pareto front, copies included.

    Args:
      objectives: f32[N, M]; a point with a NaN is not efficient and dominates nobody.

    Returns:
      bool[N].

    Example:
      >>> is_efficient(jnp.array([[2.0, 2.0], [1.0, 2.0], [jnp.nan, 9.0]])).tolist()
      [True, False, False]
    """
    sound = ~jnp.any(jnp.isnan(objectives), axis=1)
    return sound & ~jnp.any(dominates(objectives), axis=0)


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


def epsilon_indicator(approximation: Array, front: Array) -> Array:
    """The smallest epsilon by which `approximation`, raised, is as good as all of `front`.

    Args:
      approximation: f32[N, M]; a row with a NaN is left out.
      front: f32[L, M].

    Returns:
      f32[], negative where the approximation is better than the front.

    Example:
      >>> float(epsilon_indicator(jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 1.0], [1.5, 2.0]])))
      1.0
    """
    missing = jnp.max(front[None] - approximation[:, None], axis=-1)
    missing = jnp.where(jnp.isnan(missing), jnp.inf, missing)
    return jnp.max(jnp.min(missing, axis=0))


def epsilon_front(objectives: Array, epsilon: float | Array) -> Array:
    """A small part of the Pareto front within `epsilon` of the rest: one point per box of a grid.

    Of the points in one box the one nearest to the box's upper corner stays, the first of equals;
    boxes that another box dominates are left out.

    Args:
      objectives: f32[N, M]; a row with a NaN is left out.
      epsilon: f32[] or f32[M], side of the boxes, above 0.

    Returns:
      bool[N].

    Example:
      >>> epsilon_front(jnp.array([[0.2, 1.9], [0.3, 1.8], [1.5, 0.1]]), 1.0).tolist()
      [False, True, True]
    """
    sound = ~jnp.any(jnp.isnan(objectives), axis=1)
    box = jnp.where(sound[:, None], jnp.floor(objectives / epsilon), -jnp.inf)
    short = jnp.sum(((box + 1.0) * epsilon - objectives) ** 2, axis=1)
    same = jnp.all(box[:, None] == box[None], axis=-1)
    first = jnp.arange(len(short))
    nearer = (short[:, None] < short[None]) | (
        (short[:, None] == short[None]) & (first[:, None] < first[None])
    )
    beaten = dominates(box) | (same & nearer)
    return sound & ~jnp.any(beaten & sound[:, None], axis=0)


def knee_point(objectives: Array) -> Array:
    """The point of the Pareto front that is farthest above the plane through the front's ends.

    Objectives are scaled to the front's range, so units do not matter: with two objectives this is
    the largest distance from the line between the two ends (Das, "On Characterizing the 'Knee' of
    the Pareto Curve", Structural Optimization 1999, https://doi.org/10.1007/BF01195985).

    Args:
      objectives: f32[N, M]; a row with a NaN is left out.

    Returns:
      i32[], the first of equals.

    Example:
      >>> int(knee_point(jnp.array([[0.0, 10.0], [8.0, 9.0], [9.0, 1.0], [10.0, 0.0]])))
      1
    """
    front = is_efficient(objectives) & jnp.all(jnp.isfinite(objectives), axis=1)
    low = jnp.min(jnp.where(front[:, None], objectives, jnp.inf), axis=0)
    high = jnp.max(jnp.where(front[:, None], objectives, -jnp.inf), axis=0)
    scaled = (objectives - low) / jnp.where(high > low, high - low, 1.0)
    return jnp.argmax(jnp.where(front, scaled.sum(axis=1), -jnp.inf)).astype(jnp.int32)
