"""The run directory: configuration, journal and results of a run, safe against any kill.

```
runs/x/
  config.json      what was asked for, package versions, device; written once, never changed
  journal.sqlite   one row per evaluation, committed before it is reported
  checkpoints/     states of the strategies, one folder per arm; they only save time on resuming
  winner/          the retrained winner's variables
  report.html
```

A run holds one or more *arms*: searches of one strategy from one seed, all under the same budget.
"""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sqlite3
import uuid
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

SCHEMA = 1  # version of the directory layout and of the journal's tables

_PACKAGES = ("jaxnas", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

# The columns of numbers have no declared type: a REAL column would turn -0.0 into 0.0. NaN is NULL.
_TABLES = f"""
CREATE TABLE evaluations (
  arm TEXT NOT NULL, strategy TEXT NOT NULL, seed INTEGER NOT NULL,
  step INTEGER NOT NULL, slot INTEGER NOT NULL,
  arch TEXT NOT NULL, budget, fitness, objectives TEXT NOT NULL, metrics TEXT NOT NULL, cost,
  seconds, time,
  PRIMARY KEY (arm, step, slot)
) WITHOUT ROWID;
CREATE TABLE results (name TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = {SCHEMA};
"""


class RunError(RuntimeError):
    """The environment failed the run: a full disk, a lock, missing permissions."""


class Arm(NamedTuple):
    """One search inside a run: a strategy and a seed."""

    name: str  # unique within the run, also the name of its checkpoint folder
    strategy: str
    seed: int


class Row(NamedTuple):
    """One evaluation."""

    arm: str
    strategy: str
    seed: int
    step: int
    slot: int  # position within the step's batch
    arch: tuple[int, ...]
    budget: float
    fitness: float  # NaN: failed
    objectives: tuple[float, ...]
    metrics: dict[str, float]
    cost: float  # seconds charged by the evaluator
    seconds: float  # wall time the arm had used at the end of this step, summed over resumes
    time: float  # Unix time of the commit's start


@dataclass(frozen=True)
class Run:
    """An opened run directory.

    It holds no open file, so it needs no closing and may be shared freely.

    Attributes:
      directory: the run directory.
      config: the contents of `config.json`.
    """

    directory: Path
    config: dict[str, Any]

    @property
    def journal(self) -> Path:
        """Path of the SQLite file."""
        return self.directory / "journal.sqlite"

    def arms(self) -> list[Arm]:
        """The arms in the order in which they are searched."""
        return [Arm(**arm) for arm in self.config["arms"]]

    def rows(self, arm: str | None = None) -> list[Row]:
        """The evaluations of one arm or of all, ordered by arm, step and slot."""
        names = [a.name for a in self.arms()] if arm is None else [arm]
        select = "SELECT * FROM evaluations WHERE arm = ? ORDER BY step, slot"
        with _connection(self.journal, "read") as connection:
            return [_decode(r) for name in names for r in connection.execute(select, (name,))]

    def append(self, rows: Sequence[Row]) -> None:
        """Commits rows to the disk: all of them or, where that fails, none.

        Raises:
          RunError: if they cannot be written; rows committed earlier are not touched.
        """
        insert = f"INSERT INTO evaluations VALUES ({', '.join('?' * len(Row._fields))})"
        with _connection(self.journal, "write") as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, [_encode(row) for row in rows])
            connection.execute("COMMIT")

    def put_result(self, name: str, value: dict[str, Any]) -> None:
        """Stores simple JSON values under `name`, in place of what was there."""
        with _connection(self.journal, "write") as connection:
            connection.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?)", (name, json.dumps(value))
            )

    def result(self, name: str) -> dict[str, Any] | None:
        """What `put_result` stored under `name`; None if nothing."""
        with _connection(self.journal, "read") as connection:
            found = connection.execute("SELECT value FROM results WHERE name = ?", (name,))
            row = found.fetchone()
        return None if row is None else json.loads(row[0])

    @contextmanager
    def lock(self) -> Generator[None]:
        """Keeps other processes from writing to this run; ends with the process at the latest.

        Raises:
          RunError: if somebody else holds the lock.
        """
        # SQLite's own file lock: portable, and released by the system however the process ends.
        path = self.directory / "lock"
        with _translated(f"lock {self.directory}"):
            connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        with closing(connection):
            try:
                with _translated(f"lock {self.directory}"):
                    connection.execute("BEGIN EXCLUSIVE")
            except RunError as error:
                if "locked" not in str(error):
                    raise
                raise RunError(f"{self.directory} is in use by another process") from None
            yield


