"""What the methods that train sampled paths have in common.

They differ in which paths a step trains and in the optimiser; `path_sampling` is the rest. A path
is an architecture i32[D]. What a state derives is the best of the paths that were scored lately,
each on one validation batch: see `Record`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas._checks import check_count
from jaxnas.oneshot.problem import Problem
from jaxnas.training.data import Split
from jaxnas.types import OneShot, PyTree, rank_value, split_like

# (key, weights, rest, paths, batch) -> (gradients, rest, losses f32[P])
GradientsFn = Callable[..., tuple[PyTree, PyTree, Array]]


class Record(NamedTuple):
    """The best architecture of a block of updates.

    Blocks have equal lengths and the last one ends with the search, when weights hardly change any
    more: so scores of one block can be compared, and what is derived in the end is the best of as
    many samples as a block has, as in random search with weight sharing.
    """

    arch: Array  # i32[D]
    score: Array  # f32[], on one validation batch; minus infinity before the first


class PathState(NamedTuple):
    """State of a method that trains sampled paths."""

    step: Array  # i32[], updates made
    weights: PyTree  # f32, the supernet's parameters
    rest: PyTree  # its other collections
    alpha: tuple  # (), there are no architecture parameters
    moments: PyTree  # of the optimiser
    record: Record


def first_record(problem: Problem, key: Array) -> Record:
    """A random architecture that anything beats."""
    return Record(problem.sample(key), jnp.float32(-jnp.inf))


def next_record(record: Record, step: Array, blocks: tuple[int, int], found: Record) -> Record:
    """The record after update `step`, which found the architecture `found`.

    Args:
      record: before the update.
      step: i32[], updates made before this one.
      blocks: updates in the search and in a block of it. Static.
      found: what was scored; a score that is NaN never counts.

    Returns:
      The better of the two, or `found` in the first update of a block.
    """
    num_steps, length = blocks
    fresh = (step - num_steps) % length == 0
    score = rank_value(found.score)
    best = jnp.where(fresh, -jnp.inf, record.score)
    return jax.tree.map(
        lambda new, old: jnp.where(score > best, new, old),
        Record(found.arch, score),
        Record(record.arch, best),
    )


def descend(
    optimizer: optax.GradientTransformation, gradients: PyTree, weights: PyTree, moments: PyTree
) -> tuple[PyTree, PyTree]:
    """The weights and moments after one step."""
    updates, moments = optimizer.update(gradients, moments, weights)
    return optax.apply_updates(weights, updates), moments


def path_gradients(
    problem: Problem, key: Array, weights: PyTree, rest: PyTree, paths: Array, batch: Split
) -> tuple[PyTree, PyTree, Array]:
    """Gradients of single-path networks on one batch, summed.

    Args:
      problem: the problem.
      key: PRNG key; all paths see the same augmented rows.
      weights: the supernet's parameters.
      rest: its other collections, which the paths update one after the other.
      paths: i32[P, D].
      batch: training rows.

    Returns:
      Gradients like `weights`, the collections after all paths, and the losses f32[P].
    """

    def loss_fn(weights, rest, arch):
        loss, (rest, _) = problem.loss(key, weights, rest, arch, batch, True)
        return loss, rest

    return summed_gradients(loss_fn, weights, rest, paths)


def summed_gradients(
    loss_fn: Callable, weights: PyTree, rest: PyTree, paths: Array
) -> tuple[PyTree, PyTree, Array]:
    """As `path_gradients`, of `loss_fn(weights, rest, arch) -> (loss f32[], rest)`."""
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def one(carry, arch):
        total, rest = carry
        (loss, rest), gradients = gradient_fn(weights, rest, arch)
        return (jax.tree.map(jnp.add, total, gradients), rest), loss

    zeros = jax.tree.map(jnp.zeros_like, weights)
    (gradients, rest), losses = jax.lax.scan(one, (zeros, rest), paths)
    return gradients, rest, losses


def path_score(
    problem: Problem, key: Array, weights: PyTree, rest: PyTree, arch: Array, batch: Split
) -> tuple[Array, Array]:
    """Loss and score f32[] of one architecture on a validation batch.

    Normalised by the batch's own statistics, for the running ones mix all paths; nothing learns
    from the batch.
    """
    loss, (_, score) = problem.loss(key, weights, rest, arch, batch, True)
    return loss, score


def path_sampling(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    paths_fn: Callable[[Array], Array],
    *,
    num_steps: int,
    num_candidates: int,
    gradients_fn: GradientsFn | None = None,
) -> OneShot:
    """A method whose every step trains some paths and scores the last of them.

    Args:
      problem: the problem.
      optimizer: of the weights.
      paths_fn: `(key) -> i32[P, D]`, what a step trains; the gradients are summed.
      num_steps: updates in a search. Static.
      num_candidates: updates of which `derive` takes the best path. Static.
      gradients_fn: `(key, weights, rest, paths, batch)` to what `path_gradients` returns; None:
        that function.

    Returns:
      A `OneShot` with a `PathState`.

    Raises:
      ValueError: for a count below 1.
    """
    check_count("num_steps", num_steps)
    check_count("num_candidates", num_candidates)
    gradients_fn = partial(path_gradients, problem) if gradients_fn is None else gradients_fn

    def init(key):
        k_weights, k_arch = split_like(key, 2)
        weights, rest = problem.init(k_weights)
        record = first_record(problem, k_arch)
        return PathState(jnp.int32(0), weights, rest, (), optimizer.init(weights), record)

    def update(key, state: PathState, train_batch, valid_batch):
        k_paths, k_train, k_valid = split_like(key, 3)
        paths = paths_fn(k_paths)
        gradients, rest, losses = gradients_fn(
            k_train, state.weights, state.rest, paths, train_batch
        )
        weights, moments = descend(optimizer, gradients, state.weights, state.moments)
        loss, score = path_score(problem, k_valid, weights, rest, paths[-1], valid_batch)
        blocks = num_steps, num_candidates
        record = next_record(state.record, state.step, blocks, Record(paths[-1], score))
        info = {"train_loss": jnp.mean(losses), "valid_loss": loss, "valid_score": score}
        return PathState(state.step + 1, weights, rest, (), moments, record), info

    return OneShot(init, update, lambda state: state.record.arch)
