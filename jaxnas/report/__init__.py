"""The report of a run: one HTML file that needs no network, no script and no other file."""

import os
from pathlib import Path

from jaxnas.report.files import write_page
from jaxnas.report.page import render as render
from jaxnas.report.supernet import PREFIX
from jaxnas.store import Run

RESULTS = ("winner", "layers", "latency", "plan", "timing")


def write(run: Run, path: str | os.PathLike | None = None) -> Path:
    """Writes the report of a run, finished or not.

    The file appears whole or not at all: it is written next to its place and moved there.

    Args:
      run: the run.
      path: where to; None: `report.html` in the run's directory.

    Returns:
      The path written.

    Raises:
      OSError: if it cannot be written there.

    Example:
      >>> import tempfile
      >>> from jaxnas import store
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     run = store.create(f"{folder}/empty", {"arms": []})
      ...     write(run).name
      'report.html'
    """
    path = run.directory / "report.html" if path is None else Path(path)
    names = (*RESULTS, *(PREFIX + arm.name for arm in run.arms()))
    found = {name: run.result(name) for name in names}
    page = render(run.config, run.rows(), {k: v for k, v in found.items() if v is not None})
    return write_page(path, page)
