"""Tabular Q-learning with experience replay (MetaQNN).

Baker, Gupta, Naik & Raskar, "Designing Neural Network Architectures using Reinforcement Learning",
ICLR 2017, https://arxiv.org/abs/1611.02167: epsilon-greedy choices under the schedule of Table 2,
and after each candidate the update of Eq. 3,

    Q(s, u) <- (1 - learning_rate) Q(s, u) + learning_rate (r + discount V(s')),
    V(s') = max_u' Q(s', u'),

along remembered trajectories from their last step to their first. Only the last step has a reward,
the fitness, and no successor.

The paper's state is the layer before with its sizes and the depth; here it is the position of the
decision and the choice of the active decision before it, which exists in every space. Such a state
forgets: with Eq. 3 as it stands the reward says something about the last two choices only, for
V(s') is the same whatever led to s'. So V(s') mixes in what the trajectory went on to earn,

    V(s') = (1 - trace_decay) max_u' Q(s', u') + trace_decay G(s'),

where G(s') is the target of the step that followed: Q(lambda) of Peng & Williams, "Incremental
Multi-Step Q-Learning", Machine Learning 1996, https://doi.org/10.1007/BF00114731. `trace_decay=0`
is Eq. 3; `jaxnas.strategies.dqn` keeps Eq. 3 and sees the whole prefix.

Other deviations: candidates proposed again are evaluated again; the schedule is stretched over
`num_evaluations`; the memory is bounded; failed candidates are rewarded like the worst remembered.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.space import SearchSpace
from jaxnas.strategies._memory import remember
from jaxnas.strategies._population import Population, empty
from jaxnas.strategies._q_values import choice_mask, exploration_rate, propose, recall, trajectory
from jaxnas.types import Strategy


class QLearningState(NamedTuple):
    """The table and the replay memory."""

    table: Array  # f32[D, K, K], by decision, choice before it, and choice
    memory: Population  # capacity C


def replay(
    space: SearchSpace,
    table: Array,
    arch: Array,
    reward: Array,
    learning_rate: float | Array,
    discount: float | Array,
    trace_decay: float | Array,
) -> Array:
    """Eq. 3 along trajectories one after the other, each from its last step to its first.

    With a `trace_decay` above 0, the variant of the module's docstring.

    Args:
      space: the space.
      table: f32[D, K, K].
      arch: i32[R, D], canonical.
      reward: f32[R].
      learning_rate: of the update.
      discount: of the value of the next state.
      trace_decay: share of the next step's target in the value of the next state.

    Returns:
      The table after all updates.
    """
    mask = choice_mask(space)
    num_decisions = mask.shape[0]
    steps = jax.vmap(lambda row: trajectory(space, row))(arch)
    index = jnp.broadcast_to(jnp.arange(num_decisions), arch.shape)
    rewards = jnp.broadcast_to(reward[:, None], arch.shape)
    columns = (index, steps.previous, arch, steps.following, steps.active, rewards)

    def update(carry, row):
        table, later = carry  # `later`: target of the step that follows
        index, previous, choice, following, active, reward = row
        is_last = following == num_decisions
        after = jnp.minimum(following, num_decisions - 1)
        greedy = jnp.max(table[after, choice], where=mask[after], initial=-jnp.inf)
        ahead = (1.0 - trace_decay) * greedy + trace_decay * later
        target = jnp.where(is_last, reward, discount * ahead)
        change = learning_rate * (target - table[index, previous, choice])
        table = table.at[index, previous, choice].add(jnp.where(active, change, 0.0))
        return (table, jnp.where(active, target, later)), None

    backwards = [column[:, ::-1].reshape(-1) for column in columns]
    return jax.lax.scan(update, (table, jnp.zeros(())), backwards)[0][0]


def q_learning(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    num_evaluations: int = 500,
    learning_rate: float | Array = 0.01,
    discount: float | Array = 1.0,
    trace_decay: float | Array = 0.9,
    initial_value: float | Array = 0.5,
    num_replays: int = 100,
    capacity: int = 1024,
) -> Strategy:
    """Learns the value of each choice given its position and the choice before.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_evaluations: candidates over which exploration falls from 1 to 0.1; more than half of them
        are uniform draws. The paper: 2,700. Static.
      learning_rate: of the update, in [0, 1]. May be traced.
      discount: of later values, in [0, 1]; the paper uses 1. May be traced.
      trace_decay: share of the trajectory's own outcome in the value of its next state, in [0, 1].
        May be traced.
      initial_value: of every entry, in units of the fitness; above the usual fitness it invites to
        try what was never tried. May be traced.
      num_replays: trajectories replayed per candidate evaluated. Static.
      capacity: candidates C >= B that are remembered. Static.

    Returns:
      A `Strategy` whose state is the table and the last C candidates.

    Raises:
      ValueError: for a size below 1, a number out of range, or a capacity smaller than a batch.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = q_learning(tiny_space(), batch_size=4)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_count("num_evaluations", num_evaluations)
    check_number("learning_rate", learning_rate, high=1.0)
    check_number("discount", discount, high=1.0)
    check_number("trace_decay", trace_decay, high=1.0)
    check_count("num_replays", num_replays)
    check_count("capacity", capacity)
    if capacity < batch_size:
        raise ValueError(f"capacity must be at least batch_size = {batch_size}, got {capacity}")

    def init(key):
        del key
        width = max(space.num_choices)
        shape = (space.num_decisions, width, width)
        table = jnp.broadcast_to(jnp.asarray(initial_value, jnp.float32), shape)
        return QLearningState(table, empty(space, capacity))

    def ask(key, state: QLearningState):
        rates = exploration_rate(state.memory.count + jnp.arange(batch_size), num_evaluations)
        return propose(key, space, lambda arch, i, before: state.table[i, before], rates)

    def tell(key, state: QLearningState, proposal, evaluation):
        memory = remember(state.memory, proposal.arch, evaluation.fitness)
        arch, reward = recall(key, memory, num_replays * batch_size)
        table = replay(space, state.table, arch, reward, learning_rate, discount, trace_decay)
        return QLearningState(table, memory)

    return Strategy(init, ask, tell)
