"""Data as the trainer wants them: in memory, split in three, standardised, checked once.

Host-side NumPy work that ends in JAX arrays; files are read by `jaxnas.datasets`. Means and scales
come from the training rows alone.

In the shape descriptions, `N` denotes rows, `F` the features of a flat row, `C` the channels of an
image and `T` regression targets.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from jaxnas.training._data_checks import KINDS, check_row_shapes, checked, classes_of, encode
from jaxnas.training._splitting import draw

MIN_ROWS = 5  # for `from_arrays`; fewer cannot be split into anything worth training on

_BLOCK_SIZE = 2**22  # values held in float64 at a time, 32 MiB

Pair = tuple[ArrayLike, ArrayLike]


@dataclass(frozen=True)
class Task:
    """What is to be predicted.

    Attributes:
      kind: "classification" or "regression".
      num_outputs: classes, or regression targets per row.
    """

    kind: str
    num_outputs: int

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}")
        if self.num_outputs < 1:
            raise ValueError(f"num_outputs must be at least 1, got {self.num_outputs}")


class Split(NamedTuple):
    """One part of a data set."""

    x: Array  # f32[N, F] flat features, or f32[N, height, width, C] images
    y: Array  # i32[N] classes, or f32[N, T] targets


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: what to predict and the rows to learn it from and judge it by.

    Compared and hashed by identity. The statistics map a prediction back to the units of the data,
    `prediction * y_scale + y_mean`, and a new row to the network's input,
    `(row - x_mean) / x_scale`.

    Attributes:
      name: for reports and journals.
      task: what is to be predicted.
      train: rows that weights are fitted to.
      valid: rows that architectures are chosen by.
      test: rows that only the final network sees.
      x_mean: f64[F] or f64[C] in NumPy, subtracted from the features; None: not standardised.
      x_scale: f64[F] or f64[C], what the features were divided by, likewise.
      y_mean: f64[T], for the targets of a standardised regression; else None.
      y_scale: f64[T], likewise.
      classes: the label that each class index stands for; None for a regression.
    """

    name: str
    task: Task
    train: Split
    valid: Split
    test: Split
    x_mean: np.ndarray | None = None
    x_scale: np.ndarray | None = None
    y_mean: np.ndarray | None = None
    y_scale: np.ndarray | None = None
    classes: tuple[Hashable, ...] | None = None


def from_arrays(
    key: Array,
    x: ArrayLike,
    y: ArrayLike,
    *,
    task: str | None = None,
    num_classes: int | None = None,
    valid_fraction: float = 0.2,
    test_fraction: float = 0.2,
    standardise: bool = True,
    name: str = "arrays",
) -> Data:
    """Splits arrays in three and standardises them with the training rows' statistics.

    A classification is split class by class, so that every part has every class, at least once
    and otherwise in proportion to within a row; a regression is split at random. The rows of each
    part are in random order. The same key gives the same split, to the bit.

    Features are standardised one by one in flat rows and channel by channel in images; one that
    does not vary in the training rows is centred and left unscaled. Regression targets are
    standardised too: R2 does not change, and losses and learning rates need no units. Statistics
    are taken in float64.

    Args:
      key: PRNG key, decides the split.
      x: [N, F] flat features or [N, height, width, C] images, N >= 5, any real dtype.
      y: [N] labels, or [N] or [N, T] regression targets.
      task: "classification" or "regression"; None: classification where `num_classes` is given or
        `y` holds integers, bools or strings, regression where it holds floats.
      num_classes: K, where labels are already in 0 to K - 1; not all need occur. None: labels are
        any integers or strings and become 0 to K - 1 in sorted order.
      valid_fraction: share of all rows for validation, in (0, 1).
      test_fraction: share of all rows for the test, in (0, 1); the sum is below 1.
      standardise: whether to standardise.
      name: for reports.

    Returns:
      The data set.

    Raises:
      ValueError: for arrays that are empty, too short, of different lengths, of the wrong rank or
        dtype, or hold NaN or infinite values; for labels outside the classes or a class with
        fewer than 3 rows; for fractions out of range or that leave a part empty.

    Example:
      >>> import jax
      >>> x = np.arange(40.0).reshape(20, 2)
      >>> data = from_arrays(jax.random.key(0), x, ["cat", "dog"] * 10)
      >>> data.task, data.classes
      (Task(kind='classification', num_outputs=2), ('cat', 'dog'))
      >>> data.train.x.shape, data.valid.x.shape, data.test.x.shape
      ((12, 2), (4, 2), (4, 2))
    """
    fractions = {"valid_fraction": valid_fraction, "test_fraction": test_fraction}
    x, y, kind = checked(x, y, "", task, num_classes)
    if len(x) < MIN_ROWS:
        raise ValueError(f"x has {len(x)} rows; a data set needs at least {MIN_ROWS}")
    classes = classes_of(y, num_classes) if kind == "classification" else None
    outputs = y if classes is None else encode(y, "", classes)
    valid, test, train = draw(key, y, kind, fractions)
    parts = [(x[rows], outputs[rows]) for rows in (train, valid, test)]
    return _assemble(name, parts, classes, standardise)


