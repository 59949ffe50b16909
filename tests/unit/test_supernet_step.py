"""`supernet_step` compares like with like."""

import argparse
import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _supernet_sides as sides
from benchmarks import harness, run, supernet_step
from jaxnas import oneshot, spaces
from jaxnas.nn._darts_cells import EDGES, INPUTS, stages_of
from jaxnas.nn._darts_stage import STRIDED
from jaxnas.nn.mixed import operation_variables
from jaxnas.spaces.darts import DARTS_OPERATIONS

SIZES = {"num_channels": 4, "num_cells": 4, "image_size": 8, "batch_size": 4}
SHAPE = {"num_classes": 10, "num_channels": 4, "num_cells": 4, "in_channels": 3}


@pytest.fixture(autouse=True)
def unoptimised(compilation):
    """Programs here are compiled for much longer than they run."""
    del compilation  # which sets the option for the other files
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("torch")
    from benchmarks.peers import torch_supernet

    threads = torch_supernet.torch.get_num_threads()
    torch_supernet.torch.set_num_threads(1)
    yield torch_supernet
    torch_supernet.torch.set_num_threads(threads)


def ours():
    space = spaces.darts(10, num_channels=4, num_cells=4, image_size=8, search=True)
    return space.supernet(space.full_bucket)


@pytest.fixture(scope="module")
def variables():
    """Of our supernet, at random."""
    x = jnp.zeros((1, 8, 8, 3))
    made = jax.eval_shape(
        lambda key: ours().init(key, x, jnp.zeros(24, jnp.int32), train=False), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.uniform(-0.4, 0.6, leaf.shape).astype(np.float32), dict(made)
    )


def peer_state(variables):
    """Our variables under the names and in the layouts of the peer's network."""
    found = {}

    def put(place, collections):
        for tree in collections.values():
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                *modules, own = (part.key for part in path)
                value = np.asarray(leaf)
                own = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}.get(own, own)
                own = "running_var" if own == "var" else own
                axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
                found[".".join([place, *modules, own])] = value.transpose(axes)

    for name in ("stem", "stem_norm", "head"):
        put(name, {c: tree[name] for c, tree in variables.items() if name in tree})
    for stage in stages_of(SIZES["num_channels"], SIZES["num_cells"]):
        own = {c: tree[stage.name] for c, tree in variables.items()}
        for cell in range(stage.num_cells):
            for place, collections in cell_variables(own, stage, cell):
                put(f"cells.{stage.first + cell}.{place}", collections)
    return found


def cell_variables(own, stage, cell):
    """(place in the peer's cell, collections) of all that one cell has."""
    for name in ("older", "newer"):
        firsts = sorted(key for key in own["params"] if key.startswith(f"{name}_"))
        if cell < len(firsts):
            yield name, {c: tree[firsts[cell]] for c, tree in own.items()}
        else:
            yield name, operation_variables(own, name, cell=cell - len(firsts))
    for edge, (source, _) in enumerate(EDGES):
        strided = stage.reduces and source in INPUTS
        group = [e for e, (s, _) in enumerate(EDGES) if (s in INPUTS) == (source in INPUTS)]
        for operation in DARTS_OPERATIONS:
            at = group.index(edge) if stage.reduces else edge
            name = STRIDED * strided + operation
            collections = operation_variables(own, name, edge=at, cell=cell)
            yield f"edges.{edge}.{operation}", collections


def copied(peer, variables):
    """The peer's network with our variables."""
    network = peer.SuperNetwork(**SHAPE)
    state = {k: peer.torch.tensor(v.copy()) for k, v in peer_state(variables).items()}
    missing = network.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    return network


def torch_batch(peer, x, y):
    images = peer.torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).contiguous()
    return peer.Batch(images, peer.torch.tensor(np.asarray(y), dtype=peer.torch.int64))


# --- the peer does the same work ---


def test_operations_and_edges_have_one_order(peer):
    assert peer.OPERATIONS == DARTS_OPERATIONS and peer.EDGES == EDGES


def test_sides_have_as_many_parameters(peer):
    sizes = {**SIZES, "num_channels": 8, "image_size": 16}
    weights, _ = jax.eval_shape(sides.make_problem(sizes).init, jax.random.key(0))
    network = peer.SuperNetwork(**{**SHAPE, "num_channels": 8})
    theirs = sum(w.numel() for w in network.parameters())
    assert theirs == sum(leaf.size for leaf in jax.tree.leaves(weights))


