"""The host driver."""

import functools
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import evaluators, search, store, strategies, testing
from jaxnas.run import resume, run
from jaxnas.types import Evaluation, Evaluator
from tests.journals import comparable

SPACE = testing.tiny_space()
BATCH = 4


def noisy(key, arch):
    """Every sixth candidate or so fails; the others have local optima and noise."""
    fitness = testing.trap_fitness(SPACE)(key, arch) + 0.1 * jax.random.normal(key)
    return jnp.where(arch[1] + arch[2] == 4, jnp.nan, fitness)


EVALUATOR = evaluators.from_function(noisy, cost_fn=lambda arch: 0.1 + arch.sum())


@functools.cache
def strategy(tournament_size=3):
    """The same object each time, so that it is compiled once."""
    return strategies.regularized_evolution(
        SPACE, batch_size=BATCH, population_size=8, tournament_size=tournament_size
    )


def quiet(progress):
    del progress


class Counted:
    """The evaluator, not traceable, counting its calls and failing at one of them."""

    def __init__(self, inner=EVALUATOR, fail_at=None):
        self.calls, self.fail_at = 0, fail_at
        evaluate = jax.jit(inner.evaluate)

        def counted(key, state, proposal):
            if self.calls == self.fail_at:
                raise FloatingPointError("the evaluator broke")
            self.calls += 1
            return evaluate(key, state, proposal)

        self.evaluator = Evaluator(inner.init, counted, traceable=False)


def broken_run(directory, fail_at, *, inner=EVALUATOR, checkpoint_seconds=60.0):
    """A run whose evaluator raises in the middle."""
    evaluator = Counted(inner, fail_at).evaluator
    with pytest.raises(FloatingPointError, match="broke"):
        run(
            directory,
            SPACE,
            strategy(),
            evaluator,
            num_evaluations=40,
            progress_fn=quiet,
            checkpoint_seconds=checkpoint_seconds,
        )
    return store.open_run(directory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run that the resumed ones are compared with."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    evaluator = Counted().evaluator
    return run(path, SPACE, strategy(), evaluator, num_evaluations=40, progress_fn=quiet)


def test_the_journal_is_the_history_of_search_to_the_bit(tmp_path):
    found = run(
        tmp_path / "x",
        SPACE,
        {"evolution": strategy()},
        EVALUATOR,
        num_evaluations=40,
        seed=3,
        num_seeds=2,
        progress_fn=quiet,
    )
    compiled = jax.jit(lambda key: search(key, strategy(), EVALUATOR, 10)[1])
    for seed in (3, 4):
        history = jax.tree.map(np.asarray, compiled(jax.random.key(seed)))
        rows = found.rows(f"evolution-{seed}")
        assert len(rows) == 40
        for row in rows:
            at = (row.step, row.slot)
            assert row.arch == tuple(history.arch[at].tolist())
            assert row.budget == history.budget[at]
            for column in ("fitness", "cost"):
                expected = getattr(history.evaluation, column)[at]
                np.testing.assert_array_equal(np.float32(getattr(row, column)), expected)
            np.testing.assert_array_equal(
                np.float32(row.objectives), history.evaluation.objectives[at]
            )
            np.testing.assert_array_equal(
                np.float32(row.metrics["fitness"]), history.evaluation.metrics["fitness"][at]
            )


def test_a_budget_of_evaluations_is_rounded_up_to_whole_steps(tmp_path):
    found = run(tmp_path / "x", SPACE, strategy(), EVALUATOR, num_evaluations=9, progress_fn=quiet)
    assert [(r.step, r.slot) for r in found.rows()] == [(t, b) for t in range(3) for b in range(4)]
    assert {(r.arm, r.strategy, r.seed) for r in found.rows()} == {("strategy-0", "strategy", 0)}


def test_no_step_starts_after_a_budget_of_seconds(tmp_path):
    def slow(key, state, proposal):
        time.sleep(0.03)
        return EVALUATOR.evaluate(key, state, proposal)

    evaluator = Evaluator(EVALUATOR.init, slow, traceable=False)
    found = run(tmp_path / "x", SPACE, strategy(), evaluator, seconds=0.25, progress_fn=quiet)
    seconds = [row.seconds for row in found.rows()][::BATCH]
    assert seconds == sorted(seconds)
    assert seconds[-1] >= 0.25
    assert all(s < 0.25 for s in seconds[:-1])
    again = resume(found.directory, SPACE, strategy(), evaluator, progress_fn=quiet)
    assert len(again.rows()) == len(found.rows())


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 60.0], ids=["checkpoints", "replay"])
@pytest.mark.parametrize("fail_at", [0, 1, 7])
def test_resuming_gives_the_uninterrupted_journal(tmp_path, whole, fail_at, checkpoint_seconds):
    path = tmp_path / "x"
    part = broken_run(path, fail_at, checkpoint_seconds=checkpoint_seconds)
    assert len(part.rows()) == fail_at * BATCH
    counted = Counted()
    found = resume(path, SPACE, strategy(), counted.evaluator, progress_fn=quiet)
    assert comparable(found.rows()) == comparable(whole.rows())
    assert counted.calls == 10 - fail_at  # what was journaled is not evaluated again


