"""Data sets from scikit-learn and from files, as `jaxnas.training.data.Data`.

`load` takes the name of a bundled data set or a path. Every loader takes a PRNG key, which decides
the split, and hands the options it does not know (`valid_fraction`, `test_fraction`,
`standardise`, `num_classes`, ...) to `jaxnas.training.data.from_arrays`. Nothing is downloaded, and
everything is held in memory.

In the shape descriptions, `N` denotes the rows of one part.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jax import Array

from jaxnas.datasets._parts import PathLike as PathLike
from jaxnas.datasets.archives import npz as npz
from jaxnas.datasets.bundled import breast_cancer as breast_cancer
from jaxnas.datasets.bundled import diabetes as diabetes
from jaxnas.datasets.bundled import digits as digits
from jaxnas.datasets.bundled import wine as wine
from jaxnas.datasets.cifar import CIFAR_FOLDER as CIFAR_FOLDER
from jaxnas.datasets.cifar import cifar10 as cifar10
from jaxnas.datasets.cifar import is_cifar
from jaxnas.datasets.folders import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from jaxnas.datasets.folders import image_folder as image_folder
from jaxnas.datasets.texts import text_file as text_file
from jaxnas.training.data import Data

ALL: Mapping[str, Callable[..., Data]] = MappingProxyType(
    {"digits": digits, "diabetes": diabetes, "breast_cancer": breast_cancer, "wine": wine}
)


def load(spec: str, key: Array, **options: Any) -> Data:
    """The data set that a name or a path stands for; what a command line hands over.

    Args:
      spec: a name in `ALL`, or the path of an `.npz` file, of CIFAR-10 (a `.tar.gz` or its folder)
        or of an image folder. Names come first: write `./digits` for a folder called `digits`.
      key: PRNG key, decides the split.
      **options: for the loader.

    Returns:
      The data set.

    Raises:
      ValueError: if `spec` is none of these, or as the loader.

    Example:
      >>> import jax
      >>> load("wine", jax.random.key(0), test_fraction=0.1).name
      'wine'
    """
    if spec in ALL:
        return ALL[spec](key, **options)
    path = Path(spec).expanduser()
    if path.suffix == ".npz" and path.is_file():
        return npz(path, key, **options)
    if is_cifar(path):
        return cifar10(path, key, **options)
    if path.is_dir():
        return image_folder(path, key, **options)
    raise ValueError(
        f"{spec!r} is neither a bundled data set ({', '.join(ALL)}) nor the path of an .npz file, "
        f"of CIFAR-10 (.tar.gz or {CIFAR_FOLDER}) or of a folder of images"
    )
