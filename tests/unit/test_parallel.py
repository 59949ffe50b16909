"""Devices and processes: the same result however candidates are dealt."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxnas import parallel

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(port, num_processes, process_id, out):
    command = [sys.executable, "-m", "tests.process_worker", f"127.0.0.1:{port}"]
    return subprocess.Popen(
        [*command, str(num_processes), str(process_id), str(out)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_agree_with_one(tmp_path):
    port = free_port()
    outs = [tmp_path / name for name in ("alone.npz", "first.npz", "second.npz")]
    pair = [start(port, 2, process_id, outs[1 + process_id]) for process_id in (0, 1)]
    for process in [*pair, start(port, 1, 0, outs[0])]:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-2000:]
    alone, *others = [dict(np.load(out)) for out in outs]
    for other in others:
        np.testing.assert_allclose(other.pop("split_curve"), alone["curve"], rtol=1e-5)
        for name, values in other.items():
            np.testing.assert_array_equal(values, alone[name])


def test_devices_are_arranged_as_candidates_by_batch():
    assert dict(parallel.device_mesh(2).shape) == {"candidate": 2, "batch": 1}
    assert dict(parallel.device_mesh(2, 2).shape) == {"candidate": 1, "batch": 2}
    with pytest.raises(ValueError, match="batch_devices = 2 does not divide 1"):
        parallel.device_mesh(1, 2)


def test_rows_are_split_only_where_there_is_something_to_split_them_over():
    rows = np.arange(4.0)
    assert parallel.split_rows(rows) is rows


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert parallel.cache_folder() == tmp_path / "jaxnas"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert parallel.cache_folder().parts[-2:] == (".cache", "jaxnas")


def test_a_process_that_is_none_of_them_is_refused():
    with pytest.raises(ValueError, match="process_id must be in 0 to 1, got 2"):
        parallel.join("127.0.0.1:1", 2, 2)