def create(directory: str | os.PathLike, config: dict[str, Any]) -> Run:
    """Makes a run directory, all at once or not at all.

    Args:
      directory: where; must not exist or be an empty folder.
      config: simple JSON values, among them `arms`, a list of dicts with the fields of `Arm`. The
        package versions, the device and the time are added.

    Returns:
      The opened run.

    Raises:
      ValueError: if `directory` is taken.
      RunError: if it cannot be written.
    """
    directory = Path(directory)
    check_free(directory)
    config = {"schema": SCHEMA, **environment(), **config}
    text = json.dumps(config, indent=2)
    draft = directory.absolute().parent / f".{directory.name}.{uuid.uuid4().hex}"
    try:
        with _translated(f"create {directory}"):
            draft.mkdir(parents=True)
            (draft / "config.json").write_text(text, encoding="utf-8")
            with closing(sqlite3.connect(draft / "journal.sqlite")) as connection:
                connection.executescript(_TABLES)
            os.replace(draft, directory)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return open_run(directory)


def check_free(directory: str | os.PathLike) -> None:
    """Raises ValueError unless a run can be created at `directory`."""
    path = Path(directory)
    if path.is_dir() and not any(path.iterdir()):
        return
    if (path / "config.json").exists():
        raise ValueError(f"{path} already holds a run; resume it, or choose another directory")
    if path.exists():
        raise ValueError(f"{path} exists and is not an empty directory; choose another one")


def open_run(directory: str | os.PathLike) -> Run:
    """Opens a run directory and checks that it is whole.

    Raises:
      ValueError: if it is not a run directory, is damaged, or was written by another version.
      RunError: if it cannot be read.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory} is not a run directory: it has no config.json")
    with _translated(f"read {path}"):
        text = path.read_bytes()
    try:
        config = json.loads(text)
        schema = config["schema"]
        run = Run(directory, config)
        run.arms()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema}, but this jaxnas reads schema {SCHEMA}")
    _check_journal(run.journal)
    return run


def environment() -> dict[str, Any]:
    """When and on what a run is made: creation time, package versions, device."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
    }


def _check_journal(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    damaged = f"{path} is damaged or truncated"
    try:
        with _connection(path, "read") as connection:
            health, schema, num_pages, page_size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("quick_check(1)", "user_version", "page_count", "page_size")
            )
    except RunError as error:
        if isinstance(error.__cause__, sqlite3.OperationalError):
            raise
        raise ValueError(f"{damaged}: {error.__cause__}") from error
    if health != "ok" or schema == 0:
        raise ValueError(f"{damaged}: {'no tables' if health == 'ok' else health}")
    # SQLite reads a last page that is cut off as if it ended in zeros.
    if path.stat().st_size < num_pages * page_size:
        raise ValueError(f"{damaged}: shorter than its {num_pages} pages")
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema}, but this jaxnas reads schema {SCHEMA}")


@contextmanager
def _translated(action: str) -> Generator[None]:
    """Turns failures of the file system and of SQLite into one `RunError`."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise RunError(f"cannot {action}: {error}") from error


@contextmanager
def _connection(path: Path, action: str) -> Generator[sqlite3.Connection]:
    """A connection for one operation; closing it rolls back what was not committed."""
    uri = f"{path.absolute().as_uri()}?mode=rw"  # never creates a file
    with (
        _translated(f"{action} {path}"),
        closing(sqlite3.connect(uri, uri=True, timeout=10.0, isolation_level=None)) as connection,
    ):
        connection.execute("PRAGMA synchronous = FULL")
        yield connection


_JSON_COLUMNS = ("arch", "objectives", "metrics")


def _encode(row: Row) -> tuple:
    values = row._asdict()
    return tuple(json.dumps(v) if name in _JSON_COLUMNS else v for name, v in values.items())


def _decode(columns: tuple) -> Row:
    values: dict[str, Any] = dict(zip(Row._fields, columns, strict=True))
    values.update({name: json.loads(values[name]) for name in _JSON_COLUMNS})
    values.update({name: math.nan for name, value in values.items() if value is None})
    values.update({name: tuple(values[name]) for name in ("arch", "objectives")})
    return Row(**values)
