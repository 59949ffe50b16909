"""Trains the winner of a run at length, and tests it on rows that the search has never seen."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.space import SearchSpace
from jaxnas.store import Run, RunError
from jaxnas.summary import best_row
from jaxnas.training import metrics, population
from jaxnas.training.data import Data
from jaxnas.training.recipe import Recipe
from jaxnas.types import PyTree

_TAG = 0x72657472  # apart from the keys that the search has used


def retrain(
    run: Run,
    space: SearchSpace,
    data: Data,
    recipe: Recipe,
    *,
    seed: int = 0,
    num_seeds: int = 5,
) -> dict[str, Any] | None:
    """Trains the best candidate of all arms from several seeds and keeps one network.

    The network is chosen on the validation split; the test split is used once, for that network
    alone. Its variables go to `winner/` in the run directory, its metrics to the result `winner`.

    Args:
      run: a run with evaluations.
      space: its space.
      data: its data.
      recipe: how to train.
      seed: decides initial weights and batches, independently of the search.
      num_seeds: networks to train, at least 1.

    Returns:
      What was stored as the result `winner`; None where every candidate of the run failed.

    Raises:
      RunError: if every retrained network diverges, the variables cannot be written, or
        another process uses the run.
    """
    row = best_row(run.rows())
    if row is None:
        return None
    started = time.perf_counter()
    arch = np.tile(np.asarray(row.arch, np.int32), (num_seeds, 1))
    key = jax.random.fold_in(jax.random.key(seed), _TAG)
    trained = population.train(space, arch, data, recipe, key, keep_variables=True)
    assert trained.variables is not None
    name = metrics.score_name(data.task)
    score = np.asarray(trained.metrics[name])
    if np.isnan(score).all():
        raise RunError("every network diverged when the winner was retrained")
    # Best score first, ties by the lower loss, NaN last.
    chosen = int(np.lexsort((trained.metrics["loss"], -score))[0])
    variables = trained.variables[chosen]
    result = {
        "arch": list(row.arch),
        "found_by": row.arm,
        "search_fitness": row.fitness,
        "epochs": recipe.epochs,
        "num_seeds": num_seeds,
        "seconds": time.perf_counter() - started,
        "valid": {metric: float(value[chosen]) for metric, value in trained.metrics.items()},
        f"valid_{name}_per_seed": [float(value) for value in score],
        "test": score_on_test(space, arch[0], variables, data),
    }
    with run.lock():
        _save(run, variables)
        run.put_result("winner", result)
    return result


def score_on_test(
    space: SearchSpace, arch: np.ndarray, variables: PyTree, data: Data
) -> dict[str, float]:
    """Loss and score of a stand-alone network on the test split.

    Args:
      space: the space.
      arch: i32[D], concrete.
      variables: of `space.network(arch)`.
      data: whose test split to use.

    Returns:
      `loss` and `accuracy` or `r2`.
    """
    module = space.network(jnp.asarray(arch))

    @jax.jit
    def score(variables, split):
        (found,) = metrics.evaluate(
            lambda x: module.apply(variables, x, train=False), [split], data.task
        )
        return found

    return {name: float(value) for name, value in score(variables, data.test).items()}


def _save(run: Run, variables: PyTree) -> None:
    import orbax.checkpoint as ocp  # here, for its import takes longer than many a short command

    path = (run.directory / "winner").absolute()
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, variables, force=True)
    except Exception as error:  # Orbax passes on whatever its storage layers raise
        raise RunError(f"cannot write {path}: {error}") from error
