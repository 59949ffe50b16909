"""`population_cells` measures what it says, and its peer does the same work."""

import argparse
import dataclasses
import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import _cells, _cells_profile, _cells_scaling, population_cells, run
from jaxnas.nn.operations import OPERATIONS as MODULES
from jaxnas.spaces.nasbench201 import PUBLISHED_OPERATIONS as OPERATIONS
from jaxnas.training import OPTIMIZERS
from jaxnas.training.metrics import target_losses, targets_of
from jaxnas.training.optimizers import Step, init_any, step_any

PEAK = {"peak_gflops": {"all_devices": 100.0}}
EVERY = [1, 2, 3, 4, 0, 3]  # an architecture with every operation


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("torch")
    from benchmarks.peers import torch_cells

    threads = torch_cells.torch.get_num_threads()
    torch_cells.torch.set_num_threads(1)
    yield torch_cells
    torch_cells.torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny():
    setting = _cells.Setting("tiny", "population", "digits", 4, num_valid=20, num_channels=4)
    return _cells.load(setting)


def names_of(arch):
    return tuple(OPERATIONS[choice] for choice in arch)


def shape_of(peer, setting):
    return peer.Network(10, setting.num_channels, setting.num_cells, 1)


# --- the problem ---


def test_doctests():
    found = doctest.testmod(_cells)
    assert found.attempted > 0 and found.failed == 0


def test_settings_are_the_ones_that_were_asked_for():
    population = [s for s in population_cells.SETTINGS.values() if s.question == "population"]
    assert sorted({s.num_candidates for s in population}) == [32, 128, 512]
    assert {s.images for s in population} == {"digits", "cifar"}
    assert {(s.num_channels, s.num_cells) for s in population} == {(16, 1)}
    assert _cells.BATCH_SIZE == 64
    assert all(s.name == name for name, s in population_cells.SETTINGS.items())
    assert population_cells.SETTINGS["flat"].num_candidates == _cells_scaling.SIZES[-1] == 4096


@pytest.mark.parametrize("steps", [2, 40, 100])
def test_candidates_take_exactly_the_steps_asked_for(tiny, steps):
    data, recipe = _cells.make_data(tiny.setting, steps)
    assert recipe.epochs * recipe.steps_per_epoch(len(data.train.x)) == steps
    assert len(data.valid.x) == 20
    overlap = set(map(bytes, np.asarray(data.train.x))) & set(map(bytes, np.asarray(data.valid.x)))
    assert len(overlap) < 3  # the digits hold a few images twice


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="--steps must be at least 1, got 0"):
        _cells.steps_per_epoch(0)


@pytest.mark.skipif(not _cells.cifar_file().is_file(), reason="no CIFAR-10 subset in JAXNAS_DATA")
def test_cifar_is_averaged_down():
    setting = population_cells.SETTINGS["cifar-32"]
    data, recipe = _cells.make_data(setting, 100)
    assert data.train.x.shape == (1280, 16, 16, 3) and recipe.epochs == 5
    assert _cells.load(setting).space.network(np.zeros(6, int)).image_shape == (16, 16, 3)
    with np.load(_cells.cifar_file()) as raw:
        first = np.random.default_rng(0).permutation(len(raw["x_train"]))[setting.num_valid]
        corner = raw["x_train"][first, :2, :2].mean(axis=(0, 1)) / 255.0
    found = np.asarray(data.train.x[0, 0, 0]) * data.x_scale + data.x_mean
    np.testing.assert_allclose(found, corner, atol=1e-5)


def test_absent_cifar_is_skipped(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXNAS_DATA", str(tmp_path))
    setting = dataclasses.replace(population_cells.SETTINGS["cifar-32"], num_candidates=1)
    problem = _cells.load(setting)
    raw = population_cells.measure(problem, argparse.Namespace(steps=None))
    (row,) = population_cells.score(problem, raw, PEAK)["skipped"]
    assert "cifar10_subset" in row["reason"]


def test_flops_count_forward_and_both_gradients(tiny):
    problem = tiny._replace(arch=np.zeros((1, 6), np.int32))
    stem, head = 2 * 9 * 1 * 4 * 64, 2 * 16 * 10
    blocks = 2 * 16 * (9 * 4 * 8 + 9 * 8 * 8 + 4 * 8) + 2 * 4 * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16)
    forward = stem + blocks + head
    expected = 2 * 64 * (3 * forward - stem) + (2 * 64 + 20) * forward
    assert _cells.candidate_flops(problem, 2).tolist() == [expected]
    conv = problem._replace(arch=np.array([[3, 0, 0, 0, 0, 0]], np.int32))
    edge = 2 * 9 * (64 * 16 + 16 * 64 + 4 * 256)
    added = _cells.candidate_flops(conv, 2)[0] - expected
    assert added == 2 * 64 * 3 * edge + (2 * 64 + 20) * edge


