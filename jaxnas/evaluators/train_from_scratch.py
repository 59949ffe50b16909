"""Fitness by really training every candidate, many at once."""

import jax.numpy as jnp
import numpy as np

from jaxnas.space import SearchSpace
from jaxnas.training import plan as planning
from jaxnas.training import population
from jaxnas.training.data import Data
from jaxnas.training.metrics import score_name
from jaxnas.training.plan import Plan
from jaxnas.training.recipe import Recipe
from jaxnas.types import Evaluation, Evaluator, Proposal


def train_from_scratch(
    space: SearchSpace,
    data: Data,
    recipe: Recipe | None = None,
    *,
    plan: Plan | None = None,
    num_candidates: int = 256,
) -> Evaluator:
    """Trains each proposed candidate from its own initial weights and scores it on unseen rows.

    The plan is made once, for the whole search, so that a candidate is computed in the same way
    whenever it comes up. Not traceable: compiled programs are chosen on the host.

    Shapes: B = candidates of a proposal.

    Args:
      space: the space; its `hyperparameters` replace the recipe's values per candidate.
      data: trains on `data.train`, scores on `data.valid`; never looks at `data.test`.
      recipe: how to train; a proposal's budget is a fraction of its epochs. None: the defaults.
      plan: what to compile; None: `training.plan.choose` for `num_candidates`.
      num_candidates: roughly how many candidates the search will train in all; more of them make
        more programs worth compiling. Only read without a plan.

    Returns:
      An `Evaluator` without state. Fitness is validation accuracy, or R2 for regression; NaN where
      training diverged, or where a candidate does not fit the memory even alone. Metrics: `loss`,
      `accuracy` or `r2`, `train_loss`, `epochs`, `parameters`, `train_seconds`, `compile_seconds`.
      Cost is `train_seconds`, measured; compilation is not charged.

    Raises:
      ValueError: if `num_candidates` is below 1 or a batch is larger than the data.

    Example:
      >>> import jax, jaxnas as nas
      >>> data = nas.datasets.wine(jax.random.key(0))
      >>> space = nas.spaces.mlp(3, depths=(1,), widths=(8,))
      >>> evaluator = train_from_scratch(space, data, nas.Recipe(epochs=5))
      >>> proposal = nas.Proposal(jnp.zeros((1, 6), jnp.int32), jnp.ones(1))
      >>> evaluation, _ = evaluator.evaluate(jax.random.key(1), (), proposal)
      >>> sorted(evaluation.metrics)
      ['accuracy', 'compile_seconds', 'epochs', 'loss', 'parameters', 'train_loss', 'train_seconds']
    """
    recipe = Recipe() if recipe is None else recipe
    recipe.steps_per_epoch(data.train.y.shape[0])
    if plan is None:
        plan = planning.choose(space, recipe, data, num_candidates)

    def init(key):
        del key
        return ()

    def evaluate(key, state, proposal: Proposal):
        trained = population.train(
            space,
            np.asarray(proposal.arch),
            data,
            recipe,
            key,
            plan,
            budget=np.asarray(proposal.budget),
        )
        metrics = {name: jnp.asarray(value) for name, value in trained.metrics.items()}
        fitness = metrics[score_name(data.task)]
        evaluation = Evaluation(fitness, fitness[:, None], metrics, metrics["train_seconds"])
        return evaluation, state

    return Evaluator(init, evaluate, traceable=False)
