"""NumPy archives."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from jaxnas.datasets._parts import PathLike, split_missing
from jaxnas.training.data import Data


def npz(path: PathLike, key: Array, **options: Any) -> Data:
    """Arrays from a NumPy archive, as `numpy.savez` writes it.

    Args:
      path: an `.npz` file with arrays `x` and `y` as `from_arrays` takes them, and perhaps
        `x_valid` with `y_valid` and `x_test` with `y_test`. Arrays of other names are ignored,
        unless the name begins with `x_` or `y_`. Pickled objects are refused: reading one can run
        any code.
      key: PRNG key, decides the split; parts that the file lacks are drawn from `x` and `y`.
      **options: for `from_arrays`; the fraction of a part that the file has is not used.

    Returns:
      The data set, called as the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not such an archive; the message lists the arrays found.

    Example:
      >>> import jax, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "table.npz"
      ...     np.savez(path, x=np.eye(10), y=np.linspace(0.0, 1.0, 10))
      ...     npz(path, jax.random.key(0)).train.x.shape
      (6, 10)
    """
    path = Path(path)
    arrays = _read_npz(path)
    names = {"train": ("x", "y"), "valid": ("x_valid", "y_valid"), "test": ("x_test", "y_test")}
    parts = {part: pair for part, pair in names.items() if set(pair) <= set(arrays)}
    known = {name for part in parts for name in names[part]}
    stray = [name for name in arrays if name[:2] in ("x", "y", "x_", "y_") and name not in known]
    if "train" not in parts or stray:
        raise ValueError(
            f"{path} has the arrays {sorted(arrays)}; it must have x and y, may have x_valid with "
            "y_valid and x_test with y_test, and no others that begin with x_ or y_"
        )
    pairs = {part: (arrays[x], arrays[y]) for part, (x, y) in parts.items()}
    return split_missing(key, pairs, name=path.stem, **options)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an .npz archive of plain arrays: {error}") from error
