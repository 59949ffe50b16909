"""Text files."""

from pathlib import Path
from typing import Any

from jaxnas.datasets._parts import PathLike
from jaxnas.training.text import Text, from_string


def text_file(path: PathLike, **options: Any) -> Text:
    """The text of a file in UTF-8.

    Args:
      path: the file.
      **options: for `jaxnas.training.text.from_string`.

    Returns:
      The text, called as the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not UTF-8, or as `from_string`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "poem.txt"
      ...     size = path.write_text("so much depends upon")
      ...     text_file(path, level="word", valid_fraction=0.2, test_fraction=0.2).symbols
      ('<eos>', 'depends', 'much', 'so', 'upon')
    """
    path = Path(path)
    options.setdefault("name", path.stem)
    return from_string(path.read_text(encoding="utf-8"), **options)
