"""Checks of arrays from outside: what they must be, and what their labels stand for.

In the messages, `where` tells which part an array belongs to, such as " of train".
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

KINDS = ("classification", "regression")

_FLOAT32_MAX = np.finfo(np.float32).max  # a NumPy scalar: float16 must not pull it down to inf


def checked(
    x: ArrayLike, y: ArrayLike, where: str, task: str | None, num_classes: int | None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Features [N, ...], labels [N] or targets [N, T], and the kind of task."""
    x, y = _features(x, f"x{where}"), _as_array(y, f"y{where}")
    kind = _kind(y, task, num_classes)
    y = _labels(y, f"y{where}") if kind == "classification" else _targets(y, f"y{where}")
    if len(x) != len(y):
        raise ValueError(f"x{where} has {len(x)} rows but y{where} has {len(y)}")
    return x, y, kind


def check_row_shapes(array: np.ndarray, first: np.ndarray, name: str) -> None:
    """Raises unless the rows of `array` have the shape of those of `first`, the training part."""
    if array.shape[1:] != first.shape[1:]:
        raise ValueError(
            f"{name} has rows of shape {array.shape[1:]}, those of train are {first.shape[1:]}"
        )


def _as_array(values: ArrayLike, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} is not an array: {error}") from error


def _kind(y: np.ndarray, task: str | None, num_classes: int | None) -> str:
    if task is None:
        is_regression = y.dtype.kind == "f" and num_classes is None
        return "regression" if is_regression else "classification"
    if task not in KINDS:
        raise ValueError(f"task must be one of {KINDS} or None, got {task!r}")
    if task == "regression" and num_classes is not None:
        raise ValueError(f"num_classes must be None in a regression, got {num_classes}")
    return task


def _features(x: ArrayLike, name: str) -> np.ndarray:
    x = _as_array(x, name)
    if x.ndim not in (2, 4):
        raise ValueError(
            f"{name} must be [rows, features] or images [rows, height, width, channels], "
            f"got shape {x.shape}"
        )
    _check_numbers(x, name)
    return x


def _targets(y: np.ndarray, name: str) -> np.ndarray:
    if y.ndim not in (1, 2):
        raise ValueError(f"{name} must be [rows] or [rows, targets], got shape {y.shape}")
    _check_numbers(y, name)
    return y.reshape(len(y), -1)


def _labels(y: np.ndarray, name: str) -> np.ndarray:
    """Labels as integers or unicode strings."""
    if y.ndim != 1:
        raise ValueError(f"{name} must be labels of shape [rows], got shape {y.shape}")
    if y.size == 0:
        raise ValueError(f"{name} is empty")
    if y.dtype.kind == "O" and all(isinstance(label, str) for label in y):
        return y.astype(np.str_)
    if y.dtype.kind == "f":  # tables often hold labels as 0.0, 1.0, ...
        _check_numbers(y, name)
        if (y == np.rint(y)).all():
            return y.astype(np.int64)
        raise ValueError(f"{name} must be labels, got fractions such as {y[y != np.rint(y)][0]}")
    if y.dtype.kind == "b":
        return y.astype(np.int64)
    if y.dtype.kind not in "iuU":
        raise ValueError(f"{name} must be integers or strings, got dtype {y.dtype}")
    return y


def _check_numbers(array: np.ndarray, name: str) -> None:
    """Raises unless `array` is a non-empty array of numbers that float32 can hold."""
    if array.size == 0:
        raise ValueError(f"{name} is empty: shape {array.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be real numbers, got dtype {array.dtype}")
    if array.dtype.kind != "f":
        return
    bad = ~(np.abs(array) <= _FLOAT32_MAX)  # the comparison is false for NaN
    if bad.any():
        row = int(np.argmax(bad.reshape(len(array), -1).any(axis=1)))
        raise ValueError(
            f"{name} has values that are NaN or infinite in float32: "
            f"{int(bad.sum())} of {bad.size}, the first in row {row}"
        )


def classes_of(y: np.ndarray, num_classes: int | None) -> np.ndarray:
    """The labels in the order of their class index."""
    if num_classes is not None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        return np.arange(num_classes)
    classes = np.unique(y)
    if len(classes) < 2:
        raise ValueError(f"y has the one class {y.tolist()[0]!r}; a classification needs 2")
    return classes


def encode(y: np.ndarray, where: str, classes: np.ndarray) -> np.ndarray:
    """The class index of each label: i64[N]."""
    if (y.dtype.kind == "U") != (classes.dtype.kind == "U"):
        raise ValueError(
            f"y{where} has labels of dtype {y.dtype}, the classes are of dtype {classes.dtype}"
        )
    indices = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    unknown = classes[indices] != y
    if unknown.any():
        raise ValueError(
            f"y{where} has labels outside the classes {_shortened(classes.tolist())}: "
            f"{tally(*np.unique(y[unknown], return_counts=True))}"
        )
    return indices


def tally(labels: np.ndarray, counts: np.ndarray) -> str:
    """Labels and the number of rows of each, for a message."""
    pairs = zip(labels.tolist(), counts.tolist(), strict=True)
    return _shortened([f"{label!r} in {count} row{'s' * (count > 1)}" for label, count in pairs])


def _shortened(items: Sequence) -> str:
    more = [f"... ({len(items)} in all)"] * (len(items) > 6)
    return ", ".join([str(item) for item in items[:6]] + more)
