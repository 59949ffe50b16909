"""What searches found, as numbers: incumbents, regret, ranks and intervals. Pure and traceable.

In the shape descriptions, `T` denotes the steps of a search, `B` the candidates of a step and
`E = T B` its evaluations, in the order in which they were made: step after step, slot after slot.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas.search import Record
from jaxnas.types import rank_value


def evaluations(history: Record) -> Record:
    """The history with steps and slots as one leading axis E instead of two, T and B."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), history)


def incumbents(history: Record) -> Array:
    """Which evaluation is the incumbent after each evaluation.

    The incumbent is the fittest candidate among those trained with the largest budget so far: the
    fitness after a short training says little about that after a long one. The first one stays on
    ties.

    Args:
      history: of `jaxnas.search`.

    Returns:
      i32[E], positions in `evaluations(history)`; -1 before the first success.

    Example:
      >>> import jaxnas as nas
      >>> space = nas.testing.tiny_space()
      >>> strategy = nas.strategies.random_search(space, batch_size=2)
      >>> evaluator = nas.evaluators.from_function(lambda key, arch: arch.sum())
      >>> _, history = nas.search(jax.random.key(0), strategy, evaluator, num_steps=3)
      >>> incumbents(history).shape
      (6,)
    """
    flat = evaluations(history)
    fitness = rank_value(flat.evaluation.fitness)

    def better(best, row):
        _, budget, score = row
        _, held_budget, held_score = best
        wins = (budget > held_budget) | ((budget == held_budget) & (score > held_score))
        wins &= score > -jnp.inf
        best = jax.tree.map(lambda new, old: jnp.where(wins, new, old), row, best)
        return best, best[0]

    rows = (jnp.arange(fitness.size, dtype=jnp.int32), flat.budget, fitness)
    none = (jnp.int32(-1), jnp.float32(0.0), jnp.float32(-jnp.inf))
    return jax.lax.scan(better, none, rows)[1]


def incumbent_values(history: Record, values: Array) -> Array:
    """What the incumbent scores in something else than the fitness, after each evaluation.

    Args:
      history: of `jaxnas.search`.
      values: f32[T, B] or f32[E], for example `history.evaluation.metrics["test_accuracy"]`.

    Returns:
      f32[E], NaN before the first success.

    Example:
      >>> import jaxnas as nas
      >>> space = nas.testing.tiny_space()
      >>> strategy = nas.strategies.random_search(space, batch_size=2)
      >>> evaluator = nas.evaluators.from_function(lambda key, arch: arch.sum())
      >>> _, history = nas.search(jax.random.key(0), strategy, evaluator, num_steps=3)
      >>> found = incumbent_values(history, history.evaluation.fitness)
      >>> bool(found[-1] == nas.best(history)[1])
      True
    """
    index = incumbents(history)
    return jnp.where(index >= 0, jnp.ravel(values)[index], jnp.nan)


def at_times(history: Record, values: Array, times: Array) -> Array:
    """A curve over evaluations as a curve over charged seconds, simulated or measured.

    Args:
      history: of `jaxnas.search`; an evaluation is known once its cost has passed.
      values: f32[E], after each evaluation.
      times: f32[N], seconds since the search began, in any order.

    Returns:
      f32[N]; NaN before the first evaluation has ended.

    Example:
      >>> import jaxnas as nas
      >>> space = nas.testing.tiny_space()
      >>> strategy = nas.strategies.random_search(space, batch_size=1)
      >>> evaluator = nas.evaluators.from_function(lambda key, arch: 1.0)
      >>> _, history = nas.search(jax.random.key(0), strategy, evaluator, num_steps=2)
      >>> at_times(history, jnp.array([3.0, 4.0]), jnp.array([1.5, 9.0])).tolist()
      [3.0, 4.0]
    """
    ends = jnp.cumsum(evaluations(history).evaluation.cost)
    last = jnp.searchsorted(ends, times, side="right")
    return jnp.concatenate([jnp.full(1, jnp.nan), values])[last]


