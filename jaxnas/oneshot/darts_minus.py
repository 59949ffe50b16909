"""DARTS-: an auxiliary skip connection, faded out, takes the unfair advantage of the candidate one.

Chu et al., "DARTS-: Robustly Stepping out of Performance Collapse Without Indicators", ICLR 2021,
https://arxiv.org/abs/2009.01027: beta times the skip connection beside the mixture, with beta from
1 to 0 in a straight line (section 3.3 and algorithm 1). Optimisers are those of DARTS.

Deviation: beta is added to the weight of the candidate `skip_connect`. That is the same function
where it is the identity; where a skip has weights, in reduction cells, both skips share them.
"""

from typing import Any

from jax import Array

from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.relaxations import linear_schedule, softmax, with_auxiliary
from jaxnas.types import OneShot


def darts_minus(
    problem: Problem, *, num_steps: int, first_beta: float | Array = 1.0, **options: Any
) -> OneShot:
    """Search with an auxiliary skip connection.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      first_beta: weight of the auxiliary skip at the start; at the end it is 0.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = darts_minus(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    skips = problem.where("skip_connect")
    parts = Parts(with_auxiliary(softmax(), skips, linear_schedule(first_beta, 0.0)))
    return bilevel(problem, parts, num_steps=num_steps, **options)
