"""What the strategies that learn action values share: exploration, trajectories, rewards.

Baker, Gupta, Naik & Raskar, "Designing Neural Network Architectures using Reinforcement Learning"
(MetaQNN), ICLR 2017, https://arxiv.org/abs/1611.02167. An architecture is a trajectory: its active
decisions in order are the steps, its choices the actions, its fitness the reward at the end.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas.space import SearchSpace, first_valid, is_active, is_valid, sample
from jaxnas.strategies._population import Population
from jaxnas.types import Proposal, split_like

# Table 2 of the paper: exploration rate, and candidates evaluated under it.
_RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_CANDIDATES = (1500, 100, 100, 100, 150, 150, 150, 150, 150, 150)


def exploration_rate(count: Array, num_evaluations: int) -> Array:
    """The paper's schedule stretched over `num_evaluations` candidates, 0.1 after them.

    Args:
      count: i32[...], candidates proposed before.
      num_evaluations: length of the schedule. Static.

    Returns:
      f32[...].

    Example:
      >>> exploration_rate(jnp.array([0, 59, 99, 200]), 100).tolist()
      [1.0, 0.8999999761581421, 0.10000000149011612, 0.10000000149011612]
    """
    ends = np.cumsum(_CANDIDATES) / sum(_CANDIDATES) * num_evaluations
    phase = jnp.searchsorted(jnp.asarray(ends[:-1]), count, side="right")
    return jnp.asarray(_RATES, jnp.float32)[phase]


def choice_mask(space: SearchSpace) -> Array:
    """Which of the K places of each decision are choices: bool[D, K]."""
    return jnp.arange(max(space.num_choices)) < jnp.asarray(space.num_choices)[:, None]


def propose(key: Array, space: SearchSpace, q_fn: Callable, rates: Array) -> Proposal:
    """Epsilon-greedy walks through the decisions; an invalid one is walked again.

    Where no walk is valid, a uniform draw takes its place.

    Args:
      key: PRNG key.
      space: the space.
      q_fn: `(arch i32[D], index, previous) -> f32[K]`, the values of the choices of decision
        `index` after those before it; `previous` is the choice of the last active one.
      rates: f32[B], probability that a choice is uniform instead of greedy.

    Returns:
      B candidates at full budget.
    """
    mask = choice_mask(space)
    num_decisions, width = mask.shape

    def walk(k, rate):
        uniform = jax.random.uniform(k, (num_decisions, width + 1))

        def decide(carry, step):
            arch, previous = carry
            index, numbers = step
            values = jnp.where(mask[index], q_fn(arch, index, previous), -jnp.inf)
            explores = numbers[-1] < rate
            candidates = mask[index] & (explores | (values == values.max()))
            choice = jnp.argmax(jnp.where(candidates, numbers[:-1], -1.0))  # chance breaks ties
            active = is_active(space, arch)[index]  # looks at earlier decisions only
            arch = arch.at[index].set(jnp.where(active, choice, 0).astype(jnp.int32))
            return (arch, jnp.where(active, choice, previous)), None

        start = jnp.zeros(num_decisions, jnp.int32), jnp.zeros((), jnp.int32)
        return jax.lax.scan(decide, start, (jnp.arange(num_decisions), uniform))[0][0]

    def one(k, rate):
        k_walk, k_sample = jax.random.split(k)
        arch = first_valid(space, k_walk, lambda k: walk(k, rate))
        return jnp.where(is_valid(space, arch), arch, sample(k_sample, space))

    arch = jax.vmap(one)(split_like(key, rates.shape[0]), rates)
    return Proposal(arch, jnp.ones(rates.shape[0]))


class Trajectory(NamedTuple):
    """An architecture as the steps of an episode."""

    active: Array  # bool[D], the steps; elsewhere the rest means nothing
    previous: Array  # i32[D], choice of the last active decision before, 0 at the start
    following: Array  # i32[D], the next active decision; D after the last one


def trajectory(space: SearchSpace, arch: Array) -> Trajectory:
    """The steps of one canonical architecture i32[D]."""
    active = is_active(space, arch)
    place = jnp.arange(arch.size)
    before = jnp.roll(jax.lax.cummax(jnp.where(active, place, -1)), 1).at[0].set(-1)
    after = jax.lax.cummin(jnp.where(active, place, arch.size), reverse=True)
    following = jnp.roll(after, -1).at[-1].set(arch.size)
    return Trajectory(active, jnp.where(before >= 0, arch[before], 0), following)


def recall(key: Array, memory: Population, num: int) -> tuple[Array, Array]:
    """Draws remembered candidates uniformly with replacement.

    Args:
      key: PRNG key.
      memory: with at least one candidate.
      num: how many. Static.

    Returns:
      Architectures i32[num, D] and rewards f32[num]: the fitness, and for a failed candidate the
      worst fitness in the memory, or 0 while nothing succeeded.
    """
    capacity = memory.fitness.shape[0]
    succeeded = jnp.isfinite(memory.fitness)
    worst = jnp.min(memory.fitness, where=succeeded, initial=jnp.inf)
    reward = jnp.where(succeeded, memory.fitness, jnp.where(succeeded.any(), worst, 0.0))
    place = jax.random.randint(key, (num,), capacity - memory.num_members, capacity)
    return memory.arch[place], reward[place]