def test_resuming_survives_a_damaged_checkpoint(tmp_path, whole):
    path = tmp_path / "x"
    broken_run(path, 7, checkpoint_seconds=0.0)
    files = [f for f in (path / "checkpoints").rglob("*") if f.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:5])
    found = resume(path, SPACE, strategy(), EVALUATOR, progress_fn=quiet)
    assert comparable(found.rows()) == comparable(whole.rows())


def test_a_finished_run_is_left_as_it_is(whole):
    counted = Counted()
    again = resume(whole.directory, SPACE, strategy(), counted.evaluator, progress_fn=quiet)
    assert counted.calls == 0
    assert again.rows() == whole.rows()


def test_a_budget_of_seconds_counts_across_resuming(tmp_path):
    counted = Counted(fail_at=6)
    with pytest.raises(FloatingPointError):
        run(tmp_path / "x", SPACE, strategy(), counted.evaluator, seconds=1e4, progress_fn=quiet)
    before = store.open_run(tmp_path / "x").rows()[-1].seconds
    with pytest.raises(FloatingPointError):
        evaluator = Counted(fail_at=2).evaluator
        resume(tmp_path / "x", SPACE, strategy(), evaluator, progress_fn=quiet)
    rows = store.open_run(tmp_path / "x").rows()
    assert len(rows) == 8 * BATCH
    assert [r.seconds > before for r in rows] == [r.step >= 6 for r in rows]


def learning_evaluator():
    """Its state is a running sum of fitness, which biases what it says next."""

    def init(key):
        del key
        return {"sum": jnp.zeros(())}

    def evaluate(key, state, proposal):
        evaluation, _ = EVALUATOR.evaluate(key, (), proposal)
        fitness = evaluation.fitness + 0.01 * state["sum"]
        return (
            Evaluation(fitness, fitness[:, None], {}, evaluation.cost),
            {"sum": state["sum"] + jnp.nansum(fitness)},
        )

    return Evaluator(init, evaluate, traceable=True)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_evaluator_with_a_state_is_checkpointed_every_step(tmp_path, lost):
    inner = learning_evaluator()
    expected = run(
        tmp_path / "whole",
        SPACE,
        strategy(),
        Counted(inner).evaluator,
        num_evaluations=40,
        progress_fn=quiet,
    )
    path = tmp_path / "x"
    broken_run(path, 6, inner=inner)
    folder = path / "checkpoints" / "strategy-0"
    assert sorted(p.name for p in folder.iterdir()) == ["5", "6"]
    for step in range(6, 6 - lost, -1):
        for file in (folder / str(step)).rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    counted = Counted(inner)
    found = resume(path, SPACE, strategy(), counted.evaluator, progress_fn=quiet)
    assert comparable(found.rows()) == comparable(expected.rows())
    evaluated_again = {0: 0, 1: 1, 2: 6}[lost]
    assert counted.calls == 4 + evaluated_again


def test_evaluating_again_must_agree_with_the_journal(tmp_path):
    path = tmp_path / "x"
    broken_run(path, 3, inner=learning_evaluator())
    for file in (path / "checkpoints").rglob("*"):
        if file.is_file():
            file.unlink()

    def other(key, state, proposal):
        evaluation, state = learning_evaluator().evaluate(key, state, proposal)
        return evaluation._replace(fitness=evaluation.fitness + 1.0), state

    evaluator = learning_evaluator()._replace(evaluate=other)
    with pytest.raises(ValueError, match="step 0 of arm strategy-0 again gives another fitness"):
        resume(path, SPACE, strategy(), evaluator, progress_fn=quiet)


def test_resuming_with_another_strategy_is_refused(tmp_path):
    path = tmp_path / "x"
    part = broken_run(path, 4)
    with pytest.raises(ValueError, match="proposes other architectures at step"):
        resume(path, SPACE, strategy(tournament_size=1), EVALUATOR, progress_fn=quiet)
    with pytest.raises(ValueError, match=r"has strategies \['strategy'\], got \['b'\]"):
        resume(path, SPACE, {"b": strategy()}, EVALUATOR, progress_fn=quiet)
    with pytest.raises(ValueError, match="space 'conditional' is not the one"):
        resume(path, testing.conditional_space(), strategy(), EVALUATOR, progress_fn=quiet)
    assert part.rows() == store.open_run(path).rows()


