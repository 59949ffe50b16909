"""Regularised (ageing) evolution.

Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019,
https://arxiv.org/abs/1802.01548, Algorithm 1: mutate the best of a random tournament; the oldest
member dies, however good it is. Deviation: `batch_size` children per step (paper: 1), all bred from
the population before the step, after which the `batch_size` oldest die.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.space import SearchSpace, mutate, sample
from jaxnas.strategies._population import Population, empty, tournament
from jaxnas.types import Proposal, Strategy, rank_value, split_like


class EvolutionState(NamedTuple):
    """Candidate n of a search lives in place n modulo P, counted from the last, until n + P does.

    Nothing moves when a member dies, and what is random is drawn once: inside a compiled loop a
    step then writes to B places instead of copying the population.
    """

    first: Array  # i32[P, D], the random candidates that the search begins with, in their places
    members: Population


def regularized_evolution(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    population_size: int = 64,
    tournament_size: int = 10,
    mutation_rate: float | Array | None = None,
) -> Strategy:
    """Ageing evolution: the best of a tournament is mutated, the oldest member dies.

    The first `population_size` candidates are uniform draws. Good settings depend on the number of
    evaluations: the paper used a population of 100 and tournaments of 25 for 20,000 of them; a
    population of 10 and tournaments of 3 to 10 suit a hundred.

    Args:
      space: the search space.
      batch_size: children B per `ask`. Static.
      population_size: members kept, P >= B. Static.
      tournament_size: members drawn with replacement per tournament. Static.
      mutation_rate: None changes exactly one active decision of the parent, as in the paper; a
        number changes each with that probability. May be traced.

    Returns:
      A `Strategy` whose state is an `EvolutionState`.

    Raises:
      ValueError: for a size below 1, a rate outside [0, 1], or a population smaller than a batch.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = regularized_evolution(tiny_space(), batch_size=4, population_size=16)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_count("population_size", population_size)
    check_count("tournament_size", tournament_size)
    check_number("mutation_rate", mutation_rate, high=1.0)
    if population_size < batch_size:
        raise ValueError(
            f"population_size must be at least batch_size = {batch_size}, got {population_size}"
        )

    def init(key):
        first = jax.vmap(lambda k: sample(k, space))(split_like(key, population_size))
        return EvolutionState(first, empty(space, population_size))

    def newborn(state: EvolutionState) -> tuple[Array, Array]:
        number = state.members.count + jnp.arange(batch_size)
        return number, population_size - 1 - number % population_size

    def ask(key, state: EvolutionState):
        members = state.members

        def breed(keys):
            parent = tournament(keys[0], members, tournament_size)
            return mutate(keys[1], space, members.arch[parent], mutation_rate)

        children = jax.vmap(breed)(split_like(key, 2 * batch_size).reshape(batch_size, 2))
        number, place = newborn(state)
        is_random = number < population_size
        arch = jnp.where(is_random[:, None], state.first[place], children)
        return Proposal(arch, jnp.ones(batch_size))

    def tell(key, state: EvolutionState, proposal, evaluation):
        del key
        members, (_, place) = state.members, newborn(state)
        members = Population(
            arch=members.arch.at[place].set(proposal.arch),
            fitness=members.fitness.at[place].set(rank_value(evaluation.fitness)),
            count=members.count + batch_size,
        )
        return state._replace(members=members)

    return Strategy(init, ask, tell)