# --- the peer does the same work ---


@pytest.mark.parametrize("arch", [[0] * 6, [3] * 6, EVERY])
def test_same_parameters_and_flops(peer, tiny, arch):
    from torch.utils.flop_counter import FlopCounterMode

    network = peer.CellNetwork(names_of(arch), shape_of(peer, tiny.setting))
    cost = tiny.space.cost(np.array(arch))
    assert sum(p.numel() for p in network.parameters()) == cost.parameters
    with FlopCounterMode(display=False) as counter:
        network(peer.torch.zeros(3, 1, 8, 8))
    assert counter.get_total_flops() == 3 * cost.flops


def peer_state(variables):
    """Our variables under the names and in the layouts of the peer's network."""
    edges = {f"{t}<-{s}" for t in range(4) for s in range(t)}
    own = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    found = {}
    for tree in variables.values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            keys = [part.key for part in path]
            place = []
            for key in keys[:-1]:
                stage = key.split("_")
                if key.startswith("stage_"):
                    place += ["stages", stage[1], stage[3]]
                elif key.startswith("reduction_"):
                    place += ["reductions", str(int(stage[1]) - 1)]
                elif key in edges:
                    place += ["edges", key]
                elif key == "shortcut":
                    place += ["shortcut", "1"]
                else:
                    place.append({"conv": "1", "norm": "2"}.get(key, key))
            value = np.asarray(leaf)
            axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
            found[".".join([*place, own.get(keys[-1], keys[-1])])] = value.transpose(axes)
    return found


def test_one_step_from_the_same_weights_is_the_same(peer, tiny):
    torch, network = peer.torch, tiny.space.network(np.array(EVERY))
    data, recipe = _cells.make_data(tiny.setting, 2)
    x, y = data.train.x[:16], data.train.y[:16]
    variables = jax.jit(lambda key: network.init(key, x[:1], train=False))(jax.random.key(0))

    @jax.jit
    def step(variables):
        params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}

        def loss_fn(params):
            outputs, after = network.apply(
                {"params": params, **rest}, x, train=True, mutable=["batch_stats"]
            )
            losses = target_losses(data.task, outputs, targets_of(data.task, y))
            return losses.mean(), after

        (loss, after), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        chosen = [OPTIMIZERS[recipe.optimizer]]
        first = init_any(chosen, params)
        now = Step(jnp.int32(0), jnp.float32(1.0), jnp.float32(0.1))
        none = jax.tree.map(lambda _: False, params)
        params, _ = step_any(chosen, now, None, gradients, first, params, none)
        return loss, {"params": params, **after}

    loss, after = step(variables)
    theirs = peer.CellNetwork(names_of(EVERY), shape_of(peer, tiny.setting))
    state = {name: torch.tensor(value) for name, value in peer_state(variables).items()}
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    optimizer = peer.make_optimizer(theirs, peer.Recipe(1, 16, 0.1), "foreach")
    images = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
    labels = torch.tensor(np.asarray(y), dtype=torch.int64)
    found = peer.train_step(theirs, optimizer, 0.1, images, labels)
    assert found.item() == pytest.approx(float(loss), abs=1e-5)
    new = theirs.state_dict()
    for name, value in peer_state(after).items():
        np.testing.assert_allclose(new[name].numpy(), value, atol=1e-4, err_msg=name)
        moved = np.abs(value - state[name].numpy()).max() > 1e-5
        assert moved or value.ndim < 4, name


def test_initial_weights_have_one_distribution(peer, tiny):
    ours = MODULES["nor_conv_3x3"](16).init(
        jax.random.key(0), jnp.zeros((1, 4, 4, 16)), train=False
    )
    kernel = np.ravel(ours["params"]["conv"]["kernel"])
    peer.torch.manual_seed(0)
    theirs = np.ravel(peer.operation("nor_conv_3x3", 16)[1].weight.detach().numpy())
    assert stats.ks_2samp(kernel, theirs).pvalue > 1e-3
    assert np.abs(kernel).max() < 1 / 12 > np.abs(theirs).max()  # fan-in of 144


def test_peer_follows_the_schedule_and_sees_every_row_once_an_epoch(peer, tiny, monkeypatch):
    data, recipe = _cells.make_data(tiny.setting, 40)
    theirs = peer.Recipe(recipe.epochs, recipe.batch_size, recipe.learning_rate)
    arrays = {"x_train": np.asarray(data.train.x), "y_train": np.asarray(data.train.y)}
    arrays |= {"x_valid": np.asarray(data.valid.x), "y_valid": np.asarray(data.valid.y)}
    rates, rows = [], []

    def record(network, optimizer, rate, x, y):
        rates.append(rate)
        rows.append(x.numpy())
        return peer.torch.zeros(())

    monkeypatch.setattr(peer, "train_step", record)
    shape = shape_of(peer, tiny.setting)
    found = peer.train(names_of([0] * 6), shape, peer.to_data(arrays), theirs)
    expected = 0.1 * recipe.rate_factor(jnp.arange(40), jnp.int32(40))
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7)
    every = np.sort(np.asarray(data.train.x).reshape(1280, -1), axis=0)
    for epoch in np.split(np.stack(rows), 2):
        np.testing.assert_array_equal(np.sort(epoch.reshape(1280, -1), axis=0), every)
    assert found["epochs"] == 2 and 0.0 <= found["accuracy"] <= 1.0


