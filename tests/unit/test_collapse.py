"""`collapse` watches the methods that it names, and stops where robust DARTS would."""

import argparse
import dataclasses
import doctest
import json

import jax
import numpy as np
import pytest

from benchmarks import collapse, run, strategies_tabular
from jaxnas import oneshot
from jaxnas._testing_one_shot import tiny_data
from jaxnas.testing import tiny_problem

needs_table = pytest.mark.skipif(
    not strategies_tabular.table_file().is_file(), reason="no table in JAXNAS_DATA"
)
RECIPE = oneshot.Sgd(nesterov=True, weight_decay=5e-4)


@pytest.fixture(autouse=True)
def unoptimised(compilation):
    """Searches are compiled for much longer than they run."""
    del compilation  # which sets the option for the other files
    jax.config.update("jax_disable_most_optimizations", True)


def searched(method, num_steps):
    data = tiny_data()
    run = jax.jit(
        lambda key: oneshot.search(
            key, method, data.train, data.valid, num_steps=num_steps, batch_size=8
        )
    )
    return run(jax.random.key(3))[0]


def test_doctests():
    found = doctest.testmod(collapse, extraglobs={"np": np})
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.parametrize("title", collapse.METHODS)
def test_what_is_watched_is_the_method_itself(title):
    task, num_steps = tiny_problem(), collapse.NUM_MARKS
    watched = searched(collapse.make_method(task, title, num_steps), num_steps)
    plain = oneshot.ALL[title](task, num_steps=num_steps, weight_optimizer=RECIPE)
    np.testing.assert_allclose(
        watched.alpha, searched(plain, num_steps).alpha, rtol=1e-4, atol=1e-6
    )
    watch = watched.early_stop
    assert int(watch.count) == collapse.NUM_MARKS and not watch.stopped
    np.testing.assert_allclose(watch.kept[-1], watched.strengths)
    assert np.isfinite(watch.values).all()


def test_the_rule_is_that_of_robust_darts():
    task, num_steps = tiny_problem(), collapse.NUM_MARKS
    # Where alpha moves fast, the curvature grows and the rule applies.
    fast = {"weight_optimizer": RECIPE, "alpha_optimizer": oneshot.Adam(learning_rate=0.1)}
    stopped = searched(
        oneshot.robust_darts(task, num_steps=num_steps, stop_ratio=collapse.RATIO, **fast),
        num_steps,
    )
    free = searched(
        oneshot.robust_darts(task, num_steps=num_steps, stop_begin=1.0, **fast), num_steps
    )
    assert stopped.early_stop.stopped and not free.early_stop.stopped
    mark = collapse.final_mark(np.asarray(free.early_stop.values))
    assert mark < num_steps - 1
    np.testing.assert_allclose(stopped.strengths, free.early_stop.kept[mark], rtol=1e-4)


def test_a_search_that_does_not_bend_is_never_stopped():
    assert collapse.final_mark(np.linspace(1.0, 1.5, 50)) == 49
    # Nor is one that bends before the rule begins.
    assert collapse.final_mark(np.r_[np.ones(4), np.full(46, 2.0)]) == 49


def fake_raw():
    """Two seeds that end with skip connections everywhere, the second after a sudden bend."""
    marks = collapse.NUM_MARKS
    strengths = np.full((2, marks, 6, 5), 0.1, np.float32)
    strengths[:, :, :, 3] = 0.2
    strengths[:, marks // 2 :, :, collapse.SKIP] = 0.6
    eigenvalue = np.ones((2, marks))
    eigenvalue[1, 20:] = 2.0
    raw = {"methods": ["darts"], "strengths": strengths[None], "eigenvalue": eigenvalue[None]}
    raw |= {name: np.ones((1, 2, marks)) for name in collapse.COLUMNS}
    return raw | {"seconds": np.ones((1, 2)), "compile_seconds": np.ones((1, 2))}


class FakeTable:
    columns = {"test_accuracy": np.linspace(0.1, 0.9, 5**6)}  # noqa: RUF012


def test_tables_tell_collapse_and_rescue():
    setting = collapse.SETTINGS["smoke"]
    problem = collapse.Problem(setting, FakeTable(), None, None)
    tables = collapse.score(problem, json.loads(json.dumps(run.harness._plain(fake_raw()))), {})
    darts, robust = tables["what is derived"]
    assert darts["skip connections"] == 6.0 and darts["stopped at"] == 1.0
    assert robust["skip connections"] == 3.0  # one of two seeds is stopped in time
    course = tables["the course of the searches, means over seeds"]
    assert len(course) == collapse.NUM_MARKS // collapse.SHOWN
    assert [row["skip connections"] for row in course] == [0.0] * 5 + [6.0] * 5
    assert course[-1]["updates"] == setting.num_steps
    assert course[-1]["weight of skip"] == pytest.approx(0.6)
    edges = tables["every edge at the end, means over seeds"]
    assert [row["edge"] for row in edges][:2] == ["1<-0", "2<-0"]
    assert edges[0]["skip_connect"] == pytest.approx(0.6)


def test_rejects_updates_that_do_not_divide():
    setting = dataclasses.replace(collapse.SETTINGS["smoke"], num_steps=49)
    with pytest.raises(ValueError, match="num_steps must be a positive multiple of 50, got 49"):
        collapse.load(setting)


@needs_table
@pytest.mark.slow
def test_runs_end_to_end(tmp_path):
    options = argparse.Namespace(out=tmp_path, methods=["darts"])
    run.run_setting("collapse", collapse, "smoke", collapse.SETTINGS["smoke"], options, {})
    stored = json.loads((tmp_path / "collapse-smoke.json").read_text())
    assert np.shape(stored["raw"]["strengths"]) == (1, 1, collapse.NUM_MARKS, 6, 5)
    comparison = stored["tables"]["accuracy in the table, for comparison"][0]
    assert comparison["all skip connections"] == pytest.approx(0.543, abs=1e-3)
