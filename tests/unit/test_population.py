"""Population training: every plan gives the same result, and the result is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import datasets, spaces
from jaxnas.space import sample
from jaxnas.training import Recipe, plan, population

EXACT_WIDTH = {"width": ((0,), (1,))}
EXACT = {**EXACT_WIDTH, "depth": ((0,), (1,))}
PADDED = {"width": ((0, 1),), "depth": ((0, 1),)}


@pytest.fixture(scope="module")
def data():
    return datasets.wine(jax.random.key(0))


@pytest.fixture(scope="module")
def space():
    return spaces.mlp(
        3, depths=(1, 3), widths=(4, 12), learning_rates=(0.01, 0.001), dropouts=(0.0, 0.3)
    )


@pytest.fixture(scope="module")
def arch(space):
    keys = jax.random.split(jax.random.key(7), 9)
    return np.array(jax.vmap(lambda k: sample(k, space))(keys))


RECIPE = Recipe(epochs=4, batch_size=16, curves=True)


def run(space, arch, data, recipe=RECIPE, budget=None, keep=False, **options):
    chosen = plan.choose(space, recipe, data, len(arch), arch=arch, **options)
    key = jax.random.key(3)
    return population.train(
        space, arch, data, recipe, key, chosen, budget=budget, keep_variables=keep
    )


@pytest.fixture(scope="module")
def reference(space, arch, data):
    return run(space, arch, data, cells=EXACT, num_devices=1, keep=True)


def assert_same(found, wanted):
    for name in ("loss", "train_loss", "accuracy"):
        np.testing.assert_allclose(found.metrics[name], wanted.metrics[name], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found.train_curve, wanted.train_curve, rtol=2e-4)
    np.testing.assert_allclose(found.valid_curve, wanted.valid_curve, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"cells": PADDED, "num_devices": 1},
        {"cells": EXACT_WIDTH, "num_devices": 2, "chunk": 2},
        {"cells": PADDED, "num_devices": 2, "chunk": 8},
        {"cells": PADDED, "num_devices": 1, "group_size": 4},
        {"cells": {**PADDED, "width": ((0,), (1,))}, "num_devices": 2, "group_size": 2},
    ],
    ids=["padded", "depth skipped, 2 devices, chunk 2", "2 devices", "vmap", "vmap, 2 buckets"],
)
def test_every_plan_gives_the_same_result(space, arch, data, reference, options):
    assert_same(run(space, arch, data, **options), reference)


def test_same_plan_is_equal_to_the_bit(space, arch, data, reference):
    again = run(space, arch, data, cells=EXACT, num_devices=1, keep=True)
    for name in ("loss", "train_loss", "accuracy"):
        np.testing.assert_array_equal(again.metrics[name], reference.metrics[name])
    assert again.compile_seconds == 0.0


def test_one_plan_compiles_once_whatever_candidates_come(space, data):
    recipe = Recipe(epochs=1, batch_size=16)
    every = plan.choose(space, recipe, data, 2, cells=EXACT)
    narrow = np.asarray(space.arch({"width": 4}))[None]
    wide = np.asarray(space.arch({"width": 12}))[None]
    key = jax.random.key(0)
    assert population.train(space, narrow, data, recipe, key, every).compile_seconds > 0.0
    assert population.train(space, wide, data, recipe, key, every).compile_seconds == 0.0


def test_candidates_do_not_depend_on_their_company(space, arch, data, reference):
    alone = run(space, arch[:1], data, cells=EXACT, num_devices=1)
    np.testing.assert_allclose(alone.metrics["loss"], reference.metrics["loss"][:1], rtol=1e-5)


def test_extracted_network_has_the_metrics_of_the_supernet(space, arch, data, reference):
    padded = run(space, arch, data, cells=PADDED, num_devices=2, keep=True)
    for result in (reference, padded):
        for row, variables in enumerate(result.variables):
            outputs = space.network(arch[row]).apply(variables, data.valid.x, train=False)
            accuracy = np.mean(np.argmax(outputs, axis=1) == data.valid.y)
            np.testing.assert_allclose(accuracy, result.metrics["accuracy"][row], atol=1e-6)
            total = sum(leaf.size for leaf in jax.tree.leaves(variables))
            assert total == result.metrics["parameters"][row]


def test_width_per_layer_padded_equals_exact(data):
    space = spaces.mlp(3, depths=(1, 3), widths=(4, 8), per_layer=True, learning_rates=())
    arch = np.array([[1, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 1, 1, 1], [1, 1, 0, 1, 2, 2, 2]])
    result = run(space, arch, data, num_devices=1, keep=True)
    for row, variables in enumerate(result.variables):
        names = [f"hidden_{i}" for i in range(space.describe(arch[row])["depth"])]
        shapes = [variables["params"][name]["kernel"].shape[1] for name in names]
        wanted = [space.describe(arch[row])[f"width_{i + 1}"] for i in range(len(names))]
        assert shapes == wanted
        outputs = space.network(arch[row]).apply(variables, data.valid.x, train=False)
        accuracy = np.mean(np.argmax(outputs, axis=1) == data.valid.y)
        np.testing.assert_allclose(accuracy, result.metrics["accuracy"][row], atol=1e-6)


def test_budget_is_a_fraction_of_the_epochs(space, arch, data):
    budget = np.linspace(0.25, 1.0, len(arch)).astype(np.float32)
    result = run(space, arch, data, cells=PADDED, num_devices=2, budget=budget)
    wanted = np.ceil(budget * RECIPE.epochs)
    np.testing.assert_array_equal(result.metrics["epochs"], wanted)
    np.testing.assert_array_equal(np.isfinite(result.train_curve).sum(axis=1), wanted)
    np.testing.assert_array_equal(np.isfinite(result.valid_curve).sum(axis=1), wanted)


def test_the_average_of_weights_is_that_of_the_trajectory(data):
    space = spaces.mlp(3, depths=(1,), widths=(4,), optimizers=("sgd",), dropouts=(0.0,))
    arch = np.asarray(space.arch({"learning_rate": 0.1}))[None]

    def variables(epochs, **options):
        recipe = Recipe(epochs=epochs, batch_size=None, **options)
        return run(space, arch, data, recipe, keep=True).variables[0]["params"]

    # Full batches: an epoch is a step, and shorter runs are the beginnings of longer ones.
    after = [variables(epochs) for epochs in (1, 2, 3)]
    first = variables(1, average=0.5)
    # The first step keeps a tenth of the start, so the start follows from the first average.
    start = jax.tree.map(lambda a, p: (a - 0.9 * p) / 0.1, first, after[0])
    wanted = start
    for index, params in enumerate(after):
        decay = min(0.15, (1 + index) / (10 + index))
        wanted = jax.tree.map(lambda w, p, d=decay: d * w + (1 - d) * p, wanted, params)
    found = variables(3, average=0.15)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


def test_label_smoothing_reaches_the_training(data):
    space = spaces.mlp(3, depths=(1,), widths=(16,), optimizers=("adam",), dropouts=(0.0,))
    arch = np.asarray(space.arch({"learning_rate": 0.01}))[None]

    def confidence(**options):
        recipe = Recipe(epochs=60, batch_size=16, **options)
        (variables,) = run(space, arch, data, recipe, keep=True).variables
        logits = space.network(arch[0]).apply(variables, data.train.x, train=False)
        return float(jax.nn.softmax(logits).max(axis=-1).mean())

    # The targets' own largest probability is 1, or 0.4 + 0.6 / 3 with smoothing.
    assert confidence() > 0.95
    assert abs(confidence(label_smoothing=0.6) - 0.6) < 0.05


def test_a_diverged_candidate_is_nan_and_alone(data):
    space = spaces.mlp(3, depths=(2,), widths=(8,), learning_rates=(1e-3, 1e30), dropouts=(0.0,))
    calm, wild = (
        np.array(space.arch({"learning_rate": rate, "optimizer": "sgd"})) for rate in (1e-3, 1e30)
    )
    mixed = run(space, np.stack([calm, wild, calm]), data, num_devices=1)
    alone = run(space, calm[None], data, num_devices=1)
    assert np.isnan(mixed.metrics["accuracy"]).tolist() == [False, True, False]
    assert mixed.metrics["epochs"][1] < RECIPE.epochs
    np.testing.assert_allclose(mixed.metrics["loss"][0], alone.metrics["loss"][0], rtol=1e-6)


def test_regression_full_batch_learns():
    data = datasets.diabetes(jax.random.key(0))
    space = spaces.mlp(1, depths=(1,), widths=(32,), learning_rates=(0.01,), optimizers=("adam",))
    recipe = Recipe(epochs=60, batch_size=None)
    result = run(space, np.zeros((2, 6), np.int32), data, recipe)
    assert (result.metrics["r2"] > 0.25).all()
    assert (result.train_curve[:, -1] < 0.6 * result.train_curve[:, 0]).all()


def test_a_space_without_supernet_is_trained_network_by_network(data):
    joint = spaces.mlp(3, depths=(1, 2), widths=(4, 8))
    plain = training_space_without_supernet(joint)
    arch = np.array([[0, 0, 0, 0, 2, 0], [1, 1, 1, 0, 2, 1]])
    result = run(plain, arch, data, keep=True)
    assert np.isfinite(result.metrics["loss"]).all()
    for row, variables in enumerate(result.variables):
        outputs = joint.network(arch[row]).apply(variables, data.valid.x, train=False)
        accuracy = np.mean(np.argmax(outputs, axis=1) == data.valid.y)
        np.testing.assert_allclose(accuracy, result.metrics["accuracy"][row], atol=1e-6)


def training_space_without_supernet(space):
    return type(space)(
        "plain", space.decisions, space.network, hyperparameters=space.hyperparameters
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": np.zeros((2, 3))}, "arch must have shape"),
        ({"arch": np.full((1, 6), 99)}, "choices outside"),
        ({"budget": np.array([0.0])}, "budget must be"),
        ({"recipe": Recipe(batch_size=5000)}, "batch_size = 5000 is larger"),
    ],
)
def test_bad_input(space, data, changes, message):
    given = {"arch": np.zeros((1, 6), np.int32), "recipe": RECIPE, "budget": None, **changes}
    with pytest.raises(ValueError, match=message):
        population.train(
            space, given["arch"], data, given["recipe"], jax.random.key(0), budget=given["budget"]
        )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_devices": 99}, "num_devices = 99"),
        ({"group_size": 0}, "group_size must be at least 1"),
        ({"cells": {"width": ((0,),)}}, "must partition"),
        ({"cells": {"dropout": ((0,), (1,))}}, "does not reshape"),
        ({"cells": {"colour": ((0,),)}}, "no decision 'colour'"),
    ],
)
def test_bad_plans(space, data, option, message):
    with pytest.raises(ValueError, match=message):
        plan.choose(space, RECIPE, data, 8, **option)


def test_planner_prefers_few_programs_for_few_candidates_and_more_for_many(data):
    space = spaces.mlp(3)
    recipe = Recipe(epochs=50, batch_size=16)
    few, many = (plan.choose(space, recipe, data, count) for count in (4, 100_000))
    archs = np.asarray([space.arch({"depth": d, "width": w}) for d in (1, 5) for w in (32, 512)])
    buckets = [{p.bucket_of(space, a) for a in archs} for p in (few, many)]
    assert len(buckets[0]) < len(buckets[1]) == 4
    assert "width" in few.report and "predicted compile" in many.report


def test_plan_does_not_read_the_clock(space, data):
    assert plan.choose(space, RECIPE, data, 64) == plan.choose(space, RECIPE, data, 64)


def test_evaluator_is_deterministic_and_names_its_metrics(space, arch, data):
    import jaxnas as nas

    evaluator = nas.evaluators.train_from_scratch(space, data, RECIPE, num_candidates=8)
    proposal = nas.Proposal(jnp.asarray(arch[:3]), jnp.ones(3))
    first, state = evaluator.evaluate(jax.random.key(0), (), proposal)
    second, _ = evaluator.evaluate(jax.random.key(0), state, proposal)
    np.testing.assert_array_equal(first.fitness, second.fitness)
    assert {"loss", "accuracy", "train_seconds", "parameters"} <= set(first.metrics)
    assert (np.asarray(first.cost) > 0).all()
