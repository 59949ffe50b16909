"""Bayesian optimisation with a Gaussian process.

Snoek, Larochelle & Adams, "Practical Bayesian Optimization of Machine Learning Algorithms", NeurIPS
2012, https://arxiv.org/abs/1206.2944, sections 2 and 3, on architectures as in White, Neiswanger &
Savani, "BANANAS", AAAI 2021, https://arxiv.org/abs/1910.11858, and its code naszilla
(https://github.com/naszilla/naszilla): kernels of the Hamming distance, and acquisition by expected
improvement, an upper confidence bound, or independent Thompson sampling (a draw from the posterior
of each candidate by itself).

The loop:

1. the first `num_initial` architectures are drawn uniformly without replacement, in whole batches;
2. fitness is warped (`surrogates.warping`: below the median only ranks count) and standardised;
3. length scale and noise are those of a grid of 15 pairs that make the targets likeliest, the
   amplitude follows in closed form. They are chosen when `num_initial` candidates are there and
   whenever their number has doubled since, so all choices together cost as much as the updates;
4. the unseen candidate with the largest acquisition is next. Candidates are the whole space where
   it has at most `whole_space_limit` decision vectors, else `pool_size` fresh ones: half uniform
   draws, half mutations of the best 10, as in NAS-BOWL (https://arxiv.org/abs/2006.07556);
5. a batch is picked one after the other, as if those before had scored what is predicted: the
   kriging believer of Ginsbourger, Le Riche & Carraro, "Kriging is well-suited to parallelize
   optimization", 2010, https://doi.org/10.1007/978-3-642-10701-6_6. Predictions stay, their
   uncertainty shrinks (for the confidence bound: Desautels, Krause & Burdick's GP-BUCB,
   https://jmlr.org/papers/v15/desautels14a.html).

For a whole space the state keeps how much of the variance of each architecture is explained, and a
new architecture adds one row to that, so that a search costs N floats, not a C x N matrix.

A failed candidate enters the model with the least value found so far, for a model that does not
know about it would go on looking where everything fails. Nothing is proposed twice as long as the
candidates hold anything new, and then nothing that failed as long as they hold what succeeded. When
the capacity is reached the model forgets the older half, but for the incumbent; in a whole space
what it forgot still counts as seen.

Deviations: naszilla's hyperparameters are fixed (length scale 3, amplitude 1.5), and it has no
warping; Snoek et al. integrate over hyperparameters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from jaxnas._checks import check_count, check_number, check_option
from jaxnas.space import SearchSpace
from jaxnas.strategies._pools import FAILED, SUCCEEDED, Pool, draw_pool, make_grid, tiers
from jaxnas.surrogates import gaussian_process as gp
from jaxnas.surrogates.warping import half_rank
from jaxnas.types import Proposal, Strategy, rank_value

ACQUISITIONS = ("expected_improvement", "upper_confidence_bound", "thompson")

NUM_PARENTS = 10  # of the mutations in a drawn pool


class GaussianProcessState(NamedTuple):
    """The model, and for a whole space of N decision vectors what is known of each (else N = 0)."""

    process: gp.GaussianProcess  # capacity C
    fitness: Array  # f32[C], of the process's architectures, minus infinity if failed or none
    count: Array  # i32[], candidates evaluated since the search began
    fit_at: Array  # i32[], size of the process at which hyperparameters are chosen next
    explained: Array  # f32[N], share of the prior variance that the process explains
    tier: Array  # i32[N], see `_pools`


def gaussian_process(
    space: SearchSpace,
    *,
    batch_size: int = 1,
    num_initial: int = 10,
    kernel: str = "hamming",
    acquisition: str = "expected_improvement",
    confidence: float | Array = 0.5,
    lengthscale: float | Array | None = None,
    noise: float | Array | None = None,
    pool_size: int = 512,
    whole_space_limit: int = 20_000,
    capacity: int = 256,
) -> Strategy:
    """Bayesian optimisation: a Gaussian process says which architecture promises most.

    The module's docstring gives the exact loop. For few and expensive evaluations, one at a time or
    in small batches.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_initial: uniform draws before the model decides, rounded up to whole batches. Static.
      kernel: "hamming" or "matern", see `jaxnas.surrogates.gaussian_process`. Static.
      acquisition: "expected_improvement", "upper_confidence_bound" or "thompson". Static.
      confidence: standard deviations above the mean at which the confidence bound lies; used by it
        alone. May be traced.
      lengthscale: of the kernel; None: by the marginal likelihood. May be traced.
      noise: variance of the noise relative to the process's, at least 1e-4; None: by the marginal
        likelihood. May be traced.
      pool_size: candidates P >= B per `ask` where the space is not searched whole. Static.
      whole_space_limit: the most decision vectors (the product of the numbers of choices) of a
        space that is searched whole. Static.
      capacity: architectures C >= 2 B that the model remembers. A step costs O(C^2) and more for
        the candidates, so for many short searches no more than their evaluations. Static.

    Returns:
      A `Strategy` whose state holds an f32[C, C] and, of a whole space, two arrays of its size.

    Raises:
      ValueError: for a size below 1, an unknown option, a number out of range, a pool smaller than
        a batch or a capacity smaller than two.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = gaussian_process(tiny_space(), batch_size=2, capacity=8)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (2, 3)
    """
    _check_sizes(batch_size, num_initial, pool_size, whole_space_limit, capacity)
    check_option("kernel", kernel, tuple(gp.KERNELS))
    check_option("acquisition", acquisition, ACQUISITIONS)
    check_number("confidence", confidence)
    check_number("lengthscale", lengthscale, low=1e-3)
    check_number("noise", noise, low=1e-4)
    correlation = gp.KERNELS[kernel]
    lengthscales, noises = _pairs(space.num_decisions, lengthscale, noise)
    grid = make_grid(space, whole_space_limit)

    def cross(process, candidates) -> gp.Cross:
        if grid is None:
            return gp.cross(correlation, process, candidates)
        return gp.grid_cross(correlation, process, grid.halves)

    def init(key):
        del key
        tier = jnp.zeros(0, jnp.int32) if grid is None else jnp.asarray(grid.tier)
        return GaussianProcessState(
            process=gp.empty(capacity, space.num_decisions, lengthscales[0], noises[0]),
            fitness=jnp.full(capacity, -jnp.inf),
            count=jnp.zeros((), jnp.int32),
            fit_at=jnp.asarray(num_initial, jnp.int32),
            explained=jnp.zeros(tier.shape),
            tier=tier,
        )

    def survey(key, state: GaussianProcessState, num_mutated: int) -> Pool:
        if grid is not None:
            return Pool(jnp.asarray(grid.arch), state.explained, state.tier)
        process = state.process
        sizes = pool_size - num_mutated, num_mutated, NUM_PARENTS
        arch = draw_pool(key, space, process.arch, state.fitness, *sizes)
        explained = gp.explained(process, cross(process, arch), pool_size)
        return Pool(arch, explained, tiers(arch, process.arch, state.fitness, _used(process)))

    def pick_random(key, state: GaussianProcessState) -> Array:
        k_pool, k_order = jax.random.split(key)
        pool = survey(k_pool, state, num_mutated=0)
        order = jax.random.uniform(k_order, pool.tier.shape) - pool.tier
        return pool.arch[jax.lax.top_k(order, batch_size)[1]].astype(jnp.int32)

    def pick_best(key, state: GaussianProcessState) -> Array:
        k_pool, k_pick = jax.random.split(key)
        pool = survey(k_pool, state, num_mutated=pool_size // 2)
        targets = half_rank(state.fitness, _used(state.process))
        mean = cross(state.process, pool.arch)(gp.weights(state.process, targets))
        scale = gp.amplitude(state.process, targets)
        incumbent = jnp.max(jnp.where(_used(state.process), targets, -jnp.inf))

        def best_of(key, pool, incumbent):
            std = scale * jnp.sqrt(jnp.clip(1.0 - pool.explained, 1e-6))
            if acquisition == "expected_improvement":
                value = expected_improvement(mean, std, incumbent)
            elif acquisition == "upper_confidence_bound":
                value = mean + confidence * std
            else:
                value = mean + std * jax.random.normal(key, mean.shape)
            return pool.best(value)

        def believe(carry, key):
            process, pool, incumbent = carry
            place = best_of(key, pool, incumbent)
            arch = pool.arch[place].astype(jnp.int32)
            after = gp.append(correlation, process, arch)
            row = cross(after, pool.arch)(after.inverse[process.size])
            left = pool.without(place)._replace(explained=pool.explained + row**2)
            return (after, left, jnp.maximum(incumbent, mean[place])), arch

        keys = jax.random.split(k_pick, batch_size)
        believed = (state.process, pool, incumbent)
        believed, first = jax.lax.scan(believe, believed, keys[:-1])
        last = pool.arch[best_of(keys[-1], *believed[1:])].astype(jnp.int32)
        return jnp.concatenate([first, last[None]])

    def ask(key, state: GaussianProcessState):
        # All searches of a `vmap` over keys have the same `count`, so this remains a real branch.
        arch = jax.lax.cond(state.count < num_initial, pick_random, pick_best, key, state)
        return Proposal(arch, jnp.ones(batch_size))

    def join(state: GaussianProcessState, arch, fitness) -> GaussianProcessState:
        """The state with one more evaluated candidate."""
        place = state.process.size
        process = gp.append(correlation, state.process, arch)
        state = state._replace(process=process, fitness=state.fitness.at[place].set(fitness))
        if grid is None:
            return state
        here = arch @ grid.strides
        row = cross(process, grid.arch)(process.inverse[place])
        return state._replace(
            explained=state.explained + row**2,
            tier=state.tier.at[here].set(jnp.where(jnp.isneginf(fitness), FAILED, SUCCEEDED)),
        )

    def refit(state: GaussianProcessState) -> GaussianProcessState:
        full = state.process.size + batch_size > capacity
        arch, fitness, size = _remembered(state, full)
        targets = half_rank(fitness, jnp.arange(capacity) < size)
        pair = lengthscales[0], noises[0]
        if len(lengthscales) > 1:
            pair = gp.select(correlation, arch, size, targets, lengthscales, noises)
        process = gp.fit(correlation, arch, size, *pair)
        explained = state.explained
        if grid is not None:
            explained = gp.explained(process, cross(process, grid.arch), explained.size)
        return state._replace(
            process=process, fitness=fitness, fit_at=2 * size, explained=explained
        )

    def tell(key, state: GaussianProcessState, proposal, evaluation):
        del key
        told = proposal.arch, rank_value(evaluation.fitness)
        state, _ = jax.lax.scan(lambda s, one: (join(s, *one), None), state, told)
        state = state._replace(count=state.count + batch_size)
        size = state.process.size
        due = (size >= state.fit_at) | (size + batch_size > capacity)
        return jax.lax.cond(due, refit, lambda s: s, state)

    return Strategy(init, ask, tell)


def expected_improvement(mean: Array, std: Array, incumbent: Array) -> Array:
    """How much more than the incumbent a normal variable is expected to be, where it is more.

    Mockus, Tiesis & Zilinskas 1978; equation 2 of Snoek et al.

    Example:
      >>> round(float(expected_improvement(jnp.array(0.0), jnp.array(1.0), jnp.array(0.0))), 4)
      0.3989
    """
    gain = (mean - incumbent) / std
    return std * (gain * norm.cdf(gain) + norm.pdf(gain))


def _check_sizes(batch_size, num_initial, pool_size, whole_space_limit, capacity) -> None:
    check_count("batch_size", batch_size)
    check_count("num_initial", num_initial)
    check_count("pool_size", pool_size)
    check_count("whole_space_limit", whole_space_limit, minimum=0)
    check_count("capacity", capacity)
    if pool_size < batch_size:
        raise ValueError(f"pool_size must be at least batch_size = {batch_size}, got {pool_size}")
    if capacity < 2 * batch_size:
        raise ValueError(
            f"capacity must be at least twice batch_size = {batch_size}, got {capacity}"
        )


def _pairs(num_decisions: int, lengthscale, noise) -> tuple[Array, Array]:
    """Length scales and noises to choose from: f32[H] each."""
    if lengthscale is None:
        lengthscale = num_decisions**0.5 * jnp.asarray(gp.RELATIVE_LENGTHSCALES)
    if noise is None:
        noise = jnp.asarray(gp.NOISES)
    pairs = jnp.meshgrid(jnp.atleast_1d(lengthscale), jnp.atleast_1d(noise))
    return pairs[0].ravel(), pairs[1].ravel()


def _used(process: gp.GaussianProcess) -> Array:
    """Which places of the process hold an architecture: bool[C]."""
    return jnp.arange(process.arch.shape[0]) < process.size


def _remembered(state: GaussianProcessState, full: Array) -> tuple[Array, Array, Array]:
    """Architectures, fitness and size, of the younger half and the incumbent if the state is full.

    The incumbent moves to the last place, as if it had joined last.
    """
    capacity, size = state.fitness.size, state.process.size
    place = jnp.arange(capacity)
    used = place < size
    incumbent = jnp.argmax(state.fitness)
    last = jnp.argsort(jnp.where(place == incumbent, size, jnp.where(used, place, capacity + 1)))
    num_dropped = size - capacity // 2
    order = jnp.where(full, jnp.roll(last, -num_dropped), place)
    size = jnp.where(full, capacity // 2, size)
    fitness = jnp.where(place < size, state.fitness[order], -jnp.inf)
    return state.process.arch[order], fitness, size
