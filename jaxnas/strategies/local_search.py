"""Local search: climb from neighbour to neighbour, never ask for the same architecture twice.

White, Nolen & Savani, "Exploring the Loss Landscape in Neural Architecture Search", UAI 2021,
https://arxiv.org/abs/2005.02960, Algorithm 1, with the variants of the authors' experiments: move
at the first improvement or after the whole neighbourhood; at a local optimum start again or go on
from the best architecture that was not expanded yet.

The loop:

1. draw `num_init` architectures uniformly; the best is the centre;
2. evaluate the centre's unseen neighbours in random order, B at a time;
3. move to the best of them if it beats the centre: as soon as there is one ("first"), or when no
   unseen neighbour is left ("full");
4. without an improvement begin again at 1 ("restart") or expand the best architecture that was
   never a centre ("continue"), which is also where "continue" goes after an improvement.

Deviations: `batch_size` neighbours at a time (paper: 1), of which the best is the one to move to;
places of a batch for which there is no unseen neighbour hold uniform draws, which take part like
neighbours; only the last `capacity` candidates count as seen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_option
from jaxnas.space import SearchSpace, neighbours, sample
from jaxnas.strategies._memory import is_known, occupied, remember
from jaxnas.strategies._population import Population, empty
from jaxnas.types import Proposal, Strategy, rank_value, split_like


class LocalSearchState(NamedTuple):
    """The centre, the best since it became the centre, and what was seen."""

    memory: Population  # capacity C
    expanded: Array  # bool[C], members of the memory that were the centre
    num_draws: Array  # i32[], uniform draws until the next climb, 0 while climbing
    centre: Array  # i32[D], meaningless while drawing
    centre_fitness: Array  # f32[], minus infinity while drawing
    around: Array  # i32[N, D], neighbours of the centre
    is_open: Array  # bool[N], those that can be asked for: new to the search
    best: Array  # i32[D], the best since the last move or restart
    best_fitness: Array  # f32[]


def local_search(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    num_init: int = 10,
    neighbourhood: str = "first",
    at_optimum: str = "restart",
    capacity: int = 1024,
) -> Strategy:
    """Hill climbing over the neighbours that differ in one decision.

    The module's docstring gives the exact loop. Small batches suit it: with `batch_size=1` and
    "first" not one evaluation is spent after an improvement was found.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_init: uniform draws before each climb, rounded up to whole batches. Static.
      neighbourhood: "first" moves at the first improvement, "full" looks at all neighbours and
        moves to the best. Static.
      at_optimum: "restart" draws anew where no neighbour is better; "continue" expands the best
        architecture not yet expanded. Static.
      capacity: candidates C >= B that are remembered. Static.

    Returns:
      A `Strategy` whose state holds the last C candidates.

    Raises:
      ValueError: for a size below 1, an unknown option, or a capacity smaller than a batch.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = local_search(tiny_space(), batch_size=2, num_init=4)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (2, 3)
    """
    check_count("batch_size", batch_size)
    check_count("num_init", num_init)
    check_option("neighbourhood", neighbourhood, ("first", "full"))
    check_option("at_optimum", at_optimum, ("restart", "continue"))
    check_count("capacity", capacity)
    if capacity < batch_size:
        raise ValueError(f"capacity must be at least batch_size = {batch_size}, got {capacity}")

    num_neighbours = sum(n - 1 for n in space.num_choices)

    def init(key):
        del key
        nowhere = jnp.zeros(space.num_decisions, jnp.int32)
        worst = jnp.asarray(-jnp.inf, jnp.float32)
        return LocalSearchState(
            memory=empty(space, capacity),
            expanded=jnp.zeros(capacity, bool),
            num_draws=jnp.asarray(num_init, jnp.int32),
            centre=nowhere,
            centre_fitness=worst,
            around=jnp.zeros((num_neighbours, space.num_decisions), jnp.int32),
            is_open=jnp.zeros(num_neighbours, bool),
            best=nowhere,
            best_fitness=worst,
        )

    def ask(key, state: LocalSearchState):
        k_draw, k_order = jax.random.split(key)
        # More uniform draws than places, so that enough unseen ones are among them.
        draws = jax.vmap(lambda k: sample(k, space))(split_like(k_draw, 16 + 4 * batch_size))
        is_open = state.is_open & (state.num_draws == 0)
        pool = jnp.concatenate([state.around, draws])
        unseen = jnp.concatenate([is_open, ~is_known(state.memory, draws)])
        same = jnp.all(pool[:, None] == pool, axis=-1)
        repeats = jnp.any(jnp.tril(same & unseen, k=-1), axis=1)  # of an earlier unseen row
        # Neighbours in random order, then unseen draws, then the other draws.
        first = jnp.where(is_open, jax.random.uniform(k_order, is_open.shape), 3.0)
        then = jnp.where(unseen & ~repeats, 1.0, 2.0)[is_open.size :]
        order = jnp.argsort(jnp.concatenate([first, then]))
        return Proposal(pool[order[:batch_size]], jnp.ones(batch_size))

    def look(state: LocalSearchState, proposal, evaluation) -> LocalSearchState:
        """The state with the new candidates in its memory and in its best."""
        born = rank_value(evaluation.fitness)
        first = jnp.argmax(born)
        better = born[first] > state.best_fitness
        unmarked = jnp.zeros(batch_size, bool)
        return state._replace(
            memory=remember(state.memory, proposal.arch, evaluation.fitness),
            expanded=jnp.concatenate([state.expanded, unmarked])[batch_size:],
            best=jnp.where(better, proposal.arch[first], state.best),
            best_fitness=jnp.where(better, born[first], state.best_fitness),
        )

    def next_centre(state: LocalSearchState) -> tuple[Array, Array]:
        """Where to go from here: i32[D] and its fitness f32[], minus infinity for nowhere."""
        if at_optimum == "continue":
            value = jnp.where(state.expanded, -jnp.inf, state.memory.fitness)
            place = jnp.argmax(value)
            return state.memory.arch[place], value[place]
        improved = state.best_fitness > state.centre_fitness
        return state.best, jnp.where(improved, state.best_fitness, -jnp.inf)

    def tell(key, state: LocalSearchState, proposal, evaluation):
        del key
        seen = look(state, proposal, evaluation)
        num_draws = jnp.maximum(state.num_draws - batch_size, 0)
        climbed = state.is_open.sum() <= batch_size
        if neighbourhood == "first":
            climbed |= seen.best_fitness > state.centre_fitness
        done = jnp.where(state.num_draws > 0, num_draws == 0, climbed)
        arch, fitness = next_centre(seen)
        centre = jnp.where(done, arch, state.centre)
        around = neighbours(space, centre)
        is_open = jnp.any(around != centre, axis=1) & ~is_known(seen.memory, around)
        nowhere = fitness == -jnp.inf
        if at_optimum == "restart":
            nowhere |= ~is_open.any()
        again = done & nowhere
        was_centre = jnp.all(seen.memory.arch == centre, axis=1) & occupied(seen.memory)

        def moved(kept):  # the fitness to beat from now on
            return jnp.where(again, -jnp.inf, jnp.where(done, fitness, kept))

        return LocalSearchState(
            memory=seen.memory,
            expanded=seen.expanded | (was_centre & done),
            num_draws=jnp.where(again, num_init, num_draws).astype(jnp.int32),
            centre=centre,
            centre_fitness=moved(state.centre_fitness),
            around=around,
            is_open=is_open,
            best=seen.best,
            best_fitness=moved(seen.best_fitness),
        )

    return Strategy(init, ask, tell)
