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

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.space import SearchSpace
from jaxnas.strategies._policy import Params, make_policy, propose, score
from jaxnas.types import Evaluation, Proposal, PyTree, Strategy


class ReinforceState(NamedTuple):
    """The policy, its optimiser and the baseline."""

    params: Params  # f32, see `jaxnas.strategies._policy`
    optimizer: PyTree  # moments of Adam, f32 like `params`, and its i32[] count
    baseline_sum: Array  # f32[], decayed sum of batch means of the fitness
    baseline_weight: Array  # f32[], decayed sum of ones, for the bias correction


class Lesson(NamedTuple):
    """What a batch teaches."""

    weight: Array  # f32[B], equal for candidates that count, 0 for the others; sums to 1 or 0
    advantage: Array  # f32[B], fitness above the baseline
    baseline_sum: Array  # f32[], see `ReinforceState`, as the next
    baseline_weight: Array  # f32[]

    def learned(self, state: ReinforceState, params: Params, moments: PyTree) -> ReinforceState:
        """The next state; the old one where no candidate counts."""
        new = ReinforceState(params, moments, self.baseline_sum, self.baseline_weight)
        any_counts = self.weight.sum() > 0.0
        return jax.tree.map(lambda a, b: jnp.where(any_counts, a, b), new, state)


def judge(
    state: ReinforceState,
    proposal: Proposal,
    evaluation: Evaluation,
    baseline_decay: float | Array,
) -> Lesson:
    """Weighs a batch against the moving average, which includes it.

    Candidates that failed, or that the policy did not draw, do not count.
    """
    counts = proposal.info & jnp.isfinite(evaluation.fitness)
    weight = counts / jnp.maximum(counts.sum(), 1)
    fitness = jnp.where(counts, evaluation.fitness, 0.0)
    baseline_sum = baseline_decay * state.baseline_sum + weight @ fitness
    baseline_weight = baseline_decay * state.baseline_weight + 1.0
    advantage = fitness - baseline_sum / baseline_weight
    return Lesson(weight, advantage, baseline_sum, baseline_weight)


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
    check_number("learning_rate", learning_rate)
    check_number("baseline_decay", baseline_decay, high=1.0)
    check_number("entropy_weight", entropy_weight)
    model = make_policy(space, policy, hidden_size=hidden_size, num_layers=num_layers)
    optimizer = optax.scale_by_adam()

    def init(key):
        params = model.init(key)
        return ReinforceState(params, optimizer.init(params), jnp.zeros(()), jnp.zeros(()))

    def ask(key, state: ReinforceState):
        return propose(key, space, model, state.params, batch_size)

    def tell(key, state: ReinforceState, proposal, evaluation):
        del key
        lesson = judge(state, proposal, evaluation, baseline_decay)

        def loss(params):
            log_prob, entropy = score(space, model, params, proposal.arch)
            return -(lesson.weight @ (lesson.advantage * log_prob + entropy_weight * entropy))

        updates, moments = optimizer.update(jax.grad(loss)(state.params), state.optimizer)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        return lesson.learned(state, params, moments)

    return Strategy(init, ask, tell)
