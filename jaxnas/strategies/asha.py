"""Asynchronous successive halving (ASHA): nobody waits for a rung to fill up.

Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020,
https://arxiv.org/abs/1810.05934, Algorithm 2.

Whenever a worker is free it gets a job: from the highest rung downwards, a candidate that is among
the best 1/eta of the results of its rung and was not promoted yet goes one rung, that is eta times
the budget, up; where there is none, a new uniform draw joins the lowest rung. So the first results
with full training come early, wrong promotions are the price, and the number of candidates need
not be known.

Deviations: the B places of a batch are B workers that ask one after the other and end together;
only the last `capacity` results count, so a rung is a sliding window once the search is longer; a
failed candidate is never promoted; the budgets are `1, 1 / eta, 1 / eta**2, ...`, so that the last
is full training, rather than multiples of the smallest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count
from jaxnas.space import SearchSpace, sample
from jaxnas.strategies._brackets import ladder
from jaxnas.strategies._memory import remember
from jaxnas.strategies._population import Population, empty
from jaxnas.types import Proposal, Strategy, split_like


class ASHAState(NamedTuple):
    """The last C results."""

    memory: Population  # capacity C
    rung: Array  # i32[C], -1 for empty places
    promoted: Array  # bool[C], whether the candidate went on to the next rung


class ASHAInfo(NamedTuple):
    """Where the candidates of a proposal come from."""

    rung: Array  # i32[B]
    parent: Array  # i32[B], the place in the memory of the result that was promoted; C: a new draw


def asha(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    eta: int = 3,
    min_budget: float = 1 / 27,
    capacity: int = 1024,
) -> Strategy:
    """Promotes whatever is in the best 1/eta of its rung at once, else draws a new candidate.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      eta: factor between budgets, at least 2. Static.
      min_budget: the smallest budget is the smallest power of 1/eta not below this fraction of
        full training. Static.
      capacity: results C >= B that are remembered, of all rungs together. Static.

    Returns:
      A `Strategy` whose state holds the last C results.

    Raises:
      ValueError: for a number out of range, or a capacity smaller than a batch.

    Example:
      >>> import jaxnas as nas
      >>> strategy = asha(nas.testing.tiny_space(), batch_size=4)
      >>> strategy.ask(jax.random.key(1), strategy.init(jax.random.key(0))).budget.round(4)
      Array([0.037, 0.037, 0.037, 0.037], dtype=float32)
    """
    check_count("batch_size", batch_size)
    check_count("capacity", capacity)
    if capacity < batch_size:
        raise ValueError(f"capacity must be at least batch_size = {batch_size}, got {capacity}")
    budgets = ladder(eta, min_budget)
    top = len(budgets) - 1

    def init(key):
        del key
        return ASHAState(
            memory=empty(space, capacity),
            rung=jnp.full(capacity, -1, jnp.int32),
            promoted=jnp.zeros(capacity, bool),
        )

    def ask(key, state: ASHAState):
        parent = promotable(state, eta, top, batch_size)
        is_new = parent == capacity
        # A gather out of bounds reads the last place, whatever it holds: new ones replace it.
        rung = jnp.where(is_new, 0, state.rung[parent] + 1)
        drawn = jax.vmap(lambda k: sample(k, space))(split_like(key, batch_size))
        arch = jnp.where(is_new[:, None], drawn, state.memory.arch[parent])
        return Proposal(arch, jnp.asarray(budgets, jnp.float32)[rung], ASHAInfo(rung, parent))

    def tell(key, state: ASHAState, proposal, evaluation):
        del key
        promoted = state.promoted.at[proposal.info.parent].set(True, mode="drop")
        return ASHAState(
            memory=remember(state.memory, proposal.arch, evaluation.fitness),
            rung=jnp.concatenate([state.rung, proposal.info.rung])[batch_size:],
            promoted=jnp.concatenate([promoted, jnp.zeros(batch_size, bool)])[batch_size:],
        )

    return Strategy(init, ask, tell)


def promotable(state: ASHAState, eta: int, top: int, num: int) -> Array:
    """The first results that Algorithm 2 promotes: higher rungs first, then better fitness.

    Args:
      state: of capacity C.
      eta: of the results of a rung 1/eta, rounded down, may be promoted.
      top: the number of the last rung, from which nobody is promoted.
      num: how many to return.

    Returns:
      i32[num], places in the memory; C where there are no more.
    """
    fitness = state.memory.fitness
    capacity = fitness.shape[0]
    order = jnp.lexsort((-fitness, -state.rung))
    rung = state.rung[order]
    size = jnp.bincount(jnp.where(rung < 0, top + 1, rung), length=top + 2)
    above = size[: top + 1][::-1].cumsum()[::-1] - size[: top + 1]  # results in higher rungs
    rank = jnp.arange(capacity) - above[rung]
    best = (rank < size[rung] // eta) & (fitness[order] > -jnp.inf)
    open_ = best & ~state.promoted[order] & (rung >= 0) & (rung < top)
    first = jnp.nonzero(open_, size=num, fill_value=capacity)[0]
    return jnp.where(first < capacity, order[first], capacity).astype(jnp.int32)
