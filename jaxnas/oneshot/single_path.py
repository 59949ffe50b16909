"""Single path one-shot (SPOS): train uniformly drawn paths, search the trained weights afterwards.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV 2020,
https://arxiv.org/abs/1904.00420, Section 3.2 and Equation 7: each step updates the weights of one
architecture, drawn uniformly. The search, Section 3.3, is any strategy on the evaluator
`jaxnas.evaluators.shared_weights`, which recomputes batch statistics per candidate. The recipe is
that of the authors' code, https://github.com/megvii-model/SinglePathOneShot: momentum, a learning
rate that falls linearly to 0, little weight decay; label smoothing of 0.1 is the problem's.

Deviations: the paper's learning rate of 0.5 goes with batches of 1,024 rows, the default here is
the same per row for batches of 64. What a state derives by itself is the best of its last paths.
Sampling under a cost is a `problem._replace(sample=...)`. Paths that a step does not train have
zero gradients, so momentum and weight decay still move them.
"""

import optax
from jax import Array

from jaxnas.oneshot._shared import path_sampling
from jaxnas.oneshot.optimizers import Sgd
from jaxnas.oneshot.problem import Problem
from jaxnas.types import OneShot


def single_path(
    problem: Problem,
    *,
    num_steps: int,
    num_candidates: int = 100,
    learning_rate: float | Array = 0.03,
    momentum: float | Array = 0.9,
    nesterov: bool = False,
    weight_decay: float | Array = 4e-5,
    clip_norm: float | None = None,
) -> OneShot:
    """Uniformly sampled paths, one per update, for a search of its own.

    Args:
      problem: what to train.
      num_steps: updates in a search, over which the learning rate falls to 0. Static.
      num_candidates: updates of which `derive` takes the best path. Static.
      learning_rate: at first. May be traced, as the next one.
      momentum: of gradient descent.
      nesterov: whether the momentum is Nesterov's. Static.
      weight_decay: of what `problem.decayed` names. May be traced.
      clip_norm: global gradient norm is cut to this; None: no clipping. Static.

    Returns:
      A `OneShot` with a `PathState`.

    Raises:
      ValueError: for a count below 1.
    """
    sgd = Sgd(learning_rate, 0.0, momentum, nesterov, weight_decay, clip_norm, decline="linear")
    optimizer = optax.chain(*sgd.make(num_steps, problem.decayed))
    return path_sampling(
        problem,
        optimizer,
        lambda key: problem.sample(key)[None],
        num_steps=num_steps,
        num_candidates=num_candidates,
    )
