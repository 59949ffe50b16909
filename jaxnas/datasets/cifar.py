"""CIFAR-10 as its authors distribute it.

In the shape descriptions, `N` denotes the rows of one part.
"""

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from jaxnas.datasets._parts import PathLike, split_missing, unit_range
from jaxnas.training.data import Data

CIFAR_FOLDER = "cifar-10-batches-py"

_CIFAR_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_CIFAR_TEST = "test_batch"


def cifar10(path: PathLike, key: Array, *, valid_fraction: float = 0.1, **options: Any) -> Data:
    """CIFAR-10: 60,000 colour images of 32x32 pixels in 10 classes.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html (no licence stated), the "python version". Pixels
    are in [0, 1] before they are standardised.

    Args:
      path: the archive `cifar-10-python.tar.gz`, which is read in place, or the folder
        `cifar-10-batches-py` that it unpacks to, or the folder around that.
      key: PRNG key, decides which training images become the validation part.
      valid_fraction: share of the 50,000 training images for validation; the archive's own 10,000
        test images are the test part.
      **options: for `from_arrays`.

    Returns:
      A classification with x f32[N, 32, 32, 3].

    Raises:
      FileNotFoundError: if there is no such path.
      ValueError: if a batch is missing or is not what CIFAR-10 consists of.

    Example:
      >>> data = cifar10("cifar-10-python.tar.gz", jax.random.key(0))  # doctest: +SKIP
    """
    path = Path(path)
    contents = _cifar_contents(path)
    missing = [name for name in (*_CIFAR_TRAIN, _CIFAR_TEST) if name not in contents]
    if missing:
        raise ValueError(f"{path} lacks the CIFAR-10 batches {missing}")
    train = [_cifar_batch(contents[name], f"{path}: {name}") for name in _CIFAR_TRAIN]
    test_pixels, test_labels = _cifar_batch(contents[_CIFAR_TEST], f"{path}: {_CIFAR_TEST}")
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    parts = {
        "train": (unit_range(pixels), labels),
        "test": (unit_range(test_pixels), test_labels),
    }
    return split_missing(
        key, parts, name="cifar10", valid_fraction=valid_fraction, num_classes=10, **options
    )


class _Inert:
    """Stands in for every NumPy object of a pickle: keeps what it is given, does nothing."""

    state: Any = None

    def __init__(self, *args: Any):
        del args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """Reads a batch of CIFAR-10 without running anything that the file asks for.

    The archive consists of pickles, and a pickle may name any function for the reader to call, so
    one that comes from elsewhere must not be trusted. A batch is a dict of bytes, a list of
    integers and one array; the three names that the array needs become inert records, from which
    `_cifar_batch` takes the bytes, and every other name is an error.
    """

    _NAMES = (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in self._NAMES:
            return _Inert
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def _cifar_batch(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels u8[N, 32, 32, 3] and labels i64[N] of one batch."""
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        _, shape, _, is_fortran, values = batch[b"data"].state  # as ndarray.__reduce__ lists them
        rows = np.frombuffer(values, np.uint8).reshape(shape, order="F" if is_fortran else "C")
        pixels = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return pixels, np.array(batch[b"labels"], np.int64)
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{name} is not a CIFAR-10 batch: {error!r}") from error


def _cifar_contents(path: Path) -> dict[str, bytes]:
    """File name to content of the batches in a folder or an archive."""
    wanted = (*_CIFAR_TRAIN, _CIFAR_TEST)
    if path.is_dir():
        folder = path / CIFAR_FOLDER if (path / CIFAR_FOLDER).is_dir() else path
        return {file.name: file.read_bytes() for file in folder.iterdir() if file.name in wanted}
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and Path(member.name).name in wanted:
                    contents[Path(member.name).name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a .tar.gz archive: {error}") from error
    return contents


def is_cifar(path: Path) -> bool:
    """Whether `cifar10` is the loader for `path`, by the names of files alone."""
    if path.is_dir():
        return (path / CIFAR_FOLDER).is_dir() or (path / _CIFAR_TEST).is_file()
    return path.name.endswith((".tar.gz", ".tgz")) and path.is_file()
