"""The numbers behind the report, against independent calculations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

import jaxnas as nas
from jaxnas import space
from jaxnas.report.analysis import by_strategy, curve, gain, t_interval, traces
from jaxnas.report.architectures import Decision, decisions, is_active, values
from jaxnas.report.axes import looks, tick_labels, ticks
from jaxnas.report.blocks import flat
from jaxnas.report.importance import choice_stats, shared_stats
from jaxnas.report.markup import DASH, MINUS, number
from tests.unit.report_pages import CONFIG, best_after, make_rows, of_arm


def test_unequal_budgets_are_cut_at_the_shortest_search():
    rows = [row for row in make_rows(fail_rate=0.0) if row.arm != "local-1" or row.step < 3]
    groups = by_strategy(traces(rows))
    compared = gain(groups["local"], groups["random_search"], "evaluations")
    assert compared.used == 12
    local = [best_after(of_arm(rows, f"local-{s}"), 12) for s in range(3)]
    random = [best_after(of_arm(rows, f"random_search-{s}"), 12) for s in range(3)]
    assert compared.mean == pytest.approx(np.mean(local))
    assert compared.baseline == pytest.approx(np.mean(random))


def test_curve_against_seconds_is_the_mean_of_what_each_seed_had_by_then():
    rows = [row for row in make_rows(num_seeds=5) if row.strategy == "evolution"]
    found = curve(traces(rows), "seconds")
    arms = [of_arm(rows, f"evolution-{s}") for s in range(5)]
    for x, mean, low, high in zip(found.x, found.mean, found.low, found.high, strict=True):
        best = []
        for arm in arms:
            spent = np.cumsum([row.cost for row in arm])
            best.append(best_after(arm, int((spent <= x + 1e-9).sum())))
        expected = scipy_stats.t.interval(0.95, 4, np.mean(best), scipy_stats.sem(best))
        assert mean == pytest.approx(np.mean(best))
        if np.ptp(best) > 0:
            np.testing.assert_allclose((low, high), expected)
    assert found.x[-1] == pytest.approx(min(sum(row.cost for row in arm) for arm in arms))
    assert len(found.tails) == 4  # all seeds but the one that spent least


def test_t_interval_agrees_with_scipy():
    samples = np.random.default_rng(0).normal(size=(7, 3))
    expected = scipy_stats.t.interval(0.95, 6, samples.mean(0), scipy_stats.sem(samples))
    np.testing.assert_allclose(t_interval(samples), expected)


def test_activity_agrees_with_the_space():
    tested = nas.testing.conditional_space()
    entries = [{"name": d.name, "choices": d.choices, "active_if": d.active_if}
               for d in tested.decisions]  # fmt: skip
    read = decisions({"space": {"decisions": entries}}, tested.num_decisions)
    every = np.stack(np.meshgrid(*map(np.arange, tested.num_choices)), -1).reshape(-1, 5)
    picked = every[:: max(1, len(every) // 25)]
    expected = [np.asarray(space.is_active(tested, arch)) for arch in picked]
    np.testing.assert_array_equal(is_active(read, picked), expected)
    for arch in picked:
        told = {d.name: v for d, v in zip(read, values(read, arch), strict=True) if v != DASH}
        assert told == {name: str(value) for name, value in tested.describe(arch).items()}


def test_choice_statistics_count_active_decisions_only():
    read = decisions(CONFIG, 4)
    rows = make_rows()
    found = {entry.title: entry for entry in choice_stats(read, rows)}
    on = [row for row in rows if row.arch[0] > 0 and row.fitness == row.fitness]
    for choice in range(3):
        fitness = np.array([row.fitness for row in on if row.arch[2] == choice])
        expected = scipy_stats.t.interval(
            0.95, len(fitness) - 1, fitness.mean(), scipy_stats.sem(fitness)
        )
        entry = found["op_2"]
        assert entry.count[choice] == len(fitness)
        assert entry.mean[choice] == pytest.approx(fitness.mean())
        np.testing.assert_allclose((entry.low[choice], entry.high[choice]), expected)
    (both,) = shared_stats(read, rows)
    assert both.title == "op_1, op_2"
    num_all = sum(row.fitness == row.fitness for row in rows)
    assert both.count.sum() == num_all + len(on)


def test_explained_variance_is_one_for_the_cause_and_near_zero_for_the_rest():
    read = tuple(Decision(name, ("x", "y", "z")) for name in ("cause", "noise"))
    rng = np.random.default_rng(0)
    arch = [tuple(rng.integers(3, size=2).tolist()) for _ in range(600)]
    base = make_rows(("a",), 1, 600)
    rows = [r._replace(arch=a, fitness=float(a[0])) for r, a in zip(base, arch, strict=True)]
    found = choice_stats(read, rows)
    assert [entry.title for entry in found] == ["cause", "noise"]
    assert found[0].share == pytest.approx(1.0)
    assert found[1].share < 0.02
    # One diverged candidate must not hide the cause.
    rows[0] = rows[0]._replace(fitness=-1e30)
    assert choice_stats(read, rows)[0].share < 0.1
    assert choice_stats(read, rows, lowest=0.0)[0].share > 0.95


def test_strategies_look_different():
    names = [f"strategy {i}" for i in range(20)]
    found = looks([*names, "random_search"], "random_search")
    assert len({(look.colour, look.dash) for look in found.values()}) == 21


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(3, 6), st.booleans())
def test_ticks_are_few_inside_and_told_apart(low, size, num, whole):
    high = low + size + abs(low) * 1e-6
    found = ticks(low, high, num, whole=whole)
    margin = (high - low) * 1e-6
    assert all(low - margin <= tick <= high + margin for tick in found)
    assert (whole or len(found) >= 1) and len(found) <= 2 * num
    assert len(set(tick_labels(found))) == len(found)


@given(st.floats(-1e300, 1e300))
def test_numbers_keep_four_digits(value):
    read = float(number(value).replace(",", "").replace(MINUS, "-"))
    assert read == pytest.approx(value, rel=5.1e-4)


def test_flat_keeps_every_leaf():
    nested = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}
    assert flat(nested) == [("a.b", 1), ("a.c.d", [1, 2]), ("e", None)]
