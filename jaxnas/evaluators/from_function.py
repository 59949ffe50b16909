"""Any traceable function of an architecture as an evaluator."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas.types import Evaluation, Evaluator, Proposal, split_like


def from_function(
    fitness_fn: Callable[[Array, Array], Array],
    *,
    cost_fn: Callable[[Array], Array] | None = None,
) -> Evaluator:
    """Scores each architecture with a function: test problems, closed-form costs, embeddings.

    Args:
      fitness_fn: `(key, arch i32[D]) -> scalar`, maximised; NaN marks a failure. Traceable.
      cost_fn: `(arch i32[D]) -> scalar`, simulated seconds at full budget; None: 1 second. The
        proposal's budget scales it. Traceable.

    Returns:
      A traceable, stateless `Evaluator` with one objective, the fitness.

    Example:
      >>> evaluator = from_function(lambda key, arch: arch.sum())
      >>> proposal = Proposal(jnp.array([[1, 2], [0, 0]]), jnp.ones(2))
      >>> evaluation, _ = evaluator.evaluate(jax.random.key(0), (), proposal)
      >>> evaluation.fitness.tolist()
      [3.0, 0.0]
    """

    def init(key):
        del key
        return ()

    def evaluate(key, state, proposal: Proposal):
        keys = split_like(key, proposal.arch.shape[0])
        fitness = jax.vmap(fitness_fn)(keys, proposal.arch).astype(jnp.float32)
        seconds = jnp.ones_like(fitness) if cost_fn is None else jax.vmap(cost_fn)(proposal.arch)
        cost = (seconds * proposal.budget).astype(jnp.float32)
        return Evaluation(fitness, fitness[:, None], {"fitness": fitness}, cost), state

    return Evaluator(init, evaluate, traceable=True)
