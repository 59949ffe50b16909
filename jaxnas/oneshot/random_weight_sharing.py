"""Random search with weight sharing: train random paths, then take the best of some random paths.

Li & Talwalkar, "Random Search and Reproducibility for Neural Architecture Search", UAI 2019,
https://arxiv.org/abs/1902.07638, Section 3.1. Each step updates the weights of one architecture,
drawn uniformly; in the end architectures are drawn uniformly and scored with the shared weights,
and the best is trained alone. The recipe is that of the paper's CIFAR-10 experiment, which is
DARTS's (https://github.com/liamcli/randomNAS_release), the number of candidates and the one
validation batch each that of Dong & Yang, "NAS-Bench-201", 2020, https://arxiv.org/abs/2001.00326.

Deviations: the candidates are the paths that the last `num_candidates` steps train, each scored
right after its step, so that the state alone says what is derived. The paper evaluates 1,000
architectures on a batch and the best ten on all validation rows: for that and any other search,
hand the trained weights to `jaxnas.evaluators.shared_weights`. Paths that a step does not train
have zero gradients, so momentum and weight decay still move them.
"""

import optax
from jax import Array

from jaxnas.oneshot._shared import path_sampling
from jaxnas.oneshot.optimizers import Sgd
from jaxnas.oneshot.problem import Problem
from jaxnas.types import OneShot


def random_weight_sharing(
    problem: Problem,
    *,
    num_steps: int,
    num_candidates: int = 100,
    learning_rate: float | Array = 0.025,
    min_learning_rate: float | Array = 0.001,
    momentum: float | Array = 0.9,
    nesterov: bool = False,
    weight_decay: float | Array = 3e-4,
    clip_norm: float | None = 5.0,
) -> OneShot:
    """Uniformly sampled paths, one per update.

    Args:
      problem: what to train.
      num_steps: updates in a search, over which the learning rate falls. Static.
      num_candidates: updates of which `derive` takes the best path. Static.
      learning_rate: at first. May be traced, as the next ones.
      min_learning_rate: at the end of half a cosine wave.
      momentum: of gradient descent.
      nesterov: whether the momentum is Nesterov's. Static.
      weight_decay: of what `problem.decayed` names.
      clip_norm: global gradient norm is cut to this; None: no clipping. Static.

    Returns:
      A `OneShot` with a `PathState`.

    Raises:
      ValueError: for a count below 1.
    """
    sgd = Sgd(learning_rate, min_learning_rate, momentum, nesterov, weight_decay, clip_norm)
    optimizer = optax.chain(*sgd.make(num_steps, problem.decayed))
    return path_sampling(
        problem,
        optimizer,
        lambda key: problem.sample(key)[None],
        num_steps=num_steps,
        num_candidates=num_candidates,
    )
