"""Successive halving, Hyperband and the timetable behind them, against loops in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas.strategies import _brackets
from jaxnas.strategies.hyperband import brackets as hyperband_brackets
from jaxnas.strategies.hyperband import hyperband
from jaxnas.strategies.successive_halving import successive_halving
from tests.unit.halving_problem import batches, check_one_after_the_other, space


def test_brackets_are_those_of_the_papers_table_1():
    table = [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(34, 3), (11, 9), (3, 27), (1, 81)],
        [(15, 9), (5, 27), (1, 81)],
        [(8, 27), (2, 81)],
        [(5, 81)],
    ]
    found = hyperband_brackets(3, 1 / 81)
    assert [bracket.sizes for bracket in found] == [tuple(n for n, _ in row) for row in table]
    for bracket, row in zip(found, table, strict=True):
        np.testing.assert_allclose(bracket.budgets, [r / 81 for _, r in row])


def test_brackets_of_bohb_and_dehb_round_down_first():
    sizes = [bracket.sizes for bracket in _brackets.balanced_brackets(3, 1 / 81)]
    assert sizes == [(81, 27, 9, 3, 1), (27, 9, 3, 1), (9, 3, 1), (6, 2), (5,)]


@pytest.mark.parametrize(
    ("eta", "smallest", "num"),
    [(2, 0.1, 4), (2, 1.0, 1), (4, 12 / 200, 3), (10, 0.001, 4)]
    + [(3, 1 / 3**k, k + 1) for k in range(7)],
)
def test_ladder_ends_at_full_training_and_has_every_power_allowed(eta, smallest, num):
    budgets = _brackets.ladder(eta, smallest)
    assert len(budgets) == num
    np.testing.assert_allclose(budgets, [eta ** (k + 1.0 - num) for k in range(num)])


def test_one_at_a_time_hyperband_is_algorithm_1():
    strategy = hyperband(space(), batch_size=1, min_budget=1 / 9)
    results = [place for (place,) in batches(strategy, 70)]
    assert check_one_after_the_other(results, hyperband_brackets(3, 1 / 9)) == 18


def test_one_at_a_time_successive_halving_is_the_papers_loop():
    strategy = successive_halving(space(), batch_size=1, num_candidates=11, eta=2, min_budget=0.2)
    results = [place for (place,) in batches(strategy, 60)]
    assert check_one_after_the_other(results, [((11, 5, 2), (0.25, 0.5, 1.0))]) == 9


def test_failed_candidates_are_replaced_by_draws_rather_than_promoted():
    strategy = hyperband(space(), batch_size=1, min_budget=1 / 9)
    results = [place for (place,) in batches(strategy, 70, failures=0.8)]
    check_one_after_the_other(results, hyperband_brackets(3, 1 / 9))
    failed = {(arch, budget) for arch, budget, fitness in results if fitness == -np.inf}
    again = sum((arch, budget / 3) in failed for arch, budget, _ in results if budget > 0.2)
    assert again <= 1  # by accident


def check_rules(steps, brackets):
    """Replays the rules of `_brackets`, place by place; returns how many brackets overlap."""
    runs, started, most = [], 0, 0
    for step in steps:
        for run in runs:
            bracket = brackets[run["bracket"]]
            if len(run["results"]) == bracket.sizes[run["rung"]]:
                run["ranked"] = sorted(run["results"], key=lambda result: -result[2])
                run["rung"], run["results"] = run["rung"] + 1, []
        runs = [r for r in runs if r["rung"] < len(brackets[r["bracket"]].sizes)]
        for arch, budget, fitness in step:
            free = [r for r in runs if len(r["results"]) < brackets[r["bracket"]].sizes[r["rung"]]]
            if not free:
                free = [{"bracket": started % len(brackets), "rung": 0, "results": []}]
                runs += free
                started += 1
            run = free[0]
            np.testing.assert_allclose(budget, brackets[run["bracket"]].budgets[run["rung"]], 1e-6)
            if run["rung"] > 0:
                assert arch == run["ranked"][len(run["results"])][0]
            run["results"].append((arch, budget, fitness))
        most = max(most, len(runs))
    return most


@pytest.mark.parametrize("batch_size", [4, 11])
def test_batches_follow_the_rules_and_never_wait(batch_size):
    strategy = hyperband(space(), batch_size=batch_size, min_budget=1 / 9)
    assert check_rules(batches(strategy, 40), hyperband_brackets(3, 1 / 9)) > 1


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 40])
@pytest.mark.parametrize("eta", [2, 3, 5])
def test_timetable_loops_and_keeps_rungs_apart(eta, batch_size):
    brackets = _brackets.balanced_brackets(eta, 0.04)
    schedule = _brackets.make_schedule(brackets, batch_size)
    jobs = schedule.jobs
    assert set(jobs.budget.ravel().tolist()) <= set(np.float32(schedule.budgets).tolist())
    np.testing.assert_array_equal(np.float32(schedule.budgets)[jobs.level], jobs.budget)
    steps = [[_brackets.Jobs(*job) for job in zip(*step, strict=True)]
             for step in zip(*(field.tolist() for field in jobs), strict=True)]  # fmt: skip
    written = {}
    for step in steps + steps[schedule.loop_start :]:
        for job in step:  # everything that a promotion reads is there, and of the right rung
            for rank in range(job.parent_size):
                assert written[job.parent_row, rank] == (job.bracket, job.level - 1)
        for job in step:
            written[job.row, job.rank] = (job.bracket, job.level)
    counts = np.zeros(len(brackets), int)
    looped = jax.tree.map(lambda table: table[schedule.loop_start :].ravel(), jobs)
    np.add.at(counts, looped.bracket, 1)
    total = [sum(bracket.sizes) for bracket in brackets]
    assert len(set((counts / total).tolist())) == 1  # the loop holds whole rounds
    assert not looped.first_round.any()


def test_position_loops():
    schedule = _brackets.make_schedule(_brackets.balanced_brackets(3, 1 / 3), 2)
    num_steps = len(schedule.jobs.budget)
    assert int(_brackets.next_position(schedule, jnp.int32(0))) == 1
    last = jnp.int32(num_steps - 1)
    assert int(_brackets.next_position(schedule, last)) == schedule.loop_start


@pytest.mark.slow
def test_contract():
    conditional = nas.testing.conditional_space()
    strategy = hyperband(conditional, batch_size=5, min_budget=1 / 9)
    nas.testing.check_strategy(strategy, conditional, eager=False)


def test_without_halving_it_is_random_search_with_full_training():
    strategy = hyperband(space(), batch_size=3, min_budget=1.0)
    steps = batches(strategy, 8)
    assert {budget for step in steps for _, budget, _ in step} == {1.0}
    assert len({arch for step in steps for arch, _, _ in step}) > 20


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (hyperband, {"batch_size": 0}, "batch_size must be"),
        (hyperband, {"eta": 1}, "eta must be"),
        (hyperband, {"eta": 2.5}, "eta must be"),
        (hyperband, {"min_budget": 0.0}, "min_budget must be"),
        (hyperband, {"min_budget": 1.5}, "min_budget must be"),
        (hyperband, {"min_budget": float("nan")}, "min_budget must be"),
        (successive_halving, {"num_candidates": 0}, "num_candidates must be"),
        (successive_halving, {"num_candidates": 26}, "at least 27"),
    ],
)
def test_bad_hyperparameters_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(space(), **options)
