"""Mixed: several strategies share one budget, and a bandit gives it to those that do well.

Each step belongs to one strategy, an arm, which proposes the whole batch and alone learns from it:
what a strategy's `tell` needs of its own proposal nobody else can supply. The bandit:

- rule: sliding-window UCB, Garivier & Moulines, "On Upper-Confidence Bound Policies for Switching
  Bandit Problems", ALT 2011, https://arxiv.org/abs/0805.3415: over the last W steps, take the arm
  with the largest mean reward + sqrt(exploration ln(steps) / steps of the arm); an arm that has no
  step in the window comes first, so none is given up, and an arm that was good once and is not any
  more is left;
- reward: the rank of a step's best candidate among the best candidates of the window's steps, from
  0 to 1, as in the comparison-based credit of Fialho, Schoenauer & Sebag, "Toward Comparison-Based
  Adaptive Operator Selection", GECCO 2010: it does not depend on the unit of the fitness and
  survives failures.

OpenTuner (Ansel et al., PACT 2014, http://opentuner.org) shares a budget of tests in the same way,
by a bandit over how often an arm set a new record. Deviation: the papers act after every
evaluation, here a step is B of them.

Under `vmap` every arm is computed in every step, and the chosen one kept.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.space import SearchSpace
from jaxnas.strategies.entropy_search import entropy_search
from jaxnas.strategies.local_search import local_search
from jaxnas.strategies.regularized_evolution import regularized_evolution
from jaxnas.types import AskFn, PyTree, Strategy, rank_value

Arm = str | Strategy | Callable[..., Strategy]

DEFAULT_ARMS = (regularized_evolution, local_search, entropy_search)


class MixedState(NamedTuple):
    """The strategies' states and the last W steps, the oldest first."""

    arms: tuple[PyTree, ...]
    chosen: Array  # i32[W], the arm of each step, -1 before the first
    best: Array  # f32[W], the best fitness of each step, minus infinity if all failed


class _Info(NamedTuple):
    arm: Array  # i32[], whose proposal it is
    infos: tuple[PyTree, ...]  # per arm what its `tell` needs; of the others zeros


