"""FairDARTS: every operation has a gate of its own, driven to 0 or 1.

Chu, Zhou, Zhang & Li, "Fair DARTS: Eliminating Unfair Advantages in Differentiable Architecture
Search", ECCV 2020, https://arxiv.org/abs/1911.12126: sigmoids instead of a softmax and the
zero-one loss (section 4). Hyperparameters are those of the authors' code,
https://github.com/xiaomi-automl/FairDARTS: weight 10 of the zero-one loss, no `none` among the
operations, weights by SGD from 0.005 to 0.001, alpha by Adam, 3e-3, betas (0.9, 0.999), weight
decay 1e-3.

Deviation: one operation is derived per row, the one with the largest gate; they keep up to two
edges per node among the gates above 0.85, and so none where all are small.
"""

from typing import Any

from jax import Array

from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.optimizers import Adam, Sgd
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.regularisers import zero_one
from jaxnas.oneshot.relaxations import sigmoid
from jaxnas.types import OneShot


def fair_darts(
    problem: Problem, *, num_steps: int, zero_one_weight: float | Array = 10.0, **options: Any
) -> OneShot:
    """Search with independent gates.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      zero_one_weight: of the zero-one loss, at least 0.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = fair_darts(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    parts = Parts(sigmoid(), regulariser=zero_one(zero_one_weight))
    recipe: dict[str, Any] = {
        "weight_optimizer": Sgd(learning_rate=0.005),
        "alpha_optimizer": Adam(learning_rate=3e-3, b1=0.9),
        "exclude": ("none",),
    }
    return bilevel(problem, parts, num_steps=num_steps, **(recipe | options))
