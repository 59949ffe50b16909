"""Fitness by training less: fewer epochs, fewer rows, smaller images, narrower networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas._checks import check_count
from jaxnas.analysis import spearman
from jaxnas.evaluators.train_from_scratch import train_from_scratch
from jaxnas.space import SearchSpace
from jaxnas.training.data import Data, Split
from jaxnas.training.plan import Plan
from jaxnas.training.recipe import Recipe
from jaxnas.types import Evaluator, Proposal, rank_value


def low_fidelity(
    space: SearchSpace,
    data: Data,
    recipe: Recipe | None = None,
    *,
    epochs: int | None = None,
    rows: int | None = None,
    resolution: int | None = None,
    cheap_space: SearchSpace | None = None,
    plan: Plan | None = None,
    num_candidates: int = 256,
) -> Evaluator:
    """`train_from_scratch` on a smaller problem, for search at a fraction of the cost.

    Each reduction can be had alone or with others. How much of the ranking is left is what
    `rank_agreement` measures on a few dozen architectures.

    Args:
      space: the space that is searched.
      data: as in `train_from_scratch`.
      recipe: as in `train_from_scratch`.
      epochs: instead of the recipe's, at most as many; schedules and the budgets of proposals refer
        to these. None: the recipe's.
      rows: training rows, the same for all candidates, see `fewer_rows`; None: all. Validation rows
        stay.
      resolution: side in pixels to average images down to, see `smaller_images`; None: as they are.
        The networks must accept it, as those do that average over the image before the classifier;
        a space with an `image_size` needs a `cheap_space` made for the smaller one. What the recipe
        gives in pixels (`crop`, `cutout`) stays as it is.
      cheap_space: networks to train instead, of the same decisions: made by the factory of `space`
        with fewer channels or cells. None: `space`.
      plan: what to compile, for the smaller problem; None: chosen.
      num_candidates: as in `train_from_scratch`.

    Returns:
      An `Evaluator` like that of `train_from_scratch`, whose metrics are those of the smaller
      problem, in natural units: `epochs` of training, `parameters` of the networks trained.

    Raises:
      ValueError: if an argument is out of range, `cheap_space` has other decisions, images are
        asked for where rows are not images, or a batch is larger than the rows left.

    Example:
      >>> import jaxnas as nas
      >>> data = nas.datasets.wine(jax.random.key(0))
      >>> space = nas.spaces.mlp(3, depths=(1,), widths=(8,))
      >>> evaluator = low_fidelity(space, data, nas.Recipe(epochs=20), epochs=2, rows=40)
      >>> proposal = nas.Proposal(jnp.zeros((1, 6), jnp.int32), jnp.ones(1))
      >>> evaluation, _ = evaluator.evaluate(jax.random.key(1), (), proposal)
      >>> evaluation.metrics["epochs"].tolist()
      [2.0]
    """
    recipe = Recipe() if recipe is None else recipe
    if epochs is not None:
        check_count("epochs", epochs)
        if epochs > recipe.epochs:
            raise ValueError(f"epochs must be at most the recipe's {recipe.epochs}, got {epochs}")
        recipe = dataclasses.replace(recipe, epochs=epochs)
    if rows is not None:
        data = fewer_rows(data, rows)
    if resolution is not None:
        data = smaller_images(data, resolution)
    if cheap_space is not None:
        _check_decisions(space, cheap_space)
        space = cheap_space
    return train_from_scratch(space, data, recipe, plan=plan, num_candidates=num_candidates)


def rank_agreement(key: Array, cheap: Evaluator, full: Evaluator, arch: Array) -> Array:
    """Spearman's rank correlation of two evaluators' fitness, each with a key of its own.

    Args:
      key: PRNG key, consumed.
      cheap: an evaluator.
      full: another.
      arch: i32[P, D], at least two architectures that differ; scored at budget 1.

    Returns:
      f32[]; failed candidates have the lowest rank. `analysis.bootstrap_interval` does not apply to
      correlations: draw architectures with replacement to get an interval.

    Example:
      >>> import jaxnas as nas
      >>> evaluator = nas.evaluators.from_function(lambda key, arch: arch.sum())
      >>> arch = jnp.array([[0, 1], [2, 1], [1, 1]])
      >>> float(rank_agreement(jax.random.key(0), evaluator, evaluator, arch))
      1.0
    """
    found = []
    for k, evaluator in zip(jax.random.split(key), (cheap, full), strict=True):
        k_init, k_evaluate = jax.random.split(k)
        proposal = Proposal(jnp.asarray(arch), jnp.ones(len(arch)))
        evaluation, _ = evaluator.evaluate(k_evaluate, evaluator.init(k_init), proposal)
        found.append(rank_value(evaluation.fitness))
    return spearman(*found)


def fewer_rows(data: Data, rows: int) -> Data:
    """The data with some of the training rows, always the same ones.

    A classification keeps its classes' shares as nearly as whole rows can, at least one of each.

    Args:
      data: any data set.
      rows: how many training rows to keep, at least 1 per class.

    Returns:
      A data set with the same validation and test rows.

    Raises:
      ValueError: if `rows` is out of range.

    Example:
      >>> import jaxnas as nas
      >>> few = fewer_rows(nas.datasets.wine(jax.random.key(0)), 20)
      >>> few.train.x.shape[0], np.bincount(few.train.y).tolist()
      (20, [7, 8, 5])
    """
    y = np.asarray(data.train.y)
    order = np.asarray(jax.random.permutation(jax.random.key(0), len(y)))
    groups = y if data.task.kind == "classification" else np.zeros(len(y), int)
    least = len(np.unique(groups))
    check_count("rows", rows, minimum=least)
    if rows > len(y):
        raise ValueError(f"rows must be at most the {len(y)} training rows, got {rows}")
    # By position in its own class, as a share of the class: any beginning is stratified.
    shares = np.empty(len(y))
    for group in np.unique(groups):
        own = order[groups[order] == group]
        shares[own] = (np.arange(len(own)) + 0.5) / len(own)
        shares[own[0]] = 0.0
    kept = np.sort(order[np.argsort(shares[order], kind="stable")[:rows]])
    return dataclasses.replace(data, train=Split(data.train.x[kept], data.train.y[kept]))


def smaller_images(data: Data, resolution: int) -> Data:
    """The data with images averaged over squares of pixels, in all three parts.

    Args:
      data: square images f32[N, size, size, C].
      resolution: side of the new images, a divisor of `size`.

    Returns:
      A data set of images f32[N, resolution, resolution, C]; standardisation stays that of the
      images as they were, whose channel means these have, too.

    Raises:
      ValueError: if rows are not square images, or `resolution` does not divide their side.

    Example:
      >>> import jaxnas as nas
      >>> digits = nas.datasets.digits(jax.random.key(0), images=True)
      >>> smaller_images(digits, 4).valid.x.shape
      (359, 4, 4, 1)
    """
    shape = data.train.x.shape[1:]
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ValueError(f"resolution needs square images, rows of {data.name!r} are {shape}")
    check_count("resolution", resolution)
    if shape[0] % resolution:
        raise ValueError(f"resolution must divide the images' side {shape[0]}, got {resolution}")
    factor = shape[0] // resolution

    def smaller(split: Split) -> Split:
        blocks = split.x.reshape(-1, resolution, factor, resolution, factor, shape[2])
        return Split(jnp.mean(blocks, axis=(2, 4)), split.y)

    train, valid, test = map(smaller, (data.train, data.valid, data.test))
    return dataclasses.replace(data, train=train, valid=valid, test=test)


def _check_decisions(space: SearchSpace, cheap_space: SearchSpace) -> None:
    if cheap_space.decisions != space.decisions:
        raise ValueError(
            f"cheap_space must have the decisions of space {space.name!r}: "
            f"{[d.name for d in space.decisions]}, got "
            f"{[d.name for d in cheap_space.decisions]} or other choices"
        )