def test_same_weights_give_the_same_logits(peer, variables):
    network, x = copied(peer, variables), sides.make_arrays(8, 4)["x_train"]
    alpha = np.random.default_rng(1).normal(size=(28, 8)).astype(np.float32)
    images = torch_batch(peer, x, np.zeros(4)).x
    with peer.torch.no_grad():
        theirs = network.train()(images, peer.torch.tensor(alpha)).numpy()

    @jax.jit
    def logits(variables):
        choice = jax.nn.softmax(jnp.asarray(alpha))
        return ours().apply(variables, x, choice, train=True, mutable=["batch_stats"])[0]

    found = logits(variables)
    assert np.ptp(theirs, axis=0).min() > 1e-3  # images are told apart
    np.testing.assert_allclose(found, theirs, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("kind", sides.PEER_KINDS)
def test_same_weights_take_the_same_step(peer, variables, kind):
    method, batches = sides.make_method(kind, SIZES)
    state = jax.jit(method.init)(jax.random.key(0))
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    alpha = np.random.default_rng(1).normal(size=(28, 8)).astype(np.float32)
    state = state._replace(weights=variables["params"], rest=rest, alpha=jnp.asarray(alpha))
    search = peer.Search(copied(peer, variables).train(), peer.torch.tensor(alpha))
    theirs = [torch_batch(peer, batch.x, batch.y) for batch in batches]
    gradient = getattr(search, peer.KINDS[kind])(*theirs)
    after, info = jax.jit(method.update)(jax.random.key(1), state, *batches)
    norm = float(gradient.norm())
    assert float(info["alpha_gradient_norm"]) == pytest.approx(norm, rel=2e-2)
    loss = search.step(kind, *theirs)
    assert loss == pytest.approx(float(info["train_loss"]), rel=1e-3)
    new = search.network.state_dict()
    moved = {"params": after.weights}
    for name, value in peer_state({**rest, **moved}).items():
        if "running" not in name:  # theirs also move where alpha is updated
            np.testing.assert_allclose(new[name].numpy(), value, atol=5e-3, err_msg=name)


def test_peer_brings_its_weights_back(peer):
    search, (train, valid) = peer._start(SHAPE, sides.make_arrays(8, 4), "channels_first")
    before = [w.detach().clone() for w in search.weights]
    gradient = search.finite_difference(train, valid)
    assert all(bool((w == b).all()) for w, b in zip(search.weights, before, strict=True))
    assert gradient.shape == search.alpha.shape and bool(gradient.isfinite().all())
    assert float((gradient - search.first_order(train, valid)).norm()) > 0.0


def test_sides_import_nothing_that_counts_cores():
    code = (
        "import sys, benchmarks._supernet_sides\n"
        "sys.exit(any(name.split('.')[0] in ('jax', 'jaxnas', 'torch') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, check=True)


def test_kinds_are_what_they_are_called(monkeypatch):
    seen = []
    monkeypatch.setattr(oneshot, "darts", lambda p, **options: seen.append((p, options)))
    monkeypatch.setattr(oneshot, "single_path", lambda p, **options: seen.append((p, options)))
    monkeypatch.setattr(sides, "make_problem", lambda sizes, residuals: residuals)
    for kind in sides.KINDS:
        sides.make_method(kind, SIZES)
    assert [residuals for residuals, _ in seen] == ["auto"] * 3 + ["recompute", "auto"]
    names = [o["hypergradient"].__qualname__.split(".")[0] for _, o in seen[:4]]
    assert names == ["first_order", "finite_difference", "unrolled", "unrolled"]


# --- what is made of the measurements ---


def fake_run(seconds, megabytes):
    kinds = {
        kind: {
            "seconds": [1.5 * s, s, 0.5 * s],
            "bytes": m * 2**20,
            "compile_seconds": 30.0,
            "trace_seconds": 1.0,
        }
        for kind, s, m in zip(sides.KINDS, seconds, megabytes, strict=False)
    }
    return {"parameters": 7, "kinds": kinds}


def fake_raw():
    ours = [fake_run([1.0, 2.0, 3.0, 4.0, 0.2], [10, 20, 60, 15, 5])] * 2
    return {"one core": {"jaxnas": ours, "PyTorch": [fake_run([t, 2 * t], [1, 1]) for t in (2, 3)]}}


def test_tables_compare_neighbours():
    setting = supernet_step.SETTINGS["smoke"]
    tables = supernet_step.score(supernet_step.Problem(setting), fake_raw(), {})
    first = tables["one step, one core"][0]
    assert (first["s"], first["x PyTorch"]) == ("1.000", "2.50 [2.00 to 3.00]")
    assert first["MiB"] == 10.0 and first["compile s"] == 30.0
    assert len(tables["one step, one core"]) == 7
    measured = {row["what"]: row["measured"] for row in tables["against the targets"]}
    assert measured["finite difference, PyTorch / ours"] == "2.50 [2.00 to 3.00]"
    assert measured["exact / finite difference, time"] == "1.50"
    assert measured["exact / finite difference, memory"] == "3.00"
    assert measured["exact, recomputed / finite difference, memory"] == "0.75"
    assert measured["single path / first order, time"] == "0.20"
    assert measured["first order, seconds of compilation"] == "30.00"


def test_sides_of_unequal_size_are_refused(monkeypatch):
    monkeypatch.setattr(sides, "run_ours", lambda *_: {"parameters": 1})
    monkeypatch.setattr(sides, "run_peer", lambda *_: {"parameters": 2})
    parser = argparse.ArgumentParser()
    supernet_step.add_arguments(parser)
    options = parser.parse_args(["--repeats", "1", "--cores", "one core"])
    with pytest.raises(RuntimeError, match=r"as many parameters, got \[1, 2\]"):
        supernet_step.measure(supernet_step.load(supernet_step.SETTINGS["smoke"]), options)


def test_default_setting_is_the_one_that_was_asked_for():
    setting = supernet_step.SETTINGS["darts-8"]
    assert dataclasses.astuple(setting) == (8, 4, 16, 32)


@pytest.mark.slow
def test_runs_end_to_end(peer, tmp_path):
    del peer
    parser = argparse.ArgumentParser()
    supernet_step.add_arguments(parser)
    arguments = ["--repeats", "1", "--steps", "1", "--cores", "one core"]
    options = parser.parse_args([*arguments, "--kinds", sides.FIRST, sides.ROUTED])
    options.out = tmp_path
    setting = supernet_step.SETTINGS["smoke"]
    run.run_setting("supernet_step", supernet_step, "smoke", setting, options, {})
    stored = json.loads((tmp_path / "supernet_step-smoke.json").read_text())
    rows = stored["tables"]["one step, one core"]
    assert [(row["side"], row["step"]) for row in rows] == [
        ("jaxnas", sides.FIRST),
        ("jaxnas", sides.ROUTED),
        ("PyTorch", sides.FIRST),
    ]
    assert len({row["parameters"] for row in rows}) == 1
