"""One-shot methods from the run directory's side: journal, resume, strengths, command line."""

from functools import partial

import jax
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import cli, oneshot, report, store, supernet_run
from jaxnas.config import Settings, build_supernets
from jaxnas.supernet_run import Supernets, strengths_of

EPOCHS = 4
QUIET = {"progress_fn": lambda progress: None}


@pytest.fixture(scope="module")
def data():
    return nas.datasets.wine(jax.random.key(0))


@pytest.fixture(scope="module")
def supernets(data):
    """Paths of small perceptrons: no method with strengths, but quick to compile."""
    space = nas.spaces.mlp(3, depths=(1, 2), widths=(8,), dropouts=(0.0,))
    method = partial(oneshot.random_weight_sharing)
    problem_fn = partial(oneshot.from_space, data=data)
    return Supernets(
        space, {"rsps": space}, {"rsps": method}, problem_fn, data, EPOCHS, batch_size=16
    )


def kept(run):
    """What must not depend on how often a run was stopped."""
    return [
        (row.arm, row.step, row.arch, row.budget, np.float32(row.fitness).tobytes(), row.metrics)
        for row in run.rows()
    ]


@pytest.fixture(scope="module")
def finished(supernets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return supernet_run.run(folder, supernets, num_seeds=2, **QUIET)


def test_one_row_per_epoch_and_arm(finished, supernets):
    rows = finished.rows()
    assert [row.arm for row in rows] == ["rsps-0"] * EPOCHS + ["rsps-1"] * EPOCHS
    assert [row.budget for row in rows[:EPOCHS]] == [0.25, 0.5, 0.75, 1.0]
    for row in rows:
        assert row.fitness == row.metrics["accuracy"]
        assert bool(nas.space.is_valid(supernets.space, np.asarray(row.arch)))
        assert np.isfinite(row.metrics["search_train_loss"])
    assert kept(finished)[:EPOCHS] != kept(finished)[EPOCHS:]
    assert strengths_of(finished, "rsps-0") is None


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_killed_and_resumed_is_the_same(supernets, finished, tmp_path, checkpoint_seconds):
    seen = []

    def stop(progress):
        seen.append(progress)
        if len(seen) in (2, 4):
            raise Killed

    options = {"progress_fn": stop, "checkpoint_seconds": checkpoint_seconds}
    with pytest.raises(Killed):
        supernet_run.run(tmp_path / "x", supernets, num_seeds=2, **options)
    assert len(store.open_run(tmp_path / "x").rows()) == 2
    with pytest.raises(Killed):
        supernet_run.resume(store.open_run(tmp_path / "x"), supernets, **options)
    run = supernet_run.resume(store.open_run(tmp_path / "x"), supernets, **options)
    assert kept(run) == kept(finished)
    again = supernet_run.resume(store.open_run(tmp_path / "x"), supernets, **options)
    assert len(again.rows()) == 2 * EPOCHS


def test_a_journal_of_something_else_is_noticed(supernets, tmp_path):
    def stop(progress):
        raise Killed

    with pytest.raises(Killed):
        supernet_run.run(tmp_path / "x", supernets, seed=5, progress_fn=stop)
    changed = supernets._replace(data=nas.datasets.wine(jax.random.key(1)))
    with pytest.raises(ValueError, match="epoch 0 of arm rsps-5 gives another result"):
        supernet_run.resume(store.open_run(tmp_path / "x"), changed, **QUIET)


def test_nothing_is_written_for_bad_arguments(supernets, tmp_path):
    with pytest.raises(ValueError, match="batch_size must be at most"):
        supernet_run.run(tmp_path / "x", supernets._replace(batch_size=1000), **QUIET)
    assert not (tmp_path / "x").exists()


BASIC = {"space": "nasbench201", "strategies": (), "data": "digits", "methods": ("gdas",)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("darting",)}, "unknown method 'darting'"),
        ({"methods": ()}, "give at least one strategy or one-shot method"),
        ({"strategies": ("random_search",)}, "not both"),
        ({"num_evaluations": 5}, "budget of a one-shot method is its epochs"),
        ({"options": {"method": {"num_steps": 3}}}, "unknown option method.num_steps"),
        ({"options": {"method": {"first_temp": 3}}}, "unknown option method.first_temp"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**(BASIC | changes))


def test_supernets_are_those_of_the_published_searches():
    options = {"data": {"images": True}, "space": {"num_channels": 4, "num_cells": 1}}
    options["method"] = {"first_temperature": 5.0, "begin": 0.1}
    settings = Settings(**(BASIC | {"methods": ("gdas", "pc_darts"), "options": options}))
    made = build_supernets(settings)
    module = made.supernets["gdas"].supernet(made.space.full_bucket)
    assert not module.affine and module.partial == 1
    partial_module = made.supernets["pc_darts"].supernet(made.space.full_bucket)
    assert partial_module.partial == 4
    assert made.methods["gdas"].keywords == {"first_temperature": 5.0, "begin": 0.1}
    assert made.methods["pc_darts"].keywords == {"begin": 0.1}


@pytest.mark.slow
def test_from_the_command_line_to_the_report(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["search", "--space", "nasbench201", "--method", "gdas", "--data", "digits"]
    arguments += ["--epochs", "2", "--out", str(folder), "--devices", "1", "--no-cache"]
    arguments += ["--retrain-epochs", "1", "--retrain-seeds", "1", "--option", "data.images=true"]
    arguments += ["space.num_channels=4", "space.num_cells=1"]
    assert cli.main(arguments) == 0
    assert "test accuracy" in capsys.readouterr().out
    run = store.open_run(folder)
    found = strengths_of(run, "gdas-0")
    assert found.shape == (2, 6, 5)
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=1e-4)
    page = report.write(run).read_text()
    for text in ("Strength of operations", "Derived cell", "gdas, arm gdas-0", "nor_conv_3x3"):
        assert text in page
    assert cli.main(["resume", str(folder)]) == 0
    assert len(store.open_run(folder).rows()) == 2
