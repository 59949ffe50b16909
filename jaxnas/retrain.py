"""Trains a found network at length, and tests it on rows that the search has never seen."""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas.objectives.breakdown import breakdown
from jaxnas.space import SearchSpace
from jaxnas.store import Run, RunError
from jaxnas.summary import best_row
from jaxnas.training import metrics, population
from jaxnas.training import plan as planning
from jaxnas.training.data import Data
from jaxnas.training.population import Training
from jaxnas.training.recipe import Recipe
from jaxnas.types import PyTree

_TAG = 0x72657472  # apart from the keys that the search has used


class Specialised(NamedTuple):
    """A network trained from scratch on its own.

    Attributes:
      variables: of `space.network(arch)`.
      test: `loss` and `accuracy` or `r2` on the test split.
      chosen: which of the seeds the network is from.
      training: metrics on the validation split and learning curves of all seeds.
    """

    variables: PyTree
    test: dict[str, float]
    chosen: int
    training: Training


def specialise(
    space: SearchSpace,
    arch: Array | np.ndarray,
    data: Data,
    recipe: Recipe,
    key: Array,
    *,
    num_seeds: int = 1,
) -> Specialised:
    """Trains the stand-alone network of one architecture, from several seeds, and keeps one.

    The trainer is that of the search, the network `space.network(arch)`: no supernet, no masks. The
    seed is chosen by the validation split; the test split is used once, for the chosen network.

    Args:
      space: the space.
      arch: i32[D], concrete.
      data: what to train, choose and test on.
      recipe: how to train; hyperparameters that the space decides are those of `arch`.
      key: PRNG key, consumed.
      num_seeds: networks to train, at least 1.

    Returns:
      A `Specialised`.

    Raises:
      RunError: if every network diverges, or they do not fit the memory.
      ValueError: as `population.train`, or for `num_seeds` below 1.
    """
    if num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {num_seeds}")
    arches = np.tile(np.asarray(arch, np.int32), (num_seeds, 1))
    alone = dataclasses.replace(space, supernet=None)
    # Room for these networks alone: a long training may be of a large one.
    room = -(-num_seeds // jax.device_count())
    plan = planning.choose(alone, recipe, data, num_seeds, arch=arches, chunk=room)
    trained = population.train(alone, arches, data, recipe, key, plan, keep_variables=True)
    assert trained.variables is not None
    score = trained.metrics[metrics.score_name(data.task)]
    if np.isnan(score).all():
        diverged = "every network diverged when the winner was retrained"
        raise RunError(trained.reasons[0] or diverged)
    # Best score first, ties by the lower loss, NaN last.
    chosen = int(np.lexsort((trained.metrics["loss"], -score))[0])
    variables = trained.variables[chosen]
    test = score_on_test(space, arches[0], variables, data)
    return Specialised(variables, test, chosen, trained)


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

    See `specialise`. The variables of the network go to `winner/` in the run directory, its metrics
    to the result `winner`, what its layers cost to the result `layers`.

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
    key = jax.random.fold_in(jax.random.key(seed), _TAG)
    found = specialise(space, np.asarray(row.arch), data, recipe, key, num_seeds=num_seeds)
    valid, name = found.training.metrics, metrics.score_name(data.task)
    result = {
        "arch": list(row.arch),
        "found_by": row.arm,
        "search_fitness": row.fitness,
        "epochs": recipe.epochs,
        "num_seeds": num_seeds,
        "seconds": time.perf_counter() - started,
        "valid": {metric: float(value[found.chosen]) for metric, value in valid.items()},
        f"valid_{name}_per_seed": [float(value) for value in valid[name]],
        "test": found.test,
    }
    layers = breakdown(space.network(np.asarray(row.arch)), data.train.x.shape[1:])
    with run.lock():
        _save(run, found.variables)
        costs = [layer._asdict() for layer in layers]
        run.put_result("layers", {"arch": list(row.arch), "layers": costs})
        run.put_result("winner", result)  # the last: where it is, nothing is to be done again
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
