"""BOHB: Hyperband whose new candidates come from a model of good and bad architectures.

Falkner, Klein & Hutter, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale", ICML
2018, https://arxiv.org/abs/1807.01774, Algorithm 2; numbers and details as in the authors' code,
https://github.com/automl/HpBandSter.

Hyperband's brackets (with the code's rounding, see `_brackets.balanced_brackets`) decide which
budget is next and who is promoted. A new candidate is a uniform draw with probability
`random_rate`, else:

1. take the results of the largest budget that has enough: the best `good_rate` of its n, but at
   least D + 1, are good, the others bad, and there have to be D + 1 of these too;
2. estimate the densities l of the good and g of the bad ones by kernels: the product over the
   decisions of Aitchison & Aitken's `1 - h` for the same choice and `h / (L - 1)` for each other
   of the L; bandwidth `h = 1.06 * std * n ** (-1 / (4 + D))` by the rule of thumb, with the
   standard deviation of the choice's number;
3. draw `num_samples` from l: a random good one, of which each decision is drawn anew with
   probability h; propose the one with the largest l / g.

Without a budget that has enough results it is a uniform draw.

Deviations. Bandwidths are kept at or below `(L - 1) / L`, the uniform kernel, where the code's may
make densities negative; L counts all choices, where the code's library counts those in its data.
Decisions that are inactive say nothing: their kernel is uniform (code: filled in at random).
All results that are not good are bad (code: sometimes all but the worst one). The code widens
bandwidths by its factor of 3 for numbers only, so the factor has no place here. B candidates per
step come from one model; only the last `capacity` results count.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.space import SearchSpace, canonical, is_active, is_valid, sample
from jaxnas.strategies import _brackets
from jaxnas.strategies._memory import remember
from jaxnas.strategies._population import Population, empty
from jaxnas.types import Strategy

_TIE = 1e-4  # of logarithms of densities


class BOHBState(NamedTuple):
    """The brackets under way, and the results that models are made of."""

    rungs: _brackets.Rungs
    memory: Population  # capacity C
    level: Array  # i32[C], position among the budgets, -1 for empty places


class Density(NamedTuple):
    """A kernel density over architectures, relative to the uniform one."""

    arch: Array  # i32[C, D], centres of the kernels
    active: Array  # bool[C, D]
    member: Array  # bool[C], centres that count
    bandwidth: Array  # f32[D]


def bohb(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    eta: int = 3,
    min_budget: float = 1 / 27,
    good_rate: float | Array = 0.15,
    num_samples: int = 64,
    min_bandwidth: float | Array = 1e-3,
    random_rate: float | Array = 1 / 3,
    capacity: int = 1024,
) -> Strategy:
    """Hyperband with candidates that look like good ones and not like bad ones.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      eta: factor between budgets, at least 2. Static.
      min_budget: the smallest budget is the smallest power of 1/eta not below this fraction of
        full training. Static.
      good_rate: the share of results that is good. May be traced.
      num_samples: draws of which the most promising is proposed. Static.
      min_bandwidth: the least probability that a decision of a good architecture is drawn anew, so
        that samples stay diverse. May be traced.
      random_rate: probability that a new candidate is a uniform draw. May be traced.
      capacity: results C >= B that are remembered, of all budgets together. Static.

    Returns:
      A `Strategy` whose state holds the rungs whose results are still needed and the last C
      results.

    Raises:
      ValueError: for a number out of range, or a capacity smaller than a batch.

    Example:
      >>> import jaxnas as nas
      >>> strategy = bohb(nas.testing.tiny_space(), batch_size=4)
      >>> strategy.ask(jax.random.key(1), strategy.init(jax.random.key(0))).budget.round(4)
      Array([0.037, 0.037, 0.037, 0.037], dtype=float32)
    """
    check_count("batch_size", batch_size)
    check_count("num_samples", num_samples)
    check_count("capacity", capacity)
    check_number("good_rate", good_rate, high=1.0)
    check_number("min_bandwidth", min_bandwidth, high=1.0)
    check_number("random_rate", random_rate, high=1.0)
    if capacity < batch_size:
        raise ValueError(f"capacity must be at least batch_size = {batch_size}, got {capacity}")
    brackets = _brackets.balanced_brackets(eta, min_budget)
    schedule = _brackets.make_schedule(brackets, batch_size)

    def init(key):
        del key
        return BOHBState(
            rungs=_brackets.empty(space, schedule),
            memory=empty(space, capacity),
            level=jnp.full(capacity, -1, jnp.int32),
        )

    def ask(key, state: BOHBState):
        good, bad = densities(space, state, len(schedule.budgets), good_rate, min_bandwidth)

        def draw(k):
            k_kind, k_uniform, k_model = jax.random.split(k, 3)
            is_random = ~good.member.any() | jax.random.bernoulli(k_kind, random_rate)
            arch, score = most_promising(k_model, space, good, bad, num_samples)
            is_random |= score == -jnp.inf
            return jnp.where(is_random, sample(k_uniform, space), arch)

        return _brackets.propose(key, schedule, state.rungs, draw)

    def tell(key, state: BOHBState, proposal, evaluation):
        del key
        level = _brackets.jobs_at(schedule, state.rungs.position).level
        return BOHBState(
            rungs=_brackets.record(schedule, state.rungs, proposal, evaluation),
            memory=remember(state.memory, proposal.arch, evaluation.fitness),
            level=jnp.concatenate([state.level, level])[batch_size:],
        )

    return Strategy(init, ask, tell)


def densities(
    space: SearchSpace,
    state: BOHBState,
    num_levels: int,
    good_rate: float | Array,
    min_bandwidth: float | Array,
) -> tuple[Density, Density]:
    """The densities of good and bad results at the largest budget that has enough of both.

    Args:
      space: the space.
      state: with the results.
      num_levels: how many budgets there are.
      good_rate: the share of results that is good.
      min_bandwidth: of both densities.

    Returns:
      Both densities; without any member where no budget has enough results.
    """
    least = space.num_decisions + 1
    size = jnp.bincount(jnp.where(state.level < 0, num_levels, state.level), length=num_levels + 1)
    size = size[:num_levels]
    # A thousandth, for 0.15 times 20 shall be 3 whichever way it is rounded.
    num_good = jnp.maximum(jnp.floor(good_rate * size + 1e-3).astype(jnp.int32), least)
    enough = size - num_good >= least
    level = num_levels - 1 - jnp.argmax(enough[::-1])
    at_level = state.level == level
    order = jnp.lexsort((-state.memory.fitness, ~at_level))
    arch, rank = state.memory.arch[order], jnp.arange(order.size)
    active = jax.vmap(lambda row: is_active(space, row))(arch)
    is_good = enough[level] & (rank < num_good[level])
    is_bad = enough[level] & (rank >= num_good[level]) & (rank < size[level])
    good = Density(arch, active, is_good, _bandwidth(space, arch, active, is_good, min_bandwidth))
    bad = Density(arch, active, is_bad, _bandwidth(space, arch, active, is_bad, min_bandwidth))
    return good, bad


def _bandwidth(
    space: SearchSpace, arch: Array, active: Array, member: Array, least: float | Array
) -> Array:
    """The rule of thumb within its limits: f32[D]."""
    num_choices = jnp.asarray(space.num_choices)
    deviation = jnp.std(arch, axis=0, where=active & member[:, None])
    deviation = jnp.nan_to_num(deviation)  # of a decision that is active in none
    num = jnp.maximum(member.sum(), 1)
    h = 1.06 * deviation * num ** (-1.0 / (4 + space.num_decisions))
    return jnp.minimum(jnp.maximum(h, least), (num_choices - 1) / num_choices)


def log_density(space: SearchSpace, density: Density, arch: Array) -> Array:
    """Logarithm of a density at `arch` i32[D], less that of the uniform one: f32[].

    The density of an architecture with inactive decisions is that of its active ones.
    """
    num_choices = jnp.asarray(space.num_choices)
    h = density.bandwidth
    same = jnp.log((1.0 - h) * num_choices)
    other = jnp.log(jnp.maximum(h, 1e-30) / jnp.maximum(num_choices - 1, 1) * num_choices)
    kernel = jnp.where(density.arch == arch, same, other)
    kernel = jnp.where(density.active & is_active(space, arch), kernel, 0.0).sum(axis=-1)
    total = jax.nn.logsumexp(kernel, where=density.member)
    return total - jnp.log(density.member.sum())


def most_promising(
    key: Array, space: SearchSpace, good: Density, bad: Density, num_samples: int
) -> tuple[Array, Array]:
    """The sample of the good density with the largest ratio of good to bad.

    Returns:
      i32[D] and the logarithm of its ratio f32[], minus infinity where no sample is valid.
    """
    num_choices = jnp.asarray(space.num_choices)
    num_good = jnp.maximum(good.member.sum(), 1)  # good centres come first
    # One draw for everything, for each takes a second to compile.
    uniform = jax.random.uniform(key, (num_samples, 2 * space.num_decisions + 1))
    which, change, fresh = jnp.split(uniform, (1, 1 + space.num_decisions), axis=1)
    centre = jnp.minimum((which[:, 0] * num_good).astype(jnp.int32), num_good - 1)
    drawn = jnp.minimum((fresh * num_choices).astype(jnp.int32), num_choices - 1)
    keep = (change >= good.bandwidth) & good.active[centre]
    arch = jax.vmap(lambda row: canonical(space, row))(jnp.where(keep, good.arch[centre], drawn))

    def score(row):
        ratio = log_density(space, good, row) - log_density(space, bad, row)
        return jnp.where(is_valid(space, row) & ~jnp.isnan(ratio), ratio, -jnp.inf)

    scores = jax.vmap(score)(arch)
    # The first within rounding: many samples tie, and compilers add up in different orders.
    best = jnp.argmax(scores >= scores.max() - _TIE)
    return arch[best], scores[best]
