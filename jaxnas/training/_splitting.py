"""Which rows go into which part."""

import jax
import numpy as np
from jax import Array

from jaxnas.training._data_checks import tally


def draw(key: Array, y: np.ndarray, kind: str, fractions: dict[str, float]) -> list[np.ndarray]:
    """Row indices of each held-out part and last of the rest, each in random order."""
    _check_fractions(fractions)
    if kind == "classification":
        labels, groups, counts = np.unique(y, return_inverse=True, return_counts=True)
        rare = counts <= len(fractions)
        if rare.any():
            raise ValueError(
                f"y has too few rows of some classes ({tally(labels[rare], counts[rare])}); "
                f"a split in {len(fractions) + 1} needs {len(fractions) + 1} of each"
            )
    else:
        groups, counts = np.zeros(len(y), np.int64), np.array([len(y)])
        _check_no_part_empty(len(y), fractions)
    # Where in its own class each row comes, in random order, decides its part.
    order = np.asarray(jax.random.permutation(key, len(y)))
    by_group = order[np.argsort(groups[order], kind="stable")]
    position = np.arange(len(y)) - (np.cumsum(counts) - counts)[groups[by_group]]
    ends = np.cumsum(_part_sizes(counts, fractions), axis=0)
    part = np.empty(len(y), np.int64)
    part[by_group] = (position >= ends[:, groups[by_group]]).sum(axis=0)
    return [order[part[order] == index] for index in range(len(fractions) + 1)]


def _check_fractions(fractions: dict[str, float]) -> None:
    for name, fraction in fractions.items():
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"{name} must be above 0 and below 1, got {fraction}")
    if sum(fractions.values()) >= 1.0:
        raise ValueError(
            f"{' + '.join(fractions)} must be below 1, got {sum(fractions.values())}: "
            "nothing is left to train on"
        )


def _check_no_part_empty(num_rows: int, fractions: dict[str, float]) -> None:
    sizes = [round(fraction * num_rows) for fraction in fractions.values()]
    sizes.append(num_rows - sum(sizes))
    if min(sizes) < 1:
        raise ValueError(
            f"a split would be empty: {fractions} of {num_rows} rows makes parts of {sizes} rows"
        )


def _part_sizes(counts: np.ndarray, fractions: dict[str, float]) -> np.ndarray:
    """Rows per held-out part and group: i64[parts, groups]; each at least 1, as is the rest.

    Rounding the running total, not each group, keeps the sum over groups at its fraction too.
    """
    total = np.concatenate([[0], np.cumsum(counts)])
    shares = [np.diff(np.rint(fraction * total)).astype(int) for fraction in fractions.values()]
    sizes = np.maximum(shares, 1)
    # The total is below 1 and each part is rounded by less than a row: at most two are too many.
    for size in [*sizes[::-1]] * 2:
        size -= (sizes.sum(axis=0) >= counts) & (size > 1)
    return sizes
