"""What a search has evaluated so far, for strategies that look back.

A memory is a `Population` of fixed capacity C that forgets the oldest candidates first.
"""

import jax.numpy as jnp
from jax import Array

from jaxnas.strategies._population import Population
from jaxnas.types import rank_value


def remember(memory: Population, arch: Array, fitness: Array) -> Population:
    """The memory with a batch of B <= C evaluated candidates at its end.

    Args:
      memory: of capacity C.
      arch: i32[B, D].
      fitness: f32[B]; NaN is stored as minus infinity.

    Returns:
      The memory without its B oldest places.

    Example:
      >>> from jaxnas.strategies._population import empty
      >>> from jaxnas.testing import tiny_space
      >>> memory = empty(tiny_space(), 3)
      >>> memory = remember(memory, jnp.ones((2, 3), jnp.int32), jnp.array([0.5, jnp.nan]))
      >>> memory.fitness.tolist(), int(memory.num_members)
      ([-inf, 0.5, -inf], 2)
    """
    batch_size = fitness.shape[0]
    return Population(
        arch=jnp.concatenate([memory.arch, arch])[batch_size:],
        fitness=jnp.concatenate([memory.fitness, rank_value(fitness)])[batch_size:],
        count=memory.count + batch_size,
    )


def occupied(memory: Population) -> Array:
    """Which places hold a candidate: bool[C]."""
    capacity = memory.fitness.shape[0]
    return jnp.arange(capacity) >= capacity - memory.num_members


def is_known(memory: Population, arch: Array) -> Array:
    """Which of the architectures i32[N, D] are in the memory: bool[N]."""
    same = jnp.all(arch[:, None] == memory.arch, axis=-1)
    return jnp.any(same & occupied(memory), axis=-1)
