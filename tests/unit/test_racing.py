"""Races: survivors are trained as in full, the others as far as they came."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import datasets, spaces
from jaxnas.space import sample
from jaxnas.training import Recipe, plan, population, racing
from jaxnas.training.memory import MIB, Job, footprint
from jaxnas.training.racing import best_share, capped, contenders, race

RUNGS = (1 / 9, 1 / 3, 1.0)
RECIPE = Recipe(epochs=9, batch_size=16, schedule="cosine", curves=True)
KEY = jax.random.key(3)
NUM = 11
SIZES = [11, 3, 1]


@pytest.fixture(scope="module")
def data():
    return datasets.wine(jax.random.key(0))


@pytest.fixture(scope="module")
def space():
    options = {"learning_rates": (0.01, 0.001), "optimizers": ("adam",), "dropouts": (0.0, 0.3)}
    return spaces.mlp(3, depths=(1, 2), widths=(4, 8), **options)


@pytest.fixture(scope="module")
def arch(space):
    keys = jax.random.split(jax.random.key(7), NUM)
    return np.array(jax.vmap(lambda k: sample(k, space))(keys))


def chosen(space, data, num_devices=1, **options):
    cells = {"width": ((0,), (1,)), "depth": ((0, 1),)}
    return plan.choose(space, RECIPE, data, NUM, cells=cells, num_devices=num_devices, **options)


@pytest.fixture(scope="module")
def full(space, arch, data):
    return population.train(space, arch, data, RECIPE, KEY, chosen(space, data))


@pytest.fixture(scope="module")
def reference(space, arch, data):
    return race(space, arch, data, RECIPE, KEY, chosen(space, data), rungs=RUNGS)


def test_the_best_go_on(reference, full):
    """At every rung those with the best scores at its epoch, in order where they are equal."""
    alive = np.arange(NUM)
    for rung, (size, epoch) in enumerate(zip(SIZES, (1, 3, 9), strict=True)):
        assert np.flatnonzero(reference.rung >= rung).tolist() == alive.tolist()
        assert len(alive) == size
        alive = best_share(full.valid_curve[:, epoch - 1], alive, 3)
    epochs = np.array([1, 3, 9])[reference.rung]
    np.testing.assert_array_equal(reference.training.metrics["epochs"], epochs)
    np.testing.assert_allclose(reference.budget, epochs / 9, rtol=1e-6)
    assert "race: 11 to epoch 1, 3 to epoch 3, 1 to epoch 9" in reference.training.report


def test_survivors_are_trained_as_in_full_to_the_bit(reference, full):
    ended = reference.rung == 2
    for name in ("loss", "accuracy", "train_loss"):
        np.testing.assert_array_equal(
            reference.training.metrics[name][ended], full.metrics[name][ended]
        )
    for name in ("train_curve", "valid_curve"):
        mine, theirs = getattr(reference.training, name), getattr(full, name)
        np.testing.assert_array_equal(mine[ended], theirs[ended])
    np.testing.assert_array_equal(reference.fitness[ended], full.metrics["accuracy"][ended])


def test_the_others_are_as_far_as_they_came(reference, full):
    for row, rung in enumerate(reference.rung):
        epochs = (1, 3, 9)[rung]
        curve = reference.training.train_curve[row]
        np.testing.assert_allclose(curve[:epochs], full.train_curve[row, :epochs], rtol=1e-6)
        assert np.isnan(curve[epochs:]).all()
        score = reference.training.metrics["accuracy"][row]
        np.testing.assert_allclose(score, full.valid_curve[row, epochs - 1], atol=1e-6)


def test_those_dropped_are_below_those_they_lost_to(reference):
    for rung in (0, 1):
        dropped = reference.fitness[reference.rung == rung]
        assert dropped.max() < reference.fitness[reference.rung > rung].min()


@pytest.mark.parametrize(
    "options",
    [
        {"num_devices": 2, "chunk": 2},
        pytest.param({"num_devices": 2}, marks=pytest.mark.slow),
        pytest.param({"num_devices": 1, "group_size": 2}, marks=pytest.mark.slow),
        pytest.param({"num_devices": 2, "batch_devices": 2}, marks=pytest.mark.slow),
    ],
    ids=["2 devices, several calls", "2 devices", "vmap", "split batches"],
)
def test_every_plan_gives_the_same_race(space, arch, data, reference, options):
    found = race(space, arch, data, RECIPE, KEY, chosen(space, data, **options), rungs=RUNGS)
    np.testing.assert_array_equal(found.rung, reference.rung)
    for name in ("loss", "train_loss"):
        wanted = reference.training.metrics[name]
        np.testing.assert_allclose(found.training.metrics[name], wanted, rtol=2e-4, atol=2e-5)


def test_a_second_race_compiles_nothing(space, arch, data, reference):
    again = race(space, arch, data, RECIPE, KEY, chosen(space, data), rungs=RUNGS)
    assert reference.training.compile_seconds > 0.0 == again.training.compile_seconds
    np.testing.assert_array_equal(again.fitness, reference.fitness)


def test_seconds_are_what_was_spent(reference):
    seconds = reference.training.metrics["train_seconds"]
    assert (seconds > 0.0).all()
    np.testing.assert_allclose(seconds.sum(), reference.training.run_seconds, rtol=1e-4)
    assert seconds[reference.rung == 2].min() > seconds[reference.rung == 0].mean()


def test_a_budget_shortens_everything(space, arch, data):
    budget = np.full(NUM, 1 / 3, np.float32)
    found = race(
        space,
        arch,
        data,
        RECIPE,
        KEY,
        chosen(space, data),
        rungs=(1 / 9, 1 / 3, 1.0),
        budget=budget,
    )
    # A third of an epoch is a whole one, as is the first rung: there is but one of the two.
    assert found.rungs == pytest.approx((1 / 3, 1.0))
    assert sorted(set(found.training.metrics["epochs"])) == [1.0, 3.0]
    assert found.budget.max() == pytest.approx(1 / 3)
    full = population.train(space, arch, data, RECIPE, KEY, chosen(space, data), budget=budget)
    ended = found.rung == 1
    np.testing.assert_array_equal(found.fitness[ended], full.metrics["accuracy"][ended])


@pytest.fixture(scope="module")
def unstable():
    """A space, and two of its architectures: one that learns and one that diverges."""
    options = {"learning_rates": (1e-3, 1e30), "optimizers": ("sgd",), "dropouts": (0.0,)}
    space = spaces.mlp(3, depths=(1,), widths=(8,), **options)
    return space, *(np.array(space.arch({"learning_rate": rate})) for rate in (1e-3, 1e30))


def test_failed_candidates_never_go_on(data, unstable):
    space, calm, wild = unstable
    arch = np.stack([wild, calm, wild, wild])
    found = race(space, arch, data, RECIPE, KEY, rungs=(1 / 3, 1.0), eta=2)
    assert found.rung.tolist() == [0, 1, 0, 0]
    assert np.isnan(found.fitness).tolist() == [True, False, True, True]


def test_a_race_of_failures_ends(data, unstable):
    space, _, wild = unstable
    found = race(space, np.stack([wild] * 4), data, RECIPE, KEY, rungs=RUNGS)
    assert np.isnan(found.fitness).all() and found.rung.tolist() == [0] * 4


def test_the_first_of_equals_goes_on():
    score = np.array([0.1, 0.5, np.nan, 0.5, 0.5, 0.2])
    assert best_share(score, np.arange(6), 3).tolist() == [1, 3]
    assert best_share(score, np.array([0, 3, 4]), 3).tolist() == [3]
    assert best_share(score, np.array([2]), 2).tolist() == []


def test_a_cap_reaches_through_all_rungs():
    score = np.array([0.9, 0.8, 0.7, 0.5, np.nan], np.float32)
    fitness = capped(score, np.array([0, 1, 1, 2, 1]))
    assert fitness[3] == np.float32(0.5) > fitness[1] == fitness[2] > fitness[0]
    assert fitness[0] == pytest.approx(0.5) and np.isnan(fitness[4])
    # Who was never trained, and winners that failed, cap nobody.
    assert capped(np.float32([np.nan, 0.9]), np.array([-1, 0]))[1] == np.float32(0.9)
    assert capped(np.float32([np.nan, 0.9]), np.array([1, 0]))[1] == np.float32(0.9)


def test_contenders_are_those_whose_chance_is_high():
    epochs = np.arange(1.0, 10.0)
    curves = np.stack([0.9 - 0.4 / epochs, 0.88 - 0.4 / epochs, 0.5 - 0.1 / epochs, 0 * epochs])
    curves[3] = np.nan
    curves[:, 6:] = np.nan
    alive = np.array([0, 1, 2])
    assert contenders(curves, 6, 9, alive, 0.0).tolist() == [0, 1, 2]
    assert contenders(curves, 6, 9, alive, 1e-3)[-1] != 2
    assert contenders(curves, 6, 9, alive, 1.0).tolist() == [0]
    assert contenders(curves, 6, 9, np.array([1, 2]), 1.0).tolist() == [1]


@pytest.mark.parametrize(("chance", "num_ended"), [(0.0, NUM), (1.0, 1)])
def test_a_chance_decides_instead_of_a_share(space, arch, data, full, chance, num_ended):
    found = race(space, arch, data, RECIPE, KEY, chosen(space, data), rungs=RUNGS, chance=chance)
    ended = found.rung == 2
    assert ended.sum() == num_ended
    np.testing.assert_array_equal(found.fitness[ended], full.metrics["accuracy"][ended])


def test_states_that_do_not_fit_are_refused(space, arch, data):
    little = dataclasses.replace(chosen(space, data), memory_limit=MIB // 64)
    with pytest.raises(ValueError, match=r"states of 11 candidates .* race fewer at a time"):
        race(space, arch, data, RECIPE, KEY, little, rungs=RUNGS)


def test_a_candidate_that_does_not_fit_is_left_out():
    data = datasets.digits(jax.random.key(0))
    options = {"learning_rates": (1e-3,), "optimizers": ("adam",), "dropouts": (0.0,)}
    space = spaces.mlp(10, depths=(1,), widths=(8, 256), **options)
    arch = np.asarray([space.arch({"width": width}) for width in (8, 256, 8)])
    recipe = Recipe(epochs=2, batch_size=None)
    cells = {"width": ((0,), (1,))}
    given = plan.choose(space, recipe, data, 3, cells=cells, num_devices=1)
    prepared = population.prepare(space, arch, data, recipe, KEY, given, None)
    job = dataclasses.replace(prepared.job, resumable=True)
    wide = footprint(job, prepared.buckets[1:], 1, 1).total(1)
    limit = 2 * racing._state_bytes(prepared, job, 3) + wide // 2
    little = dataclasses.replace(given, memory_limit=limit)
    found = race(space, arch, data, recipe, KEY, little, rungs=(0.5, 1.0), eta=2)
    assert found.rung.tolist()[1] == -1 and found.training.reasons[1] is not None
    assert np.isnan(found.fitness).tolist() == [False, True, False]
    assert found.budget[1] == 0.0 and sorted(found.rung) == [-1, 0, 1]


def test_loops_are_returned_in_the_memory_they_came_in(space, data):
    job = Job(space, RECIPE, data, resumable=True)
    program = job.program((space.full_bucket,), 1)
    inputs = job.inputs(program, 16)
    program.compile(*inputs)
    analysis = program._version(*inputs).compiled.memory_analysis()
    loops = sum(s.dtype.itemsize * int(np.prod(s.shape)) for s in jax.tree.leaves(inputs[1]))
    assert analysis.alias_size_in_bytes >= loops
    assert program.compiled_bytes(*inputs) < 2 * loops + 8 * MIB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": (0.5, 0.25, 1.0)}, "rungs must ascend"),
        ({"rungs": (0.5,)}, "rungs must ascend"),
        ({"rungs": ()}, "rungs must ascend"),
        ({"eta": 1}, "eta must be an integer of at least 2"),
        ({"chance": 1.5}, "chance must be in"),
        ({"chance": 0.1, "recipe": Recipe(epochs=9)}, "curves=True"),
        ({"chance": 0.1, "budget": np.linspace(0.1, 1.0, NUM)}, "same budget"),
    ],
)
def test_bad_input(space, arch, data, changes, message):
    options = {"rungs": RUNGS, **changes}
    recipe = options.pop("recipe", RECIPE)
    with pytest.raises(ValueError, match=message):
        race(space, arch, data, recipe, KEY, chosen(space, data), **options)


@pytest.mark.slow
def test_cells_in_a_race_are_those_trained_in_full():
    data = datasets.digits(jax.random.key(0), images=True)
    space = nas.spaces.nasbench201(10, num_channels=4, num_cells=1, image_size=8, in_channels=1)
    arch = np.array(jax.vmap(lambda k: sample(k, space))(jax.random.split(KEY, 6)))
    recipe = Recipe(epochs=4, batch_size=256, optimizer="nesterov", schedule="cosine")
    given = plan.choose(space, recipe, data, 6)
    full = population.train(space, arch, data, recipe, KEY, given)
    found = race(space, arch, data, recipe, KEY, given, rungs=(0.25, 1.0), eta=2)
    ended = found.rung == 1
    assert ended.sum() == 3
    np.testing.assert_array_equal(found.fitness[ended], full.metrics["accuracy"][ended])
    np.testing.assert_array_equal(
        found.training.metrics["loss"][ended], full.metrics["loss"][ended]
    )
