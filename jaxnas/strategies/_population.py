"""A population of fixed capacity, shared by the evolutionary strategies."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas import counter
from jaxnas.space import SearchSpace, sample
from jaxnas.types import Proposal, split_like


class Population(NamedTuple):
    """Evaluated candidates; while it fills up, the members are the last `num_members` places."""

    arch: Array  # i32[P, D]
    fitness: Array  # f32[P], minus infinity for failed members and empty places
    count: Array  # i32[], candidates evaluated since the search began

    @property
    def num_members(self) -> Array:
        """Occupied places: i32[]."""
        return jnp.minimum(self.count, self.fitness.shape[0])


def empty(space: SearchSpace, size: int) -> Population:
    """A population of capacity `size` without members."""
    return Population(
        arch=jnp.zeros((size, space.num_decisions), jnp.int32),
        fitness=jnp.full(size, -jnp.inf, jnp.float32),
        count=jnp.zeros((), jnp.int32),
    )


def fill_or_breed(
    key: Array,
    space: SearchSpace,
    population: Population,
    batch_size: int,
    breed: Callable[[Array], Array],
) -> Proposal:
    """Proposes uniform draws until a whole population of them was proposed, then children.

    The switch may fall inside a batch: exactly the first P candidates of a search are random.

    Args:
      key: PRNG key.
      space: the space.
      population: of capacity P >= `batch_size`, so that a child always finds parents.
      batch_size: candidates B. Static.
      breed: `(key) -> i32[D]`, makes one child from the present members.

    Returns:
      B candidates at full budget.
    """

    def propose(k, number):
        k_sample, k_breed = split_like(k, 2)
        is_random = number < population.fitness.shape[0]
        return jnp.where(is_random, sample(k_sample, space), breed(k_breed))

    numbers = population.count + jnp.arange(batch_size)
    arch = jax.vmap(propose)(split_like(key, batch_size), numbers)
    return Proposal(arch, jnp.ones(batch_size))


def tournament(key: Array, population: Population, size: int) -> Array:
    """The best of `size` members drawn uniformly with replacement; the first drawn on ties.

    Args:
      key: PRNG key.
      population: with at least one member.
      size: members drawn. Static.

    Returns:
      i32[], a place in the population.

    Example:
      >>> full = Population(jnp.zeros((2, 3), jnp.int32), jnp.array([0.1, 0.7]), jnp.array(2))
      >>> int(tournament(jax.random.key(0), full, size=20))
      1
    """
    age = (counter.draw(key, size) * population.num_members).astype(jnp.int32)
    drawn = population.fitness.shape[0] - 1 - age

    def better(a, b):
        b_wins = (b[0] > a[0]) | (a[1] < 0)
        return jnp.where(b_wins, b[0], a[0]), jnp.where(b_wins, b[1], a[1])

    # Half the time of `argmax` and a second gather. Nobody is worse than a failed member.
    nobody = (jnp.float32(-jnp.inf), jnp.int32(-1))
    _, winner = jax.lax.reduce((population.fitness[drawn], drawn), nobody, better, (0,))
    return winner
