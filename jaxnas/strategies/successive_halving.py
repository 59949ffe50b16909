"""Successive halving: many candidates get a little training, the best of them more, and so on.

Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
AISTATS 2016, https://arxiv.org/abs/1502.07943, Figure 3, with a general `eta` and a smallest budget
as in Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020,
https://arxiv.org/abs/1810.05934, Algorithm 1.

The loop: draw `num_candidates` architectures uniformly; train all with the smallest budget; train
the best 1/eta of them with eta times the budget; repeat until the few that are left get full
training; begin again with new draws, for nobody knows how long a search will be.

Deviations: restarts; the budgets are `1, 1 / eta, 1 / eta**2, ...`, so that the last is full
training, rather than multiples of the smallest; a failed candidate is never promoted, and a place
that only failed ones could take gets a new draw. A promoted candidate is a proposal like any other:
whether its training resumes or begins anew, and what that costs, is the evaluator's affair. Where
B does not divide a rung, the rest of a batch begins the next pass instead of waiting for the
rung's results (`_brackets.py` gives the rule); with `batch_size=1` the loop is the paper's.
"""

from jaxnas._checks import check_count
from jaxnas.space import SearchSpace, sample
from jaxnas.strategies import _brackets
from jaxnas.types import Strategy


def successive_halving(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    num_candidates: int = 27,
    eta: int = 3,
    min_budget: float = 1 / 27,
) -> Strategy:
    """Keeps the best 1/eta of the candidates from each budget to the next, eta times larger.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_candidates: candidates that begin together. Static.
      eta: factor between budgets, and between the sizes of rungs, at least 2. Static.
      min_budget: the smallest budget is the smallest power of 1/eta not below this fraction of
        full training. Static.

    Returns:
      A `Strategy` whose state holds the rungs whose results are still needed.

    Raises:
      ValueError: for a number out of range, or too few candidates to leave one for the last rung.

    Example:
      >>> import jax, jaxnas as nas
      >>> strategy = successive_halving(nas.testing.tiny_space(), batch_size=4)
      >>> strategy.ask(jax.random.key(1), strategy.init(jax.random.key(0))).budget.round(4)
      Array([0.037, 0.037, 0.037, 0.037], dtype=float32)
    """
    check_count("batch_size", batch_size)
    check_count("num_candidates", num_candidates)
    bracket = _brackets.halving(num_candidates, eta, _brackets.ladder(eta, min_budget))
    if bracket.sizes[-1] < 1:
        raise ValueError(
            f"num_candidates must be at least {eta ** (len(bracket.sizes) - 1)}, so that one is "
            f"left after {len(bracket.sizes) - 1} halvings, got {num_candidates}"
        )
    schedule = _brackets.make_schedule([bracket], batch_size)

    def init(key):
        del key
        return _brackets.empty(space, schedule)

    def ask(key, state: _brackets.Rungs):
        return _brackets.propose(key, schedule, state, lambda k: sample(k, space))

    def tell(key, state: _brackets.Rungs, proposal, evaluation):
        del key
        return _brackets.record(schedule, state, proposal, evaluation)

    return Strategy(init, ask, tell)
