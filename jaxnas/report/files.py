"""Pages on disk."""

import os
import uuid
from pathlib import Path


def write_page(path: Path, page: str) -> Path:
    """Writes a page next to its place and moves it there: it appears whole or not at all.

    Returns:
      The path.

    Raises:
      OSError: if it cannot be written there.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path
