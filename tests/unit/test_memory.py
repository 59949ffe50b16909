"""Memory: predicted as the compiler finds it, kept to, and candidates refused that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import datasets, spaces
from jaxnas.training import Recipe, liveness, plan, population
from jaxnas.training.memory import HOPELESS, MIB, Job, fit, footprint

RECIPE = Recipe(epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def data():
    return datasets.wine(jax.random.key(0))


@pytest.fixture(scope="module")
def space():
    """Narrow ones take a hundredth of the memory of wide ones."""
    return spaces.mlp(3, depths=(2,), widths=(8, 256), optimizers=("adam",), dropouts=(0.0,))


def bytes_of(function, *shapes):
    return liveness.peak_bytes(jax.make_jaxpr(function)(*shapes).jaxpr)


SQUARE = jax.ShapeDtypeStruct((16, 16), jnp.float32)
SIZE = 16 * 16 * 4


def add_row(x, row):
    old = jax.lax.dynamic_slice(x, (row, 0), (1, 16))
    return jax.lax.dynamic_update_slice(x, old + 1.0, (row, 0))


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        (lambda x: jnp.sin(x) + 1.0, 1),  # fused
        (lambda x: (x @ x) @ x, 2),  # the inner product is an operand of the outer
        (lambda x: ((x @ x) @ x) @ x, 2),  # the first is free by then
        (lambda x: jnp.sin(x @ x), 1),  # in place
        (lambda x: jax.lax.fori_loop(0, 5, lambda i, y: y + x, x), 1),  # the state stays
        (lambda x: jax.lax.scan(lambda y, _: (y + x, y), x, None, 5)[1], 7),  # and five stacked
        (lambda x: add_row(x @ x, 3), 1 + 1 / 16),  # the row as it was, and the sum in place
        (lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: (x @ x) @ x, x), 2),
        (lambda x: jax.jit(lambda x: (x @ x) @ x)(x), 2),  # calls are inlined
    ],
)
def test_peak_of_small_programs(function, arrays):
    assert bytes_of(function, SQUARE) == pytest.approx(arrays * SIZE, abs=16)


def test_what_nobody_reads_takes_no_memory():
    def function(x):
        useless = x @ x  # noqa: F841
        return x + 1.0

    assert bytes_of(function, SQUARE) == SIZE


@pytest.mark.parametrize("batch_size", [16, None])
def test_prediction_agrees_with_the_compiler(data, batch_size):
    space = spaces.mlp(3, depths=(1, 3), widths=(256,), optimizers=("adam", "sgd"))
    job = Job(space, Recipe(epochs=1, batch_size=batch_size), data)
    buckets, slots = (space.full_bucket,), 4
    found = footprint(job, buckets, 1, slots).total(slots)
    compiled = job.program(buckets, 1).compiled_bytes(*job.shapes(1, slots))
    assert found == pytest.approx(compiled, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [64, 256])
def test_prediction_agrees_with_the_compiler_for_cells(batch_size):
    data = datasets.digits(jax.random.key(0), images=True)
    space = spaces.nasbench201(10, num_channels=8, num_cells=2, image_size=8, in_channels=1)
    job = Job(space, Recipe(epochs=1, batch_size=batch_size), data)
    buckets, slots = (space.full_bucket,), 4
    found = footprint(job, buckets, 1, slots).total(slots)
    compiled = job.program(buckets, 1).compiled_bytes(*job.shapes(1, slots))
    assert found == pytest.approx(compiled, rel=0.2)


def test_supernets_know_whether_candidates_are_mapped_over(data, space):
    cells = spaces.nasbench201(10, num_channels=4, num_cells=1, image_size=8, in_channels=1)
    for group_size in (1, 4):
        (trainee,) = Job(cells, RECIPE, data).program((cells.full_bucket,), group_size).trainees
        assert trainee.module.vmapped == (group_size > 1)
    Job(space, RECIPE, data).program((space.full_bucket,), 4)  # has no such attribute


def test_slots_are_linear_in_memory(data, space):
    job = Job(space, RECIPE, data, keep=True)
    few, many = (footprint(job, (space.full_bucket,), 1, slots) for slots in (2, 20))
    assert few.slot == many.slot > 4 * 256 * 256
    assert few.total(20) == pytest.approx(many.total(20), rel=0.05)
    assert few.fitting(few.total(7)) == 7


def test_memory_does_not_grow_with_the_population(data, space):
    few, many = (plan.choose(space, RECIPE, data, count) for count in (4, 100_000))
    assert few.chunk == many.chunk and few.memory_limit == many.memory_limit


def test_variables_that_do_not_fit_make_calls_smaller(data, space):
    """The variables of 128 wide candidates do not fit, those of a few do."""
    bucket = (space.full_bucket,)
    job = Job(space, RECIPE, data, keep=True)
    limit = footprint(job, bucket, 1, 128).total(3)
    found = fit(job, bucket, 1, 128, limit)
    assert 1 <= found.num_slots <= 3 and not found.reasons
    assert found.program.compiled_bytes(*job.shapes(1, found.num_slots)) <= limit


def exact(space, data, limit, arch):
    cells = {"width": ((0,), (1,))}
    return plan.choose(
        space, RECIPE, data, 3, arch=arch, cells=cells, num_devices=1, memory_limit=limit
    )


@pytest.fixture(scope="module")
def mixed(space):
    rows = [space.arch({"width": width, "learning_rate": 1e-3}) for width in (8, 256, 8)]
    return np.asarray(rows)


def test_a_candidate_that_does_not_fit_is_nan_with_a_reason(data, space, mixed):
    key, limit = jax.random.key(3), MIB // 2
    chosen = exact(space, data, limit, mixed)
    trained = population.train(space, mixed, data, RECIPE, key, chosen)
    assert np.isnan(trained.metrics["accuracy"]).tolist() == [False, True, False]
    assert np.isnan(trained.train_curve[1]).all() and trained.metrics["epochs"][1] == 0
    assert trained.metrics["train_seconds"][1] == 0.0
    assert [reason is None for reason in trained.reasons] == [True, False, True]
    assert "0.5 MiB may be used" in trained.reasons[1]
    assert "1 candidates not trained" in trained.report
    # The others are none the worse.
    plenty = population.train(
        space, mixed, data, RECIPE, key, exact(space, data, 1024 * MIB, mixed)
    )
    assert plenty.reasons == [None] * 3
    np.testing.assert_allclose(
        trained.metrics["loss"][[0, 2]], plenty.metrics["loss"][[0, 2]], rtol=1e-5
    )


def test_nothing_fits(data, space, mixed):
    chosen = exact(space, data, 1000, mixed)
    trained = population.train(
        space, mixed, data, RECIPE, jax.random.key(3), chosen, keep_variables=True
    )
    assert np.isnan(trained.metrics["loss"]).all() and all(trained.reasons)
    assert trained.variables == [None] * 3
    assert trained.compile_seconds == 0.0


def test_the_planner_prefers_to_lose_nobody(data, space, mixed):
    """One bucket would be quicker, but then nobody fits."""
    one = plan.choose(space, RECIPE, data, 3, arch=mixed, memory_limit=1024 * MIB)
    assert len(one.buckets(space)) == 1
    little = plan.choose(space, RECIPE, data, 3, arch=mixed, memory_limit=MIB // 2)
    assert len(little.buckets(space)) == 2


def test_the_evaluator_passes_nan_on(data, space, mixed):
    import jaxnas as nas

    chosen = exact(space, data, MIB // 2, mixed)
    evaluator = nas.evaluators.train_from_scratch(space, data, RECIPE, plan=chosen)
    proposal = nas.Proposal(jnp.asarray(mixed), jnp.ones(3))
    evaluation, _ = evaluator.evaluate(jax.random.key(3), (), proposal)
    assert np.isnan(evaluation.fitness).tolist() == [False, True, False]


def test_computing_again_takes_less_memory():
    """Predicted, which takes seconds, where compiling takes a minute; see also the slow test."""
    before, after = (cells_footprint(remat) for remat in (False, True))
    assert after.fixed < 0.9 * before.fixed


def cells_footprint(remat, measure=False):
    data = datasets.digits(jax.random.key(0), images=True)
    space = spaces.nasbench201(10, num_channels=4, num_cells=4, image_size=8, in_channels=1)
    job = Job(space, Recipe(epochs=1, batch_size=512), data, remat=remat)
    if measure:
        return job.program((space.full_bucket,), 1).compiled_bytes(*job.shapes(1, 2))
    return footprint(job, (space.full_bucket,), 1, 2)


@pytest.mark.slow
def test_computing_again_takes_less_memory_for_the_compiler_too():
    before, after = (cells_footprint(remat, measure=True) for remat in (False, True))
    assert after < 0.9 * before


def test_computing_again_is_chosen_where_nothing_else_fits():
    data = datasets.digits(jax.random.key(0), images=True)
    space = spaces.nasbench201(10, num_channels=4, num_cells=4, image_size=8, in_channels=1)
    recipe = Recipe(epochs=1, batch_size=512)
    before, after = (cells_footprint(remat) for remat in (False, True))
    limit = (before.total(2) + after.total(2)) // 2
    chosen = plan.choose(space, recipe, data, 2, memory_limit=limit, num_devices=1, chunk=2)
    assert chosen.remat and "again" in chosen.report
    assert not plan.choose(
        space, recipe, data, 2, memory_limit=limit, num_devices=1, chunk=2, remat=False
    ).remat
    assert limit < HOPELESS * before.total(2)
