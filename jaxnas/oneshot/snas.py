"""SNAS: weights drawn from a concrete distribution, trained together with its logits.

Xie, Zheng, Liu & Lin, "SNAS: Stochastic Neural Architecture Search", ICLR 2019,
https://arxiv.org/abs/1812.09926: the concrete distribution (section 2.2) and one level, the
training loss, for weights and logits. The temperature falls from 1 to 0.03, as in the authors'
code, https://github.com/SNAS-Series/SNAS-Series; optimisers are those of DARTS.

Deviation: the temperature falls with every update; their resource constraint is left out. The
reported validation loss and score are those of the training batch, for the other one is not read.
"""

from typing import Any

from jax import Array

from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.objectives import training
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.relaxations import check_temperatures, concrete, linear_schedule
from jaxnas.types import OneShot


def snas(
    problem: Problem,
    *,
    num_steps: int,
    first_temperature: float | Array = 1.0,
    last_temperature: float | Array = 0.03,
    **options: Any,
) -> OneShot:
    """Search by concrete mixtures on one level.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      first_temperature: of the concrete distribution at the start, above 0.
      last_temperature: at the end, above 0.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = snas(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    check_temperatures(first_temperature, last_temperature)
    relaxation = concrete(linear_schedule(first_temperature, last_temperature))
    parts = Parts(relaxation, objective=training)
    return bilevel(problem, parts, num_steps=num_steps, **options)