def test_progress_is_told_after_the_commit(tmp_path):
    path, seen = tmp_path / "x", []

    def watch(progress):
        rows = [r for r in store.open_run(path).rows() if r.arm == progress.arm]
        fitness = [r.fitness for r in rows if r.fitness == r.fitness]
        assert progress.evaluations == len(rows)
        assert progress.best == max(fitness)
        assert progress.num_failed == len(rows) - len(fitness)
        seen.append((progress.arm, progress.evaluations, progress.total, progress.fraction))

    both = {"a": strategy(), "b": strategy()}
    found = run(path, SPACE, both, EVALUATOR, num_evaluations=8, seed=1, progress_fn=watch)
    assert seen == [("a-1", 4, 8, 0.5), ("a-1", 8, 8, 1.0), ("b-1", 4, 8, 0.5), ("b-1", 8, 8, 1.0)]
    assert any(row.fitness != row.fitness for row in found.rows())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step(tmp_path, whole, signum, capfd):
    path = tmp_path / "x"
    before = signal.getsignal(signum)

    def interrupt(progress):
        if progress.evaluations == 12:
            signal.raise_signal(signum)

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(path, SPACE, strategy(), EVALUATOR, num_evaluations=40, progress_fn=interrupt)
    assert stopped.value.exit_code == 128 + signum
    assert str(stopped.value) == f"stopped after 12 evaluations; resume with: jaxnas resume {path}"
    assert "stopping after this step" in capfd.readouterr().err
    assert signal.getsignal(signum) is before
    assert [p.name for p in (path / "checkpoints" / "strategy-0").iterdir()] == ["3"]
    found = resume(path, SPACE, strategy(), EVALUATOR, progress_fn=quiet)
    assert comparable(found.rows()) == comparable(whole.rows())


def test_a_second_signal_stops_at_once(tmp_path):
    def impatient(key, state, proposal):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("unreachable")

    evaluator = Evaluator(EVALUATOR.init, impatient, traceable=False)
    with pytest.raises(KeyboardInterrupt, match="resume with"):
        run(tmp_path / "x", SPACE, strategy(), evaluator, num_evaluations=8, progress_fn=quiet)
    assert store.open_run(tmp_path / "x").rows() == []


def test_a_run_may_be_driven_by_another_thread(tmp_path):
    done = []

    def drive():
        arguments = (tmp_path / "x", SPACE, strategy(), EVALUATOR)
        done.append(run(*arguments, num_evaluations=4, progress_fn=quiet))

    thread = threading.Thread(target=drive)
    thread.start()
    thread.join()
    assert len(done[0].rows()) == 4


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (lambda e: e._replace(fitness=e.fitness[:2]), "fitness"),
        (lambda e: e._replace(objectives=e.fitness), "objectives"),
        (lambda e: e._replace(metrics={"size": e.objectives}), "metrics\\['size'\\]"),
    ],
)
def test_an_evaluation_of_the_wrong_shape_is_refused(tmp_path, wrong, field):
    def evaluate(key, state, proposal):
        evaluation, state = EVALUATOR.evaluate(key, state, proposal)
        return wrong(evaluation), state

    evaluator = Evaluator(EVALUATOR.init, evaluate, traceable=False)
    with pytest.raises(ValueError, match=f"returned shapes .*{field}.*: .* for 4 candidates"):
        run(tmp_path / "x", SPACE, strategy(), evaluator, num_evaluations=4, progress_fn=quiet)
    assert store.open_run(tmp_path / "x").rows() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_evaluations": 0}, "num_evaluations must be at least 1, got 0"),
        ({"num_evaluations": None}, "either num_evaluations or seconds"),
        ({"seconds": 3.0}, "either num_evaluations or seconds"),
        ({"num_evaluations": None, "seconds": 0.0}, "seconds must be positive"),
        ({"num_evaluations": None, "seconds": float("nan")}, "seconds must be positive"),
        ({"num_seeds": 0}, "num_seeds must be at least 1, got 0"),
        ({"strategies": {}}, "strategies is empty"),
        ({"strategies": {"../up": strategy()}}, "'../up' cannot name a folder"),
    ],
)
def test_bad_arguments_make_no_directory(tmp_path, changes, message):
    arguments = {"strategies": strategy(), "num_evaluations": 8} | changes
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "x", SPACE, evaluator=EVALUATOR, progress_fn=quiet, **arguments)
    assert list(tmp_path.iterdir()) == []
