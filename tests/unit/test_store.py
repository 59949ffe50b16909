"""The run directory."""

import json
import math
import multiprocessing
import os
import struct

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from jaxnas import store
from jaxnas.store import Arm, Row, RunError
from tests.journals import comparable

ARMS = [Arm("zeta-0", "zeta", 0), Arm("alpha-1", "alpha", 1)]
CONFIG = {"arms": [arm._asdict() for arm in ARMS], "note": "kept"}


@pytest.fixture
def run(tmp_path):
    return store.create(tmp_path / "runs" / "x", CONFIG)


def a_row(arm=ARMS[0], step=0, slot=0, fitness=0.5, **changes):
    values = {
        "arch": (1, 0, 2),
        "budget": 1.0,
        "fitness": fitness,
        "objectives": (fitness, -3.0),
        "metrics": {"accuracy": fitness, "parameters": 12.0},
        "cost": 0.25,
        "seconds": 1.5,
        "time": 1.7e9,
    }
    return Row(*arm, step=step, slot=slot, **(values | changes))


def test_rows_come_back_by_arm_step_and_slot(run):
    rows = [a_row(arm, step, slot) for arm in ARMS for step in range(11) for slot in range(2)]
    for row in reversed(rows):
        run.append([row])
    assert run.rows() == rows
    assert run.rows("alpha-1") == rows[22:]
    assert store.open_run(run.directory).rows() == rows
    assert run.rows("unheard of") == []


floats = st.floats(allow_nan=True, allow_infinity=True)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fitness=floats, budget=floats, cost=floats, metric=floats, objective=floats)
def test_floats_survive_to_the_bit(run, fitness, budget, cost, metric, objective):
    step = len(run.rows())
    row = a_row(
        step=step,
        fitness=fitness,
        budget=budget,
        cost=cost,
        metrics={"metric": metric},
        objectives=(objective, fitness),
    )
    run.append([row])
    assert comparable(run.rows()[-1:]) == comparable([row])


def test_the_sign_of_zero_survives(run):
    run.append([a_row(fitness=-0.0)])
    assert math.copysign(1.0, run.rows()[0].fitness) == -1.0


def test_a_float32_survives(run):
    third = struct.unpack("f", struct.pack("f", 1 / 3))[0]
    run.append([a_row(fitness=third)])
    assert struct.pack("f", run.rows()[0].fitness) == struct.pack("f", 1 / 3)


def test_a_step_is_committed_whole_or_not_at_all(run):
    run.append([a_row(step=0)])
    with pytest.raises(RunError, match=r"cannot write .*journal\.sqlite"):
        run.append([a_row(step=1), a_row(step=0)])
    assert run.rows() == [a_row(step=0)]
    run.append([a_row(step=1)])
    assert len(run.rows()) == 2


def test_config_tells_how_the_run_was_made(run):
    written = json.loads((run.directory / "config.json").read_text())
    assert written == run.config
    assert written["note"] == "kept"
    assert {"python", "jax", "jaxlib", "numpy", "jaxnas"} <= set(written["versions"])
    assert set(written["device"]) == {"platform", "kind", "count"}
    assert run.arms() == ARMS


def test_results_are_replaced_by_name(run):
    assert run.result("winner") is None
    run.put_result("winner", {"accuracy": 0.5})
    run.put_result("winner", {"accuracy": 0.75, "arch": [1, 2]})
    assert store.open_run(run.directory).result("winner") == {"accuracy": 0.75, "arch": [1, 2]}


def test_an_empty_folder_may_become_a_run(tmp_path):
    assert store.create(tmp_path, CONFIG).rows() == []


def test_a_run_is_created_with_the_usual_permissions(run, tmp_path):
    (tmp_path / "plain").mkdir()
    assert run.directory.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("content", ["a run", "other files", "a file"])
def test_a_taken_directory_is_left_alone(tmp_path, content):
    path = tmp_path / "x"
    if content == "a file":
        path.write_text("precious")
    elif content == "other files":
        path.mkdir()
        (path / "thesis.tex").write_text("precious")
    else:
        store.create(path, CONFIG)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    message = "already holds a run" if content == "a run" else "not an empty directory"
    with pytest.raises(ValueError, match=message):
        store.create(path, CONFIG)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_a_lock_keeps_others_out_but_not_readers(run):
    with run.lock():
        with pytest.raises(RunError, match="in use by another process"), run.lock():
            pass
        run.append([a_row()])
        assert len(store.open_run(run.directory).rows()) == 1
    with run.lock():
        pass


def _hold(directory, connection):
    with store.open_run(directory).lock():
        connection.send("locked")
        connection.recv()
        os._exit(1)  # without any clean-up, as a killed process ends


def test_a_lock_ends_with_its_process(run):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=_hold, args=(run.directory, there))
    other.start()
    assert here.recv() == "locked"
    with pytest.raises(RunError, match="in use by another process"), run.lock():
        pass
    here.send("go")
    other.join()
    with run.lock():
        pass
