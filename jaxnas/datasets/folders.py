"""Folders of images.

In the shape descriptions, `N` denotes the rows of one part.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from PIL import Image

from jaxnas.datasets._parts import PathLike, split_missing, unit_range
from jaxnas.training.data import Data

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def image_folder(
    path: PathLike,
    key: Array,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int = 3,
    **options: Any,
) -> Data:
    """Images in one folder per class: `path/class_name/*.png` (or `.jpg`, `.jpeg`).

    Where `path` has a folder `train` with class folders inside, that is the training part, and
    `valid` (or `val`) and `test` beside it are the others; parts that are missing are drawn from
    the training part. Classes are sorted by name. Hidden and other files are ignored. Pixels are
    in [0, 1] before they are standardised.

    Args:
      path: the folder.
      key: PRNG key, decides the split.
      size: height and width to resize to (bilinear), one number for both; None: all images must
        have one size.
      channels: 3 for RGB or 1 for grey; images are converted, transparency is dropped.
      **options: for `from_arrays`; the fraction of a part that has a folder is not used.

    Returns:
      A classification with x f32[N, height, width, channels], called as the folder.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: for a wrong `size` or `channels`, a folder without images, a file that is not an
        image of 8 bits per channel, or sizes that differ.

    Example:
      >>> data = image_folder("photos", jax.random.key(0), size=32)  # doctest: +SKIP
    """
    height_width = (size, size) if isinstance(size, int) else size
    if height_width is not None and (len(height_width) != 2 or min(height_width) < 1):
        raise ValueError(f"size must be one or two numbers of at least 1, got {size}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    path = Path(path)
    folders = {"train": path}
    if (path / "train").is_dir() and _class_folders(path / "train"):
        names = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}
        folders = {part: path / name for name, part in names.items() if (path / name).is_dir()}
    parts = {part: _read_class_folders(f, height_width, channels) for part, f in folders.items()}
    return split_missing(key, parts, name=path.resolve().name, **options)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _class_folders(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _read_class_folders(
    folder: Path, height_width: tuple[int, int] | None, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels f32[N, height, width, channels] in [0, 1], and the class name of each image."""
    images, labels = [], []
    for class_folder in _class_folders(folder):
        files = [file for file in _visible(class_folder) if file.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise ValueError(f"{class_folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
        for file in files:
            images.append(_read_image(file, height_width, channels))
            labels.append(class_folder.name)
            if images[-1].shape != images[0].shape:
                raise ValueError(
                    f"{file} has shape {images[-1].shape} but those before it {images[0].shape}; "
                    "give size to resize them"
                )
    if not images:
        raise ValueError(f"{folder} has no folders with the images of a class")
    return unit_range(np.stack(images)), np.array(labels)


def _read_image(file: Path, height_width: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Pixels u8[height, width, channels]."""
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these, not scale them
                raise ValueError(f"{file} must have 8 bits per channel, got mode {image.mode}")
            converted = image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file} is not a readable image: {error}") from error
    if height_width is not None:
        converted = converted.resize(height_width[::-1], Image.Resampling.BILINEAR)
    return np.asarray(converted).reshape(converted.height, converted.width, channels)
