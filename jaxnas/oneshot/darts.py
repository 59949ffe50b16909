"""DARTS: the mixture of all operations, weights and mixture trained in turn.

Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019,
https://arxiv.org/abs/1806.09055: softmax over the operations of an edge (equation 2), alternating
gradient steps (algorithm 1), of the first order or through one step of the weights (equation 6).
Hyperparameters are those of the authors' code, https://github.com/quark0/darts: weights by SGD from
0.025 to 0.001 along a cosine, momentum 0.9, weight decay 3e-4, gradients clipped at 5;
alpha from 1e-3 N(0, 1) by Adam, 3e-4, betas (0.5, 0.999), weight decay 1e-3. The architecture is
derived by the space's own rule.

Deviation: the second order is exact; the finite difference of equations 7 and 8 is
`hypergradient=hypergradients.finite_difference()`. The step of the weights that it looks through
has the optimiser's momentum and weight decay, as in the authors' code, and no clipping.
"""

from typing import Any

from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.hypergradients import Hypergradient, first_order, unrolled
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.relaxations import softmax
from jaxnas.types import OneShot


def darts(
    problem: Problem,
    *,
    num_steps: int,
    order: int = 1,
    hypergradient: Hypergradient | None = None,
    **options: Any,
) -> OneShot:
    """Differentiable architecture search.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      order: 1: weights are held still for alpha; 2: alpha's gradient goes through their next step.
        Static.
      hypergradient: replaces `order`, see `jaxnas.oneshot.hypergradients`.
      **options: of `jaxnas.oneshot.bilevel.bilevel`.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: for another order, and as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = darts(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}")
    if hypergradient is None:
        hypergradient = first_order() if order == 1 else unrolled()
    parts = Parts(softmax(), hypergradient=hypergradient)
    return bilevel(problem, parts, num_steps=num_steps, **options)
