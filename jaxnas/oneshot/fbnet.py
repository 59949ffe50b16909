"""FBNet: soft draws of a block's weights, with the network's latency in the loss.

Wu et al., "FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture
Search", CVPR 2019, https://arxiv.org/abs/1812.03443: Gumbel-softmax with temperature
5 * 0.956 ** epoch over 90 epochs, the cross-entropy times 0.2 * log(latency) ** 0.6 (equation 2),
latency summed over a table (equation 3). Weights by SGD from 0.1, alpha by Adam, 0.01, weight decay
5e-4, after 10 epochs of weights alone.

Deviation: the likeliest architecture is derived; the paper draws several and trains them.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.optimizers import Adam, Sgd
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.regularisers import checked_costs, log_cost_factor
from jaxnas.oneshot.relaxations import check_temperatures, concrete
from jaxnas.types import OneShot


def fbnet(
    problem: Problem,
    *,
    num_steps: int,
    costs: ArrayLike | None = None,
    factor: float | Array = 0.2,
    exponent: float | Array = 0.6,
    first_temperature: float | Array = 5.0,
    last_temperature: float | Array = 5.0 * 0.956**90,
    **options: Any,
) -> OneShot:
    """Search by Gumbel-softmax with costs in the loss.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      costs: f32[R, K], what each operation costs, 0 in empty places; a choice's sum is to be above
        1, for its logarithm is taken. None: costs do not matter.
      factor: of the loss, at least 0.
      exponent: of the logarithm of the cost, at least 0.
      first_temperature: at the start, above 0.
      last_temperature: at the end, which is approached exponentially, above 0.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: for costs of another shape, and as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = fbnet(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    check_temperatures(first_temperature, last_temperature)
    regulariser = None
    if costs is not None:
        table = checked_costs(problem, costs)
        regulariser = log_cost_factor(table, factor=factor, exponent=exponent)

    def temperature(progress):
        return first_temperature * jnp.power(last_temperature / first_temperature, progress)

    parts = Parts(concrete(temperature), regulariser=regulariser)
    recipe: dict[str, Any] = {
        "weight_optimizer": Sgd(learning_rate=0.1, final_learning_rate=0.0),
        "alpha_optimizer": Adam(learning_rate=0.01, b1=0.9, weight_decay=5e-4),
        "begin": 10 / 90,
    }
    return bilevel(problem, parts, num_steps=num_steps, **(recipe | options))
