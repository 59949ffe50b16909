"""Makes a table by training every architecture of a small space."""

import numpy as np
from jax import Array

from jaxnas.enumeration import all_architectures
from jaxnas.space import SearchSpace
from jaxnas.tables.files import PathLike, save
from jaxnas.tables.table import Table, from_arrays
from jaxnas.training import population
from jaxnas.training.data import Data
from jaxnas.training.metrics import score_name
from jaxnas.training.plan import Plan
from jaxnas.training.recipe import Recipe


def build(
    space: SearchSpace,
    data: Data,
    recipe: Recipe,
    key: Array,
    *,
    path: PathLike | None = None,
    num_seeds: int = 1,
    plan: Plan | None = None,
    limit: int = 100_000,
) -> Table:
    """Trains every architecture of a space with the population trainer and tabulates the outcome.

    Run `r = seed * N + row` of all uses `fold_in(key, r)`, so more seeds leave the first ones as
    they are.

    Args:
      space: the space.
      data: trains on `data.train`, scores on `data.valid`.
      recipe: how to train. With `curves` every epoch e of E is a fidelity e / E: a point of the
        whole run's learning curve, whose schedule ends at E, not a run of e epochs.
      key: PRNG key, consumed.
      path: where to `save` the table; None: nowhere.
      num_seeds: runs per architecture, at least 1.
      plan: what to compile; None: chosen for these candidates.
      limit: the most architectures to train.

    Returns:
      A table with the metrics `valid_accuracy` or `valid_r2`, and `train_loss`, and the column
      `params`. Seconds are as measured, mean over seeds; e epochs cost e / E of them.

    Raises:
      ValueError: if the space has more than `limit` architectures or `num_seeds` is below 1.

    Example:
      >>> import jax, jaxnas as nas
      >>> data = nas.datasets.wine(jax.random.key(0))
      >>> fixed = {"depths": (1,), "widths": (8,), "activations": ("relu",), "optimizers": ()}
      >>> space = nas.spaces.mlp(3, learning_rates=(), dropouts=(0.0, 0.5), **fixed)
      >>> table = build(space, data, nas.Recipe(epochs=2, curves=True), jax.random.key(1))
      >>> table.metrics["valid_accuracy"].shape
      (2, 2, 1)
    """
    if num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {num_seeds}")
    archs = all_architectures(space, limit)
    trained = population.train(space, np.tile(archs, (num_seeds, 1)), data, recipe, key, plan)
    score = score_name(data.task)

    def by_row(values: np.ndarray) -> np.ndarray:
        """[num_seeds * N, ...] to [N, ..., num_seeds]."""
        return np.moveaxis(values.reshape(num_seeds, len(archs), *values.shape[1:]), 0, -1)

    curves = {f"valid_{score}": trained.valid_curve, "train_loss": trained.train_curve}
    if not recipe.curves:
        last = (trained.metrics[score], trained.metrics["train_loss"])
        curves = {name: v[:, None] for name, v in zip(curves, last, strict=True)}
    num_levels = recipe.epochs if recipe.curves else 1
    table = from_arrays(
        space,
        {name: by_row(values) for name, values in curves.items()},
        seconds=by_row(trained.metrics["train_seconds"]).mean(axis=-1),
        columns={"params": by_row(trained.metrics["parameters"])[:, 0]},
        fidelities=np.arange(1, num_levels + 1) / num_levels,
        archs=archs,
        name=f"{space.name}-{data.name}",
    )
    if path is not None:
        save(table, path)
    return table
