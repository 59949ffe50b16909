"""Robust DARTS: stops alpha where the validation loss bends ever more in it.

Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020,
https://arxiv.org/abs/1909.09656: early stopping by the dominant eigenvalue of the second derivative
(section 4.3, DARTS-ES). As in the authors' code, https://github.com/automl/RobustDARTS, a mean of 5
measurements that exceeds 1.3 times that of 4 measurements before, after 10 of 50 epochs, stops the
search at the architecture of the earlier time. Their other means, more weight decay (R-DARTS (L2))
and drop-path, are `weight_optimizer` and the problem's recipe. Optimisers are those of DARTS.

Deviations: the eigenvalue is that of one validation batch, in magnitude and by the power method.
Weights are trained to the end of the search.
"""

from typing import Any

from jax import Array

from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.early_stops import curvature
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.relaxations import softmax
from jaxnas.types import OneShot


def robust_darts(
    problem: Problem,
    *,
    num_steps: int,
    period: int | None = None,
    stop_ratio: float | Array = 1.3,
    stop_begin: float | Array = 0.2,
    window: int = 5,
    lookback: int = 4,
    num_iterations: int = 8,
    **options: Any,
) -> OneShot:
    """DARTS with early stopping by the curvature.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      period: updates between measurements; None: a fiftieth of the search. Static.
      stop_ratio: growth of the eigenvalue that stops the search, above 0.
      stop_begin: share of the updates before which it goes on in any case.
      window: measurements that are averaged. Static.
      lookback: measurements between the two means that are compared. Static.
      num_iterations: of the power method. Static.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = robust_darts(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    stop = curvature(
        num_steps=num_steps,
        period=max(1, num_steps // 50) if period is None else period,
        begin=stop_begin,
        window=window,
        lookback=lookback,
        ratio=stop_ratio,
        num_iterations=num_iterations,
    )
    parts = Parts(softmax(), early_stop=stop)
    return bilevel(problem, parts, num_steps=num_steps, **options)
