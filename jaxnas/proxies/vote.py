"""Voting: several scores as one, free of their units.

Abdelfattah, Mehrotra, Dudziak & Lane, "Zero-Cost Proxies for Lightweight NAS", ICLR 2021,
https://arxiv.org/abs/2101.08134, Section 3.3: of two networks the better one is the one that the
majority of `synflow`, `jacob_cov` and `snip` says is better. For more than two, "majority" counts
the networks that each one beats (Copeland's method), and "ranks" adds up ranks (Borda's).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnas._checks import check_option
from jaxnas.types import rank_value

KINDS = ("majority", "ranks")
PUBLISHED = ("synflow", "jacob_cov", "snip")
ROUNDING = 1e-5  # relative


def ranks(scores: Array) -> Array:
    """Scores f32[P] as ranks from 0, the least, to 1; ties share theirs, NaN ranks last.

    Example:
      >>> ranks(jnp.array([3.0, jnp.nan, 1.0, 3.0, 2.0])).tolist()
      [0.875, 0.0, 0.25, 0.875, 0.5]
    """
    found = jax.scipy.stats.rankdata(rank_value(scores), method="average")
    return ((found - 1.0) / max(scores.shape[0] - 1, 1)).astype(jnp.float32)


def shares_beaten(score: Array, others: Array) -> Array:
    """The share of `others` f32[R] that `score` f32[] beats; ties count half, NaN is least.

    Scores are equal up to rounding, which differs from one compiled program to the next.

    Example:
      >>> shares_beaten(jnp.float32(2.0), jnp.array([1.0, 2.0, 3.0, jnp.nan])).item()
      0.625
    """
    score, others = rank_value(score), rank_value(others)
    same = (score == others) | (jnp.abs(score - others) <= ROUNDING * jnp.abs(score))
    return jnp.mean(jnp.where(same, 0.5, score > others))


def vote(scores: Mapping[str, Array], kind: str = "majority") -> Array:
    """One score per network from several.

    Args:
      scores: name to f32[P], greater is better; NaN is the least.
      kind: "majority", the share of the other networks that more scores place below than above,
        even votes counted half; or "ranks", the mean of the ranks. Static.

    Returns:
      f32[P] in [0, 1].

    Raises:
      ValueError: for no scores or another kind.

    Example:
      >>> a, b, c = jnp.array([1.0, 2.0]), jnp.array([5.0, 6.0]), jnp.array([9.0, 0.0])
      >>> vote({"a": a, "b": b, "c": c}).tolist()
      [0.0, 1.0]
    """
    check_option("kind", kind, KINDS)
    if not scores:
        raise ValueError("scores is empty; give at least one")
    table = jnp.stack([rank_value(column) for column in scores.values()])
    if kind == "ranks":
        return jnp.mean(jax.vmap(ranks)(table), axis=0)

    def wins(own: Array) -> Array:
        margin = jnp.sum(_order(own[:, None], table), axis=0)
        return jnp.sum(0.5 + 0.5 * jnp.sign(margin)) - 0.5  # without itself

    return lax.map(wins, table.T) / max(table.shape[1] - 1, 1)


def _order(a: Array, b: Array) -> Array:
    """1 where a is greater, -1 where b is; a difference of infinities would be NaN."""
    return (a > b).astype(jnp.float32) - (a < b).astype(jnp.float32)
