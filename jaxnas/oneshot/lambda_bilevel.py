"""The simple form: minimise the training loss minus lambda times a validation metric.

Introductions to differentiable search put its objective so: L_train(w, alpha) - lambda
M_valid(w, alpha) for alpha, L_train(w, alpha) for the weights. It is DARTS (Liu et al., 2019,
https://arxiv.org/abs/1806.09055) with another upper loss; optimisers are those of DARTS.

The metric must have a gradient, which an accuracy has not. Here it is exp(-validation loss): for a
classification, the geometric mean of the probabilities of the right classes, which is in (0, 1] and
1 where all is right, like an accuracy.
"""

from typing import Any

from jax import Array

from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.objectives import likelihood_bonus
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.relaxations import softmax
from jaxnas.types import OneShot


def lambda_bilevel(
    problem: Problem, *, num_steps: int, factor: float | Array = 1.0, **options: Any
) -> OneShot:
    """Search for a small training loss and a high validation metric.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      factor: lambda.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = lambda_bilevel(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    parts = Parts(softmax(), objective=likelihood_bonus(factor))
    return bilevel(problem, parts, num_steps=num_steps, **options)
