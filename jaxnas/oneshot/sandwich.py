"""The sandwich rule: largest, smallest and some random subnetworks per step, taught by the largest.

Yu & Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019,
https://arxiv.org/abs/1903.05134, Sections 3.2 and 3.3 and Algorithm 1: each step sums the gradients
of the largest network on the labels and of the smallest and n random ones on the largest's
predictions on the same rows (in-place distillation), which are not differentiated. Cai et al.,
"Once-for-All", ICLR 2020, https://arxiv.org/abs/1908.09791, train elastic width, depth and kernel
in a like manner; afterwards any strategy searches with `jaxnas.evaluators.shared_weights`, usually
under costs.

It is for spaces whose decisions change sizes, with the choices in ascending order, and whose
supernet nests them, as `mlp` and `chain_cnn` do. Decisions that are no sizes (activation, dropout)
are best fixed, or `largest` and `smallest` given.

Deviations: the recipe is DARTS's rather than ImageNet's. Once-for-all starts from a trained largest
network, lets subnetworks shrink in phases, and has learned transformations between kernel sizes;
here everything is elastic from the start, and a smaller kernel is the centre of the larger one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas import counter
from jaxnas._checks import check_count
from jaxnas.oneshot._shared import path_sampling, summed_gradients
from jaxnas.oneshot.optimizers import Sgd
from jaxnas.oneshot.problem import Problem
from jaxnas.space import SearchSpace
from jaxnas.training.augmentation import prepare
from jaxnas.training.data import Task
from jaxnas.training.metrics import target_losses
from jaxnas.training.recipe import Recipe
from jaxnas.types import OneShot, PyTree, split_like


class Distillation(NamedTuple):
    """How subnetworks learn from the largest one.

    Attributes:
      outputs: `(key, weights, rest, arch, batch) -> (outputs f32[N, C], rest)`, in training mode
        and on the rows that `Problem.loss` sees with the same key.
      loss: `(outputs f32[N, C], teacher f32[N, C]) -> f32[]`.
    """

    outputs: Callable[..., tuple[Array, PyTree]]
    loss: Callable[[Array, Array], Array]


def distillation(space: SearchSpace, task: Task, recipe: Recipe | None = None) -> Distillation:
    """In-place distillation for `oneshot.from_space(space, data, recipe)`.

    Args:
      space: the space of the problem.
      task: of the data.
      recipe: of the problem; None: the defaults.

    Returns:
      Cross-entropy with the teacher's probabilities, or squared error to its outputs.

    Raises:
      ValueError: if the space has no supernet.
    """
    if space.supernet is None:
        raise ValueError(f"space {space.name!r} has no supernet")
    recipe = Recipe() if recipe is None else recipe
    module = space.supernet(space.full_bucket)

    def outputs(key, weights, rest, arch, batch):
        x, _ = prepare(recipe, task, counter.fold(counter.seed_from_key(key), 0), batch)
        options = {"train": True, "mutable": list(rest), "rngs": {"dropout": key}}
        found, updated = module.apply({"params": weights, **rest}, x, arch, **options)
        return found, {**rest, **updated}

    def loss(found, teacher):
        targets = jax.nn.softmax(teacher) if task.kind == "classification" else teacher
        return jnp.mean(target_losses(task, found, targets))

    return Distillation(outputs, loss)


def sandwich(
    problem: Problem,
    *,
    num_steps: int,
    distil: Distillation | None = None,
    num_random: int = 2,
    largest: Sequence[int] | Array | None = None,
    smallest: Sequence[int] | Array | None = None,
    num_candidates: int = 100,
    learning_rate: float | Array = 0.025,
    min_learning_rate: float | Array = 0.001,
    momentum: float | Array = 0.9,
    nesterov: bool = True,
    weight_decay: float | Array = 3e-4,
    clip_norm: float | None = 5.0,
) -> OneShot:
    """Weights that serve networks of all sizes.

    Args:
      problem: what to train.
      num_steps: updates in a search, over which the learning rate falls. Static.
      distil: from `distillation`; None: all networks learn from the labels.
      num_random: random subnetworks per update, at least 1. Static.
      largest: i32[D]; None: the last choice of every row.
      smallest: i32[D]; None: the first choice of every row.
      num_candidates: updates of which `derive` takes the best, each scoring one of its random
        subnetworks. Static.
      learning_rate: at first. May be traced, as the next ones.
      min_learning_rate: at the end of half a cosine wave.
      momentum: of gradient descent.
      nesterov: whether the momentum is Nesterov's. Static.
      weight_decay: of what `problem.decayed` names. May be traced.
      clip_norm: global norm of the summed gradients is cut to this; None: no clipping. Static.

    Returns:
      A `OneShot` with a `PathState`. The training loss is the mean over the networks of a step.

    Raises:
      ValueError: for a count below 1.
    """
    check_count("num_random", num_random)
    size = jnp.broadcast_to(jnp.arange(max(problem.rows), dtype=jnp.float32), problem.mask.shape)
    largest = problem.derive(size) if largest is None else jnp.asarray(largest, jnp.int32)
    smallest = problem.derive(-size) if smallest is None else jnp.asarray(smallest, jnp.int32)

    def paths(key):
        drawn = jax.vmap(problem.sample)(split_like(key, num_random))
        return jnp.concatenate([largest[None], smallest[None], drawn])

    sgd = Sgd(learning_rate, min_learning_rate, momentum, nesterov, weight_decay, clip_norm)
    optimizer = optax.chain(*sgd.make(num_steps, problem.decayed))
    return path_sampling(
        problem,
        optimizer,
        paths,
        num_steps=num_steps,
        num_candidates=num_candidates,
        gradients_fn=None if distil is None else partial(_distilled_gradients, problem, distil),
    )


def _distilled_gradients(problem: Problem, distil: Distillation, key, weights, rest, paths, batch):
    """Summed gradients of `paths[0]` on the labels and of the others on what it predicts."""

    def taught_loss(weights, rest, arch):
        loss, (rest, _) = problem.loss(key, weights, rest, arch, batch, True)
        return loss, rest

    def student_loss(weights, rest, arch):
        outputs, rest = distil.outputs(key, weights, rest, arch, batch)
        return distil.loss(outputs, teacher), rest

    # Before the update, as in the paper, and a constant to the students' gradients.
    teacher, _ = distil.outputs(key, weights, rest, paths[0], batch)
    own, rest, first = summed_gradients(taught_loss, weights, rest, paths[:1])
    others, rest, losses = summed_gradients(student_loss, weights, rest, paths[1:])
    gradients = jax.tree.map(jnp.add, own, others)
    return gradients, rest, jnp.concatenate([first, losses])
