"""Hyperband: successive halving from several smallest budgets in turn.

Li, Jamieson, DeSalvo, Rostamizadeh & Talwalkar, "Hyperband: A Novel Bandit-Based Approach to
Hyperparameter Optimization", JMLR 2018, https://arxiv.org/abs/1603.06560, Algorithm 1.

Successive halving has to be told how small its smallest budget may be: too small and good
candidates that learn slowly are dropped, too large and few are tried. Hyperband hedges. With
`s_max` the most halvings that `min_budget` allows, it runs a bracket of s halvings for each s from
`s_max` to 0, beginning with `n = ceil((s_max + 1) * eta**s / (s + 1))` uniform draws at the budget
`eta**-s` and going on with the best `floor(n * eta**-i)` at `eta**(i - s)`. All brackets cost
nearly the same; the last one is random search with full training. Then it begins again.

Deviations: brackets are repeated until the search ends; a failed candidate is never promoted, and a
place that only failed ones could take gets a new draw. Where B does not divide a rung, the rest of
a batch begins the next bracket instead of waiting for the rung's results (`_brackets.py` gives the
rule); with `batch_size=1` the loop is the paper's. A promoted candidate is a proposal like any
other: whether its training resumes, and what that costs, is the evaluator's affair.
"""

from jaxnas._checks import check_count
from jaxnas.space import SearchSpace, sample
from jaxnas.strategies import _brackets
from jaxnas.types import Strategy


def hyperband(
    space: SearchSpace, *, batch_size: int = 16, eta: int = 3, min_budget: float = 1 / 27
) -> Strategy:
    """Brackets of successive halving, from many candidates with little training to few with much.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      eta: factor between budgets, at least 2. Static.
      min_budget: the smallest budget is the smallest power of 1/eta not below this fraction of
        full training. Static.

    Returns:
      A `Strategy` whose state holds the rungs whose results are still needed.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> import jax, jaxnas as nas
      >>> strategy = hyperband(nas.testing.tiny_space(), batch_size=4)
      >>> strategy.ask(jax.random.key(1), strategy.init(jax.random.key(0))).budget.round(4)
      Array([0.037, 0.037, 0.037, 0.037], dtype=float32)
    """
    check_count("batch_size", batch_size)
    schedule = _brackets.make_schedule(brackets(eta, min_budget), batch_size)

    def init(key):
        del key
        return _brackets.empty(space, schedule)

    def ask(key, state: _brackets.Rungs):
        return _brackets.propose(key, schedule, state, lambda k: sample(k, space))

    def tell(key, state: _brackets.Rungs, proposal, evaluation):
        del key
        return _brackets.record(schedule, state, proposal, evaluation)

    return Strategy(init, ask, tell)


def brackets(eta: int, min_budget: float) -> list[_brackets.Bracket]:
    """The paper's brackets, the one with the smallest budget first.

    Example:
      >>> [bracket.sizes for bracket in brackets(3, 1 / 27)]
      [(27, 9, 3, 1), (12, 4, 1), (6, 2), (4,)]
    """
    budgets = _brackets.ladder(eta, min_budget)
    num = len(budgets)
    return [
        _brackets.halving(-(-num * eta**s // (s + 1)), eta, budgets[num - 1 - s :])
        for s in reversed(range(num))
    ]
