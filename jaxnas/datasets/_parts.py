"""What the readers of files share."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import Array

from jaxnas.training.data import Data, Pair, from_arrays, from_splits, hold_out

PathLike = str | os.PathLike[str]


def split_missing(
    key: Array,
    parts: Mapping[str, Pair],
    *,
    valid_fraction: float = 0.2,
    test_fraction: float = 0.2,
    **options: Any,
) -> Data:
    """The data set of "train" and perhaps "valid" and "test"; draws the others from "train"."""
    train, valid, test = parts["train"], parts.get("valid"), parts.get("test")
    if valid is None and test is None:
        fractions = {"valid_fraction": valid_fraction, "test_fraction": test_fraction}
        return from_arrays(key, *train, **fractions, **options)
    kind = {name: options.get(name) for name in ("task", "num_classes")}
    if valid is None:
        train, valid = hold_out(key, *train, valid_fraction, **kind)
    if test is None:
        train, test = hold_out(key, *train, test_fraction, **kind)
    return from_splits(train, valid, test, **options)


def unit_range(pixels: np.ndarray) -> np.ndarray:
    """Bytes as f32 in [0, 1]."""
    return np.divide(pixels, 255, dtype=np.float32)
