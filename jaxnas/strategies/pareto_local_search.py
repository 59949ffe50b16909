"""Pareto local search: look at the neighbours of what nobody dominates, until none is new.

Paquete, Chiarandini & Stuetzle, "Pareto Local Optimum Sets in the Biobjective Traveling Salesman
Problem: An Experimental Study", in Metaheuristics for Multiobjective Optimisation, 2004,
https://doi.org/10.1007/978-3-642-17144-4_7, section 2, Algorithm 1.

The loop:

1. draw `num_init` architectures uniformly;
2. of the architectures that no other dominates pick one at random that was not a centre yet;
3. evaluate its unseen neighbours in random order, B at a time; it was a centre then;
4. go on at 2; where every efficient architecture was a centre, begin again at 1.

Deviations: the paper stops where this begins again; places of a batch for which there is no unseen
neighbour hold uniform draws, which take part like neighbours; only the last `capacity` candidates
count as seen and can be a centre.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count
from jaxnas.objectives.pareto import beats
from jaxnas.space import SearchSpace, neighbours, sample
from jaxnas.strategies._memory import is_known, occupied, remember
from jaxnas.strategies._population import Population, empty
from jaxnas.types import Proposal, Strategy, split_like


class ParetoLocalSearchState(NamedTuple):
    """What was seen, and the neighbours of the present centre."""

    memory: Population  # capacity C; its fitness is not read
    objectives: Array  # f32[C, M], minus infinity for failures and empty places
    dominated: Array  # bool[C], those that some candidate of the search dominates
    expanded: Array  # bool[C], members of the memory that were a centre
    num_draws: Array  # i32[], uniform draws until the next centre, 0 while there is one
    around: Array  # i32[N, D], neighbours of the centre
    is_open: Array  # bool[N], those that can be asked for: new to the search


def pareto_local_search(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    num_objectives: int = 2,
    num_init: int = 10,
    capacity: int = 1024,
) -> Strategy:
    """Expands the Pareto front neighbourhood by neighbourhood.

    Reads `evaluation.objectives`, all maximised, and nothing else; a candidate with a NaN among
    them, or with a NaN fitness, has failed. The front is best read off the history.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_objectives: columns M of the evaluator's `objectives`. Static.
      num_init: uniform draws before the first centre and where the front is exhausted, rounded up
        to whole batches. Static.
      capacity: candidates C >= B that are remembered. Static.

    Returns:
      A `Strategy` whose state holds the last C candidates.

    Raises:
      ValueError: for a size below 1, or a capacity smaller than a batch; when traced, for an
        evaluator with another number of objectives.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = pareto_local_search(tiny_space(), batch_size=2, num_init=4)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (2, 3)
    """
    check_count("batch_size", batch_size)
    check_count("num_objectives", num_objectives)
    check_count("num_init", num_init)
    check_count("capacity", capacity)
    if capacity < batch_size:
        raise ValueError(f"capacity must be at least batch_size = {batch_size}, got {capacity}")
    num_neighbours = sum(n - 1 for n in space.num_choices)

    def init(key):
        del key
        return ParetoLocalSearchState(
            memory=empty(space, capacity),
            objectives=jnp.full((capacity, num_objectives), -jnp.inf, jnp.float32),
            dominated=jnp.zeros(capacity, bool),
            expanded=jnp.zeros(capacity, bool),
            num_draws=jnp.asarray(num_init, jnp.int32),
            around=jnp.zeros((num_neighbours, space.num_decisions), jnp.int32),
            is_open=jnp.zeros(num_neighbours, bool),
        )

    def ask(key, state: ParetoLocalSearchState):
        k_draw, k_order = jax.random.split(key)
        draws = jax.vmap(lambda k: sample(k, space))(split_like(k_draw, batch_size))
        is_open = state.is_open & (state.num_draws == 0)
        # Open neighbours in random order, then draws.
        first = jnp.where(is_open, jax.random.uniform(k_order, is_open.shape), 2.0)
        order = jnp.argsort(jnp.concatenate([first, jnp.ones(batch_size)]))
        pool = jnp.concatenate([state.around, draws])
        return Proposal(pool[order[:batch_size]], jnp.ones(batch_size))

    def next_centre(key, memory: Population, efficient: Array, expanded: Array):
        """A random efficient member with unseen neighbours, all those without marked as expanded.

        Returns:
          Its neighbours, which of them are new, and the marks; none new if there is no such member.
        """
        chance = jax.random.uniform(key, efficient.shape)

        def again(carry):
            _, is_open, marks = carry
            return ~jnp.any(is_open) & jnp.any(efficient & ~marks)

        def expand(carry):
            *_, marks = carry
            place = jnp.argmax(jnp.where(efficient & ~marks, chance, -1.0))
            centre = memory.arch[place]
            around = neighbours(space, centre)
            is_open = jnp.any(around != centre, axis=1) & ~is_known(memory, around)
            same = jnp.all(memory.arch == centre, axis=1)
            return around, is_open, marks | (same & occupied(memory))

        nowhere = jnp.zeros((num_neighbours, space.num_decisions), jnp.int32)
        start = nowhere, jnp.zeros(num_neighbours, bool), expanded
        return jax.lax.while_loop(again, expand, start)

    def tell(key, state: ParetoLocalSearchState, proposal, evaluation):
        num_columns = evaluation.objectives.shape[1]
        if num_columns != num_objectives:
            raise ValueError(
                f"num_objectives must be the evaluator's {num_columns}, got {num_objectives}"
            )
        failed = jnp.isnan(evaluation.fitness) | jnp.isnan(evaluation.objectives).any(axis=1)
        born = jnp.where(failed[:, None], -jnp.inf, evaluation.objectives)
        memory = remember(state.memory, proposal.arch, evaluation.fitness)
        # New against old and new against new: what is known of old against old stays.
        old = state.dominated | jnp.any(beats(born, state.objectives), axis=0)
        new = jnp.any(beats(jnp.concatenate([state.objectives, born]), born), axis=0)
        dominated = jnp.concatenate([old, new])[batch_size:]
        objectives = jnp.concatenate([state.objectives, born])[batch_size:]
        unmarked = jnp.zeros(batch_size, bool)
        expanded = jnp.concatenate([state.expanded, unmarked])[batch_size:]
        is_open = state.is_open & ~is_known(memory, state.around)
        num_draws = jnp.maximum(state.num_draws - batch_size, 0)
        # Not while drawing, nor while the present centre has neighbours left.
        done = (num_draws == 0) & ~jnp.any(is_open)
        succeeded = occupied(memory) & jnp.any(objectives > -jnp.inf, axis=1)
        around, fresh, marks = next_centre(key, memory, succeeded & ~dominated, expanded)
        exhausted = done & ~jnp.any(fresh)
        return ParetoLocalSearchState(
            memory=memory,
            objectives=objectives,
            dominated=dominated,
            expanded=jnp.where(done, marks, expanded),
            num_draws=jnp.where(exhausted, num_init, num_draws).astype(jnp.int32),
            around=jnp.where(done, around, state.around),
            is_open=jnp.where(done, fresh, is_open),
        )

    return Strategy(init, ask, tell)
