"""Failing disks, damaged directories and wrong arguments: one clear message, nothing half done."""

import errno
import os
import sqlite3
from pathlib import Path

import jax
import pytest

from jaxnas import cli, datasets, evaluators, parallel, store, strategies, testing
from jaxnas.run import resume, run
from jaxnas.store import RunError
from tests.journals import comparable
from tests.unit.test_store import CONFIG, a_row

SPACE = testing.tiny_space()
STRATEGY = strategies.random_search(SPACE, batch_size=4)
EVALUATOR = evaluators.from_function(lambda key, arch: arch.sum() + jax.random.normal(key))


def search(path, num_evaluations=40):
    return run(path, SPACE, STRATEGY, EVALUATOR, num_evaluations=num_evaluations, **QUIET)


QUIET = {"progress_fn": lambda progress: None}


@pytest.fixture
def damaged(tmp_path):
    """A run with a journal of several pages, to be damaged."""
    opened = store.create(tmp_path / "x", CONFIG)
    opened.append([a_row(step=step, slot=slot) for step in range(20) for slot in range(8)])
    return opened


# Damaged directories


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_journal_is_noticed(damaged, part, capsys):
    content = damaged.journal.read_bytes()
    assert len(content) > 16_000
    damaged.journal.write_bytes(content[: int(part * len(content))])
    before = damaged.journal.read_bytes()
    with pytest.raises(ValueError, match=r"journal\.sqlite is damaged or truncated"):
        store.open_run(damaged.directory)
    assert cli.main(["report", str(damaged.directory)]) == 2
    assert_one_line(capsys, "is damaged or truncated")
    assert damaged.journal.read_bytes() == before
    assert not (damaged.directory / "report.html").exists()


def test_a_journal_with_a_page_of_garbage_is_noticed(damaged):
    content = bytearray(damaged.journal.read_bytes())
    content[8192:12288] = os.urandom(4096)
    damaged.journal.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or truncated"):
        store.open_run(damaged.directory)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ('{"schema": 1, "arms": [', "is damaged"),
        ("[1, 2]", "is damaged"),
        ("{}", "is damaged"),
        ('{"schema": 1, "arms": [{"name": "a"}]}', "is damaged"),
        ("\x00\xff", "is damaged"),
        ('{"schema": 99, "arms": []}', "has schema 99, but this jaxnas reads schema 1"),
    ],
)
def test_a_damaged_configuration_is_noticed(damaged, text, message, capsys):
    (damaged.directory / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"config\.json {message}"):
        store.open_run(damaged.directory)
    assert cli.main(["resume", str(damaged.directory)]) == 2
    assert_one_line(capsys, message)


def test_a_journal_of_another_version_is_not_touched(damaged):
    connection = sqlite3.connect(damaged.journal)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(ValueError, match="has schema 7, but this jaxnas reads schema 1"):
        store.open_run(damaged.directory)


def test_a_missing_journal_is_noticed(damaged):
    damaged.journal.unlink()
    with pytest.raises(ValueError, match=r"journal\.sqlite is missing"):
        store.open_run(damaged.directory)
    assert not damaged.journal.exists()


@pytest.mark.parametrize("command", ["resume", "report", "retrain"])
def test_what_is_no_run_directory_is_refused(tmp_path, command, capsys):
    assert cli.main([command, str(tmp_path)]) == 2
    assert_one_line(capsys, f"{tmp_path} is not a run directory: it has no config.json")
    assert cli.main([command, str(tmp_path / "nowhere")]) == 2
    assert list(tmp_path.iterdir()) == []


# Failing disks


@pytest.fixture
def small_disk(monkeypatch):
    """Journals that cannot grow beyond so many pages: SQLite then fails as on a full disk."""
    connect, limit = sqlite3.connect, {"pages": None}

    def limited(*args, **options):
        connection = connect(*args, **options)
        if limit["pages"] is not None:
            connection.execute(f"PRAGMA max_page_count = {limit['pages']}")
        return connection

    monkeypatch.setattr(sqlite3, "connect", limited)
    return limit


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(tmp_path, small_disk):
    expected = search(tmp_path / "whole").rows()
    path = tmp_path / "x"
    small_disk["pages"] = 5
    with pytest.raises(RunError, match=r"cannot write .*journal\.sqlite: database or disk is full"):
        search(path)
    part = store.open_run(path).rows()
    assert 0 < len(part) < 40
    assert len(part) % 4 == 0
    assert comparable(part) == comparable(expected[: len(part)])
    small_disk["pages"] = None
    found = resume(path, SPACE, STRATEGY, EVALUATOR, **QUIET)
    assert comparable(found.rows()) == comparable(expected)


FAILURES = {
    "a full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "a read-only directory": PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("function", ["mkdir", "write_text", "connect", "replace"])
def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch, function, failure):
    def fail(*args, **options):
        raise FAILURES[failure]

    owner = {"connect": sqlite3, "replace": os}.get(function, Path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, fail)
        with pytest.raises(RunError, match=f"cannot create .*{FAILURES[failure].strerror}"):
            search(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match=r"cannot create .*Permission denied"):
        search(tmp_path / "x")
    tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RunError, match="cannot create"):
        search(tmp_path / "file" / "x")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_checkpoint_that_cannot_be_written_loses_no_evaluation(tmp_path):
    expected = search(tmp_path / "whole").rows()
    path = tmp_path / "x"
    store.create(path, store.open_run(tmp_path / "whole").config)
    (path / "checkpoints").write_text("in the way")
    with pytest.raises(RunError, match="cannot write checkpoint 10"):
        resume(path, SPACE, STRATEGY, EVALUATOR, **QUIET)
    assert comparable(store.open_run(path).rows()) == comparable(expected)


# Wrong arguments of the command line


def assert_one_line(capsys, message):
    error = capsys.readouterr().err
    assert error.startswith("jaxnas: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--space cnn", "unknown space 'cnn'; known are chain_cnn, darts, mlp"),
        ("--strategy luck", "unknown strategy 'luck'; known are asha, "),
        ("--baseline luck", "unknown strategy 'luck'"),
        ("--data nowhere", "'nowhere' is neither a bundled data set"),
        ("--evaluations 0", "num_evaluations must be at least 1, got 0"),
        ("--batch-size 0", "batch_size must be a whole number of at least 1, got 0"),
        ("--option strategy.population_size=8", "population_size"),
        ("--option space.widths=[]", "widths is empty"),
        ("--option space.width=[8]", "unknown option space.width; allowed are "),
        ("--option widths=[8]", "an option looks like recipe.learning_rate=0.01"),
    ],
)
def test_a_wrong_argument_is_named_and_makes_no_directory(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(parallel, "cpu_devices", lambda num_devices: num_devices)
    path = tmp_path / "x"
    usual = "--data wine --strategy regularized_evolution --evaluations 32 --no-cache --out"
    assert cli.main(["search", *usual.split(), str(path), *arguments.split()]) == 2
    assert_one_line(capsys, message)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_directory_is_refused_before_data_are_loaded(damaged, monkeypatch, capsys):
    def load(*args, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(datasets, "load", load)
    before = damaged.rows()
    arguments = ["search", "--evaluations", "8", "--out", str(damaged.directory)]
    assert cli.main(arguments) == 2
    assert_one_line(capsys, "already holds a run; resume it, or choose another directory")
    assert damaged.rows() == before
