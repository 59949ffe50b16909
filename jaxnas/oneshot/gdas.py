"""GDAS: one operation per edge is drawn and run, with the gradient of the whole mixture.

Dong & Yang, "Searching for a Robust Neural Architecture in Four GPU Hours", CVPR 2019,
https://arxiv.org/abs/1910.04465: hard Gumbel-softmax (section 3.2) with a falling temperature.
Hyperparameters are those of the authors' code for NAS-Bench-201,
https://github.com/D-X-Y/AutoDL-Projects: temperature from 10 to 0.1 in a straight line, weights by
Nesterov's SGD from 0.025 to 0.001 along a cosine, weight decay 5e-4, gradients clipped at 5; alpha
by Adam, 3e-4, betas (0.5, 0.999), weight decay 1e-3; first order.

Like there, an operation that is not drawn enters as a scalar of value 0 with the gradient of its
weight. Deviation: the temperature falls with every update, not once per epoch; a draw cannot be
infinite here, so none is repeated.
"""

from typing import Any

from jax import Array

from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.optimizers import Sgd
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.relaxations import check_temperatures, hard_concrete, linear_schedule
from jaxnas.types import OneShot


def gdas(
    problem: Problem,
    *,
    num_steps: int,
    first_temperature: float | Array = 10.0,
    last_temperature: float | Array = 0.1,
    **options: Any,
) -> OneShot:
    """Search by Gumbel-softmax with one operation per edge.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      first_temperature: of the Gumbel-softmax at the start, above 0.
      last_temperature: at the end, above 0.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = gdas(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    check_temperatures(first_temperature, last_temperature)
    parts = Parts(hard_concrete(linear_schedule(first_temperature, last_temperature)))
    recipe: dict[str, Any] = {"weight_optimizer": Sgd(nesterov=True, weight_decay=5e-4)}
    return bilevel(problem, parts, num_steps=num_steps, **(recipe | options))