def from_splits(
    train: Pair,
    valid: Pair,
    test: Pair,
    *,
    task: str | None = None,
    num_classes: int | None = None,
    standardise: bool = True,
    name: str = "splits",
) -> Data:
    """The data set of three parts that were split beforehand, with the checks of `from_arrays`.

    Args:
      train: `(x, y)` as in `from_arrays`; statistics and classes come from here.
      valid: `(x, y)` likewise, rows of the same shape.
      test: `(x, y)` likewise.
      task: as in `from_arrays`, inferred from the training labels.
      num_classes: as in `from_arrays`.
      standardise: as in `from_arrays`.
      name: for reports.

    Returns:
      The data set; the rows keep their order.

    Raises:
      ValueError: as `from_arrays`, for parts whose rows differ in shape, and for labels that the
        training rows lack.

    Example:
      >>> x = np.arange(12.0).reshape(6, 2)
      >>> data = from_splits((x, [3, 5, 3, 5, 3, 5]), (x[:2], [3, 5]), (x[2:], [3, 5, 3, 5]))
      >>> data.test.y.tolist(), data.classes
      ([0, 1, 0, 1], (3, 5))
    """
    wheres = (" of train", " of valid", " of test")
    pairs = []
    for where, pair in zip(wheres, (train, valid, test), strict=True):
        x, y, task = checked(*pair, where, task, num_classes)
        pairs.append((x, y))
        check_row_shapes(x, pairs[0][0], f"x{where}")
        check_row_shapes(y, pairs[0][1], f"y{where}")
    if task == "regression":
        return _assemble(name, pairs, None, standardise)
    classes = classes_of(pairs[0][1], num_classes)
    parts = [(x, encode(y, w, classes)) for (x, y), w in zip(pairs, wheres, strict=True)]
    return _assemble(name, parts, classes, standardise)


def hold_out(
    key: Array,
    x: ArrayLike,
    y: ArrayLike,
    fraction: float,
    *,
    task: str | None = None,
    num_classes: int | None = None,
) -> tuple[Pair, Pair]:
    """Takes a share of the rows away, class by class in a classification, to make `from_splits`.

    Args:
      key: PRNG key, decides which rows.
      x: as in `from_arrays`.
      y: as in `from_arrays`.
      fraction: share of the rows that is taken away, in (0, 1).
      task: as in `from_arrays`.
      num_classes: as in `from_arrays`.

    Returns:
      `(x, y)` of the rest and `(x, y)` of the rows taken away, NumPy arrays with the labels as
      they are.

    Raises:
      ValueError: as `from_arrays`; a class needs at least 2 rows.

    Example:
      >>> import jax
      >>> rest, held = hold_out(jax.random.key(0), np.eye(10), [0, 1] * 5, 0.2)
      >>> len(rest[0]), sorted(held[1].tolist())
      (8, [0, 1])
    """
    x, y, kind = checked(x, y, "", task, num_classes)
    held, rest = draw(key, y, kind, {"fraction": fraction})
    return (x[rest], y[rest]), (x[held], y[held])


def _assemble(
    name: str,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    classes: np.ndarray | None,
    standardise: bool,
) -> Data:
    xs, ys = zip(*parts, strict=True)
    x_mean = x_scale = y_mean = y_scale = None
    if standardise:
        x_mean, x_scale = _moments(xs[0])
        xs = [_standardised(x, x_mean, x_scale, "x") for x in xs]
    if standardise and classes is None:
        y_mean, y_scale = _moments(ys[0])
        ys = [_standardised(y, y_mean, y_scale, "y") for y in ys]
    y_dtype = jnp.float32 if classes is None else jnp.int32
    train, valid, test = (
        Split(jnp.asarray(x, jnp.float32), jnp.asarray(y, y_dtype))
        for x, y in zip(xs, ys, strict=True)
    )
    if classes is None:
        task, labels = Task("regression", train.y.shape[1]), None
    else:
        task, labels = Task("classification", len(classes)), tuple(classes.tolist())
    return Data(name, task, train, valid, test, x_mean, x_scale, y_mean, y_scale, labels)


def _blocks(array: np.ndarray) -> list[slice]:
    """Slices of rows that are small enough to be held in float64, whatever the size of `array`."""
    step = max(1, _BLOCK_SIZE // array[0].size)
    return [slice(start, start + step) for start in range(0, len(array), step)]


def _moments(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all axes but the last: f64[F] each, scale 1 if constant."""
    axes = tuple(range(array.ndim - 1))
    low, high = array.min(axis=axes), array.max(axis=axes)
    # The mean of equal numbers need not be that number in floating point; the lowest one is.
    mean = np.where(low == high, low, array.mean(axis=axes, dtype=np.float64)).astype(np.float64)
    squares = sum(np.square(array[rows] - mean).sum(axis=axes) for rows in _blocks(array))
    deviation = np.sqrt(squares / (array.size // array.shape[-1]))
    return mean, np.where(deviation > 0.0, deviation, 1.0)


def _standardised(array: np.ndarray, mean: np.ndarray, scale: np.ndarray, name: str) -> np.ndarray:
    result = np.empty(array.shape, np.float32)
    with np.errstate(over="ignore"):
        for rows in _blocks(array):
            result[rows] = (array[rows] - mean) / scale
    if not np.isfinite(result).all():
        raise ValueError(
            f"{name} has values too far from the training rows' mean to standardise in float32; "
            "remove them, or pass standardise=False"
        )
    return result
