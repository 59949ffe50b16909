"""Rounds of strategies that train a model and propose what it likes and nobody has seen.

One frame for all of them: uniform draws first; then, in rounds, the model is trained on everything
in the memory and proposes until it is trained again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count
from jaxnas.space import SearchSpace, sample
from jaxnas.strategies._memory import occupied, remember
from jaxnas.strategies._population import Population, empty
from jaxnas.types import Proposal, PyTree, Strategy, split_like


class ModelState(NamedTuple):
    """What was evaluated, and the model trained on it."""

    memory: Population  # capacity C
    params: PyTree  # f32, of the model


class Model(NamedTuple):
    """What a strategy fills the frame with.

    Attributes:
      init: `(key) -> params`, untrained.
      fit: `(key, params, arch i32[C, D], fitness f32[C], mask bool[C]) -> params`, trained on the
        rows where `mask` is true, of which there may be none.
      propose: `(key, params, memory) -> i32[B, D]`.
    """

    init: Callable[[Array], PyTree]
    fit: Callable[[Array, PyTree, Array, Array, Array], PyTree]
    propose: Callable[[Array, PyTree, Population], Array]


def search_in_rounds(
    space: SearchSpace,
    model: Model,
    *,
    batch_size: int,
    num_initial: int,
    refit_every: int | None,
    capacity: int,
) -> Strategy:
    """Uniform draws, then what the model proposes.

    Failed candidates are no training rows. The number of candidates is the same in all searches of
    a `vmap` over keys, so the `cond`s on it remain real ones there: a search trains when it is due
    and at no other time.

    Args:
      space: the space.
      model: trains and proposes.
      batch_size: candidates B per `ask`. Static.
      num_initial: uniform draws, rounded up to whole batches. Static.
      refit_every: candidates between two trainings, rounded up to whole batches; None: the model is
        trained once, after the uniform draws. Static.
      capacity: candidates C that are remembered and trained on; the oldest are forgotten. Static.

    Returns:
      A `Strategy` with a `ModelState`.

    Raises:
      ValueError: for a size below 1, or a capacity smaller than a batch or the uniform draws.
    """
    check_count("batch_size", batch_size)
    check_count("num_initial", num_initial)
    if refit_every is not None:
        check_count("refit_every", refit_every)
    check_count("capacity", capacity)
    if capacity < max(batch_size, num_initial):
        raise ValueError(
            f"capacity must be at least batch_size = {batch_size} and num_initial = {num_initial}, "
            f"got {capacity}"
        )

    def init(key):
        return ModelState(empty(space, capacity), model.init(key))

    def ask(key, state: ModelState):
        arch = jax.lax.cond(
            state.memory.count < num_initial,
            lambda: draw_unseen(key, space, state.memory, batch_size),
            lambda: model.propose(key, state.params, state.memory),
        )
        return Proposal(arch, jnp.ones(batch_size))

    def tell(key, state: ModelState, proposal, evaluation):
        memory = remember(state.memory, proposal.arch, evaluation.fitness)
        succeeded = jnp.isfinite(memory.fitness)
        params = jax.lax.cond(
            is_due(memory.count, batch_size, num_initial, refit_every),
            lambda: model.fit(key, state.params, memory.arch, memory.fitness, succeeded),
            lambda: state.params,
        )
        return ModelState(memory, params)

    return Strategy(init, ask, tell)


def is_due(count: Array, batch_size: int, num_initial: int, refit_every: int | None) -> Array:
    """Whether to train after the batch that made it `count` i32[] candidates: bool[].

    Example:
      >>> [n for n in range(1, 30) if is_due(jnp.array(n), 1, num_initial=8, refit_every=10)]
      [8, 18, 28]
    """
    before = count - batch_size
    if refit_every is None:
        return (count >= num_initial) & (before < num_initial)
    # Rounds are numbered from 0; floor division gives -1 before the first.
    now, then = ((c - num_initial) // refit_every for c in (count, before))
    return (now > then) & (count >= num_initial)


def draws(key: Array, space: SearchSpace, num: int) -> Array:
    """Uniform draws, with replacement: i32[num, D]."""
    return jax.vmap(lambda k: sample(k, space))(split_like(key, num))


def draw_unseen(key: Array, space: SearchSpace, memory: Population, num: int) -> Array:
    """Uniform draws, all different and unseen as far as a few more draws find such: i32[num, D].

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> drawn = draw_unseen(jax.random.key(0), tiny_space(), empty(tiny_space(), 4), 8)
      >>> len(set(map(tuple, drawn.tolist())))
      8
    """
    pool = draws(key, space, 16 + 4 * num)
    return best_unseen(memory, pool, jnp.zeros(len(pool)), num)


def best_unseen(memory: Population, pool: Array, score: Array, num: int) -> Array:
    """The best of a pool, those that were never evaluated before all others.

    Each architecture counts once, however often the pool holds it. Where the unseen ones do not
    suffice, known ones follow, by score as well; failed ones and repeats come last.

    Args:
      memory: what was evaluated.
      pool: i32[N, D], N >= `num`.
      score: f32[N], large is good; NaN is worst.
      num: how many. Static.

    Returns:
      i32[num, D].
    """
    same = jnp.all(pool[:, None] == pool, axis=-1)
    repeats = jnp.any(jnp.tril(same, k=-1), axis=1)
    found = jnp.all(pool[:, None] == memory.arch, axis=-1) & occupied(memory)
    known = jnp.any(found, axis=1)
    failed = known & ~jnp.any(found & jnp.isfinite(memory.fitness), axis=1)
    last = failed | repeats
    return pool[jnp.lexsort((-score, known + 2 * last))[:num]]


def best_members(memory: Population, num: int) -> Array:
    """The architectures of the best candidates, the best first: i32[num, D].

    Fewer than `num` successes are repeated in turn; without any, the rows mean nothing much.
    """
    fitness, place = jax.lax.top_k(memory.fitness, min(num, memory.fitness.shape[0]))
    succeeded = jnp.maximum(jnp.isfinite(fitness).sum(), 1)
    return memory.arch[place[jnp.arange(num) % succeeded]]
