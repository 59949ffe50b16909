"""The benchmarks measure what they say, and the peers are fair."""

import argparse
import dataclasses
import doctest
import json
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import harness, population_mlp, run, strategies_mlp
from jaxnas import spaces
from jaxnas.space import sample
from jaxnas.training import OPTIMIZERS, Recipe, population
from jaxnas.training.data import from_splits
from jaxnas.training.optimizers import Step, init_any, step_any

PEAK = {"peak_gflops": {"all_devices": 100.0}}


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("torch")
    from benchmarks.peers import torch_mlp

    threads = torch_mlp.torch.get_num_threads()
    torch_mlp.torch.set_num_threads(1)
    yield torch_mlp
    torch_mlp.torch.set_num_threads(threads)


def tiny_data(task: str, num_train: int = 60):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_train + 40, 3))
    y = np.sin(x @ [1.0, -2.0, 0.5]) + 0.1 * rng.normal(size=len(x))
    if task == "classification":
        y = np.digitize(y, [-0.4, 0.4])
    ends = [num_train, num_train + 20]
    return from_splits(*zip(np.split(x, ends), np.split(y, ends), strict=True))


def peer_arrays(data):
    splits = {"train": data.train, "valid": data.valid}
    return {f"{a}_{n}": np.asarray(getattr(s, a)) for n, s in splits.items() for a in ("x", "y")}


# --- the harness ---


@pytest.mark.parametrize("module", [harness, population_mlp, strategies_mlp])
def test_doctests(module):
    found = doctest.testmod(module, extraglobs={"np": np})
    assert found.attempted > 0 and found.failed == 0


