"""What a model-based strategy chooses from: a whole small space, or draws from a large one."""

from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas.enumeration import all_architectures
from jaxnas.space import SearchSpace, mutate, sample
from jaxnas.types import split_like

# How soon a candidate may be proposed: those of the least tier there is, before all others.
NEW, SUCCEEDED, FAILED = range(3)
NEVER = 1 << 20  # not an architecture


class Pool(NamedTuple):
    """Candidates of one `ask`."""

    arch: Array  # [P, D], any integers
    explained: Array  # f32[P], share of the prior variance that the model explains
    tier: Array  # i32[P]

    @property
    def open(self) -> Array:
        """Which ones may be proposed: bool[P]."""
        return self.tier == self.tier.min()

    def best(self, value: Array) -> Array:
        """The place of the largest value f32[P] of those that may be proposed: i32[]."""
        value = jnp.where(self.open, value, -jnp.inf)
        # Two plain reductions: `argmax` compiles to a scalar loop on a CPU.
        place = jnp.where(value == jnp.max(value), jnp.arange(value.size), value.size - 1)
        return jnp.min(place)

    def without(self, place: Array) -> "Pool":
        """The pool in which the one at `place`, and what equals it, comes after its likes."""
        same = jnp.all(self.arch == self.arch[place], axis=1)
        return self._replace(tier=self.tier + same)


class Grid(NamedTuple):
    """Every decision vector of a space, the last decision varying fastest; host constants."""

    arch: np.ndarray  # u8[N, D] where that suffices, for it becomes part of the program
    tier: np.ndarray  # i32[N], new, or never where not canonical or not valid
    halves: tuple[np.ndarray, np.ndarray]  # first decisions i32[A, D1], the others i32[B, D2]
    strides: np.ndarray  # i32[D], an architecture's place is its product with these


def make_grid(space: SearchSpace, limit: int) -> Grid | None:
    """The grid of a space, None if it has more than `limit` decision vectors.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> grid = make_grid(tiny_space(), limit=100)
      >>> grid.arch.shape, [len(half) for half in grid.halves], make_grid(tiny_space(), limit=23)
      ((24, 3), [3, 8], None)
    """
    num_choices = space.num_choices
    if prod(num_choices) > limit:
        return None
    arch = np.indices(num_choices).reshape(len(num_choices), -1).T
    # Concrete even where the strategy is made inside a traced function.
    with jax.ensure_compile_time_eval():
        places = np.ravel_multi_index(all_architectures(space).T, num_choices)
    tier = np.full(len(arch), NEVER, np.int32)
    tier[places] = NEW
    sizes = [prod(num_choices[:split]) for split in range(len(num_choices))]
    split = min(range(len(sizes)), key=lambda i: sizes[i] + len(arch) // sizes[i])
    period = len(arch) // sizes[split]
    halves = arch[::period, :split].astype(np.int32), arch[:period, split:].astype(np.int32)
    strides = np.cumprod((1, *num_choices[:0:-1]))[::-1].astype(np.int32)
    return Grid(arch.astype(np.min_scalar_type(max(num_choices))), tier, halves, strides)


def tiers(pool: Array, arch: Array, fitness: Array, used: Array) -> Array:
    """The tiers of a pool i32[P, D], given the places of i32[C, D] that are used: i32[P]."""
    same = jnp.all(pool[:, None] == arch, axis=-1) & used
    succeeded = jnp.any(same & jnp.isfinite(fitness), axis=1)
    return jnp.where(succeeded, SUCCEEDED, jnp.where(same.any(axis=1), FAILED, NEW))


def draw_pool(
    key: Array,
    space: SearchSpace,
    arch: Array,
    fitness: Array,
    num_drawn: int,
    num_mutated: int,
    num_parents: int,
) -> Array:
    """Uniform draws, and one-decision mutations of the best members in equal shares.

    Args:
      key: PRNG key.
      space: the space.
      arch: i32[C, D], members.
      fitness: f32[C], minus infinity for failed members and empty places.
      num_drawn: uniform draws. Static.
      num_mutated: mutations. Static.
      num_parents: members to mutate, fewer while there are fewer successes. Static.

    Returns:
      i32[P, D], P = num_mutated + num_drawn, mutations first.
    """
    k_draw, k_mutate = jax.random.split(key)
    drawn = jax.vmap(lambda k: sample(k, space))(split_like(k_draw, num_drawn))
    if not num_mutated:
        return drawn
    best_first = jnp.argsort(-fitness)
    num_there = jnp.maximum(jnp.sum(jnp.isfinite(fitness)), 1)
    parents = arch[best_first[jnp.arange(num_mutated) % jnp.minimum(num_there, num_parents)]]
    change = jax.vmap(lambda k, parent: mutate(k, space, parent))
    return jnp.concatenate([change(split_like(k_mutate, num_mutated), parents), drawn])
