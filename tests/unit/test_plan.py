"""Plans of spaces of cells, mini-batches split over devices, and the costs that plans rest on."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxnas import datasets, spaces
from jaxnas.space import sample
from jaxnas.training import CostModel, Recipe, costs, dealing, plan, population, prediction
from jaxnas.training.data import Split


@pytest.fixture(scope="module")
def wine():
    return datasets.wine(jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    """Few enough rows for three steps an epoch."""
    data = datasets.digits(jax.random.key(0), images=True)
    few = [Split(split.x[:24], split.y[:24]) for split in (data.train, data.valid)]
    return dataclasses.replace(data, train=few[0], valid=few[1])


def cells(*operations):
    options = {"operations": operations} if operations else {}
    return spaces.nasbench201(
        10, num_channels=4, num_cells=1, image_size=8, in_channels=1, **options
    )


def candidates(space, count):
    keys = jax.random.split(jax.random.key(7), count)
    return np.array(jax.vmap(lambda k: sample(k, space))(keys))


def train(space, arch, data, recipe, **options):
    chosen = plan.choose(space, recipe, data, len(arch), arch=arch, **options)
    return population.train(space, arch, data, recipe, jax.random.key(3), chosen)


def assert_same(found, wanted, rtol=2e-4):
    assert np.isfinite(wanted.metrics["loss"]).all()
    for name in ("loss", "train_loss"):
        np.testing.assert_allclose(found.metrics[name], wanted.metrics[name], rtol=rtol)
    np.testing.assert_allclose(found.train_curve, wanted.train_curve, rtol=rtol)


def test_mini_batches_split_over_devices_give_the_same_perceptrons(wine):
    space = spaces.mlp(3, depths=(1, 2), widths=(8,))
    recipe = Recipe(epochs=3, batch_size=16)
    arch = candidates(space, 5)
    split = train(space, arch, wine, recipe, num_devices=2, batch_devices=2)
    assert "2 per candidate" in split.report
    assert_same(split, train(space, arch, wine, recipe, num_devices=1))
    assert_same(split, train(space, arch, wine, recipe, num_devices=2))


def test_a_split_mini_batch_is_really_split(wine):
    from jaxnas.training.memory import Job

    space, recipe = spaces.mlp(3, depths=(2,), widths=(64,)), Recipe(epochs=1, batch_size=64)
    bucket = (space.full_bucket,)
    job = Job(space, recipe, wine, num_devices=2, batch_devices=2)
    program, shapes = job.program(bucket, 1), job.shapes(1, 4)
    program.compile(*shapes)
    text = program.text(*shapes)
    assert "all-reduce" in text
    assert "f32[32,64]" in text and "f32[64,64]" in text  # half the rows; the weights whole


@pytest.mark.slow
def test_mini_batches_split_over_devices_give_the_same_cells(images):
    space = cells("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3")
    recipe, arch = Recipe(epochs=1, batch_size=8), candidates(space, 3)
    split = train(space, arch, images, recipe, num_devices=2, batch_devices=2)
    assert_same(split, train(space, arch, images, recipe, num_devices=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"num_devices": 1, "chunk": 1},
        {"num_devices": 1, "chunk": 8},
        {"num_devices": 2},
        {"num_devices": 2, "chunk": 2},
        {"num_devices": 1, "group_size": 3},
        {"num_devices": 2, "batch_devices": 2},
        {"num_devices": 1, "remat": True},
    ],
    ids=["chunk 1", "chunk 8", "2 devices", "2 devices, chunk 2", "vmap", "split rows", "remat"],
)
def test_every_plan_trains_the_same_cells(images, options):
    space, recipe = cells(), Recipe(epochs=1, batch_size=8)
    arch = candidates(space, 6)
    assert_same(
        train(space, arch, images, recipe, **options),
        train(space, arch, images, recipe, num_devices=1),
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_devices": 0}, "batch_devices must be at least 1"),
        ({"batch_devices": 3, "num_devices": 2}, "batch_devices must divide"),
        ({"remat": True}, "remat is for spaces of cells"),
        ({"memory_limit": 0}, "memory_limit must be at least 1"),
    ],
)
def test_bad_plans(wine, option, message):
    with pytest.raises(ValueError, match=message):
        plan.choose(spaces.mlp(3), Recipe(), wine, 8, **option)


def test_rows_that_cannot_be_split_are_refused(wine):
    recipe = Recipe(batch_size=15)
    with pytest.raises(ValueError, match="the 15 rows of a step, got 2"):
        plan.choose(spaces.mlp(3), recipe, wine, 8, num_devices=2, batch_devices=2)


def test_the_cost_model_decides(wine):
    space, recipe = spaces.mlp(3), Recipe(epochs=20, batch_size=16)

    def num_buckets(**changes):
        model = CostModel()._replace(**changes)
        return len(plan.choose(space, recipe, wine, 512, model=model).buckets(space))

    slow_compiler = num_buckets(compile_program=1e3)
    slow_device = num_buckets(flop=1e-7, compile_program=0.0)
    assert slow_compiler < slow_device


def test_convolutions_are_told_from_matrix_products():
    assert costs.conv_share(spaces.mlp(3), (13,)) == 0.0
    assert costs.conv_share(cells(), (8, 8, 1)) > 0.9


def test_a_candidate_is_not_worked_out_twice(wine, monkeypatch):
    space, recipe = spaces.mlp(3, depths=(1,), widths=(8,)), Recipe(epochs=1, batch_size=16)
    chosen = plan.choose(space, recipe, wine, 64, num_devices=1)
    calls = []
    real = prediction.step_seconds
    monkeypatch.setattr(prediction, "step_seconds", lambda *a: calls.append(1) or real(*a))
    arch = np.repeat(candidates(space, 1), 64, axis=0)
    trained = population.train(space, arch, wine, recipe, jax.random.key(0), chosen)
    assert len(trained.metrics["loss"]) == 64 and len(calls) == 1


def test_dealing_gives_every_candidate_one_slot_of_its_bucket():
    rng = np.random.default_rng(0)
    bucket_ids = rng.integers(-1, 3, size=50)
    layout = dealing.Layout(num_shards=2, num_slots=12, group_size=2, num_buckets=3)
    found = []
    for slots in dealing.deal(bucket_ids, rng.random(50), layout):
        assert slots.rows.shape == (2, 12)
        for rows, bounds in zip(slots.rows, slots.bounds, strict=True):
            for bucket in range(3):
                mine = rows[2 * bounds[bucket] : 2 * bounds[bucket + 1]]
                assert (bucket_ids[mine[mine >= 0]] == bucket).all()
                found.extend(mine[mine >= 0])
    assert sorted(found) == np.flatnonzero(bucket_ids >= 0).tolist()


def test_a_plan_survives_a_change_of_its_report(wine):
    chosen = plan.choose(spaces.mlp(3), Recipe(), wine, 8)
    assert chosen == dataclasses.replace(chosen, report="")


def test_the_work_of_cells_is_that_of_all_candidates(images):
    """Not of one of them: an empty cell takes a fraction of the time of a full one."""
    space, recipe = cells(), Recipe(epochs=1, batch_size=8)
    empty, full = np.zeros((1, 6), np.int32), np.full((1, 6), 3)
    seconds = []
    for arch in (empty, full, np.concatenate([empty, full])):
        work = prediction.workload(space, recipe, images, 2, arch)
        size = costs.ProgramSize(1, 0)
        seconds.append(prediction.predict(CostModel(), space, plan.Plan(()), work, size)[1])
    assert seconds[0] < seconds[1]
    assert seconds[2] == pytest.approx((seconds[0] + seconds[1]) / 2)