def regret(values: Array, optimum: float | Array) -> Array:
    """How far values are below the optimum, which is never less than they are.

    Args:
      values: f32[...].
      optimum: the best there is.

    Returns:
      f32[...], at least 0 where `optimum` really is the best; NaN stays NaN.

    Example:
      >>> regret(jnp.array([0.5, 1.0]), 1.0).tolist()
      [0.5, 0.0]
    """
    return optimum - values


def spearman(a: Array, b: Array) -> Array:
    """Spearman's rank correlation, ties with their mean rank.

    Spearman, "The Proof and Measurement of Association between Two Things", 1904,
    https://doi.org/10.2307/1412159.

    Args:
      a: f32[N], without NaN.
      b: f32[N], without NaN.

    Returns:
      f32[], in [-1, 1]; NaN where a side does not vary.

    Example:
      >>> round(float(spearman(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 9.0, 4.0]))), 4)
      0.5
    """
    a, b = (jax.scipy.stats.rankdata(side, method="average") for side in (a, b))
    a, b = a - a.mean(), b - b.mean()
    return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))


def kendall(a: Array, b: Array) -> Array:
    """Kendall's rank correlation tau-b, which corrects for ties.

    Kendall, "The Treatment of Ties in Ranking Problems", Biometrika 1945,
    https://doi.org/10.1093/biomet/33.3.239. Takes memory for N values at a time and O(N^2) work.

    Args:
      a: f32[N], without NaN.
      b: f32[N], without NaN.

    Returns:
      f32[], in [-1, 1]; NaN where a side does not vary.

    Example:
      >>> round(float(kendall(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 9.0, 4.0]))), 4)
      0.3333
    """

    def with_one(row):
        sign_a, sign_b = jnp.sign(row[0] - a), jnp.sign(row[1] - b)
        return jnp.stack([jnp.sum(sign_a * sign_b), jnp.sum(sign_a**2), jnp.sum(sign_b**2)])

    pairs = jax.lax.map(with_one, (a, b)).sum(axis=0)
    return pairs[0] / jnp.sqrt(pairs[1] * pairs[2])


def bootstrap_interval(
    key: Array, samples: Array, *, level: float = 0.95, num_resamples: int = 2000
) -> tuple[Array, Array]:
    """Percentile bootstrap interval of the mean over the first axis.

    Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979,
    https://doi.org/10.1214/aos/1176344552.

    Args:
      key: PRNG key.
      samples: f32[S, ...], one row per seed, without NaN.
      level: chance that the interval holds the mean, in (0, 1).
      num_resamples: bootstrap samples. Static.

    Returns:
      Lower and upper end, f32[...] each.

    Raises:
      ValueError: for a level outside (0, 1), or fewer than one resample.

    Example:
      >>> low, high = bootstrap_interval(jax.random.key(0), jnp.arange(101.0))
      >>> bool(43.0 < low < 46.0), bool(54.0 < high < 57.0)
      (True, True)
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    num = samples.shape[0]

    def resampled(k):
        return samples[jax.random.randint(k, (num,), 0, num)].mean(axis=0)

    means = jax.lax.map(resampled, jax.random.split(key, num_resamples))
    tail = (1.0 - level) / 2.0
    low, high = jnp.quantile(means, jnp.array([tail, 1.0 - tail]), axis=0)
    return low, high


def average_ranks(scores: Array) -> Array:
    """Mean rank of each competitor over problems or seeds: 1 is best, ties share their ranks.

    Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006, section
    3.1.3, https://www.jmlr.org/papers/v7/demsar06a.html.

    Args:
      scores: f32[A, S] of A competitors, greater is better; NaN ranks last.

    Returns:
      f32[A].

    Example:
      >>> average_ranks(jnp.array([[0.9, 0.8], [0.1, 0.8], [0.5, 0.2]])).tolist()
      [1.25, 2.25, 2.5]
    """
    return jax.vmap(
        lambda column: jax.scipy.stats.rankdata(-rank_value(column), method="average"),
        in_axes=1,
        out_axes=1,
    )(scores).mean(axis=1)
