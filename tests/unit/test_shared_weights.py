"""The evaluator of a supernet's weights scores what the stand-alone network would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import counter
from jaxnas.evaluators.shared_weights import recalibrate, shared_weights
from jaxnas.training.metrics import evaluate as scores_on
from tests.unit import path_problems

KEY = jax.random.key(0)
ARCHS = jnp.array([[3, 0, 2, 0, 4, 3], [1, 3, 0, 2, 0, 1], [0, 0, 0, 0, 0, 0]], jnp.int32)
NUM_BATCHES, BATCH_SIZE = 3, 16


@pytest.fixture(scope="module")
def data():
    digits = nas.datasets.digits(KEY, images=True)
    train, valid = (
        type(part)(part.x[:num], part.y[:num])
        for part, num in ((digits.train, 96), (digits.valid, 40))
    )
    return nas.Data("digits", digits.task, train, valid, valid)


@pytest.fixture(scope="module")
def space():
    return nas.spaces.nasbench201(num_channels=4, num_cells=1, image_size=8, in_channels=1)


@pytest.fixture(scope="module")
def variables(space, data):
    """Made-up weights, with statistics that no candidate would have."""
    module = space.supernet(space.full_bucket)
    first = jax.jit(lambda key: module.init(key, data.train.x[:1], ARCHS[0], train=False))(KEY)
    noise = np.random.default_rng(0)
    return {
        "params": jax.tree.map(
            lambda leaf: leaf + 0.3 * noise.normal(size=leaf.shape).astype(np.float32),
            first["params"],
        ),
        "batch_stats": jax.tree.map(
            lambda leaf: leaf + noise.uniform(size=leaf.shape).astype(np.float32),
            first["batch_stats"],
        ),
    }


@pytest.fixture(scope="module")
def results(space, variables, data):
    """Evaluations without and with recalibration."""

    def both(variables):
        proposal = nas.Proposal(ARCHS, jnp.ones(len(ARCHS)))
        for num_batches in (0, NUM_BATCHES):
            evaluator = shared_weights(
                space,
                variables,
                data,
                num_recalibration_batches=num_batches,
                batch_size=BATCH_SIZE,
            )
            yield evaluator.evaluate(KEY, (), proposal)[0]

    return jax.jit(lambda variables: tuple(both(variables)))(variables)


def alone(space, variables, arch):
    """The stand-alone network and its variables."""
    arch = np.asarray(arch)
    return space.network(arch), space.supernet(space.full_bucket).extract(variables, arch)


def check_equal(evaluation, row, module, own, data):
    scores = jax.jit(
        lambda own: scores_on(lambda x: module.apply(own, x, train=False), [data.valid], data.task)[
            0
        ]
    )(own)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(evaluation.metrics[name][row], scores[name], rtol=2e-4)
    assert evaluation.fitness[row] == evaluation.metrics["accuracy"][row]


@pytest.mark.parametrize("row", range(len(ARCHS)))
def test_scores_are_those_of_the_extracted_network(results, space, variables, data, row):
    module, own = alone(space, variables, ARCHS[row])
    check_equal(results[0], row, module, own, data)


@pytest.mark.parametrize("row", range(len(ARCHS)))
def test_recalibrated_statistics_are_means_over_batches(results, space, variables, data, row):
    module, own = alone(space, variables, ARCHS[row])
    order = counter.permutation(jnp.zeros(2, jnp.uint32), len(data.train.y))
    batches = data.train.x[order[: NUM_BATCHES * BATCH_SIZE]]

    @jax.jit
    def moved(x):
        return module.apply(own, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    found = [moved(x) for x in batches.reshape(NUM_BATCHES, BATCH_SIZE, *batches.shape[1:])]

    def mean(old, *new):
        # The layers keep 0.9 of a running average.
        return np.mean([(np.asarray(n) - 0.9 * np.asarray(old)) / 0.1 for n in new], axis=0)

    statistics = jax.tree.map(mean, own["batch_stats"], *found)
    check_equal(results[1], row, module, {**own, "batch_stats": statistics}, data)
    changed = np.asarray(results[0].metrics["loss"])[row] - results[1].metrics["loss"][row]
    assert abs(changed) > 1e-4


def test_recalibration_works_for_any_momentum_and_leaves_the_rest():
    def moved(statistics, x):
        mean, var = statistics["mean"], statistics["var"]
        return {
            "mean": 0.99 * mean + 0.01 * x.mean(axis=0),
            "var": 0.2 * var + 0.8 * x.var(axis=0),
            "unused": statistics["unused"],
        }

    batches = 10.0 * jax.random.normal(KEY, (5, 16, 3)) + 100.0
    old = {"mean": jnp.full(3, 7.0), "var": jnp.full(3, 7.0), "unused": jnp.full(3, 7.0)}
    found = recalibrate(moved, old, batches)
    np.testing.assert_allclose(found["mean"], batches.mean(axis=(0, 1)), rtol=1e-3)
    np.testing.assert_allclose(found["var"], batches.var(axis=1).mean(axis=0), rtol=1e-4)
    np.testing.assert_array_equal(found["unused"], old["unused"])


# --- on a supernet that compiles fast ---


@pytest.fixture(scope="module")
def tiny():
    """Space, variables and data."""
    space, data = path_problems.tiny_space(), path_problems.blobs()
    module = space.supernet(space.full_bucket)
    arch = jnp.zeros(path_problems.NUM_ROWS, jnp.int32)
    return space, dict(module.init(KEY, data.train.x, arch, train=False)), data


def proposal_of(space, num):
    arch = jax.vmap(lambda key: nas.space.sample(key, space))(jax.random.split(KEY, num))
    return nas.Proposal(arch, jnp.ones(num))


def test_contract(tiny):
    evaluator = shared_weights(*tiny, num_recalibration_batches=2, batch_size=8)
    nas.testing.check_evaluator(evaluator, tiny[0])


def test_fitness_depends_on_the_architecture_alone(tiny):
    evaluator = shared_weights(*tiny, num_recalibration_batches=2, batch_size=8)
    proposal = proposal_of(tiny[0], 5)
    evaluate = jax.jit(evaluator.evaluate)
    first = evaluate(KEY, (), proposal)[0].metrics["loss"]
    reversed_ = nas.Proposal(proposal.arch[::-1], proposal.budget / 2)
    second = evaluate(jax.random.key(9), (), reversed_)[0].metrics["loss"]
    np.testing.assert_allclose(first, second[::-1], rtol=1e-6)
    assert len(np.unique(np.asarray(first))) > 1


@pytest.mark.parametrize("num", [4, 5])
def test_two_devices_find_what_one_finds(tiny, num):
    proposal, found = proposal_of(tiny[0], num), []
    for num_devices in (1, 2):
        evaluator = shared_weights(
            *tiny, num_recalibration_batches=2, batch_size=8, num_devices=num_devices
        )
        found.append(jax.jit(evaluator.evaluate)(KEY, (), proposal)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)


def test_measures_are_metrics_and_objectives(tiny):
    space = tiny[0]
    evaluator = shared_weights(
        *tiny,
        num_recalibration_batches=0,
        measures={"size": lambda arch: (arch == 2).sum()},
        objectives=("accuracy", "-size"),
        cost=3.0,
    )
    proposal = proposal_of(space, 6)
    evaluation, _ = jax.jit(evaluator.evaluate)(KEY, (), proposal)
    size = np.asarray((proposal.arch == 2).sum(axis=1))
    np.testing.assert_array_equal(evaluation.metrics["size"], size)
    np.testing.assert_array_equal(evaluation.objectives[:, 0], evaluation.fitness)
    np.testing.assert_array_equal(evaluation.objectives[:, 1], -size)
    assert evaluation.cost.tolist() == [3.0] * 6


def test_what_is_not_finite_is_a_failure(tiny):
    space, variables, data = tiny
    broken = jax.tree.map(lambda leaf: leaf, variables)
    broken["params"]["row_0"]["dense"]["dense"]["kernel"] = jnp.full((4, 4), jnp.nan)
    evaluator = shared_weights(space, broken, data, num_recalibration_batches=2, batch_size=8)
    arch = jnp.array([[2, 0, 0], [1, 2, 2]], jnp.int32)
    evaluation, _ = jax.jit(evaluator.evaluate)(KEY, (), nas.Proposal(arch, jnp.ones(2)))
    assert np.isnan(evaluation.fitness).tolist() == [True, False]
    assert np.isnan(evaluation.metrics["loss"]).tolist() == [True, False]


def test_a_search_runs_inside_one_program(tiny):
    space, variables, data = tiny
    strategy = nas.strategies.regularized_evolution(space, batch_size=2, population_size=4)

    def run(variables, key):
        evaluator = shared_weights(space, variables, data, num_recalibration_batches=0)
        _, history = nas.search(key, strategy, evaluator, 10)
        return nas.best(history)

    arch, fitness = jax.jit(run)(variables, KEY)
    assert nas.space.is_valid(space, arch)
    assert 0.0 <= float(fitness) <= 1.0


def test_a_regression_is_scored_by_r2():
    data = nas.datasets.diabetes(KEY)
    space = nas.spaces.mlp(1, depths=(1, 2), widths=(4, 8), optimizers=(), learning_rates=())
    module = space.supernet(space.full_bucket)
    arch = jnp.zeros(space.num_decisions, jnp.int32)
    variables = module.init(KEY, data.train.x, arch, train=False)
    evaluator = shared_weights(space, variables, data)
    evaluation, _ = jax.jit(evaluator.evaluate)(KEY, (), nas.Proposal(arch[None], jnp.ones(1)))
    own = {"params": variables["params"]}
    expected = scores_on(
        lambda x: module.apply(own, x, arch, train=False), [data.valid], data.task
    )[0]["r2"]
    np.testing.assert_allclose(evaluation.fitness[0], expected, rtol=1e-5)


def test_rejects_what_it_cannot_do(tiny):
    space, variables, data = tiny
    with pytest.raises(ValueError, match="has no supernet"):
        shared_weights(nas.testing.tiny_space(), variables, data)
    with pytest.raises(ValueError, match="variables must have the collection 'params'"):
        shared_weights(space, {}, data)
    with pytest.raises(ValueError, match="num_recalibration_batches = 9 of 8 rows are more than"):
        shared_weights(space, variables, data, num_recalibration_batches=9, batch_size=8)
    with pytest.raises(ValueError, match="objectives has '-flops'; names must be in"):
        shared_weights(space, variables, data, batch_size=8, objectives=["-flops"])
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        shared_weights(space, variables, data, batch_size=0)
