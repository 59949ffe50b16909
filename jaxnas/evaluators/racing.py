"""Fitness by training the candidates of a proposal as a race."""

import jax.numpy as jnp
import numpy as np

from jaxnas._checks import check_count, check_number
from jaxnas.space import SearchSpace
from jaxnas.strategies._brackets import ladder
from jaxnas.training import plan as planning
from jaxnas.training.data import Data
from jaxnas.training.plan import Plan
from jaxnas.training.racing import race
from jaxnas.training.recipe import Recipe
from jaxnas.types import Evaluation, Evaluator, Proposal


def racing(
    space: SearchSpace,
    data: Data,
    recipe: Recipe | None = None,
    *,
    eta: int = 3,
    min_budget: float = 1 / 9,
    chance: float | None = None,
    plan: Plan | None = None,
    num_candidates: int = 256,
) -> Evaluator:
    """Trains all candidates of a proposal a little, the best of them on, the last to the end.

    One proposal is one race, so batches should be large. With the defaults nine candidates cost
    about as much as three that are fully trained. Who ends is trained as by `train_from_scratch`:
    with the same key, to the bit. See `jaxnas.training.racing.race`.

    Shapes: B = candidates of a proposal.

    Args:
      space: the space; its `hyperparameters` replace the recipe's values per candidate.
      data: trains on `data.train`, races and scores on `data.valid`; never looks at `data.test`.
      recipe: how to train; a proposal's budget is a fraction of its epochs, and rungs are fractions
        of that. None: the defaults, with `curves` if there is a `chance`.
      eta: one in `eta` goes on from each rung to the next, which is `eta` times as long; an integer
        of at least 2.
      min_budget: the first rung is the shortest that is at least this fraction, in (0, 1].
      chance: in [0, 1]: rather than a share of the candidates, all go on whose chance to win is
        this high by extrapolation of their learning curves. Needs a recipe with `curves`, and
        proposals whose budgets are equal.
      plan: what to compile; None: `training.plan.choose` for `num_candidates`.
      num_candidates: roughly how many candidates the search will train in all. Only read without a
        plan.

    Returns:
      An `Evaluator` without state. Fitness of candidates that reach the end is validation accuracy,
      or R2 for regression; that of the others is their last score, but below the fitness of every
      candidate that was still in the race when they were dropped; NaN where training failed.
      Metrics: `loss`, `accuracy` or `r2` and `train_loss` as last measured, `epochs`, `budget`
      (the fraction of full training that was reached), `parameters`, `train_seconds`,
      `compile_seconds`. Cost is `train_seconds`, measured; compilation is not charged.

    Raises:
      ValueError: for an argument out of range, a `chance` without curves, a batch larger than the
        data; when it evaluates, if the states of a proposal's candidates do not fit into memory.

    Example:
      >>> import jax, jaxnas as nas
      >>> data = nas.datasets.wine(jax.random.key(0))
      >>> space = nas.spaces.mlp(3, depths=(1,), widths=(8,))
      >>> evaluator = racing(space, data, nas.Recipe(epochs=4), eta=2, min_budget=0.25)
      >>> proposal = nas.Proposal(jnp.zeros((4, 6), jnp.int32), jnp.ones(4))
      >>> evaluation, _ = evaluator.evaluate(jax.random.key(1), (), proposal)
      >>> sorted(evaluation.metrics["budget"].tolist())
      [0.25, 0.25, 0.5, 1.0]
    """
    if recipe is None:
        recipe = Recipe(curves=chance is not None)
    recipe.steps_per_epoch(data.train.y.shape[0])
    check_count("num_candidates", num_candidates)
    rungs = ladder(eta, min_budget)
    if chance is not None:
        check_number("chance", chance, 0.0, 1.0)
        if not recipe.curves:
            raise ValueError("chance needs a recipe with curves=True, got curves=False")
    if plan is None:
        plan = planning.choose(space, recipe, data, num_candidates)

    def init(key):
        del key
        return ()

    def evaluate(key, state, proposal: Proposal):
        found = race(
            space,
            np.asarray(proposal.arch),
            data,
            recipe,
            key,
            plan,
            rungs=rungs,
            eta=eta,
            chance=chance,
            budget=np.asarray(proposal.budget),
        )
        values = {**found.training.metrics, "budget": found.budget}
        metrics = {name: jnp.asarray(value) for name, value in values.items()}
        fitness = jnp.asarray(found.fitness)
        evaluation = Evaluation(fitness, fitness[:, None], metrics, metrics["train_seconds"])
        return evaluation, state

    return Evaluator(init, evaluate, traceable=False)
