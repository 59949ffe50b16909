"""The contracts of jaxnas: tuples of pure functions, and the data that flows between them.

A strategy proposes architectures, an evaluator scores them. Both are a `NamedTuple` of pure
functions made by a factory; hyperparameters live in the factory's closure. PRNG key first, state
second, always, even where a function does not need them.

In the shape descriptions, `B` denotes the candidates per proposal, `D` the decisions of the space
and `M` the objectives.
"""

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array

from jaxnas import counter

PyTree = Any
State = Any


class Proposal(NamedTuple):
    """Architectures that a strategy wants evaluated.

    Attributes:
      arch: one choice index per decision.
      budget: fraction of full training to spend on each, in (0, 1].
      info: whatever the strategy's own `tell` needs back; nobody else reads it.
    """

    arch: Array  # i32[B, D]
    budget: Array  # f32[B]
    info: PyTree = ()


class Evaluation(NamedTuple):
    """What an evaluator found out about a proposal.

    Attributes:
      fitness: the number that strategies maximise; NaN marks a failed candidate.
      objectives: one column per objective, every column maximised (costs are negated).
      metrics: name to value in natural units, for people and reports.
      cost: seconds charged to the search, measured or simulated.
    """

    fitness: Array  # f32[B]
    objectives: Array  # f32[B, M]
    metrics: dict[str, Array]  # name -> f32[B]
    cost: Array  # f32[B], seconds


class StrategyInitFn(Protocol):
    """Makes the first state of a search."""

    def __call__(self, key: Array) -> State:
        """Returns a state: a pytree of arrays with fixed shapes."""
        ...


class AskFn(Protocol):
    """Proposes the next architectures. Reads the state, never changes it."""

    def __call__(self, key: Array, state: State) -> Proposal:
        """Returns a proposal of B candidates; same key and state, same proposal."""
        ...


class TellFn(Protocol):
    """Learns from an evaluation. The only function that makes a new state."""

    def __call__(
        self, key: Array, state: State, proposal: Proposal, evaluation: Evaluation
    ) -> State:
        """Returns the next state, of the same structure, shapes and dtypes as `state`."""
        ...


class EvaluateFn(Protocol):
    """Scores a proposal."""

    def __call__(self, key: Array, state: State, proposal: Proposal) -> tuple[Evaluation, State]:
        """Returns the evaluation and the evaluator's next state."""
        ...


class Strategy(NamedTuple):
    """A search strategy: where to look next, given what was seen."""

    init: StrategyInitFn
    ask: AskFn
    tell: TellFn


class Evaluator(NamedTuple):
    """A way to score architectures.

    Attributes:
      init: `(key) -> State`; the state is `()` where nothing is learned across calls.
      evaluate: `(key, state, proposal) -> (Evaluation, State)`.
      traceable: whether `evaluate` may run inside `jit`, `scan` and `vmap`.
    """

    init: StrategyInitFn
    evaluate: EvaluateFn
    traceable: bool


class OneShot(NamedTuple):
    """A one-shot method: shared weights and architecture parameters trained together.

    Attributes:
      init: `(key) -> State`.
      update: `(key, state, train_batch, valid_batch) -> (State, Info)`; `Info` is not carried.
      derive: `(state) -> i32[D]`, the discrete architecture the state stands for.
    """

    init: Any
    update: Any
    derive: Any


def rank_value(fitness: Array) -> Array:
    """Fitness with failures last: NaN becomes minus infinity, everything else stays.

    Every `tell` compares candidates through this one function.

    Args:
      fitness: f32[...].

    Returns:
      f32[...] without NaN.

    Example:
      >>> rank_value(jnp.array([0.5, jnp.nan])).tolist()
      [0.5, -inf]
    """
    return jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)


def split_like(key: Array, num: int) -> Array:
    """`num` keys of which the first k do not depend on `num`.

    `jax.random.split` gives other keys for another count; here candidate `i` has the same key in a
    batch of 8 and in a batch of 800, so its result does not depend on its company. It is also an
    order of magnitude faster inside a search (`jaxnas.counter`).

    Args:
      key: one key.
      num: how many. Static.

    Returns:
      key[num].
    """
    return counter.split(key, num)
