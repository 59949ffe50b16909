"""What happens to a training batch before the network sees it; validation never does.

Random crop and flip: He et al., 2016, https://arxiv.org/abs/1512.03385, Section 4.2. Cutout:
DeVries & Taylor, 2017, https://arxiv.org/abs/1708.04552, Section 3.2. Mixup: Zhang et al., 2018,
https://arxiv.org/abs/1710.09412, Equations 1 and 2, with one coefficient per batch as in the
authors' code. Label smoothing: Szegedy et al., 2016, https://arxiv.org/abs/1512.00567, Section 7.

Images are standardised before they come here, so the zeros that crop and cutout fill in are the
mean of the data rather than black.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import special

from jaxnas import counter
from jaxnas.training.data import Split, Task
from jaxnas.training.metrics import targets_of
from jaxnas.training.recipe import Recipe

_QUANTILES = 1024  # of the distribution of mixup's coefficient


def prepare(recipe: Recipe, task: Task, seed: Array, batch: Split) -> tuple[Array, Array]:
    """The inputs and targets that one step trains on.

    Args:
      recipe: says which augmentations are on. Static.
      task: the task. Static.
      seed: u32[2] of this step.
      batch: rows of the training split.

    Returns:
      Inputs like `batch.x`, and f32[N, num_outputs]: class probabilities or regression targets.

    Raises:
      ValueError: for crop, flip or cutout where rows are not images [height, width, channels], or
        label smoothing where there are no classes.

    Example:
      >>> batch = Split(jnp.ones((2, 4, 4, 1)), jnp.array([0, 1]))
      >>> recipe = Recipe(batch_size=2, label_smoothing=0.5)
      >>> x, targets = prepare(recipe, Task("classification", 2), jnp.zeros(2, jnp.uint32), batch)
      >>> targets.tolist()
      [[0.75, 0.25], [0.25, 0.75]]
    """
    x, targets = batch.x, targets_of(task, batch.y)
    if recipe.augments_images and x.ndim != 4:
        raise ValueError(
            "crop, flip and cutout need rows that are images [height, width, channels], "
            f"got rows of shape {x.shape[1:]}"
        )
    if recipe.label_smoothing and task.kind != "classification":
        raise ValueError(f"label_smoothing needs classes, but the task is {task.kind}")
    if recipe.crop or recipe.flip:
        x = crop_and_flip(counter.fold(seed, 0), x, recipe.crop, recipe.flip)
    if recipe.cutout:
        x = cutout(counter.fold(seed, 1), x, recipe.cutout)
    if recipe.label_smoothing:
        targets = targets * (1.0 - recipe.label_smoothing)
        targets = targets + recipe.label_smoothing / task.num_outputs
    if recipe.mixup:
        return mixup(counter.fold(seed, 2), x, targets, recipe.mixup)
    return x, targets


def crop_and_flip(seed: Array, x: Array, padding: int, flip: bool) -> Array:
    """Shifts each image by up to `padding` pixels either way, and mirrors half of them.

    Args:
      seed: u32[2].
      x: f32[N, H, W, C].
      padding: pixels, at least 0. Static.
      flip: whether to mirror left and right. Static.

    Returns:
      f32[N, H, W, C]; pixels from outside the image are 0.
    """
    num_rows, height, width, _ = x.shape
    numbers = counter.uniform(seed, (num_rows, 3))
    down, right = jnp.floor(numbers[:, :2] * (2 * padding + 1)).astype(jnp.int32).T - padding
    mirrored = (numbers[:, 2] < 0.5) & flip
    columns = jnp.arange(width)
    columns = jnp.where(mirrored[:, None], width - 1 - columns, columns) + right[:, None]
    rows = jnp.arange(height) + down[:, None]
    # One gather for both: each is a loop over memory of its own otherwise.
    moved = x[jnp.arange(num_rows)[:, None, None], rows[:, :, None], columns[:, None, :]]
    inside_rows, inside_columns = _inside(rows, height), _inside(columns, width)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    return jnp.where(inside[..., None], moved, jnp.zeros((), x.dtype))


def _inside(index: Array, size: int) -> Array:
    return (index >= 0) & (index < size)


def cutout(seed: Array, x: Array, size: int) -> Array:
    """Blanks a square of side `size` around a random pixel of each image.

    Args:
      seed: u32[2].
      x: f32[N, H, W, C].
      size: side in pixels; the part outside the image is lost. Static.

    Returns:
      f32[N, H, W, C].
    """
    num_rows, height, width, _ = x.shape
    centre = jnp.floor(counter.uniform(seed, (num_rows, 2)) * jnp.asarray([height, width]))
    first = centre.astype(jnp.int32) - size // 2

    def covered(axis, length):
        offset = jnp.arange(length) - first[:, axis, None]
        return (offset >= 0) & (offset < size)

    hole = covered(0, height)[:, :, None] & covered(1, width)[:, None, :]
    return jnp.where(hole[..., None], jnp.zeros((), x.dtype), x)


def mixup(seed: Array, x: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """Averages every row with another one of the batch, inputs and targets alike.

    Args:
      seed: u32[2].
      x: f32[N, ...].
      targets: f32[N, K].
      alpha: the coefficient is drawn from Beta(alpha, alpha), alpha > 0. Static.

    Returns:
      f32[N, ...] and f32[N, K].
    """
    # Rejection sampling of a Beta takes seconds to compile; its quantiles are known beforehand.
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    quantiles = jnp.asarray(special.betaincinv(alpha, alpha, levels), jnp.float32)
    place = counter.uniform(counter.fold(seed, 0), (1,))[0] * _QUANTILES
    weight = quantiles[place.astype(jnp.int32)]
    other = counter.permutation(counter.fold(seed, 1), x.shape[0])
    mix = lambda rows: weight * rows + (1.0 - weight) * rows[other]  # noqa: E731
    return jax.tree.map(mix, (x, targets))
