"""A genetic algorithm with crossover, mutation and elites.

Goldberg, "Genetic Algorithms in Search, Optimization and Machine Learning", Addison-Wesley 1989,
chapter 3: select two parents, cross them with some probability, mutate the child. For architectures
after Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling" (SPOS),
ECCV 2020, https://arxiv.org/abs/1904.00420, section 3.4, whose rates are the defaults.

The loop, with a population of P members of which E are elites, and B children per step:

1. the first P candidates of the search are uniform draws;
2. two parents are selected independently; with probability `crossover_rate` the child mixes them,
   else it copies the first; then each of its decisions mutates with `mutation_rate`;
3. a child that equals a parent after that is changed in exactly one decision, for a copy would
   waste an evaluation;
4. the children join, and the B oldest of those members that are not among the E best die.

So one rule covers the classical schemes: `P = E + B` with few elites replaces whole generations,
`E = P - B` replaces the worst (steady state), `E = 0` replaces the oldest (ageing).

Deviations: SPOS crosses or mutates, here crossed children mutate too (Goldberg); SPOS redraws
candidates visited before, here only copies of the own parents are avoided. Its parents, the best 10
of all time with 50 children per generation, are `batch_size=50, population_size=60, num_elites=10,
selection="truncation", truncation_rate=1 / 6`.
"""

import jax.numpy as jnp
from jax import Array

from jaxnas import counter
from jaxnas._checks import check_count, check_number, check_option
from jaxnas.space import SearchSpace, mutate
from jaxnas.space import crossover as cross
from jaxnas.strategies._population import Population, empty, fill_or_breed, tournament
from jaxnas.types import Strategy, rank_value, split_like


def genetic(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    population_size: int = 64,
    num_elites: int = 8,
    selection: str = "tournament",
    tournament_size: int = 4,
    truncation_rate: float | Array = 0.2,
    crossover: str = "uniform",
    crossover_rate: float | Array = 0.5,
    mutation_rate: float | Array | None = 0.1,
) -> Strategy:
    """Genetic algorithm: selected parents are crossed and mutated, elites survive.

    The module's docstring gives the exact loop.

    Args:
      space: the search space.
      batch_size: children B per `ask`. Static.
      population_size: members kept, P >= E + B. Static.
      num_elites: members E that cannot die of age. Static.
      selection: "tournament" takes the best of `tournament_size` members drawn with replacement;
        "truncation" draws from the best `truncation_rate` of the population. Static.
      tournament_size: only for tournaments. Static.
      truncation_rate: only for truncation; at least one member is left. May be traced.
      crossover: "uniform" or "one_point", see `jaxnas.space.crossover`. Static.
      crossover_rate: probability that a child has two parents. May be traced.
      mutation_rate: probability that a decision of a child changes; None changes exactly one. May
        be traced.

    Returns:
      A `Strategy` whose state is a population of i32[P, D] and f32[P].

    Raises:
      ValueError: for a size below 1, a rate outside [0, 1], an unknown selection or crossover, or a
        population smaller than its elites and a batch together.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_space
      >>> strategy = genetic(tiny_space(), batch_size=4, population_size=16, num_elites=2)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_count("population_size", population_size)
    check_count("num_elites", num_elites, minimum=0)
    check_option("selection", selection, ("tournament", "truncation"))
    check_count("tournament_size", tournament_size)
    check_number("truncation_rate", truncation_rate, high=1.0)
    check_option("crossover", crossover, ("uniform", "one_point"))
    check_number("crossover_rate", crossover_rate, high=1.0)
    check_number("mutation_rate", mutation_rate, high=1.0)
    if population_size < num_elites + batch_size:
        raise ValueError(
            f"population_size must be at least num_elites + batch_size = "
            f"{num_elites + batch_size}, got {population_size}"
        )

    def select(key, state: Population) -> Array:
        if selection == "tournament":
            return tournament(key, state, tournament_size)
        num_parents = jnp.round(truncation_rate * state.num_members).astype(jnp.int32)
        best_first = jnp.argsort(state.fitness)[::-1]
        rank = counter.draw(key, 1)[0] * jnp.maximum(num_parents, 1)
        return best_first[rank.astype(jnp.int32)]

    def breed(key, state: Population) -> Array:
        k_a, k_b, k_either, k_cross, k_mutate, k_change = split_like(key, 6)
        a, b = state.arch[select(k_a, state)], state.arch[select(k_b, state)]
        crossed = counter.draw(k_either, 1)[0] < crossover_rate
        child = jnp.where(crossed, cross(k_cross, space, a, b, kind=crossover), a)
        child = mutate(k_mutate, space, child, mutation_rate)
        is_copy = jnp.all(child == a) | (crossed & jnp.all(child == b))
        return jnp.where(is_copy, mutate(k_change, space, child), child)

    def init(key):
        del key
        return empty(space, population_size)

    def ask(key, state: Population):
        return fill_or_breed(key, space, state, batch_size, lambda k: breed(k, state))

    def tell(key, state: Population, proposal, evaluation):
        del key
        # The sort is stable and the oldest come first: among equals the younger are the elite, so
        # the search drifts across a plateau, and empty places are the first to go.
        elites = jnp.argsort(state.fitness)[population_size - num_elites :]
        mortal = jnp.ones(population_size, bool).at[elites].set(False)
        dies = mortal & (jnp.cumsum(mortal) <= batch_size)
        survivors = jnp.nonzero(~dies, size=population_size - batch_size)[0]
        born = rank_value(evaluation.fitness)
        return Population(
            arch=jnp.concatenate([state.arch[survivors], proposal.arch]),
            fitness=jnp.concatenate([state.fitness[survivors], born]),
            count=state.count + batch_size,
        )

    return Strategy(init, ask, tell)
