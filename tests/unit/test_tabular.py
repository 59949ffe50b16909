import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import tables
from jaxnas.evaluators.tabular import tabular
from jaxnas.space import Decision
from jaxnas.tables.files import named_space

ROOT = Path(__file__).parents[2]
FILE = Path(os.environ.get("JAXNAS_DATA", ROOT.parent / "shared" / "data")) / "nasbench201.npz"
KEY = jax.random.key(0)

SPACE = named_space("five", (Decision("a", tuple(range(5))),))
NAN = np.nan
RUNS = np.array(  # 5 architectures, 2 fidelities, 3 seeds
    [
        [[0.10, 0.20, 0.30], [0.40, 0.50, 0.60]],
        [[0.11, NAN, NAN], [NAN, 0.51, 0.61]],
        [[0.12, 0.22, 0.32], [NAN, NAN, NAN]],
        [[0.13, 0.23, 0.33], [0.43, 0.53, 0.63]],
        [[0.14, 0.24, 0.34], [0.44, 0.54, 0.64]],
    ],
    np.float32,
)
SECONDS = np.array([3.0, 5.0, 1.0, 2.0, 4.0])


@pytest.fixture(scope="module")
def table():
    return tables.from_arrays(
        SPACE,
        {"valid_accuracy": RUNS, "loss": 1 - RUNS},
        seconds=SECONDS,
        columns={"params": [10, 20, 30, 40, 50], "test_accuracy": [0.9, 0.8, 0.7, 0.6, 0.5]},
        fidelities=(0.25, 1.0),
    )


def query(evaluator, archs, budget=1.0, key=KEY, state=None):
    arch = jnp.asarray(archs, jnp.int32)[:, None]
    budget = jnp.broadcast_to(jnp.float32(budget), len(archs))
    state = evaluator.init(key) if state is None else state
    return evaluator.evaluate(key, state, nas.Proposal(arch, budget))


# What is looked up


def test_mean_of_the_runs_there_are(table):
    evaluation, _ = query(tabular(table, seed="mean"), range(5))
    np.testing.assert_allclose(evaluation.fitness, [0.5, 0.56, NAN, 0.53, 0.54], rtol=1e-6)
    np.testing.assert_allclose(evaluation.cost, SECONDS)  # a failed run costs its time
    np.testing.assert_array_equal(evaluation.objectives[:, 0], evaluation.fitness)
    np.testing.assert_allclose(evaluation.metrics["loss"], 1 - evaluation.fitness, rtol=1e-6)
    assert set(evaluation.metrics) == {"valid_accuracy", "loss", "params", "test_accuracy"}


def test_random_seeds_are_uniform_over_the_runs_there_are(table):
    evaluation, _ = query(tabular(table), [0, 1] * 3000)
    fitness = np.asarray(evaluation.fitness).reshape(3000, 2)
    for column, runs in zip(fitness.T, ([0.4, 0.5, 0.6], [0.51, 0.61]), strict=True):
        values, counts = np.unique(column, return_counts=True)
        np.testing.assert_allclose(values, runs, rtol=1e-6)
        # Five standard deviations of a binomial count.
        share = 1 / len(runs)
        assert (np.abs(counts - 3000 * share) < 5 * np.sqrt(3000 * share * (1 - share))).all()


def test_all_metrics_come_from_one_run(table):
    evaluation, _ = query(tabular(table), [0, 3, 4] * 50)
    np.testing.assert_allclose(evaluation.metrics["loss"], 1 - evaluation.fitness, rtol=1e-6)


def test_noise_is_set_by_the_key_and_does_not_depend_on_the_company(table):
    evaluator = tabular(table)
    many = query(evaluator, [0] * 20)[0].fitness
    np.testing.assert_array_equal(many[:7], query(evaluator, [0] * 7)[0].fitness)
    assert (many != query(evaluator, [0] * 20, key=jax.random.key(1))[0].fitness).any()


@pytest.mark.parametrize(("budget", "scale"), [(0.25, 1.0), (1.0, 0.25), (0.9, 1.0), (0.01, 1.0)])
def test_budget_buys_the_fidelity_at_or_below_it(table, budget, scale):
    evaluation, _ = query(tabular(table, seed="mean", max_fidelity=scale), range(5), budget)
    np.testing.assert_allclose(evaluation.fitness, [0.2, 0.11, 0.22, 0.23, 0.24], rtol=1e-6)
    np.testing.assert_allclose(evaluation.cost, SECONDS / 4)
    np.testing.assert_allclose(evaluation.metrics["test_accuracy"][0], 0.9)


