"""Policies over decisions, for the strategies that learn one by policy gradients.

- "recurrent": Zoph & Le, "Neural Architecture Search with Reinforcement Learning", ICLR 2017,
  https://arxiv.org/abs/1611.01578, section 3.2: an LSTM makes the decisions one after the other
  and sees the choice before;
- "factorised": Dong & Yang, "NAS-Bench-201", ICLR 2020, https://arxiv.org/abs/2001.00326: one
  independent categorical distribution per decision.

Inactive decisions are skipped: they have neither log-probability nor entropy.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_option
from jaxnas.space import SearchSpace, first_valid, is_active, is_valid, sample
from jaxnas.types import Proposal, PyTree, split_like

Params = dict[str, Array]

IMPOSSIBLE = -1e9  # logit of a padded choice; finite, for 0 * -inf would poison the entropy


class Policy(NamedTuple):
    """A distribution over decision vectors, one decision after the other."""

    init: Callable[[Array], Params]  # (key) -> params
    start: PyTree  # memory before the first decision
    decide: Callable  # (params, memory, index, previous choice) -> (memory, logits f32[K])


def make_policy(space: SearchSpace, kind: str, *, hidden_size: int, num_layers: int) -> Policy:
    """The policy called `kind`, "recurrent" or "factorised".

    Args:
      space: the space.
      kind: which one.
      hidden_size: units of the recurrent policy, at least 1.
      num_layers: layers of the recurrent policy, at least 1.

    Raises:
      ValueError: for a size below 1 or an unknown policy.
    """
    check_option("policy", kind, ("recurrent", "factorised"))
    check_count("hidden_size", hidden_size)
    check_count("num_layers", num_layers)
    sizes = space.num_decisions, max(space.num_choices)
    if kind == "factorised":
        return _factorised(*sizes)
    return _recurrent(*sizes, hidden_size=hidden_size, num_layers=num_layers)


def _factorised(num_decisions: int, num_choices: int) -> Policy:
    def init(key):
        return {"logits": 1e-3 * jax.random.normal(key, (num_decisions, num_choices))}

    def decide(params, memory, index, previous):
        del previous
        return memory, params["logits"][index]

    return Policy(init, (), decide)


def _recurrent(num_decisions: int, num_choices: int, hidden_size: int, num_layers: int) -> Policy:
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
    return Policy(init, ((zeros, zeros),) * num_layers, decide)


def _unroll(space: SearchSpace, policy: Policy, params: Params, pick: Callable):
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


def draw(key: Array, space: SearchSpace, policy: Policy, params: Params) -> Array:
    """An architecture i32[D] sampled from the policy, valid or not."""

    def pick(index, log_p):
        return jax.random.categorical(jax.random.fold_in(key, index), log_p)

    return _unroll(space, policy, params, pick)[0]


def score(space: SearchSpace, policy: Policy, params: Params, arch: Array) -> tuple[Array, Array]:
    """Log-probabilities f32[B] and entropies f32[B] of canonical architectures i32[B, D]."""

    def one(row):
        return _unroll(space, policy, params, lambda index, _: row[index])[1:]

    return jax.vmap(one)(arch)


def propose(
    key: Array, space: SearchSpace, policy: Policy, params: Params, batch_size: int
) -> Proposal:
    """Draws B architectures from the policy; where it finds none that is valid, uniformly.

    Invalid samples are drawn again.

    Args:
      key: PRNG key.
      space: the space.
      policy: the policy.
      params: its parameters.
      batch_size: candidates B. Static.

    Returns:
      B candidates at full budget; `info` is bool[B], whether the policy drew the candidate.
    """

    def one(k):
        k_policy, k_sample = jax.random.split(k)
        arch = first_valid(space, k_policy, lambda k: draw(k, space, policy, params))
        drawn = is_valid(space, arch)
        return jnp.where(drawn, arch, sample(k_sample, space)), drawn

    arch, drawn = jax.vmap(one)(split_like(key, batch_size))
    return Proposal(arch, jnp.ones(batch_size), drawn)
