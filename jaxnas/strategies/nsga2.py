"""NSGA-II: evolution towards the Pareto front of several objectives.

Deb, Pratap, Agarwal & Meyarivan, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II",
IEEE Transactions on Evolutionary Computation 2002, https://doi.org/10.1109/4235.996017, section
III; for architectures after Lu et al., "NSGA-Net: Neural Architecture Search using Multi-Objective
Genetic Algorithm", GECCO 2019, https://arxiv.org/abs/1810.03522, with its population of 40.

The loop, with a population of P members and B children per step:

1. the first P candidates of the search are uniform draws;
2. each parent is the better of two random members: lower front first, then larger crowding
   distance, then chance; with probability `crossover_rate` the child mixes two parents, else it
   copies the first; then it mutates;
3. a child that equals a parent after that is changed in exactly one decision;
4. of members and children together the best P survive, in the same order.

Deviations: P children per generation are `batch_size = population_size`, fewer are a steady state;
a candidate that was evaluated again while its first copy lives ranks with the failures, for copies
would crowd a discrete front; variation is that of `jaxnas.strategies.genetic` in place of simulated
binary crossover and bit flips.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.objectives.pareto import crowding_distance, front_ranks
from jaxnas.space import SearchSpace, crossover, mutate, sample
from jaxnas.types import Proposal, Strategy, split_like


class NSGA2State(NamedTuple):
    """The population in the order of preference; the first min(count, P) places are taken."""

    arch: Array  # i32[P, D]
    objectives: Array  # f32[P, M], minus infinity for failures, copies and empty places
    count: Array  # i32[], candidates evaluated


def _order(key: Array, objectives: Array, present: Array) -> Array:
    """Places i32[N] from the most to the least preferred, absent ones last; chance breaks ties."""
    ranks = jnp.where(present, front_ranks(objectives), objectives.shape[0])
    chance = jax.random.uniform(key, ranks.shape)
    return jnp.lexsort((chance, -crowding_distance(objectives, ranks), ranks))


def nsga2(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    num_objectives: int = 2,
    population_size: int = 40,
    crossover_rate: float | Array = 0.9,
    mutation_rate: float | Array | None = None,
) -> Strategy:
    """Multi-objective evolution by non-dominated sorting and crowding distance.

    Reads `evaluation.objectives`, all maximised, and nothing else; a candidate with a NaN among
    them, or with a NaN fitness, has failed. The front is best read off the history, of which the
    population is a part.

    Args:
      space: the search space.
      batch_size: children B per `ask`. Static.
      num_objectives: columns M of the evaluator's `objectives`. Static.
      population_size: members kept, P >= B. Static.
      crossover_rate: probability that a child has two parents. May be traced.
      mutation_rate: None changes exactly one active decision of each child; a number changes each
        with that probability. May be traced.

    Returns:
      A `Strategy` whose state is a population of i32[P, D] and f32[P, M], the best first.

    Raises:
      ValueError: for a size below 1, a rate outside [0, 1], or a population smaller than a batch;
        when traced, for an evaluator with another number of objectives.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = nsga2(tiny_space(), batch_size=4, population_size=16)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_count("num_objectives", num_objectives)
    check_count("population_size", population_size)
    check_number("crossover_rate", crossover_rate, high=1.0)
    check_number("mutation_rate", mutation_rate, high=1.0)
    if population_size < batch_size:
        raise ValueError(
            f"population_size must be at least batch_size = {batch_size}, got {population_size}"
        )

    def breed(key, state: NSGA2State) -> Array:
        k_parents, k_either, k_cross, k_mutate, k_change = jax.random.split(key, 5)
        num_members = jnp.minimum(state.count, population_size)
        a, b = state.arch[jax.random.randint(k_parents, (2, 2), 0, num_members).min(axis=1)]
        crossed = jax.random.bernoulli(k_either, crossover_rate)
        child = jnp.where(crossed, crossover(k_cross, space, a, b), a)
        child = mutate(k_mutate, space, child, mutation_rate)
        is_copy = jnp.all(child == a) | (crossed & jnp.all(child == b))
        return jnp.where(is_copy, mutate(k_change, space, child), child)

    def init(key):
        del key
        return NSGA2State(
            arch=jnp.zeros((population_size, space.num_decisions), jnp.int32),
            objectives=jnp.full((population_size, num_objectives), -jnp.inf, jnp.float32),
            count=jnp.zeros((), jnp.int32),
        )

    def ask(key, state: NSGA2State):
        def propose(k, number):
            k_sample, k_breed = jax.random.split(k)
            is_random = number < population_size
            return jnp.where(is_random, sample(k_sample, space), breed(k_breed, state))

        numbers = state.count + jnp.arange(batch_size)
        arch = jax.vmap(propose)(split_like(key, batch_size), numbers)
        return Proposal(arch, jnp.ones(batch_size))

    def tell(key, state: NSGA2State, proposal, evaluation):
        num_columns = evaluation.objectives.shape[1]
        if num_columns != num_objectives:
            raise ValueError(
                f"num_objectives must be the evaluator's {num_columns}, got {num_objectives}"
            )
        failed = jnp.isnan(evaluation.fitness) | jnp.isnan(evaluation.objectives).any(axis=1)
        born = jnp.where(failed[:, None], -jnp.inf, evaluation.objectives)
        arch = jnp.concatenate([state.arch, proposal.arch])
        objectives = jnp.concatenate([state.objectives, born])
        place = jnp.arange(population_size + batch_size)
        present = (place < state.count) | (place >= population_size)
        succeeded = jnp.any(objectives > -jnp.inf, axis=1)  # in an empty place nothing did
        same = jnp.all(arch[:, None] == arch, axis=-1) & succeeded
        is_copy = jnp.any(jnp.tril(same, k=-1), axis=1)
        objectives = jnp.where(is_copy[:, None], -jnp.inf, objectives)
        survivors = _order(key, objectives, present)[:population_size]
        return NSGA2State(arch[survivors], objectives[survivors], state.count + batch_size)

    return Strategy(init, ask, tell)