def test_signs_of_metric_and_objectives(table):
    names = ("valid_accuracy", "-params", "test_accuracy")
    evaluator = tabular(table, metric="-loss", seed="mean", objectives=names, report=("loss",))
    evaluation, _ = query(evaluator, [0, 4])
    np.testing.assert_allclose(evaluation.fitness, [-0.5, -0.46], rtol=1e-6)
    expected = [[0.5, -10, 0.9], [0.54, -50, 0.5]]
    np.testing.assert_allclose(evaluation.objectives, expected, rtol=1e-6)
    assert list(evaluation.metrics) == ["loss"] and (evaluation.metrics["loss"] > 0).all()


def test_a_column_as_fitness_has_no_noise(table):
    evaluation, _ = query(tabular(table, metric="test_accuracy"), range(5), 0.25)
    np.testing.assert_allclose(evaluation.fitness, [0.9, 0.8, 0.7, 0.6, 0.5], rtol=1e-6)


def test_architectures_without_a_row_fail_and_cost_nothing():
    small = tables.from_arrays(SPACE, {"valid_accuracy": [0.1, 0.2]}, archs=[[3], [1]])
    evaluation, clock = query(tabular(small, time_limit=9.0), [3, 0, 1, 4])
    np.testing.assert_allclose(evaluation.fitness, [0.1, NAN, 0.2, NAN], rtol=1e-6)
    np.testing.assert_allclose(evaluation.cost, [1, 0, 1, 0])
    assert clock.elapsed == 2.0 and not clock.stopped


# The clock. Full training of architectures 0 to 4 costs 3, 5, 1, 2, 4 seconds.


@pytest.mark.parametrize(
    ("stop", "limit", "archs", "made", "elapsed"),
    [
        ("before", 7.0, [0, 1, 3, 3], [1, 0, 0, 0], 3.0),  # 3 + 5 exceeds; the cheap ones are late
        ("after", 7.0, [0, 1, 3, 3], [1, 1, 0, 0], 8.0),  # the second ends at 8 and is the last
        ("before", 8.0, [0, 1, 3, 3], [1, 1, 0, 0], 8.0),  # to end at the limit is allowed
        ("after", 8.0, [0, 1, 3, 3], [1, 1, 0, 0], 8.0),  # to start at the limit is not
        ("before", 2.0, [0, 3], [0, 0], 0.0),
        ("after", 2.0, [0, 3], [1, 0], 3.0),
        ("before", 99.0, [0, 1, 3, 3], [1, 1, 1, 1], 12.0),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_stop_rules_by_hand(table, stop, limit, archs, made, elapsed, batch_size):
    evaluator = tabular(table, seed="mean", time_limit=limit, stop=stop)
    state, parts = evaluator.init(KEY), []
    for start in range(0, len(archs), batch_size):
        part, state = query(evaluator, archs[start : start + batch_size], state=state)
        parts.append(part)
    found = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    made = np.asarray(made, bool)
    for values in (found.fitness, found.objectives[:, 0], *found.metrics.values()):
        np.testing.assert_array_equal(np.isnan(values), ~made)
    np.testing.assert_allclose(found.cost, np.where(made, SECONDS[archs], 0.0))
    assert state.elapsed == elapsed
    again, after = query(evaluator, [2], state=state)  # one second: fits, but the search is over
    if not made.all():
        assert np.isnan(again.fitness).all() and after.elapsed == elapsed


def test_the_clock_runs_without_a_limit(table):
    evaluation, clock = query(tabular(table), [0, 1], 0.25)
    assert clock.elapsed == 2.0 and np.isfinite(evaluation.fitness).all()


def test_nothing_after_the_stop_changes_the_incumbent(table):
    strategy = nas.strategies.random_search(SPACE, batch_size=2)
    evaluator = tabular(table, time_limit=20.0)
    _, history = nas.search(KEY, strategy, evaluator, 30)
    evaluation = history.evaluation
    assert 16.0 <= evaluation.cost.sum() <= 20.0
    last = int(np.flatnonzero(np.asarray(evaluation.cost).sum(axis=1))[-1])
    curve = nas.incumbent_curve(history)
    assert (curve[last:] == curve[last]).all() and np.isfinite(curve[-1])


# Contract, transformations, program


def test_contract(table):
    nas.testing.check_evaluator(tabular(table), SPACE)
    limited = tabular(table, time_limit=4.0, stop="after", objectives=("loss", "-params"))
    nas.testing.check_evaluator(limited, SPACE)


def test_limits_and_fidelities_may_be_swept(table):
    strategy = nas.strategies.random_search(SPACE, batch_size=1)

    def elapsed(limit, fidelity):
        evaluator = tabular(table, time_limit=limit, stop="after", max_fidelity=fidelity)
        return nas.search(KEY, strategy, evaluator, 40)[0].evaluator.elapsed

    limits, fidelities = jnp.array([10.0, 10.0, 30.0]), jnp.array([1.0, 0.25, 1.0])
    found = jax.jit(jax.vmap(elapsed))(limits, fidelities)
    assert ((found >= limits) & (found < limits + 5.0 * fidelities)).all()


def test_tables_may_be_swept(table):
    other = tables.from_arrays(
        SPACE,
        {name: 2 * np.asarray(v) for name, v in table.metrics.items()},
        seconds=SECONDS,
        columns=table.columns,
        fidelities=table.fidelities,
    )
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), table, other)
    found = jax.jit(jax.vmap(lambda t: query(tabular(t, seed="mean"), [0, 4])[0].fitness))(both)
    np.testing.assert_allclose(found, [[0.5, 0.54], [1.0, 1.08]], rtol=1e-6)


