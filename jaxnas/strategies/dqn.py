"""Deep Q-learning over prefixes of architectures.

Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015,
https://doi.org/10.1038/nature14236, Algorithm 1: a network Q is fitted on replayed steps to

    r + discount max_u' Q_target(s', u')

where the target network is a copy of Q that is renewed at intervals. Applied to architectures after
Baker et al. (MetaQNN, https://arxiv.org/abs/1611.02167), whose exploration schedule it keeps: the
state is the prefix of choices made so far, a step is an active decision, and only the last step has
a reward, the fitness.

Two functions of the one-hot prefix x: a multilayer perceptron of x and the position, or, with
"linear", Q(s, u) = w . phi(s, u) with the features phi = onehot(position, u) x (1, x): the choice
alone and together with each choice before it.

Deviations: whole trajectories are replayed, so that each step of one is fitted at once; Adam and
the squared error in place of RMSProp and a clipped one; failed candidates are rewarded like the
worst remembered.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas._checks import check_count, check_number, check_option
from jaxnas.space import SearchSpace, is_active
from jaxnas.strategies._memory import remember
from jaxnas.strategies._population import Population, empty
from jaxnas.strategies._q_values import choice_mask, exploration_rate, propose, recall, trajectory
from jaxnas.types import PyTree, Strategy, split_like

Params = dict[str, Array]


class DQNState(NamedTuple):
    """The network, its target, its optimiser and the replay memory."""

    params: Params  # f32, see `_perceptron` and `_linear`
    target: Params  # like `params`
    optimizer: PyTree  # moments of Adam, f32 like `params`, and its i32[] count
    num_updates: Array  # i32[], since the search began
    memory: Population  # capacity C


class _Model(NamedTuple):
    """A function of a prefix and the position of the next decision."""

    init: Callable[[Array], Params]  # (key) -> params
    apply: Callable  # (params, prefix f32[F], index) -> f32[K]


def _prefix(space: SearchSpace, arch: Array, index: Array) -> Array:
    """One-hot choices of the active decisions before `index`, the rest zero: f32[D * K]."""
    counts = is_active(space, arch) & (jnp.arange(arch.size) < index)
    return (jax.nn.one_hot(arch, max(space.num_choices)) * counts[:, None]).ravel()


def _linear(num_decisions: int, num_choices: int) -> _Model:
    def init(key):
        del key
        width = num_decisions * num_choices
        return {
            "pairs": jnp.zeros((num_decisions, width, num_choices)),
            "singles": jnp.zeros((num_decisions, num_choices)),
        }

    def apply(params, prefix, index):
        return prefix @ params["pairs"][index] + params["singles"][index]

    return _Model(init, apply)


def _perceptron(num_decisions: int, num_choices: int, hidden_size: int, num_layers: int) -> _Model:
    width = num_decisions * (num_choices + 1)
    sizes = (width, *[hidden_size] * num_layers, num_choices)

    def init(key):
        params = {}
        keys = split_like(key, num_layers + 1)
        for layer, (k, rows, columns) in enumerate(zip(keys, sizes, sizes[1:], strict=False)):
            scale = jnp.sqrt(2.0 / rows)
            params[f"kernel_{layer}"] = scale * jax.random.normal(k, (rows, columns))
            params[f"bias_{layer}"] = jnp.zeros(columns)
        return params

    def apply(params, prefix, index):
        x = jnp.concatenate([prefix, jax.nn.one_hot(index, num_decisions)])
        for layer in range(num_layers):
            x = jax.nn.relu(x @ params[f"kernel_{layer}"] + params[f"bias_{layer}"])
        return x @ params[f"kernel_{num_layers}"] + params[f"bias_{num_layers}"]

    return _Model(init, apply)


def _errors(
    space: SearchSpace,
    model: _Model,
    params: Params,
    target: Params,
    arch: Array,
    reward: Array,
    discount: float | Array,
) -> Array:
    """Temporal differences f32[D] along one architecture i32[D]; 0 where a decision is inactive."""
    index = jnp.arange(arch.size)
    steps = trajectory(space, arch)
    prefixes = jax.vmap(lambda i: _prefix(space, arch, i))(index)
    values = jax.vmap(model.apply, in_axes=(None, 0, 0))
    made = values(params, prefixes, index)[index, arch]
    ahead = jnp.where(choice_mask(space), values(target, prefixes, index), -jnp.inf).max(axis=1)
    is_last = steps.following == arch.size
    # The prefix of the next active decision is that of the state after this choice.
    after = ahead[jnp.minimum(steps.following, arch.size - 1)]
    wanted = jnp.where(is_last, reward, discount * after)
    return jnp.where(steps.active, jax.lax.stop_gradient(wanted) - made, 0.0)


def dqn(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    function: str = "perceptron",
    num_evaluations: int = 500,
    learning_rate: float | Array = 0.01,
    discount: float | Array = 1.0,
    num_updates: int = 32,
    replay_size: int = 32,
    target_interval: int = 16,
    capacity: int = 1024,
    hidden_size: int = 64,
    num_layers: int = 2,
) -> Strategy:
    """Learns the value of each choice given all choices before it.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      function: "perceptron" or "linear". Static.
      num_evaluations: candidates over which exploration falls from 1 to 0.1; more than half of them
        are uniform draws. Static.
      learning_rate: of Adam, at least 0. May be traced.
      discount: of later values, in [0, 1]. May be traced.
      num_updates: steps of Adam per `tell`. Static.
      replay_size: trajectories per step of Adam. Static.
      target_interval: steps of Adam between two renewals of the target network; a reward moves one
        decision forward per renewal. Static.
      capacity: candidates C >= B that are remembered. Static.
      hidden_size: units per hidden layer of the perceptron. Static.
      num_layers: hidden layers of the perceptron. Static.

    Returns:
      A `Strategy` whose state is two networks and the last C candidates.

    Raises:
      ValueError: for a size below 1, an unknown function, a number out of range, or a capacity
        smaller than a batch.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = dqn(tiny_space(), batch_size=4)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_option("function", function, ("perceptron", "linear"))
    check_count("num_evaluations", num_evaluations)
    check_number("learning_rate", learning_rate)
    check_number("discount", discount, high=1.0)
    check_count("num_updates", num_updates)
    check_count("replay_size", replay_size)
    check_count("target_interval", target_interval)
    check_count("capacity", capacity)
    check_count("hidden_size", hidden_size)
    check_count("num_layers", num_layers)
    if capacity < batch_size:
        raise ValueError(f"capacity must be at least batch_size = {batch_size}, got {capacity}")
    sizes = (space.num_decisions, max(space.num_choices))
    model = (
        _linear(*sizes)
        if function == "linear"
        else _perceptron(*sizes, hidden_size=hidden_size, num_layers=num_layers)
    )
    optimizer = optax.scale_by_adam()

    def init(key):
        params = model.init(key)
        return DQNState(
            params=params,
            target=params,
            optimizer=optimizer.init(params),
            num_updates=jnp.zeros((), jnp.int32),
            memory=empty(space, capacity),
        )

    def ask(key, state: DQNState):
        def q_fn(arch, index, previous):
            del previous  # is part of the prefix
            return model.apply(state.params, _prefix(space, arch, index), index)

        rates = exploration_rate(state.memory.count + jnp.arange(batch_size), num_evaluations)
        return propose(key, space, q_fn, rates)

    def improve(state: DQNState, key) -> tuple[DQNState, None]:
        """One step of Adam, and the renewal of the target where it is due."""
        arch, reward = recall(key, state.memory, replay_size)

        def loss(params):
            error = jax.vmap(
                lambda row, r: _errors(space, model, params, state.target, row, r, discount)
            )(arch, reward)
            return jnp.square(error).sum(axis=1).mean()

        updates, moments = optimizer.update(jax.grad(loss)(state.params), state.optimizer)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        num_done = state.num_updates + 1
        due = num_done % target_interval == 0
        target = jax.tree.map(lambda new, old: jnp.where(due, new, old), params, state.target)
        return DQNState(params, target, moments, num_done, state.memory), None

    def tell(key, state: DQNState, proposal, evaluation):
        memory = remember(state.memory, proposal.arch, evaluation.fitness)
        state = state._replace(memory=memory)
        return jax.lax.scan(improve, state, split_like(key, num_updates))[0]

    return Strategy(init, ask, tell)
