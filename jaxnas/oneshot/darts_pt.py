"""DARTS-PT: the architecture is selected by what removing an operation costs, not by alpha.

Wang, Cheng, Chen, Tang & Hsieh, "Rethinking Architecture Selection in Differentiable NAS", ICLR
2021, https://arxiv.org/abs/2108.04392, algorithm 1: after a search by DARTS, edge after edge in
random order is set to the operation without which the validation accuracy is lowest, and weights
are trained on in between. `begin=1.0` is the variant with a uniform mixture that never moves.

Deviations: an operation is judged by the validation batches of the updates before its row's
decision, a share of all rows instead of all of them; equal accuracies are told apart by the loss;
weights are trained on by the same optimiser at its falling rate instead of one with a tenth of the
first. The second phase of the paper, which chooses edges in the DARTS space, is left to the space's
own rule.
"""

from typing import Any

from jaxnas._checks import check_count, check_number
from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.pruning import select_by_removal
from jaxnas.oneshot.relaxations import softmax
from jaxnas.types import OneShot


def darts_pt(
    problem: Problem, *, num_steps: int, search_rate: float = 0.7, **options: Any
) -> OneShot:
    """DARTS with selection by removal.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      search_rate: share of the updates before the selection begins, in [0, 1]. Static.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: if fewer updates are left for the selection than there are rows, and as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = darts_pt(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    check_count("num_steps", num_steps)
    check_number("search_rate", search_rate, high=1.0)
    begin = round(search_rate * num_steps)
    num_rows = len(problem.rows)
    if num_steps - begin < num_rows:
        raise ValueError(
            f"num_steps must leave an update for each of {num_rows} rows after "
            f"search_rate = {search_rate}, got {num_steps}"
        )
    selection = select_by_removal(begin, (num_steps - begin) // num_rows)
    parts = Parts(softmax(), pruning=selection)
    recipe: dict[str, Any] = {"end": begin / num_steps}
    return bilevel(problem, parts, num_steps=num_steps, **(recipe | options))
