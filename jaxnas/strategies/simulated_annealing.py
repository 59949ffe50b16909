"""Simulated annealing: a worse neighbour is accepted with a chance that falls over time.

Kirkpatrick, Gelatt & Vecchi, "Optimization by Simulated Annealing", Science 1983,
https://doi.org/10.1126/science.220.4598.671, with the acceptance rule of Metropolis et al.,
"Equation of State Calculations by Fast Computing Machines", Journal of Chemical Physics 1953,
https://doi.org/10.1063/1.1699114: a change of the fitness by d is accepted with probability
min(1, exp(d / T)). For architectures the rule serves Auto-Keras (Jin, Song & Hu, KDD 2019,
https://arxiv.org/abs/1806.10282, Algorithm 1), which cools geometrically, as here by default.

Each of C chains proposes B / C changes of its present architecture at once and takes the first
that is accepted, in their order. So a chain visits what a chain that evaluates one candidate at a
time would visit; the candidates behind an accepted one are the price of evaluating in parallel.

Deviations: a chain begins with uniform draws, until one succeeds; the temperature is a function of
the candidates evaluated and not of the acceptance rate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number, check_option
from jaxnas.space import SearchSpace, mutate, sample
from jaxnas.types import Proposal, Strategy, rank_value, split_like


class AnnealingState(NamedTuple):
    """Where the chains are."""

    arch: Array  # i32[C, D]
    fitness: Array  # f32[C], minus infinity before a chain's first success
    count: Array  # i32[], candidates evaluated


def simulated_annealing(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    num_chains: int | None = None,
    num_evaluations: int = 500,
    schedule: str = "geometric",
    initial_temperature: float | Array = 0.1,
    final_temperature: float | Array = 1e-3,
    mutation_rate: float | Array | None = None,
) -> Strategy:
    """Independent Metropolis chains under a falling temperature.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_chains: chains C, a divisor of B; None: one per candidate. Few chains go far, many look at
        more places. Static.
      num_evaluations: candidates over which the temperature falls; constant after. Static.
      schedule: "geometric" multiplies the temperature by a constant per candidate, "linear"
        subtracts one. Static.
      initial_temperature: in units of the fitness, at least 0. May be traced.
      final_temperature: likewise; 0 accepts no loss at the end. May be traced.
      mutation_rate: None changes exactly one active decision; a number changes each with that
        probability. May be traced.

    Returns:
      A `Strategy` whose state is one architecture per chain.

    Raises:
      ValueError: for a size below 1, a number of chains that does not divide the batch, an unknown
        schedule, a negative temperature, or a rate outside [0, 1].

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = simulated_annealing(tiny_space(), batch_size=4, num_chains=2)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    chains = batch_size if num_chains is None else num_chains
    check_count("num_chains", chains)
    check_count("num_evaluations", num_evaluations)
    check_option("schedule", schedule, ("geometric", "linear"))
    check_number("initial_temperature", initial_temperature)
    check_number("final_temperature", final_temperature)
    check_number("mutation_rate", mutation_rate, high=1.0)
    if batch_size % chains:
        raise ValueError(f"num_chains must divide batch_size = {batch_size}, got {chains}")

    def temperature(count):
        share = jnp.minimum(count / num_evaluations, 1.0)
        if schedule == "linear":
            return (1.0 - share) * initial_temperature + share * final_temperature
        return jnp.power(initial_temperature, 1.0 - share) * jnp.power(final_temperature, share)

    def init(key):
        del key
        return AnnealingState(
            arch=jnp.zeros((chains, space.num_decisions), jnp.int32),
            fitness=jnp.full(chains, -jnp.inf, jnp.float32),
            count=jnp.zeros((), jnp.int32),
        )

    def ask(key, state: AnnealingState):
        def propose(k, chain):
            k_sample, k_mutate = split_like(k, 2)
            change = mutate(k_mutate, space, state.arch[chain], mutation_rate)
            return jnp.where(state.fitness[chain] == -jnp.inf, sample(k_sample, space), change)

        chain = jnp.arange(batch_size) // (batch_size // chains)
        arch = jax.vmap(propose)(split_like(key, batch_size), chain)
        return Proposal(arch, jnp.ones(batch_size))

    def tell(key, state: AnnealingState, proposal, evaluation):
        arch = proposal.arch.reshape(chains, -1, space.num_decisions)
        fitness = rank_value(evaluation.fitness).reshape(chains, -1)
        count = state.count + 1 + jnp.arange(batch_size).reshape(fitness.shape)
        now = state.fitness[:, None]
        heat = jnp.maximum(temperature(count), jnp.finfo(jnp.float32).tiny)
        chance = jnp.where(fitness >= now, 1.0, jnp.exp((fitness - now) / heat))
        accepted = jax.random.uniform(key, fitness.shape) < chance
        # The first accepted one; but a chain that has nothing yet takes the best of its draws.
        earliness = -jnp.arange(fitness.shape[1], dtype=jnp.float32)
        value = jnp.where(now == -jnp.inf, fitness, earliness)
        pick = jnp.argmax(jnp.where(accepted, value, -jnp.inf), axis=1)
        moves, row = accepted.any(axis=1), jnp.arange(chains)
        return AnnealingState(
            arch=jnp.where(moves[:, None], arch[row, pick], state.arch),
            fitness=jnp.where(moves, fitness[row, pick], state.fitness),
            count=state.count + batch_size,
        )

    return Strategy(init, ask, tell)
