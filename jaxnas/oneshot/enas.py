"""ENAS: a controller that learns which paths are good, and weights trained on what it samples.

Pham, Guan, Zoph, Le & Dean, "Efficient Neural Architecture Search via Parameter Sharing", ICML
2018, https://arxiv.org/abs/1802.03268, Section 2.2: with the controller fixed, each step trains the
weights of one architecture sampled from it (Equation 1 with M = 1); with the weights fixed, the
controller ascends the expected reward, the accuracy on a validation batch, by REINFORCE with a
moving-average baseline. The controller is `jaxnas.strategies.reinforce`, whose policy is an LSTM
or, as in Dong & Yang, "NAS-Bench-201", 2020, independent logits. In the end the best of some
samples, each scored on one validation batch, is derived (Section 2.2, "Deriving Architectures").
Numbers are those of the authors' CIFAR-10 code, https://github.com/melodyguan/enas.

Deviations: the two phases alternate every `controller_interval` updates rather than every epoch;
the learning rate is one cosine without restarts; logits are neither cooled nor bounded by a tanh;
the baseline includes the present samples, and the entropy bonus is differentiated, see `reinforce`.
The samples to derive from are those of the last controller steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas._checks import check_count
from jaxnas.oneshot._shared import (
    Record,
    descend,
    first_record,
    next_record,
    path_gradients,
    path_score,
)
from jaxnas.oneshot.optimizers import Sgd
from jaxnas.oneshot.problem import Problem
from jaxnas.space import Decision, SearchSpace
from jaxnas.strategies.reinforce import ReinforceState, reinforce
from jaxnas.types import Evaluation, OneShot, PyTree, rank_value, split_like


class EnasState(NamedTuple):
    """Shared weights and their controller."""

    step: Array  # i32[], updates made
    weights: PyTree  # f32, the supernet's parameters
    rest: PyTree  # its other collections
    alpha: ReinforceState  # the controller
    moments: PyTree  # of the weights' optimiser
    record: Record


def enas(
    problem: Problem,
    *,
    num_steps: int,
    space: SearchSpace | None = None,
    policy: str = "recurrent",
    num_samples: int = 10,
    controller_interval: int = 10,
    num_candidates: int = 100,
    controller_learning_rate: float | Array = 3.5e-3,
    baseline_decay: float | Array = 0.99,
    entropy_weight: float | Array = 1e-4,
    hidden_size: int = 64,
    learning_rate: float | Array = 0.05,
    min_learning_rate: float | Array = 5e-4,
    momentum: float | Array = 0.9,
    nesterov: bool = True,
    weight_decay: float | Array = 1e-4,
    clip_norm: float | None = 5.0,
) -> OneShot:
    """A policy and the shared weights of what it samples, in turn.

    Args:
      problem: what to train.
      num_steps: updates in a search, over which the learning rate falls. Static.
      space: whose decisions the controller makes; None: a decision per row.
      policy: "recurrent" or "factorised". Static.
      num_samples: architectures per step of the controller. Static.
      controller_interval: updates per step of the controller. Static.
      num_candidates: samples of which `derive` takes the best, at least `num_samples`; rounded down
        to whole steps of the controller. Static.
      controller_learning_rate: of Adam. May be traced, as the next ones.
      baseline_decay: of the controller's moving-average reward.
      entropy_weight: of its entropy bonus, in units of the score.
      hidden_size: units of the recurrent policy. Static.
      learning_rate: of the weights, at first. May be traced, as the next ones.
      min_learning_rate: at the end of half a cosine wave.
      momentum: of the weights' gradient descent.
      nesterov: whether the momentum is Nesterov's. Static.
      weight_decay: of what `problem.decayed` names. May be traced.
      clip_norm: global gradient norm is cut to this; None: no clipping. Static.

    Returns:
      A `OneShot` with an `EnasState`. Validation loss and score are means over the samples, NaN in
      updates without a step of the controller.

    Raises:
      ValueError: for a count or number out of range, an unknown policy, or where decisions are not
        rows and no `space` is given.
    """
    check_count("num_steps", num_steps)
    check_count("num_samples", num_samples)
    check_count("controller_interval", controller_interval)
    check_count("num_candidates", num_candidates, num_samples)
    space = _row_space(problem) if space is None else space
    options = {
        "policy": policy,
        "learning_rate": controller_learning_rate,
        "baseline_decay": baseline_decay,
        "entropy_weight": entropy_weight,
        "hidden_size": hidden_size,
        "num_layers": 1,
    }
    sampler = reinforce(space, batch_size=1, **options)
    controller = reinforce(space, batch_size=num_samples, **options)
    sgd = Sgd(learning_rate, min_learning_rate, momentum, nesterov, weight_decay, clip_norm)
    optimizer = optax.chain(*sgd.make(num_steps, problem.decayed))
    lessons = max(1, num_candidates // num_samples)
    blocks = num_steps // controller_interval, lessons

    def init(key):
        k_weights, k_controller, k_arch = split_like(key, 3)
        weights, rest = problem.init(k_weights)
        alpha = controller.init(k_controller)
        record = first_record(problem, k_arch)
        return EnasState(jnp.int32(0), weights, rest, alpha, optimizer.init(weights), record)

    def teach(key, state: EnasState, batch):
        """The controller and the record after a lesson, and mean loss and score of its samples."""
        k_ask, k_score, k_tell = split_like(key, 3)
        proposal = controller.ask(k_ask, state.alpha)
        score_fn = lambda arch: path_score(  # noqa: E731
            problem, k_score, state.weights, state.rest, arch, batch
        )
        losses, scores = jax.lax.map(score_fn, proposal.arch)
        evaluation = Evaluation(scores, scores[:, None], {}, jnp.zeros_like(scores))
        alpha = controller.tell(k_tell, state.alpha, proposal, evaluation)
        best = jnp.argmax(rank_value(scores))
        found = Record(proposal.arch[best], scores[best])
        record = next_record(state.record, state.step // controller_interval, blocks, found)
        return alpha, record, jnp.mean(losses), jnp.mean(scores)

    def update(key, state: EnasState, train_batch, valid_batch):
        k_path, k_train, k_teach = split_like(key, 3)
        paths = sampler.ask(k_path, state.alpha).arch
        gradients, rest, losses = path_gradients(
            problem, k_train, state.weights, state.rest, paths, train_batch
        )
        weights, moments = descend(optimizer, gradients, state.weights, state.moments)
        state = state._replace(weights=weights, rest=rest, moments=moments)
        alpha, record, loss, score = jax.lax.cond(
            (state.step + 1) % controller_interval == 0,
            lambda: teach(k_teach, state, valid_batch),
            lambda: (state.alpha, state.record, jnp.float32(jnp.nan), jnp.float32(jnp.nan)),
        )
        info = {"train_loss": jnp.mean(losses), "valid_loss": loss, "valid_score": score}
        return state._replace(step=state.step + 1, alpha=alpha, record=record), info

    return OneShot(init, update, lambda state: state.record.arch)


def _row_space(problem: Problem) -> SearchSpace:
    """A space whose decisions are the rows of the problem, for the policy alone."""
    num_decisions = jax.eval_shape(problem.sample, jax.random.key(0)).shape[0]
    if num_decisions != len(problem.rows):
        raise ValueError(
            "space must be given where decisions are not rows: the problem has "
            f"{num_decisions} decisions and {len(problem.rows)} rows"
        )
    decisions = [Decision(f"row {row}", tuple(range(n))) for row, n in enumerate(problem.rows)]

    def network(arch):
        raise NotImplementedError("the rows of a problem have no network of their own")

    return SearchSpace("rows", tuple(decisions), network)
