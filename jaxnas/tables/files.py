"""Tables in files: one `.npz` without pickles, which any NumPy can read.

The arrays are called `archs`, `seconds`, `fidelities`, `metrics/NAME` and `columns/NAME`;
`description` is a JSON text with the table's name and its space's name and decisions.
"""

import json
import os
import zipfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np

from jaxnas.space import Decision, SearchSpace
from jaxnas.tables.table import Table, from_arrays

FORMAT = "jaxnas-table-1"

PathLike = str | os.PathLike[str]


def save(table: Table, path: PathLike) -> None:
    """Writes a table; a file that was there is replaced only once the new one is complete.

    Args:
      table: the table.
      path: where to; by convention it ends in `.npz`.

    Raises:
      ValueError: if the space has choices other than numbers, strings, bools, None and tuples of
        these.
    """
    decisions = [
        {
            "name": decision.name,
            "choices": [_plain(decision.name, choice) for choice in decision.choices],
            "reshapes": decision.reshapes,
            "active_if": decision.active_if,
        }
        for decision in table.space.decisions
    ]
    space = {"name": table.space.name, "decisions": decisions}
    description = {"format": FORMAT, "name": table.name, "space": space}
    arrays = {
        "description": np.asarray(json.dumps(description)),
        "archs": np.asarray(table.archs),
        "seconds": np.asarray(table.seconds),
        "fidelities": np.asarray(table.fidelities),
        **{f"metrics/{name}": np.asarray(v) for name, v in table.metrics.items()},
        **{f"columns/{name}": np.asarray(v) for name, v in table.columns.items()},
    }
    write_npz(path, arrays)


def write_npz(path: PathLike, arrays: dict[str, Any]) -> None:
    """A compressed `.npz`, written beside its place and then moved there."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: PathLike, space: SearchSpace | None = None) -> Table:
    """Reads a table that `save` wrote.

    Args:
      path: the file.
      space: the space, with the networks that it can build; its decisions must be the file's. None:
        a space of the file's decisions that can be searched but builds no networks, and that takes
        every canonical architecture for valid; those without a row score NaN.

    Returns:
      The table.

    Raises:
      ValueError: if the file is no such table, or `space` has other decisions.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxnas.testing import tiny_space
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "table.npz"
      ...     save(from_arrays(tiny_space(), {"loss": np.ones(24)}), path)
      ...     load(path).space.num_choices
      (3, 4, 2)
    """
    arrays = read_npz(path)
    try:
        description = json.loads(str(arrays["description"]))
        if description["format"] != FORMAT:
            raise KeyError("format")
        own = _space(description["space"])
        shared = {key: arrays[key] for key in ("archs", "seconds", "fidelities")}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not a table of format {FORMAT!r}") from error
    if space is not None and space.decisions != own.decisions:
        raise ValueError(
            f"space {space.name!r} has other decisions than the table: {space.decisions} "
            f"instead of {own.decisions}"
        )
    return from_arrays(
        own if space is None else space,
        _group(arrays, "metrics/"),
        columns=_group(arrays, "columns/"),
        name=description["name"],
        **shared,
    )


def named_space(name: str, decisions: tuple[Decision, ...]) -> SearchSpace:
    """A space that can be searched in a table but builds no networks."""
    return SearchSpace(name, decisions, network=_no_network)


def _no_network(arch):
    raise ValueError(
        f"the space of this table names architectures but builds no networks, not even that of "
        f"{np.asarray(arch).tolist()}; where there is a space that does, pass it to "
        "jaxnas.tables.load"
    )


def read_npz(path: PathLike) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`; ValueError where it is none, or holds pickles."""
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{os.fspath(path)!r} is not an .npz file without pickles") from error


def _group(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}


def _space(description: dict[str, Any]) -> SearchSpace:
    decisions = tuple(
        Decision(
            one["name"],
            tuple(_hashable(choice) for choice in one["choices"]),
            one["reshapes"],
            _hashable(one["active_if"]),
        )
        for one in description["decisions"]
    )
    return named_space(description["name"], decisions)


def _plain(name: str, choice: Hashable) -> Any:
    """`choice` as JSON has it."""
    if isinstance(choice, tuple):
        return [_plain(name, part) for part in choice]
    if isinstance(choice, np.generic):
        return _plain(name, choice.item())
    if choice is not None and not isinstance(choice, bool | int | float | str):
        raise ValueError(
            f"decision {name!r} has the choice {choice!r}; a table's file holds numbers, strings, "
            "bools, None and tuples of these"
        )
    return choice


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
