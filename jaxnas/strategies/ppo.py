"""Proximal policy optimisation: several careful steps on each batch of architectures.

Schulman et al., "Proximal Policy Optimization Algorithms", 2017, https://arxiv.org/abs/1707.06347,
Eq. 7; with it Zoph et al., "Learning Transferable Architectures for Scalable Image Recognition"
(NASNet), CVPR 2018, https://arxiv.org/abs/1707.07012, train their controller. The policies are
those of `jaxnas.strategies.reinforce`.

With r = p(arch) / p_old(arch), p_old the policy that proposed the batch, A = fitness - b, b the
moving average of the fitness and H the entropy, `num_epochs` steps of Adam ascend

    mean[min(r A, clip(r, 1 - clip_range, 1 + clip_range) A) + entropy_weight H].

The first of them is the step of REINFORCE; later ones leave alone what has moved far enough.

Deviations: an architecture is one action with one ratio, not one per decision; there is no learned
value function, for the moving average serves NASNet in its place; every epoch uses the whole batch.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.space import SearchSpace
from jaxnas.strategies._policy import make_policy, score
from jaxnas.strategies.reinforce import ReinforceState, judge, reinforce
from jaxnas.types import Strategy

_FAR = 20.0  # largest |log r|; beyond it the ratio would overflow and is clipped anyway


def ppo(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    policy: str = "recurrent",
    num_epochs: int = 4,
    clip_range: float | Array = 0.2,
    learning_rate: float | Array = 0.003,
    baseline_decay: float | Array = 0.95,
    entropy_weight: float | Array = 1e-5,
    hidden_size: int = 100,
    num_layers: int = 1,
) -> Strategy:
    """Policy gradient with a clipped ratio, reusing each batch for several steps.

    Inactive decisions, failed candidates and invalid samples are treated as by `reinforce`.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. NASNet uses 20. Static.
      policy: "recurrent" or "factorised". Static.
      num_epochs: steps of Adam per batch. Static.
      clip_range: how far the ratio may move and still be rewarded, at least 0. May be traced.
      learning_rate: of Adam, at least 0. NASNet trains on 20,000 candidates with 3.5e-4; hundreds
        need more, small policies (also "factorised", about 0.1) more again. May be traced.
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
      >>> strategy = ppo(tiny_space(), batch_size=4, policy="factorised")
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("num_epochs", num_epochs)
    check_number("clip_range", clip_range)
    sampler = reinforce(
        space,
        batch_size=batch_size,
        policy=policy,
        learning_rate=learning_rate,
        baseline_decay=baseline_decay,
        entropy_weight=entropy_weight,
        hidden_size=hidden_size,
        num_layers=num_layers,
    )
    model = make_policy(space, policy, hidden_size=hidden_size, num_layers=num_layers)
    optimizer = optax.scale_by_adam()

    def tell(key, state: ReinforceState, proposal, evaluation):
        del key
        lesson = judge(state, proposal, evaluation, baseline_decay)
        old, _ = score(space, model, state.params, proposal.arch)

        def loss(params):
            log_prob, entropy = score(space, model, params, proposal.arch)
            ratio = jnp.exp(jnp.clip(log_prob - old, -_FAR, _FAR))
            near = jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range)
            gain = jnp.minimum(ratio * lesson.advantage, near * lesson.advantage)
            return -(lesson.weight @ (gain + entropy_weight * entropy))

        def epoch(_, carry):
            params, moments = carry
            updates, moments = optimizer.update(jax.grad(loss)(params), moments)
            return jax.tree.map(lambda p, u: p - learning_rate * u, params, updates), moments

        carry = state.params, state.optimizer
        params, moments = jax.lax.fori_loop(0, num_epochs, epoch, carry)
        return lesson.learned(state, params, moments)

    return Strategy(sampler.init, sampler.ask, tell)
