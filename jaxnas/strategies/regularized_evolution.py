"""Regularised (ageing) evolution.

Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019,
https://arxiv.org/abs/1802.01548, Algorithm 1: mutate the best of a random tournament; the oldest
member dies, however good it is. Deviation: `batch_size` children per step (paper: 1), all bred from
the population before the step, after which the `batch_size` oldest die.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.space import SearchSpace, mutate
from jaxnas.strategies._population import Population, empty, fill_or_breed, tournament
from jaxnas.types import Strategy, rank_value


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
      A `Strategy` whose state is a population of i32[P, D] and f32[P].

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
        del key
        return empty(space, population_size)

    def ask(key, state: Population):
        def breed(k):
            k_parent, k_mutate = jax.random.split(k)
            parent = tournament(k_parent, state, tournament_size)
            return mutate(k_mutate, space, state.arch[parent], mutation_rate)

        return fill_or_breed(key, space, state, batch_size, breed)

    def tell(key, state: Population, proposal, evaluation):
        del key
        born = rank_value(evaluation.fitness)
        return Population(
            arch=jnp.concatenate([state.arch, proposal.arch])[batch_size:],
            fitness=jnp.concatenate([state.fitness, born])[batch_size:],
            count=state.count + batch_size,
        )

    return Strategy(init, ask, tell)
