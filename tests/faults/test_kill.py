"""A search that is killed at any moment and resumed leaves the journal of an uninterrupted one."""

import math
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxnas import store
from tests.faults import slow_search
from tests.journals import comparable

ROOT = Path(__file__).parents[2]
TIMEOUT = 120  # seconds, for a stuck process only


def uninterrupted(tmp_path, num_steps):
    """The journal that a search must have that nobody killed."""
    run = slow_search.search(tmp_path / "whole", num_steps, 0.0, lambda progress: None)
    assert len(run.rows()) == 2 * num_steps * slow_search.BATCH
    return comparable(run.rows())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Environment with a compilation cache, so that each process starts fast."""
    folder = tmp_path_factory.mktemp("cache")
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(folder),
        "PYTHONPATH": str(ROOT),
    }


def start(arguments, environment):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_search(path, num_steps, environment, *extra):
    return start(["tests.faults.slow_search", path, num_steps, 0.02, *extra], environment)


def kill_after(num_lines, seconds):
    """A way to end a process: `kill -9` so long after so many lines."""

    def end(process):
        lines = []
        while len(lines) < num_lines:
            lines.append(process.stdout.readline())
        time.sleep(seconds)
        process.kill()
        rest, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == -signal.SIGKILL
        return [*lines, *rest.splitlines(keepends=True)]

    return end


def killed_by_itself(process):
    """The end of a process that was started with a statement to kill itself at."""
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGKILL, err
    return out.splitlines(keepends=True)


def stop(path, signum):
    """A way to end a process: a signal that it answers by stopping in good order."""

    def end(process):
        line = process.stdout.readline()
        process.send_signal(signum)
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 128 + signum, err
        count = len(store.open_run(path).rows())
        last = err.splitlines()[-1]
        assert last == f"stopped after {count} evaluations; resume with: jaxnas resume {path}"
        return [line, *out.splitlines(keepends=True)]

    return end


def finish(process):
    """The end of a process that nobody disturbs."""
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    return out.splitlines(keepends=True)


def assert_nothing_printed_is_missing(printed, rows):
    """Every whole line says how many evaluations of an arm there are, and the best fitness."""
    for line in printed:
        if not line.endswith("\n"):
            continue
        arm, count, best = line.split()
        journaled = [row.fitness for row in rows if row.arm == arm][: int(count)]
        assert len(journaled) == int(count)
        assert repr(max(f for f in journaled if not math.isnan(f))) == best


def end_and_resume(path, num_steps, environment, ends):
    """Starts the search once per end, and one more time to let it finish; returns its journal."""
    printed = []
    for extra, end in ends:
        printed += end(start_search(path, num_steps, environment, *extra))
        rows = store.open_run(path).rows() if path.exists() else []
        assert_nothing_printed_is_missing(printed, rows)
    printed += finish(start_search(path, num_steps, environment))
    rows = store.open_run(path).rows()
    assert_nothing_printed_is_missing(printed, rows)
    assert len(printed) <= len(rows) // slow_search.BATCH
    return comparable(rows)


def test_killed_at_random_moments_and_stopped(tmp_path, cache):
    path, rng = tmp_path / "x", random.Random(0)
    ends = [((), kill_after(rng.randint(1, 8), rng.uniform(0.0, 0.1))) for _ in range(2)]
    ends.insert(1, ((), stop(path, signal.SIGINT)))
    ends.insert(3, ((), stop(path, signal.SIGTERM)))
    assert end_and_resume(path, 24, cache, ends) == uninterrupted(tmp_path, 24)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path, cache):
    rng = random.Random(1)
    moments = [(rng.randint(1, 3), rng.uniform(0.0, 0.1)) for _ in range(16)]
    # Before anything is printed: while it starts, creates the run, compiles, or replays.
    moments += [(0, rng.uniform(0.5, 5.0)) for _ in range(4)]
    rng.shuffle(moments)
    ends = [((), kill_after(*moment)) for moment in moments]
    assert end_and_resume(tmp_path / "x", 80, cache, ends) == uninterrupted(tmp_path, 80)


def test_killed_around_a_commit(tmp_path, cache):
    """At the moments that count most: the process kills itself at an SQL statement."""
    path = tmp_path / "x"

    def killed_with(num_rows):
        def end(process):
            lines = killed_by_itself(process)
            assert len(store.open_run(path).rows()) == num_rows
            return lines

        return end

    ends = [
        (("INSERT INTO evaluations", 4 * 5 + 2), killed_with(20)),  # in the middle of a step
        (("COMMIT", 3), killed_with(28)),  # with the whole step inserted
    ]
    assert end_and_resume(path, 24, cache, ends) == uninterrupted(tmp_path, 24)


def test_killed_while_it_is_made_a_run_does_not_exist(tmp_path, cache):
    path = tmp_path / "x"
    killed_by_itself(start_search(path, 1, cache, "CREATE TABLE results", 1))
    assert not path.exists()


COMMAND = """
    jaxnas search --strategy regularized_evolution --baseline none --batch-size 4
    --evaluations 160 --epochs 2 --no-retrain --devices 1 --progress-every 0
    --option space.depths=[1] space.widths=[8] 'space.activations=["relu"]'
    strategy.population_size=8 strategy.tournament_size=3
"""


@pytest.mark.slow
def test_the_command_line_resumes_after_a_signal_and_a_kill(tmp_path, cache):
    path, whole, data = tmp_path / "x", tmp_path / "whole", tmp_path / "data.npz"
    rng = np.random.default_rng(0)
    np.savez(data, x=rng.normal(size=(200, 4)), y=rng.integers(0, 3, 200))
    command = [*shlex.split(COMMAND), "--data", data, "--out"]
    process = start([*command, path], cache)
    assert process.stderr.readline().startswith("regularized_evolution-0 [")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    count = len(store.open_run(path).rows())
    assert err.splitlines()[-1] == (
        f"stopped after {count} evaluations; resume with: jaxnas resume {path}"
    )

    process = start(["jaxnas", "resume", path, "--progress-every", 0], cache)
    assert process.stderr.readline()
    process.kill()
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGKILL
    assert count < len(store.open_run(path).rows()) < 160

    for arguments in (["jaxnas", "resume", path], [*command, whole]):
        out, err = start(arguments, cache).communicate(timeout=TIMEOUT)
        assert "regularized_evolution  1      160 " in out, err
    journals = [
        comparable(store.open_run(directory).rows(), measured=("cost", "seconds", "time"))
        for directory in (path, whole)
    ]
    assert journals[0] == journals[1]
