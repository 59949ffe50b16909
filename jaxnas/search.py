"""The search itself: one step, its scan, and what to read off the history. Pure functions.

`step` composes a strategy with an evaluator; `search` is its `lax.scan`. The caller jits. Step `i`
of a search uses `fold_in(key, i)`, so a search of 200 steps begins with the search of 100 steps,
and a loop over `step` with `step_key` equals `search`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas.types import Evaluation, Evaluator, PyTree, Strategy, rank_value, split_like


class SearchState(NamedTuple):
    """What one step hands to the next."""

    strategy: PyTree
    evaluator: PyTree


class Record(NamedTuple):
    """What one step did; stacked over steps it is the history of a search.

    With a leading axis T for the steps where it comes from `search`.
    """

    arch: Array  # i32[B, D]
    budget: Array  # f32[B]
    evaluation: Evaluation  # fields [B, ...]


def init(key: Array, strategy: Strategy, evaluator: Evaluator) -> SearchState:
    """The state before the first step."""
    k_strategy, k_evaluator = split_like(key, 2)
    return SearchState(strategy.init(k_strategy), evaluator.init(k_evaluator))


def step(
    key: Array, state: SearchState, strategy: Strategy, evaluator: Evaluator
) -> tuple[SearchState, Record]:
    """Ask, evaluate, tell.

    Args:
      key: PRNG key of this step, consumed.
      state: from `init` or the step before.
      strategy: proposes B candidates.
      evaluator: scores them; one that is not traceable is fine as long as nobody traces `step`.

    Returns:
      The next state and the record of this step.
    """
    return _advance(_step_keys(key), state, strategy, evaluator)


def _step_keys(key: Array) -> tuple[Array, Array, Array]:
    k_ask, k_evaluate, k_tell = split_like(key, 3)
    return k_ask, k_evaluate, k_tell


def _advance(
    keys: tuple[Array, Array, Array], state: SearchState, strategy: Strategy, evaluator: Evaluator
) -> tuple[SearchState, Record]:
    k_ask, k_evaluate, k_tell = keys
    proposal = strategy.ask(k_ask, state.strategy)
    evaluation, evaluator_state = evaluator.evaluate(k_evaluate, state.evaluator, proposal)
    strategy_state = strategy.tell(k_tell, state.strategy, proposal, evaluation)
    record = Record(proposal.arch, proposal.budget, evaluation)
    return SearchState(strategy_state, evaluator_state), record


def start(key: Array, strategy: Strategy, evaluator: Evaluator) -> tuple[Array, SearchState]:
    """Splits a search's key into the key of its steps and its first state."""
    k_init, k_steps = split_like(key, 2)
    return k_steps, init(k_init, strategy, evaluator)


def step_key(k_steps: Array, index: int | Array) -> Array:
    """The key of step `index`, from the first result of `start`."""
    return jax.random.fold_in(k_steps, index)


def search(
    key: Array, strategy: Strategy, evaluator: Evaluator, num_steps: int
) -> tuple[SearchState, Record]:
    """A whole search as one pure function: `lax.scan` over `step`.

    Args:
      key: PRNG key, consumed.
      strategy: the strategy.
      evaluator: a traceable evaluator.
      num_steps: steps T >= 1 of B candidates each. Static.

    Returns:
      The last state and the history: a `Record` with a leading axis T.

    Raises:
      ValueError: if `num_steps` is below 1 or the evaluator is not traceable.

    Example:
      >>> import jaxnas as nas
      >>> space = nas.testing.tiny_space()
      >>> strategy = nas.strategies.random_search(space, batch_size=4)
      >>> evaluator = nas.evaluators.from_function(lambda key, arch: -arch.sum())
      >>> _, history = nas.search(jax.random.key(0), strategy, evaluator, num_steps=5)
      >>> history.arch.shape
      (5, 4, 3)
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not evaluator.traceable:
        raise ValueError(
            "evaluator is not traceable, so it cannot run inside search; "
            "loop over jaxnas.step, or use jaxnas.run"
        )
    k_steps, state = start(key, strategy, evaluator)

    # All keys at once, ahead of the loop: one vectorised hash instead of one small one per step.
    keys = jax.vmap(lambda index: _step_keys(step_key(k_steps, index)))(jnp.arange(num_steps))
    return jax.lax.scan(lambda state, k: _advance(k, state, strategy, evaluator), state, keys)


def best(record: Record) -> tuple[Array, Array]:
    """The best candidate of a record or of a whole history.

    It is the fittest of those trained with the largest budget at which any succeeded: the fitness
    after a short training says little about that after a long one.

    Returns:
      `arch` i32[D] and `fitness` f32[]; the first one on ties, NaN where every candidate failed.
    """
    fitness = record.evaluation.fitness.ravel()
    value, budget = rank_value(fitness), record.budget.ravel()
    longest = jnp.max(jnp.where(value > -jnp.inf, budget, 0.0))
    index = jnp.argmax(jnp.where(budget == longest, value, -jnp.inf))
    return record.arch.reshape(fitness.size, -1)[index], fitness[index]


def incumbent_curve(history: Record) -> Array:
    """Best fitness seen up to and including each step: f32[T], minus infinity before a success.

    Budgets are not looked at; `jaxnas.analysis.incumbents` follows the candidate that `best` picks.
    """
    per_step = rank_value(history.evaluation.fitness)
    return jax.lax.cummax(per_step.reshape(per_step.shape[0], -1).max(axis=1))
