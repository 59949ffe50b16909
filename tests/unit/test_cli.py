"""The command line, inside this process."""

import signal

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxnas import cli, config, parallel, report, retrain, store
from tests.unit.test_store import ARMS, CONFIG, a_row

SMALL = (
    "--strategy regularized_evolution --batch-size 4 --evaluations 8 --epochs 3 --no-cache "
    "--retrain-epochs 6 --retrain-seeds 2 --option space.depths=[1] space.widths=[8] "
    "space.dropouts=[0.0] space.learning_rates=[] space.optimizers=[] "
    "strategy.population_size=4 strategy.tournament_size=2"
)


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """JAX runs already, so the number of devices can no longer be set."""
    monkeypatch.setattr(parallel, "cpu_devices", lambda num_devices: num_devices)


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    """Three well separated clusters."""
    path = tmp_path_factory.mktemp("data") / "clusters.npz"
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 60)
    np.savez(path, x=rng.normal(size=(180, 2)) + 6.0 * np.eye(3, 2)[y], y=y)
    return path


def search(data_path, path, *options):
    arguments = ["--data", str(data_path), "--out", str(path)]
    return cli.main(["search", *SMALL.split(), *options, *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_path):
    """The directory of a finished search."""
    path = tmp_path_factory.mktemp("runs") / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "cpu_devices", lambda num_devices: num_devices)
        assert search(data_path, path, "--proxies", "snip", "--latency", "3") == 0
    return path


def test_search_fills_a_run_directory(finished, data_path):
    run = store.open_run(finished)
    arms = [(arm.strategy, arm.seed) for arm in run.arms()]
    assert arms == [("regularized_evolution", 0), ("random_search", 0)]
    assert [len(run.rows(arm.name)) for arm in run.arms()] == [8, 8]
    settings = run.config["settings"]
    assert settings["options"]["strategy"] == {"population_size": 4, "tournament_size": 2}
    assert settings["command"].startswith("jaxnas search --strategy regularized_evolution")
    assert str(data_path) in settings["command"]
    assert run.config["space"]["decisions"]["width"]["choices"] == [8]
    assert "clusters" in (finished / "report.html").read_text()
    assert run.result("plan")["report"]


def test_the_winner_is_stored_with_its_test_score(finished):
    run = store.open_run(finished)
    winner = run.result("winner")
    best = max(row.fitness for row in run.rows())
    assert winner["search_fitness"] == best
    assert winner["epochs"] == 6
    scores = winner["valid_accuracy_per_seed"]
    assert len(scores) == 2
    assert winner["valid"]["accuracy"] == max(scores)

    made = config.build(config.Settings(**run.config["settings"]))
    network = made.space.network(jnp.asarray(winner["arch"]))
    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(finished / "winner")
    logits = network.apply(variables, made.data.test.x, train=False)
    accuracy = np.mean(np.argmax(logits, axis=-1) == made.data.test.y)
    assert winner["test"]["accuracy"] == pytest.approx(accuracy)


def test_scores_layers_and_latency_are_recorded_where_asked_for(finished):
    run = store.open_run(finished)
    assert all(row.metrics["proxy_snip"] > 0 for row in run.rows())
    latency, layers, winner = (run.result(name) for name in ("latency", "layers", "winner"))
    assert layers["arch"] == winner["arch"] == latency["networks"][0]["arch"]
    assert len(latency["networks"]) == 3
    best = max(run.rows(), key=lambda row: row.fitness)
    assert sum(layer["parameters"] for layer in layers["layers"]) == best.metrics["parameters"]
    page = (finished / "report.html").read_text()
    assert "Cost of the winner by" in page and "Latency, measured and" in page


def test_resuming_a_finished_run_changes_nothing(finished, capsys):
    before = store.open_run(finished)
    rows, winner = before.rows(), before.result("winner")
    assert cli.main(["resume", str(finished), "--no-cache"]) == 0
    assert store.open_run(finished).rows() == rows
    assert store.open_run(finished).result("winner") == winner
    out = capsys.readouterr().out
    assert "regularized_evolution  1      8            0 " in out
    assert f"report: {finished / 'report.html'}" in out


def test_the_winner_can_be_retrained(finished, capsys):
    arguments = ["retrain", str(finished), "--epochs", "4", "--seeds", "1", "--no-cache"]
    assert cli.main(arguments) == 0
    winner = store.open_run(finished).result("winner")
    assert (winner["epochs"], winner["num_seeds"]) == (4, 1)
    assert f"test accuracy {winner['test']['accuracy']:.4f}" in capsys.readouterr().out


def test_a_report_can_be_written_elsewhere(finished, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert cli.main(["report", str(finished), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_text().startswith("<!")


def test_list_names_what_there_is(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    for word in (
        "mlp ",
        "regularized_evolution ",
        "random_search ",
        "train_from_scratch ",
        "digits ",
    ):
        assert f"\n  {word}" in out


def test_list_tells_the_state_of_runs(finished, capsys, tmp_path):
    half = store.create(tmp_path / "half", CONFIG | {"budget": {"num_evaluations": 4}})
    half.append([a_row(ARMS[0], slot=slot) for slot in range(2)])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "other").mkdir()
    assert cli.main(["list", str(tmp_path)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "status", "evaluations", "best", "fitness", "created"]
    assert [line.split()[0] for line in lines] == ["broken", "half"]
    assert "is damaged" in lines[0]
    assert lines[1].split()[1:5] == ["25%", "done", "2", "0.5000"]
    assert cli.main(["list", str(finished.parent)]) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_search_tells_the_way_on(finished, monkeypatch, capsys, signum):
    def interrupted(run):
        signal.raise_signal(signum)

    monkeypatch.setattr(report, "write", interrupted)
    before = signal.getsignal(signum)
    assert cli.main(["resume", str(finished), "--no-cache"]) == 128 + signum
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"stopped; resume with: jaxnas resume {finished}"
    assert signal.getsignal(signum) is before


def test_a_run_made_from_python_is_resumed_from_python(tmp_path, capsys):
    store.create(tmp_path / "x", CONFIG)
    assert cli.main(["resume", str(tmp_path / "x")]) == 2
    assert "continue it from Python with jaxnas.resume" in capsys.readouterr().err


def test_the_environment_failing_is_exit_code_1(finished, capsys):
    with store.open_run(finished).lock():
        assert cli.main(["resume", str(finished), "--no-cache"]) == 1
    error = capsys.readouterr().err
    assert error == f"jaxnas: error: {finished} is in use by another process\n"


def test_a_traceback_is_shown_on_request(capsys):
    assert cli.main(["report", "nowhere", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_without_a_success_there_is_no_winner(tmp_path):
    run = store.create(tmp_path / "x", CONFIG)
    run.append([a_row(fitness=float("nan"))])
    assert retrain.retrain(run, None, None, None) is None
    assert run.result("winner") is None


def test_a_winner_that_diverges_is_an_error(tmp_path, data_path, capsys):
    path = tmp_path / "x"
    assert search(data_path, path, "retrain.learning_rate=1e38", "retrain.optimizer=sgd") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "jaxnas: error: every network diverged when the winner was retrained"
    run = store.open_run(path)
    assert len(run.rows()) == 16
    assert run.result("winner") is None