def largest_constant(compiled):
    shapes = re.findall(r"= \w+\[([\d,]+)\][^=]*? constant\(", compiled.as_text())
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


def test_many_searches_share_one_table_that_is_no_constant():
    space = named_space("wide", tuple(Decision(f"d{i}", tuple(range(10))) for i in range(4)))
    runs = np.random.default_rng(0).random((10_000, 10, 5))
    order = np.random.default_rng(1).permutation(10_000)
    archs = np.stack(np.unravel_index(order, (10,) * 4), axis=1)
    fidelities = np.arange(1, 11) / 10
    large = tables.from_arrays(space, {"valid_accuracy": runs}, archs=archs, fidelities=fidelities)
    strategy = nas.strategies.random_search(space, batch_size=1)
    keys = jax.random.split(KEY, 512)

    def search(table, key):
        states, history = nas.search(key, strategy, tabular(table, time_limit=5.0), 10)
        return states, history.evaluation.fitness

    def searches(table, keys):
        return jax.vmap(lambda key: search(table, key))(keys)

    compiled = jax.jit(searches).lower(large, keys).compile()
    memory = compiled.memory_analysis()
    table_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(large))
    assert largest_constant(compiled) < 1000
    assert memory.argument_size_in_bytes > large.metrics["valid_accuracy"].nbytes
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 0.2 * table_bytes
    closed = jax.jit(lambda keys: searches(large, keys)).lower(keys).compile()
    assert largest_constant(closed) >= 500_000  # what the arrangement is for
    states, fitness = compiled(large, keys)
    assert jnp.isfinite(fitness).sum(axis=(1, 2)).tolist() == [5] * 512
    assert all(leaf.size == 512 for leaf in jax.tree.leaves(states.evaluator))


def test_one_program_serves_tables_of_one_space(table):
    other = tables.from_arrays(
        SPACE,
        {name: np.asarray(v) + 1 for name, v in table.metrics.items()},
        columns=table.columns,
        fidelities=table.fidelities,
    )
    ask = nas.testing.assert_traced_once(lambda t: query(tabular(t), [0, 1])[0].fitness)
    assert (ask(other) > ask(table)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "accuracy"}, r"metric must be one of \['valid_accuracy', 'loss'"),
        ({"objectives": ("-size",)}, "objectives must be one of"),
        ({"report": ("size",)}, "report must be one of"),
        ({"seed": "first"}, "seed must be one of"),
        ({"stop": "never"}, "stop must be one of"),
        ({"max_fidelity": 12}, "max_fidelity must be in"),
        ({"time_limit": -1.0}, "time_limit must be at least"),
    ],
)
def test_bad_options_are_named(table, options, message):
    with pytest.raises(ValueError, match=message):
        tabular(table, **options)


# The published protocol, against simulations in NumPy of 500 runs on the same file


@pytest.mark.skipif(not FILE.is_file(), reason="no nasbench201.npz in JAXNAS_DATA")
@pytest.mark.parametrize(
    ("name", "options", "evaluations", "test"),
    [
        ("random_search", {}, 108.7, 93.75),
        pytest.param(
            "regularized_evolution",
            {"population_size": 10, "tournament_size": 3},
            102.6,
            93.93,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_searches_of_the_paper(name, options, evaluations, test):
    table = tables.nasbench201("cifar10", FILE)
    strategy = nas.strategies.ALL[name](table.space, batch_size=1, **options)

    def search(table, key):
        reported = ("test_accuracy",)
        evaluator = tabular(table, max_fidelity=12 / 200, time_limit=12_000.0, report=reported)
        return nas.search(key, strategy, evaluator, 250)[1].evaluation

    keys = jax.random.split(KEY, 512)
    found = jax.jit(lambda t, keys: jax.vmap(lambda key: search(t, key))(keys))(table, keys)
    fitness = np.asarray(found.fitness)[..., 0]
    made = np.isfinite(fitness)
    assert not made[:, -1].any()
    np.testing.assert_allclose(made.sum(axis=1).mean(), evaluations, rtol=0.015)
    best = np.nanargmax(fitness, axis=1)
    tests = 100 * np.asarray(found.metrics["test_accuracy"])[np.arange(512), best, 0]
    np.testing.assert_allclose(tests.mean(), test, atol=0.06)
    total = np.asarray(found.cost).sum(axis=(1, 2))
    assert (total <= 12_000.0 + 0.01).all() and total.mean() > 11_900.0