def test_alternate_takes_turns():
    calls = []
    sides = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert harness.alternate(sides, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert calls == list("ababab")
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        harness.alternate(sides, 0)


def test_fresh_process_sees_the_environment_and_reports_failure(capfd):
    environment = {"JAXNAS_BENCHMARK_TEST": "7"}
    found = harness.in_fresh_process("os:getenv", "JAXNAS_BENCHMARK_TEST", environment=environment)
    assert found == "7"
    with pytest.raises(RuntimeError, match="operator:neg failed in its process"):
        harness.in_fresh_process("operator:neg", "text")
    assert "bad operand type" in capfd.readouterr().err


def test_store_writes_plain_json(tmp_path):
    document = {"a": np.arange(2), "b": [np.float32(np.nan), 1.5], "c": {"d": float("inf")}}
    path = harness.store("name", document, folder=tmp_path / "new")
    assert json.loads(path.read_text()) == {"a": [0, 1], "b": [None, 1.5], "c": {"d": None}}
    assert [p.name for p in path.parent.iterdir()] == ["name.json"]


def test_machine_names_versions_but_not_the_machine():
    found = harness.machine()
    assert found["versions"]["jax"] == jax.__version__
    assert platform.node() not in json.dumps(found) or not platform.node()


@pytest.mark.parametrize("num_devices", [1, 2])
def test_matmul_measurement_counts_every_device(monkeypatch, num_devices):
    seconds = iter(range(100))  # so every call takes a second
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(harness, "PEAK_FLOPS", 3 * 2 * 8**3)
    found = harness._matmul_gflops(jax, jax.devices()[:1] * num_devices, 8)
    assert found == pytest.approx(num_devices * 3 * 2 * 8**3 / 1e9)


def test_command_line(capsys):
    modules = {"population_mlp": population_mlp, "strategies_mlp": strategies_mlp}
    parser = run.make_parser(modules)
    parsed = parser.parse_args(["population_mlp", "--set", "epochs=2", "--repeats", "1"])
    assert parsed.set == [("epochs", 2)] and parsed.settings == list(population_mlp.SETTINGS)
    with pytest.raises(SystemExit):
        parser.parse_args(["population_mlp", "--set", "epochs"])
    assert "must look like epochs=2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.main(["strategies_mlp", "--set", "colour=2"])
    assert "--set knows" in capsys.readouterr().err


# --- population_mlp: the question ---


def test_settings_are_the_ones_that_were_asked_for():
    regression, digits = (population_mlp.SETTINGS[f"{t}-512"] for t in ("regression", "digits"))
    assert (regression.epochs, regression.batch_size) == (50, None)
    assert (digits.epochs, digits.batch_size) == (20, 32)
    problem = population_mlp.load(regression)
    assert problem.data.train.x.shape == (800, 1)
    assert problem.arch.shape == (512, 6)
    widths = {problem.space.describe(row)["width"] for row in problem.arch[:64]}
    assert widths == {32, 64, 128, 256, 512}


def test_problem_is_the_same_in_every_process():
    setting = population_mlp.Setting("regression", 5, 1, None)
    a, b = population_mlp.load(setting), population_mlp.load(setting)
    np.testing.assert_array_equal(a.arch, b.arch)
    np.testing.assert_array_equal(a.data.train.y, b.data.train.y)


def test_step_flops_counts_products_forward_and_backward():
    problem = population_mlp.load(population_mlp.Setting("digits", 1, 1, 32))
    arch = problem.space.arch({"depth": 2, "width": 64})
    problem = problem._replace(arch=np.asarray(arch)[None])
    first, hidden, last = 64 * 64, 64 * 64, 64 * 10
    expected = 32 * (4 * first + 6 * hidden + 6 * last)
    assert population_mlp.step_flops(problem).tolist() == [expected]


def test_stratified_represents_the_whole():
    costs = np.random.default_rng(0).lognormal(sigma=1.5, size=512)
    chosen = population_mlp.stratified(costs, 64)
    assert len(set(chosen.tolist())) == 64
    assert costs[chosen].mean() == pytest.approx(costs.mean(), rel=0.1)
    assert sorted(population_mlp.stratified(costs, 512)) == list(range(512))
    with pytest.raises(ValueError, match="--peer-candidates must be 1 to 512, got 513"):
        population_mlp.stratified(costs, 513)


def test_agreement_accepts_noise_and_notices_differences():
    rng = np.random.default_rng(0)
    base = rng.normal(size=400)
    ours, theirs = (base + 0.1 * rng.normal(size=400) for _ in range(2))
    same = population_mlp.agreement(ours, theirs)
    assert same["KS p"] > 0.01 and same["paired p"] > 0.01
    biased = population_mlp.agreement(ours, theirs + 0.05)
    assert biased["KS p"] > 0.01 and biased["paired p"] < 1e-6
    assert population_mlp.agreement(ours, 2.0 * theirs + 1.0)["KS p"] < 1e-6
    diverged = population_mlp.agreement(np.where(base > 0.5, np.nan, ours), theirs)
    assert diverged["KS p"] < 1e-6
    assert diverged["diverged"] == f"{(base > 0.5).sum()} / 0"
    equal = population_mlp.agreement(base, base)
    assert (equal["KS"], equal["paired p"]) == (0.0, 1.0)


def fake_runs(problem, num_peer):
    def metrics(num):
        return {"loss": np.linspace(0.1, 1.0, num), "epochs": np.full(num, 2.0)}

    def ours(cold):
        seconds = {"compile_seconds": 1.0, "run_seconds": 1.0, "second_compile_seconds": 0.0}
        cold_and_steady = {"cold_seconds": cold, "steady_seconds": cold / 2.0}
        return {**seconds, **cold_and_steady, "metrics": metrics(len(problem.arch))}

    peer = [{"seconds": s, "metrics": metrics(num_peer)} for s in (6.0, 8.0, 12.0)]
    return {"ours": [ours(2.0), ours(4.0), ours(3.0)], "processes": peer}


def test_score_compares_neighbouring_runs():
    problem = population_mlp.load(population_mlp.Setting("regression", 4, 2, None))
    raw = {"runs": fake_runs(problem, 4), "peer_candidates": np.arange(4)}
    tables = population_mlp.score(problem, raw, PEAK)
    cold, steady, torch_row = next(iter(tables.values()))
    assert cold["x torch processes"] == "3.00 [2.00 to 4.00]"  # 6/2, 8/4, 12/3
    assert steady["x torch processes"] == "6.00 [4.00 to 8.00]"
    assert torch_row["s"] == "8.00 [6.00 to 12.00]"
    assert cold["candidates/s"] == pytest.approx(4 / 3.0)
    gflop = population_mlp.step_flops(problem).sum() * 2 / 1e9
    assert cold["% of peak"] == pytest.approx(gflop / 3.0)
    assert [row["metric"] for row in tables["same results"]] == ["loss"]


def test_score_marks_an_extrapolated_peer():
    problem = population_mlp.load(population_mlp.Setting("regression", 4, 2, None))
    raw = {"runs": fake_runs(problem, 2), "peer_candidates": np.array([3, 1])}
    rows = next(iter(population_mlp.score(problem, raw, PEAK).values()))
    assert rows[2]["side"] == "torch processes, EXTRAPOLATED from 2"


@pytest.mark.slow
def test_population_benchmark_end_to_end(peer, tmp_path):
    setting = population_mlp.Setting("digits", 4, 1, 32)
    options = argparse.Namespace(
        repeats=1, forms=["processes"], peer_candidates=3, out=tmp_path, set=[]
    )
    run.run_setting("population_mlp", population_mlp, "tiny", setting, options, PEAK)
    stored = json.loads((tmp_path / "population_mlp-tiny.json").read_text())
    ours, theirs = stored["raw"]["runs"]["ours"][0], stored["raw"]["runs"]["processes"][0]
    assert ours["compile_seconds"] > 0.0 and ours["second_compile_seconds"] == 0.0
    assert ours["cold_seconds"] > ours["compile_seconds"] + ours["run_seconds"]
    assert len(theirs["metrics"]["accuracy"]) == 3
    assert theirs["seconds"] > 0.0


# --- population_mlp: the peer does the same work ---


def test_peer_never_imports_jax():
    pytest.importorskip("torch")
    code = (
        "import sys, benchmarks.harness, benchmarks.peers.torch_mlp\n"
        "sys.exit(any(name.split('.')[0] in ('jax', 'jaxnas') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, check=True)


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
def test_optimizers_take_the_same_steps(peer, name):
    torch = peer.torch
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    gradients = rng.normal(size=(5, 4, 3)).astype(np.float32)
    chosen, params = [OPTIMIZERS[name]], jnp.asarray(start)
    moments = init_any(chosen, params)
    for count, gradient in enumerate(gradients, start=1):
        step = Step(jnp.int32(0), jnp.float32(count), jnp.float32(0.1))
        params, moments = step_any(chosen, step, None, jnp.asarray(gradient), moments, params, True)
    for implementation in peer.IMPLEMENTATIONS[name]:
        weight = torch.nn.Parameter(torch.tensor(start))
        optimizer = peer.OPTIMIZERS[name]([weight], lr=0.1, **peer.SWITCHES[implementation])
        for gradient in gradients:
            weight.grad = torch.tensor(gradient)
            optimizer.step()
        np.testing.assert_allclose(weight.detach().numpy(), params, rtol=1e-4, atol=1e-5)


def test_peer_sees_every_row_once_an_epoch_and_drops_the_last_batch(peer):
    data = peer.to_data(peer_arrays(tiny_data("regression")), "regression")
    batches = list(peer._batches(data, 16))
    assert len(batches) == Recipe(batch_size=16).steps_per_epoch(60) == 3
    seen = np.concatenate([x.numpy() for x, _ in batches])
    assert len(np.unique(seen, axis=0)) == 48
    rows = zip(data.x_train.tolist(), data.y_train.tolist(), strict=True)
    target_of = {tuple(x): y for x, y in rows}
    for xs, ys in batches:
        assert [target_of[tuple(x)] for x in xs.tolist()] == ys.tolist()


def test_dropout_follows_every_activation_and_is_left_out_at_zero(peer):
    torch = peer.torch
    candidate = {"depth": 2, "width": 8, "activation": "tanh", "dropout": 0.4}
    kinds = [type(layer) for layer in peer.build(candidate, 3, 2)]
    block = [torch.nn.Linear, torch.nn.Tanh, torch.nn.Dropout]
    assert kinds == [*block, *block, torch.nn.Linear]
    assert len(peer.build({**candidate, "dropout": 0.0}, 3, 2)) == 5


def load_weights(peer, network, variables):
    """Copies Flax variables of `jaxnas.nn.mlp.MLP` into the peer's network."""
    linears = [layer for layer in network if isinstance(layer, peer.nn.Linear)]
    groups = variables["params"]
    names = [f"hidden_{i}" for i in range(len(linears) - 1)] + ["output"]
    with peer.torch.no_grad():
        for layer, name in zip(linears, names, strict=True):
            layer.weight.copy_(peer.torch.tensor(np.asarray(groups[name]["kernel"]).T))
            layer.bias.copy_(peer.torch.tensor(np.asarray(groups[name]["bias"])))
    return network


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_same_initial_weights_give_the_same_training(peer, monkeypatch, task):
    data = tiny_data(task)
    # A rate of 1e-30 leaves the initial weights where they are: that is how to read them.
    space = spaces.mlp(
        data.task.num_outputs,
        depths=(1, 2),
        widths=(8,),
        learning_rates=(1e-30, 0.01),
        dropouts=(0.0,),
    )
    values = [
        {"depth": 2, "width": 8, "activation": activation, "optimizer": optimizer}
        for activation, optimizer in zip(
            ("relu", "leaky_relu", "tanh"), ("adam", "sgd", "rmsprop"), strict=True
        )
    ]
    trained = [{**v, "learning_rate": 0.01} for v in values]
    recipe = Recipe(epochs=15, batch_size=None)

    def ours(rows):
        arch = np.stack([space.arch(row) for row in rows])
        key = jax.random.key(0)
        return population.train(space, arch, data, recipe, key, keep_variables=True)

    initial, final = ours([{**v, "learning_rate": 1e-30} for v in values]), ours(trained)
    arrays = peer.to_data(peer_arrays(data), task)
    theirs = peer.Recipe(task, data.task.num_outputs, epochs=15, batch_size=None)
    implementations = {"adam": "fused", "sgd": "foreach", "rmsprop": "forloop"}
    build = peer.build
    for i, row in enumerate(trained):
        candidate = {**row, "dropout": 0.0}
        network = load_weights(peer, build(candidate, 3, theirs.num_outputs), initial.variables[i])
        monkeypatch.setattr(peer, "build", lambda *_, network=network: network)
        found = peer.train(candidate, arrays, theirs, implementations, seed=0)
        for name in ("train_loss", "loss", "accuracy" if task == "classification" else "r2"):
            assert found[name] == pytest.approx(final.metrics[name][i], rel=2e-3, abs=2e-4), name
        assert found["train_loss"] != pytest.approx(initial.metrics["train_loss"][i], rel=1e-3)


@pytest.mark.slow
def test_final_losses_have_one_distribution(peer):
    data = tiny_data("regression")
    space = spaces.mlp(1, depths=(2,), widths=(16,), activations=("relu",), dropouts=(0.2,))
    values = {"depth": 2, "width": 16, "activation": "relu", "dropout": 0.2}
    values |= {"learning_rate": 0.01, "optimizer": "adam"}
    arch = np.stack([space.arch(values)] * 200)
    recipe = Recipe(epochs=4, batch_size=8)
    ours = population.train(space, arch, data, recipe, jax.random.key(0)).metrics
    arrays = peer.to_data(peer_arrays(data), "regression")
    theirs = peer.Recipe("regression", 1, epochs=4, batch_size=8)
    implementations = dict.fromkeys(peer.OPTIMIZERS, "forloop")
    found, _ = peer.train_loop([values] * 200, arrays, theirs, implementations)
    for name in ("train_loss", "r2"):
        losses = [result[name] for result in found]
        assert stats.ks_2samp(ours[name], losses).pvalue > 1e-4, name


def test_initial_weights_have_one_distribution(peer):
    data = tiny_data("regression")
    space = spaces.mlp(1, depths=(1, 2), widths=(64,), learning_rates=(1e-30,), dropouts=(0.0,))
    values = {"depth": 2, "width": 64, "activation": "relu", "dropout": 0.0}
    recipe = Recipe(epochs=1, batch_size=None)
    arch = np.asarray(space.arch({"depth": 2}))[None]
    key = jax.random.key(0)
    ours = population.train(space, arch, data, recipe, key, keep_variables=True).variables[0]
    peer.torch.manual_seed(0)
    theirs = [layer for layer in peer.build(values, 3, 1) if hasattr(layer, "weight")]
    for group, layer in zip(("hidden_0", "hidden_1", "output"), theirs, strict=True):
        for kind, tensor in (("kernel", layer.weight), ("bias", layer.bias)):
            mine, other = np.ravel(ours["params"][group][kind]), tensor.detach().numpy().ravel()
            bound = 1.0 / np.sqrt(layer.in_features)
            assert np.abs(mine).max() <= bound and np.abs(other).max() <= bound
            assert stats.ks_2samp(mine, other).pvalue > 1e-6, (group, kind)


def test_a_diverged_candidate_stops_and_is_nan(peer):
    data = peer.to_data(peer_arrays(tiny_data("regression")), "regression")
    candidate = {"depth": 1, "width": 8, "activation": "relu", "dropout": 0.0}
    candidate |= {"learning_rate": 1e6, "optimizer": "sgd"}
    recipe = peer.Recipe("regression", 1, epochs=200, batch_size=None)
    found = peer.train(candidate, data, recipe, {"sgd": "forloop"}, seed=0)
    assert np.isnan([found["loss"], found["train_loss"], found["r2"]]).all()
    assert found["epochs"] < 200


@pytest.mark.slow
def test_both_forms_train_the_same(peer):
    arrays = peer_arrays(tiny_data("classification"))
    space = spaces.mlp(3, widths=(8, 16))
    arch = jax.vmap(lambda k: sample(k, space))(jax.random.split(jax.random.key(0), 5))
    candidates = [space.describe(row) for row in arch]
    recipe = {"task": "classification", "num_outputs": 3, "epochs": 2, "batch_size": 16}
    request = {"candidates": candidates, "arrays": arrays, "recipe": recipe, "num_processes": 2}
    loop, processes = (
        harness.in_fresh_process("benchmarks.peers.torch_mlp:measure", {**request, "form": form})
        for form in ("loop", "processes")
    )
    for name, values in loop["metrics"].items():
        np.testing.assert_allclose(values, processes["metrics"][name], rtol=1e-4, err_msg=name)
    assert set(loop["choices"]["optimizers"]) == {"adam", "sgd", "rmsprop"}
    assert processes["choices"]["processes"] == 2 and loop["choices"]["threads"] >= 1


# --- strategies_mlp ---


@pytest.fixture(scope="module")
def searched():
    """All searches on a made-up score that counts the decisions that are set to 0."""
    setting = strategies_mlp.Setting("diabetes", 8, 48, 4, 2, 32, 3)
    problem = strategies_mlp.load(setting)
    quick = (strategies_mlp.BASELINE, "regularized evolution")
    problem = problem._replace(strategies={name: problem.strategies[name] for name in quick})
    seen = []

    def train(space, arch, data, recipe, key, plan):
        del space, recipe, key, plan
        seen.append((len(arch), data))
        r2 = (np.asarray(arch) == 0).mean(axis=1).astype(np.float32)
        r2 = np.where(np.asarray(arch)[:, 0] == 3, np.nan, r2)
        return population.Training({"r2": r2}, r2, r2, None, 0.5, 0.25, "", [None] * len(r2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategies_mlp.population, "train", train)
        raw = strategies_mlp.measure(problem, argparse.Namespace())
    return problem, raw, seen


def test_every_strategy_gets_the_same_evaluations(searched):
    problem, raw, seen = searched
    num_searches = 2 * 8
    assert [size for size, _ in seen] == [num_searches * 4] * 12 + [num_searches * 3]
    assert raw["incumbent"].shape == (2, 8, 48)
    assert raw["compile_seconds"] == 13 * 0.5
    # Searches see the validation rows, the retrained winners the test rows.
    assert all(data is problem.data for _, data in seen[:-1])
    assert seen[-1][1].valid is problem.data.test


def test_searches_learn_from_what_they_are_told(searched):
    problem, raw, _ = searched
    by_chance, by_evolution = raw["incumbent"][..., -1].mean(axis=1)
    assert next(iter(problem.strategies)) == strategies_mlp.BASELINE
    assert by_evolution > by_chance + 0.05
    assert (raw["incumbent"][..., 1:] >= raw["incumbent"][..., :-1]).all()
    assert len({row.tobytes() for row in raw["incumbent"][0]}) > 1  # seeds differ


def test_winner_is_the_best_candidate(searched):
    _, raw, _ = searched
    score = (raw["winner"] == 0).mean(axis=-1)
    np.testing.assert_allclose(score, raw["incumbent"][..., -1])
    np.testing.assert_allclose(raw["winner_test_r2"], np.repeat(score[..., None], 3, axis=-1))
    assert (raw["failed"] > 0).any()


def test_strategies_score(searched):
    problem, raw, _ = searched
    tables = strategies_mlp.score(problem, raw, PEAK)
    final = tables["8 seeds of 48 evaluations"]
    assert [row["strategy"] for row in final] == list(problem.strategies)
    assert final[0]["wins"].startswith("0.50")
    assert sum(row["mean rank"] for row in final) == pytest.approx(1 + 2)
    growth = tables["mean best valid R2 so far"][0]
    assert list(growth) == ["strategy", "after 6", "after 12", "after 24", "after 48"]


def test_hopeless_candidates_keep_a_bounded_score(monkeypatch):
    problem = strategies_mlp.load(strategies_mlp.Setting("diabetes", 2, 4, 4, 2, 32, 1))
    r2 = np.array([0.3, -1e9, np.nan], np.float32)
    training = population.Training({"r2": r2}, r2, r2, None, 0.0, 0.0, "", [None] * 3)
    monkeypatch.setattr(strategies_mlp.population, "train", lambda *_: training)
    arch = np.zeros((3, 1, 6), np.int32)
    found, _ = strategies_mlp.evaluate(problem, problem.data, None, arch, None)
    np.testing.assert_array_equal(found, np.array([[0.3], [-1.0], [np.nan]], np.float32))


def test_friedman_has_the_spread_that_its_noise_bound_says():
    # Noise of variance 1 in targets whose variance is about 24 leaves R2 at most 0.96.
    problem = strategies_mlp.load(strategies_mlp.SETTINGS["friedman"])
    assert problem.data.train.x.shape == (300, 10)
    assert 1.0 - 1.0 / problem.data.y_scale[0] ** 2 == pytest.approx(0.96, abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluations": 7}, "evaluations must be a positive multiple of batch_size = 4, got 7"),
        ({"num_seeds": 1}, "num_seeds must be at least 2 for an interval, got 1"),
    ],
)
def test_strategies_reject_bad_settings(change, message):
    setting = dataclasses.replace(strategies_mlp.SETTINGS["diabetes"], **change)
    with pytest.raises(ValueError, match=message):
        strategies_mlp.load(setting)


@pytest.mark.slow
def test_strategies_benchmark_end_to_end(tmp_path):
    setting = strategies_mlp.Setting("diabetes", 2, 8, 4, 1, 32, 1)
    options = argparse.Namespace(out=tmp_path)
    run.run_setting("strategies_mlp", strategies_mlp, "tiny", setting, options, PEAK)
    stored = json.loads((tmp_path / "strategies_mlp-tiny.json").read_text())
    assert np.isfinite(np.asarray(stored["raw"]["incumbent"])[..., -1]).all()
    assert stored["raw"]["run_seconds"] > 0.0