def test_every_choice_of_the_peer_trains_alike(peer, tiny):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.normal(size=(32, 8, 8, 1)), "x_valid": rng.normal(size=(8, 8, 8, 1))}
    arrays |= {"y_train": rng.integers(0, 10, 32), "y_valid": rng.integers(0, 10, 8)}
    shape, recipe = shape_of(peer, tiny.setting), peer.Recipe(2, 16, 0.01)
    losses = []
    for memory_format in peer.FORMATS:
        for optimizer in peer.SWITCHES:
            choices = peer.Choices(optimizer, memory_format)
            data = peer.in_format(peer.to_data(arrays), choices)
            losses.append(peer.train(names_of(EVERY), shape, data, recipe, choices)["train_loss"])
    np.testing.assert_allclose(losses, losses[0], rtol=1e-3)


# --- what is made of the measurements ---


def fake_run(seconds, num_candidates):
    metrics = {name: np.linspace(0.1, 1.0, num_candidates) for name in population_cells.METRICS}
    return {"seconds": seconds, "candidates": list(range(num_candidates)), "metrics": metrics}


def fake_ours(seconds, num_candidates):
    counts = {"programs": 12, "long_programs": 1, "later_programs": 0}
    times = {"compile_seconds": 1.0, "run_seconds": [1.0]}
    return {**fake_run(seconds, num_candidates), **counts, **times}


def test_score_compares_neighbouring_runs(tiny):
    runs = {
        "ours": [fake_ours([2.0, 1.0], 4), fake_ours([4.0, 2.0], 4)],
        "processes": [fake_run(6.0, 4), fake_run(8.0, 4)],
        "recompile": [fake_run(20.0, 1)],
    }
    tables = population_cells.score(tiny, {"runs": {"10": runs}}, PEAK)
    cold, steady, theirs, _ = next(iter(tables.values()))
    assert cold["x torch processes"] == "2.50 [2.00 to 3.00]"
    assert steady["x torch processes"] == "5.00 [4.00 to 6.00]"
    assert theirs["side"] == "torch processes" and theirs["s"] == "7.00 [6.00 to 8.00]"
    assert cold["x compiling each candidate, EXTRAPOLATED from 1"] == "10.00"
    gflop = _cells.candidate_flops(tiny, 10).sum() / 1e9
    assert steady["% of peak"] == pytest.approx(gflop / 1.5)
    same = tables["10 steps, same results"]
    assert [row["mean ours"] - row["mean torch"] for row in same] == [0.0, 0.0, 0.0]


def test_placement_reports_ratios_and_equality():
    def placed(seconds, loss):
        return {"run_seconds": seconds, "compile_seconds": 1.0, "losses": [loss, loss]}

    raw = {"placements": {"one": [placed(4.0, [1.0, None])], "two": [placed(2.0, [1.5, None])]}}
    one, two = _cells_scaling.score(json.loads(json.dumps(raw)))["placement"]
    assert one["equal to the bit"] and not two["equal to the bit"]
    assert two["times as fast"] == "2.00" and two["largest difference of a loss"] == 0.5


def test_profile_explains_the_whole_step():
    parts = [{"part": "a", "per step": 2.0, "seconds": 1e-3}]
    (rows,) = _cells_profile.score({"step_seconds": 5e-3, "parts": parts}).values()
    assert [row["% of step"] for row in rows] == pytest.approx([40.0, 60.0])
    assert rows[-1]["part"] == "rest"


@pytest.mark.slow
def test_benchmark_end_to_end_and_appended(peer, tmp_path):
    setting = population_cells.SETTINGS["digits-32"]
    setting = dataclasses.replace(setting, num_candidates=4, num_channels=4)
    parser = argparse.ArgumentParser()
    population_cells.add_arguments(parser)
    for sides in (["ours"], ["processes"]):
        options = parser.parse_args(["--steps", "2", "--append", "--sides", *sides])
        options.out = tmp_path
        run.run_setting("population_cells", population_cells, setting.name, setting, options, PEAK)
    stored = json.loads((tmp_path / "population_cells-digits-32.json").read_text())
    runs = stored["raw"]["runs"]["2"]
    assert runs["ours"][0]["long_programs"] <= 1 and runs["ours"][0]["later_programs"] == 0
    assert len(runs["processes"][0]["metrics"]["accuracy"]) == 4
    assert "2 steps, same results" in stored["tables"]