def rewards(chosen: Array, best: Array) -> Array:
    """How each step did among the steps of the window.

    Args:
      chosen: i32[W], -1 for no step.
      best: f32[W], fitness of each step's best candidate.

    Returns:
      f32[W], the share of the other steps that a step beats, ties counted half; 0 for a step in
      which all failed, 0.5 for the only step there is.

    Example:
      >>> chosen = jnp.array([-1, 0, 1, 0, 1])
      >>> rewards(chosen, jnp.array([-jnp.inf, 0.2, 0.9, 0.2, -jnp.inf])).tolist()
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    there = chosen >= 0
    others = there & ~jnp.eye(chosen.size, dtype=bool)
    beaten = best[:, None] > best
    wins = jnp.sum(others * (beaten + 0.5 * (best[:, None] == best)), axis=1)
    num = others.sum(axis=1)
    share = jnp.where(num > 0, wins / jnp.maximum(num, 1), 0.5)
    return jnp.where(there & (best > -jnp.inf), share, 0.0)


def upper_bounds(chosen: Array, best: Array, num_arms: int, exploration: float | Array) -> Array:
    """What the rule maximises: f32[A], infinity for an arm without a step in the window.

    Args:
      chosen: i32[W].
      best: f32[W].
      num_arms: arms A. Static.
      exploration: factor of the logarithm, at least 0.

    Returns:
      f32[A].
    """
    mine = chosen[:, None] == jnp.arange(num_arms)
    steps = mine.sum(axis=0)
    mean = rewards(chosen, best) @ mine.astype(jnp.float32) / jnp.maximum(steps, 1)
    around = jnp.log(jnp.maximum(jnp.sum(chosen >= 0), 1))
    bound = mean + jnp.sqrt(exploration * around / jnp.maximum(steps, 1))
    return jnp.where(steps > 0, bound, jnp.inf)


def mixed(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    arms: Sequence[Arm] = DEFAULT_ARMS,
    exploration: float | Array = 0.3,
    window_size: int = 64,
) -> Strategy:
    """A bandit over strategies.

    A budget is shared best in many small steps, for each arm costs some of them.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      arms: at least one of: a name in `jaxnas.strategies.ALL`; a factory
        `(space, *, batch_size) -> Strategy`, which `functools.partial` gives other hyperparameters;
        a `Strategy` on this space with batches of B. Static.
      exploration: weight of the exploration term, at least 0: 0 is greedy, the paper's analysis
        wants more than 0.5. May be traced.
      window_size: the last W >= 2 steps, by which arms are judged. Static.

    Returns:
      A `Strategy` whose state holds the states of all arms.

    Raises:
      ValueError: for a size too small, a negative exploration, no arm, an unknown name, or an arm
        with batches of another size.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = mixed(tiny_space(), batch_size=4, arms=("random_search", "genetic"))
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_number("exploration", exploration)
    check_count("window_size", window_size, minimum=2)
    if isinstance(arms, str) or not arms:
        raise ValueError(f"arms must be a sequence of at least one strategy, got {arms!r}")
    strategies = tuple(_resolve(arm, space, batch_size) for arm in arms)

    def init(key):
        keys = jax.random.split(key, len(strategies))
        return MixedState(
            arms=tuple(s.init(k) for s, k in zip(strategies, keys, strict=True)),
            chosen=jnp.full(window_size, -1, jnp.int32),
            best=jnp.full(window_size, -jnp.inf, jnp.float32),
        )

    def ask(key, state: MixedState):
        k_arm, k_ask = jax.random.split(key)
        bounds = upper_bounds(state.chosen, state.best, len(strategies), exploration)
        ties = jax.random.uniform(k_arm, bounds.shape)
        arm = jnp.argmax(jnp.where(bounds == bounds.max(), ties, -1.0)).astype(jnp.int32)
        blank = [_zeros(s.ask, k_ask, mine) for s, mine in zip(strategies, state.arms, strict=True)]

        def propose(index, k):
            proposal = strategies[index].ask(k, state.arms[index])
            infos = (*blank[:index], proposal.info, *blank[index + 1 :])
            return proposal._replace(info=_Info(arm, infos))

        branches = [functools.partial(propose, index) for index in range(len(strategies))]
        return jax.lax.switch(arm, branches, k_ask)

    def tell(key, state: MixedState, proposal, evaluation):
        arm, infos = proposal.info

        def learn(index, k):
            own = proposal._replace(info=infos[index])
            after = strategies[index].tell(k, state.arms[index], own, evaluation)
            return (*state.arms[:index], after, *state.arms[index + 1 :])

        branches = [functools.partial(learn, index) for index in range(len(strategies))]
        best = rank_value(evaluation.fitness).max()
        return MixedState(
            arms=jax.lax.switch(arm, branches, key),
            chosen=jnp.roll(state.chosen, -1).at[-1].set(arm),
            best=jnp.roll(state.best, -1).at[-1].set(best),
        )

    return Strategy(init, ask, tell)


def _zeros(ask: AskFn, key: Array, state: PyTree) -> PyTree:
    """Zeros in the layout of the `info` of a strategy's proposals."""
    layout = jax.eval_shape(ask, key, state).info
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), layout)


def _resolve(arm: Arm, space: SearchSpace, batch_size: int) -> Strategy:
    """The strategy that an element of `arms` stands for."""
    if isinstance(arm, str):
        from jaxnas.strategies import ALL  # which lists this module too

        if arm not in ALL:
            raise ValueError(f"arms must be among {sorted(ALL)}, got {arm!r}")
        arm = ALL[arm]
    strategy = arm if isinstance(arm, Strategy) else arm(space, batch_size=batch_size)
    key = jax.random.key(0)
    shape = jax.eval_shape(lambda: strategy.ask(key, strategy.init(key))).arch.shape
    wanted = (batch_size, space.num_decisions)
    if shape != wanted:
        raise ValueError(f"arms must propose arch i32{list(wanted)}, got one with i32{list(shape)}")
    return strategy
