"""Data sets that are bundled with scikit-learn.

In the shape descriptions, `N` denotes the rows of one part.
"""

import dataclasses
from typing import Any

from jax import Array

from jaxnas.training.data import Data, Split, from_arrays


def _bundled(name: str, **options: Any) -> Any:
    from sklearn import datasets  # not at the top: its import takes longer than the rest of jaxnas

    return getattr(datasets, f"load_{name}")(**options)


def digits(key: Array, *, images: bool = False, **options: Any) -> Data:
    """Handwritten digits: 1,797 grey images of 8x8 pixels in 10 classes.

    The test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak, UCI Machine
    Learning Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0), bundled with
    scikit-learn.

    Args:
      key: PRNG key, decides the split.
      images: whether a row is an image [8, 8, 1] or 64 flat features. Pixels have one mean and one
        scale either way, for they have one unit: on their own, those that are rarely inked would
        be blown up to noise.
      **options: for `from_arrays`.

    Returns:
      A classification with x f32[N, 64] or f32[N, 8, 8, 1].

    Example:
      >>> import jax
      >>> digits(jax.random.key(0), images=True).train.x.shape
      (1079, 8, 8, 1)
    """
    raw = _bundled("digits")
    data = from_arrays(key, raw.images[..., None] / 16.0, raw.target, name="digits", **options)
    if images:
        return data
    train, valid, test = (
        Split(part.x.reshape(-1, 64), part.y) for part in (data.train, data.valid, data.test)
    )
    return dataclasses.replace(data, train=train, valid=valid, test=test)


def diabetes(key: Array, **options: Any) -> Data:
    """Progression of diabetes in a year: 442 patients, 10 features, one target.

    From Efron, Hastie, Johnstone & Tibshirani, "Least Angle Regression", Annals of Statistics 32
    (2004), https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html (no licence stated), bundled
    with scikit-learn. These are the raw features: the scaled ones that scikit-learn returns by
    default are centred with the mean of all rows, which leaks the test rows into training.

    Args:
      key: PRNG key, decides the split.
      **options: for `from_arrays`.

    Returns:
      A regression with x f32[N, 10] and y f32[N, 1].

    Example:
      >>> import jax
      >>> diabetes(jax.random.key(0)).task
      Task(kind='regression', num_outputs=1)
    """
    raw = _bundled("diabetes", scaled=False)
    return from_arrays(key, raw.data, raw.target, name="diabetes", **options)


def breast_cancer(key: Array, **options: Any) -> Data:
    """Malignant (0) and benign (1) tumours: 569 patients, 30 features of cell nuclei, 2 classes.

    "Breast Cancer Wisconsin (Diagnostic)" (Wolberg, Mangasarian, Street & Street, UCI Machine
    Learning Repository, 1995, https://doi.org/10.24432/C5DW2B, CC BY 4.0), bundled with
    scikit-learn.

    Args:
      key: PRNG key, decides the split.
      **options: for `from_arrays`.

    Returns:
      A classification with x f32[N, 30].

    Example:
      >>> import jax
      >>> breast_cancer(jax.random.key(0)).task
      Task(kind='classification', num_outputs=2)
    """
    raw = _bundled("breast_cancer")
    return from_arrays(key, raw.data, raw.target, name="breast_cancer", **options)


def wine(key: Array, **options: Any) -> Data:
    """Wines of three growers: 178 wines, 13 chemical measurements, 3 classes.

    "Wine" (Aeberhard & Forina, UCI Machine Learning Repository, 1992,
    https://doi.org/10.24432/C5PC7J, CC BY 4.0), bundled with scikit-learn.

    Args:
      key: PRNG key, decides the split.
      **options: for `from_arrays`.

    Returns:
      A classification with x f32[N, 13].

    Example:
      >>> import jax
      >>> wine(jax.random.key(0)).task
      Task(kind='classification', num_outputs=3)
    """
    raw = _bundled("wine")
    return from_arrays(key, raw.data, raw.target, name="wine", **options)
