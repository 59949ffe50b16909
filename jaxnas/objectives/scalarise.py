"""Several objectives as one number: what a strategy for one objective maximises.

Each function takes natural units and returns a reward to be maximised, elementwise and traceable,
so it serves as fitness, inside the loss of a one-shot method, and under `vmap`.
"""

import jax.numpy as jnp
from jax import Array

Number = float | Array


def weighted_sum(values: Array, weights: Array) -> Array:
    """The weighted sum of objectives that are all maximised.

    It reaches only the convex part of a Pareto front; `tchebycheff` reaches all of it.

    Args:
      values: f32[..., M].
      weights: f32[M].

    Returns:
      f32[...].

    Example:
      >>> float(weighted_sum(jnp.array([0.9, -2.0]), jnp.array([1.0, 0.1])))
      0.699999988079071
    """
    return jnp.sum(jnp.asarray(values) * jnp.asarray(weights), axis=-1)


def tchebycheff(
    values: Array, weights: Array, ideal: Array, *, augmentation: Number = 0.0
) -> Array:
    """Minus the largest weighted shortfall from an ideal point (Bowman 1976; Steuer & Choo 1983).

    Args:
      values: f32[..., M], all maximised.
      weights: f32[M], at least 0.
      ideal: f32[M], as good as the best value of each objective, or better.
      augmentation: share of the summed shortfalls that is added, so that of two points with the
        same largest shortfall the better one wins; 0.01 to 0.05 are usual.

    Returns:
      f32[...], at most 0.

    Example:
      >>> float(tchebycheff(jnp.array([0.5, -2.0]), jnp.array([1.0, 0.1]), jnp.array([1.0, 0.0])))
      -0.5
    """
    short = jnp.asarray(weights) * (jnp.asarray(ideal) - jnp.asarray(values))
    return -(jnp.max(short, axis=-1) + augmentation * jnp.sum(short, axis=-1))


def mnasnet(
    accuracy: Number, cost: Number, target: Number, *, below: Number = -0.07, above: Number = -0.07
) -> Array:
    """MnasNet's reward `accuracy * (cost / target) ** w`.

    Tan et al., "MnasNet: Platform-Aware Neural Architecture Search for Mobile", CVPR 2019,
    https://arxiv.org/abs/1807.11626, equations 2 and 3: `w` is `below` up to the target and `above`
    beyond. The defaults are the paper's soft constraint; `below=0, above=-1` is its hard one.

    Args:
      accuracy: f32[...], above 0.
      cost: f32[...], latency for example, above 0.
      target: of the cost, in the same unit.
      below: exponent up to the target.
      above: exponent beyond it.

    Returns:
      f32[...].

    Example:
      >>> hard = {"below": 0.0, "above": -1.0}
      >>> float(mnasnet(0.75, 40.0, 80.0, **hard)), float(mnasnet(0.75, 160.0, 80.0, **hard))
      (0.75, 0.375)
    """
    ratio = jnp.asarray(cost) / target
    return accuracy * ratio ** jnp.where(ratio <= 1.0, below, above)


def absolute(accuracy: Number, cost: Number, target: Number, *, weight: Number = -0.07) -> Array:
    """TuNAS's reward `accuracy + weight * |cost / target - 1|`.

    Bender et al., "Can Weight Sharing Outperform Random Architecture Search? An Investigation With
    TuNAS", CVPR 2020, https://arxiv.org/abs/2008.06120, section 5: it is best at the target itself,
    so that `weight` need not be tuned for the search to end there.

    Args:
      accuracy: f32[...].
      cost: f32[...].
      target: of the cost, in the same unit.
      weight: below 0.

    Returns:
      f32[...].

    Example:
      >>> float(absolute(0.75, 60.0, 80.0, weight=-0.5))
      0.625
    """
    return accuracy + weight * jnp.abs(jnp.asarray(cost) / target - 1.0)
