"""REINFORCE: a policy over decisions is trained on the fitness of what it samples.

Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
Learning", Machine Learning 1992. Two policies:

- "recurrent": Zoph & Le, "Neural Architecture Search with Reinforcement Learning", ICLR 2017,
  https://arxiv.org/abs/1611.01578, section 3.2: a two-layer LSTM of 35 units makes the decisions
  one after the other and sees the choice before;
- "factorised": Dong & Yang, "NAS-Bench-201", ICLR 2020, https://arxiv.org/abs/2001.00326: one
  independent categorical distribution per decision.

The reward is the fitness as it is; with b its moving average and H the entropy, each step ascends
mean[(fitness - b) log p(arch) + entropy_weight H] with Adam. b includes the present batch, so the
first step is not one big push.

Deviations: the entropy bonus is that of Williams & Peng 1991, differentiated along the sampled
path; Zoph & Le cube the reward and NAS-Bench-201 counts it in percent, which is the evaluator's
business (Adam undoes the scale unless there is an entropy bonus). Skip connections are decisions
like any other.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas._checks import check_count, check_number, check_option
from jaxnas.space import SearchSpace, first_valid, is_active, is_valid, sample
from jaxnas.types import Proposal, PyTree, Strategy, split_like

Params = dict[str, Array]

IMPOSSIBLE = -1e9  # logit of a padded choice; finite, for 0 * -inf would poison the entropy


class ReinforceState(NamedTuple):
    """The policy, its optimiser and the baseline."""

    params: Params  # f32, see `_recurrent` and `_factorised`
    optimizer: PyTree  # moments of Adam, f32 like `params`, and its i32[] count
    baseline_sum: Array  # f32[], decayed sum of batch means of the fitness
    baseline_weight: Array  # f32[], decayed sum of ones, for the bias correction


class _Policy(NamedTuple):
    """A distribution over decision vectors, one decision after the other."""

    init: Callable[[Array], Params]  # (key) -> params
    start: PyTree  # memory before the first decision
    decide: Callable  # (params, memory, index, previous choice) -> (memory, logits f32[K])


def _factorised(num_decisions: int, num_choices: int) -> _Policy:
    def init(key):
        return {"logits": 1e-3 * jax.random.normal(key, (num_decisions, num_choices))}

    def decide(params, memory, index, previous):
        del previous
        return memory, params["logits"][index]

    return _Policy(init, (), decide)


def _recurrent(num_decisions: int, num_choices: int, hidden_size: int, num_layers: int) -> _Policy:
    shapes = {
        "embedding": (num_decisions, num_choices, hidden_size),  # of the choice before
        "kernel": (num_layers, 2 * hidden_size, 4 * hidden_size),
        "bias": (num_layers, 4 * hidden_size),
        "head": (num_decisions, hidden_size, num_choices),
        "head_bias": (num_decisions, num_choices),
    }

    def init(key):
        keys = dict(zip(shapes, split_like(key, len(shapes)), strict=True))
        return {
            name: jax.random.uniform(keys[name], shape, minval=-0.08, maxval=0.08)
            for name, shape in shapes.items()
        }

    def decide(params, memory, index, previous):
        x = params["embedding"][index, previous]
        after = []
        for (hidden, cell), kernel, bias in zip(
            memory, params["kernel"], params["bias"], strict=True
        ):
            gates = jnp.concatenate([x, hidden]) @ kernel + bias
            take, keep, give, value = jnp.split(gates, 4)
            cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(take) * jnp.tanh(value)
            x = jax.nn.sigmoid(give) * jnp.tanh(cell)
            after.append((x, cell))
        return tuple(after), x @ params["head"][index] + params["head_bias"][index]

    zeros = jnp.zeros(hidden_size)
    return _Policy(init, ((zeros, zeros),) * num_layers, decide)


def _unroll(space: SearchSpace, policy: _Policy, params: Params, pick: Callable):
    """Makes all decisions in order, skipping the inactive ones.

    Args:
      space: the space.
      policy: the policy.
      params: its parameters.
      pick: `(index, log-probabilities f32[K]) -> i32[]`, the choice: sampled, or given.

    Returns:
      The canonical architecture i32[D], its log-probability f32[] and the entropy f32[] of the
      distributions met on the way.
    """
    num_choices = jnp.asarray(space.num_choices)
    places = jnp.arange(max(space.num_choices))

    def decide(carry, index):
        memory, arch, previous = carry
        memory, logits = policy.decide(params, memory, index, previous)
        log_p = jax.nn.log_softmax(jnp.where(places < num_choices[index], logits, IMPOSSIBLE))
        active = is_active(space, arch)[index]  # looks at earlier decisions only
        choice = jnp.where(active, pick(index, log_p), 0)
        entropy = -jnp.sum(jnp.exp(log_p) * log_p)
        gains = jnp.where(active, jnp.stack([log_p[choice], entropy]), 0.0)
        return (memory, arch.at[index].set(choice), choice), gains

    none = jnp.zeros(space.num_decisions, jnp.int32)
    first = (policy.start, none, jnp.zeros((), jnp.int32))
    (_, arch, _), gains = jax.lax.scan(decide, first, jnp.arange(space.num_decisions))
    log_prob, entropy = gains.sum(axis=0)
    return arch, log_prob, entropy


def _draw(key: Array, space: SearchSpace, policy: _Policy, params: Params) -> Array:
    """An architecture i32[D] sampled from the policy, valid or not."""

    def pick(index, log_p):
        return jax.random.categorical(jax.random.fold_in(key, index), log_p)

    return _unroll(space, policy, params, pick)[0]


def _score(space: SearchSpace, policy: _Policy, params: Params, arch: Array) -> tuple[Array, Array]:
    """Log-probabilities f32[B] and entropies f32[B] of canonical architectures i32[B, D]."""

    def one(row):
        return _unroll(space, policy, params, lambda index, _: row[index])[1:]

    return jax.vmap(one)(arch)


def reinforce(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    policy: str = "recurrent",
    learning_rate: float | Array = 0.01,
    baseline_decay: float | Array = 0.9,
    entropy_weight: float | Array = 1e-4,
    hidden_size: int = 35,
    num_layers: int = 2,
) -> Strategy:
    """Policy gradient with a moving-average baseline.

    Inactive decisions contribute neither log-probability nor entropy. Failed candidates (fitness
    not finite) count for nothing, and a step in which all failed changes nothing. Invalid samples
    are drawn again, without correcting the gradient for the share of the policy that is invalid;
    where the policy finds no valid architecture at all, a uniform draw takes its place, from which
    the policy does not learn.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      policy: "recurrent" or "factorised". Static.
      learning_rate: of Adam, at least 0. Zoph & Le train on 12,800 candidates with 6e-4; a hundred
        candidates one at a time need 0.01 to 0.1. May be traced.
      baseline_decay: of the moving average, in [0, 1]; 0 is the mean of the batch. May be traced.
      entropy_weight: of the entropy bonus, in units of the fitness; at least 0. May be traced.
      hidden_size: units of the recurrent policy. Static.
      num_layers: layers of the recurrent policy. Static.

    Returns:
      A `Strategy` whose state holds the policy's parameters. `info` of its proposals is bool[B]:
      whether the policy drew the candidate.

    Raises:
      ValueError: for a size below 1, an unknown policy, or a number out of range.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = reinforce(tiny_space(), batch_size=4, policy="factorised")
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_option("policy", policy, ("recurrent", "factorised"))
    check_number("learning_rate", learning_rate)
    check_number("baseline_decay", baseline_decay, high=1.0)
    check_number("entropy_weight", entropy_weight)
    check_count("hidden_size", hidden_size)
    check_count("num_layers", num_layers)
    sizes = (space.num_decisions, max(space.num_choices))
    model = (
        _factorised(*sizes)
        if policy == "factorised"
        else _recurrent(*sizes, hidden_size=hidden_size, num_layers=num_layers)
    )
    optimizer = optax.scale_by_adam()

    def init(key):
        params = model.init(key)
        return ReinforceState(params, optimizer.init(params), jnp.zeros(()), jnp.zeros(()))

    def ask(key, state: ReinforceState):
        def propose(k):
            k_policy, k_sample = jax.random.split(k)
            arch = first_valid(space, k_policy, lambda k: _draw(k, space, model, state.params))
            drawn = is_valid(space, arch)
            return jnp.where(drawn, arch, sample(k_sample, space)), drawn

        arch, drawn = jax.vmap(propose)(split_like(key, batch_size))
        return Proposal(arch, jnp.ones(batch_size), drawn)

    def tell(key, state: ReinforceState, proposal, evaluation):
        del key
        counts = proposal.info & jnp.isfinite(evaluation.fitness)
        weight = counts / jnp.maximum(counts.sum(), 1)
        fitness = jnp.where(counts, evaluation.fitness, 0.0)
        baseline_sum = baseline_decay * state.baseline_sum + weight @ fitness
        baseline_weight = baseline_decay * state.baseline_weight + 1.0
        advantage = weight * (fitness - baseline_sum / baseline_weight)

        def loss(params):
            log_prob, entropy = _score(space, model, params, proposal.arch)
            return -(advantage @ log_prob + entropy_weight * (weight @ entropy))

        updates, moments = optimizer.update(jax.grad(loss)(state.params), state.optimizer)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        learned = ReinforceState(params, moments, baseline_sum, baseline_weight)
        return jax.tree.map(functools.partial(jnp.where, counts.any()), learned, state)

    return Strategy(init, ask, tell)
