"""DEHB: Hyperband whose candidates evolve, with one population per budget.

Awad, Mallik & Hutter, "DEHB: Evolutionary Hyperband for Scalable, Robust and Efficient
Hyperparameter Optimization", IJCAI 2021, https://arxiv.org/abs/2105.09821, Algorithms 1 to 3;
details as in the authors' code, https://github.com/automl/DEHB.

Differential evolution works on vectors in the unit cube; a decision with L choices takes choice
`floor(L * v)` of its coordinate v. Each budget has a population, as large as its largest rung and
uniform at first, and its members take turns as targets, each of which gets one challenger:

1. in the first rung of the first bracket: the member itself;
2. in the other rungs of the first pass over all brackets: the best of the next lower budget's
   population that are not in this one yet, best first, the list made when the rung begins (the
   very best again where the list is too short);
3. otherwise a mutant `a + F * (b - c)` of three different parents, crossed with the target: each
   coordinate comes from the mutant with probability `crossover_rate`, one always. Coordinates
   outside the cube are drawn anew. Parents are the best of the next lower budget's population (the
   own one's in first rungs), as many as the rung has candidates; where these are fewer than three,
   mutants of members of all populations fill them up to four.

A challenger that is not worse than its target takes its place. The brackets, with the code's
rounding, are those of `_brackets.balanced_brackets`: halving decides sizes and budgets, and after
the first pass better budgets inform each other through the parents alone.

Deviations: step 1 is the paper's, the code evolves unevaluated members; a child that is invalid is
replaced by a uniform draw; failed members are never promoted; B candidates per step come from the
same populations and replace their targets one after the other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.space import SearchSpace, canonical, is_active, is_valid, sample
from jaxnas.strategies import _brackets
from jaxnas.types import Proposal, Strategy, rank_value, split_like


class DEHBState(NamedTuple):
    """A population per budget; `V` budgets, `P` members in the largest population."""

    vectors: Array  # f32[V, P, D], in [0, 1]
    fitness: Array  # f32[V, P], minus infinity for members failed, not evaluated or not there
    turns: Array  # i32[V], challengers of each population so far
    promotions: Array  # f32[number of brackets, P, D], of the rung under way, best first
    position: Array  # i32[], step of the timetable


class DEHBInfo(NamedTuple):
    """What `tell` needs to know about the challengers."""

    vector: Array  # f32[B, D]
    target: Array  # i32[B], places in the populations
    promotions: Array  # f32[B, P, D], the list that the challenger is from, if it was promoted


def dehb(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    eta: int = 3,
    min_budget: float = 1 / 27,
    mutation_factor: float | Array = 0.5,
    crossover_rate: float | Array = 0.5,
) -> Strategy:
    """Differential evolution of one population per budget, on Hyperband's brackets.

    The module's docstring gives the exact loop.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      eta: factor between budgets, at least 2. Static.
      min_budget: the smallest budget is the smallest power of 1/eta not below this fraction of
        full training. Static.
      mutation_factor: F, the length of the step from one parent along the difference of two
        others. May be traced.
      crossover_rate: probability that a coordinate is the mutant's. May be traced.

    Returns:
      A `Strategy` whose state holds the populations.

    Raises:
      ValueError: for a number out of range; `min_budget` has to leave two budgets.

    Example:
      >>> import jaxnas as nas
      >>> strategy = dehb(nas.testing.tiny_space(), batch_size=4)
      >>> strategy.ask(jax.random.key(1), strategy.init(jax.random.key(0))).budget.round(4)
      Array([0.037, 0.037, 0.037, 0.037], dtype=float32)
    """
    check_count("batch_size", batch_size)
    check_number("mutation_factor", mutation_factor)
    check_number("crossover_rate", crossover_rate, high=1.0)
    brackets = _brackets.balanced_brackets(eta, min_budget)
    if len(brackets) == 1:
        raise ValueError(f"min_budget must be at most 1 / eta = {1 / eta}, got {min_budget!r}")
    schedule = _brackets.make_schedule(brackets, batch_size)
    sizes = population_sizes(schedule)  # one per budget

    def init(key):
        shape = (len(sizes), max(sizes))
        keys = split_like(key, shape[0] * shape[1])
        vectors = jax.vmap(lambda k: random_vector(k, space))(keys)
        return DEHBState(
            vectors=vectors.reshape(*shape, space.num_decisions),
            fitness=jnp.full(shape, -jnp.inf, jnp.float32),
            turns=jnp.zeros(len(sizes), jnp.int32),
            promotions=jnp.zeros((len(brackets), shape[1], space.num_decisions)),
            position=jnp.zeros((), jnp.int32),
        )

    def ask(key, state: DEHBState):
        jobs = _brackets.jobs_at(schedule, state.position)
        target = targets(state, jobs.level, sizes)

        def one(k, job: _brackets.Jobs, place):
            k_evolve, k_other = jax.random.split(k)
            own = state.vectors[job.level, place]
            ranked = jnp.where(job.opens, promotable(state, job), state.promotions[job.bracket])
            child = evolve(k_evolve, state, job, own, sizes, mutation_factor, crossover_rate)
            valid = is_valid(space, to_arch(space, child))
            child = jnp.where(valid, child, random_vector(k_other, space))
            first = jnp.where(job.parent_row < 0, own, ranked[job.rank])
            is_first = job.first_round & ((job.parent_row >= 0) | (job.bracket == 0))
            return jnp.where(is_first, first, child), ranked

        vector, ranked = jax.vmap(one)(split_like(key, batch_size), jobs, target)
        arch = jax.vmap(lambda row: to_arch(space, row))(vector)
        return Proposal(arch, jnp.asarray(jobs.budget), DEHBInfo(vector, target, ranked))

    def tell(key, state: DEHBState, proposal, evaluation):
        del key
        jobs = _brackets.jobs_at(schedule, state.position)
        info, born = proposal.info, rank_value(evaluation.fitness)

        def challenge(populations, challenger):
            vectors, fitness = populations
            level, place, vector, value = challenger
            wins = value >= fitness[level, place]
            vector = jnp.where(wins, vector, vectors[level, place])
            value = jnp.maximum(value, fitness[level, place])
            return (
                vectors.at[level, place].set(vector),
                fitness.at[level, place].set(value),
            ), None

        challengers = (jobs.level, info.target, info.vector, born)
        populations, _ = jax.lax.scan(challenge, (state.vectors, state.fitness), challengers)
        promotes = jobs.first_round & (jobs.parent_row >= 0)
        under_way = jnp.where(promotes, jobs.bracket, len(brackets))
        return DEHBState(
            *populations,
            turns=state.turns + jnp.bincount(jobs.level, length=len(sizes)).astype(jnp.int32),
            promotions=state.promotions.at[under_way].set(info.promotions, mode="drop"),
            position=_brackets.next_position(schedule, state.position),
        )

    return Strategy(init, ask, tell)


def population_sizes(schedule: _brackets.Schedule) -> np.ndarray:
    """The size of the largest rung at each budget: int[V]."""
    sizes = np.zeros(len(schedule.budgets), np.int32)
    np.maximum.at(sizes, schedule.jobs.level, schedule.jobs.size)
    return sizes


def to_arch(space: SearchSpace, vector: Array) -> Array:
    """The architecture i32[D] of a vector f32[D] in the unit cube."""
    num_choices = jnp.asarray(space.num_choices)
    choice = jnp.minimum((vector * num_choices).astype(jnp.int32), num_choices - 1)
    return canonical(space, choice)


def random_vector(key: Array, space: SearchSpace) -> Array:
    """A vector f32[D] of a uniform draw, anywhere in its cell but at the edge."""
    k_arch, k_place = jax.random.split(key)
    arch = sample(k_arch, space)
    place = jax.random.uniform(k_place, arch.shape, minval=0.01, maxval=0.99)
    return jnp.where(is_active(space, arch), (arch + place) / jnp.asarray(space.num_choices), place)


def targets(state: DEHBState, level: Array, sizes: np.ndarray) -> Array:
    """The members that are challenged, in turn in each population: i32[B]."""
    same = level[:, None] == level
    earlier = jnp.tril(same, k=-1).sum(axis=1)  # in the same batch
    return (state.turns[level] + earlier) % jnp.asarray(sizes)[level]


def promotable(state: DEHBState, job: _brackets.Jobs) -> Array:
    """Evaluated members of the next lower budget that are new to the job's, best first: f32[P, D].

    After the last one the best follows again, new or not.
    """
    lower = state.vectors[job.level - 1]
    fitness = state.fitness[job.level - 1]
    known = jnp.all(lower[:, None] == state.vectors[job.level], axis=-1).any(axis=1)
    new = ~known & (fitness > -jnp.inf)
    order = jnp.lexsort((-fitness, ~new))
    last = jnp.arange(fitness.size) < new.sum()
    return jnp.where(last[:, None], lower[order], lower[jnp.argmax(fitness)])


def evolve(
    key: Array,
    state: DEHBState,
    job: _brackets.Jobs,
    target: Array,
    sizes: np.ndarray,
    mutation_factor: float | Array,
    crossover_rate: float | Array,
) -> Array:
    """A child of the target f32[D] and a mutant of the job's parents: f32[D]."""
    num_members, num_decisions = state.vectors.shape[1:]
    lower = job.level - (job.parent_row >= 0)
    best_first = jnp.argsort(state.fitness[lower], descending=True)  # stable: no member, last
    everyone = state.vectors.reshape(-1, num_decisions)
    is_member = (jnp.arange(num_members) < jnp.asarray(sizes)[:, None]).ravel()
    # One draw for everything, for each takes a second to compile.
    lengths = [3 * len(everyone), num_members + 3, num_decisions, num_decisions, 1]
    uniform = jax.random.uniform(key, (sum(lengths),))
    fill, choose, cross, inside, one = jnp.split(uniform, np.cumsum(lengths)[:-1])
    fillers = jax.vmap(lambda u: mutant(u, everyone, is_member, mutation_factor))(
        fill.reshape(3, -1)
    )
    pool = jnp.concatenate([state.vectors[lower][best_first], fillers])
    num_fillers = jnp.where(job.size < 3, 4 - job.size, 0)
    is_parent = jnp.concatenate([jnp.arange(num_members) < job.size, jnp.arange(3) < num_fillers])
    crossed = cross < crossover_rate
    forced = jnp.arange(num_decisions) == (one * num_decisions).astype(jnp.int32)
    crossed |= ~crossed.any() & forced
    child = jnp.where(crossed, mutant(choose, pool, is_parent, mutation_factor), target)
    return jnp.where((child >= 0.0) & (child <= 1.0), child, inside)


def mutant(uniform: Array, vectors: Array, is_parent: Array, factor: float | Array) -> Array:
    """A mutant f32[D] of three different parents: `a + factor * (b - c)`.

    Args:
      uniform: f32[N], random numbers in [0, 1); the parents with the largest are taken.
      vectors: f32[N, D].
      is_parent: bool[N], at least three.
      factor: F.
    """
    a, b, c = vectors[jax.lax.top_k(jnp.where(is_parent, uniform, -1.0), 3)[1]]
    return a + factor * (b - c)
