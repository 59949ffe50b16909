"""Comparisons on a table: what is computed, what is written, what is refused."""

import json

import jax
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import cli
from jaxnas.compare import compare, interval, ranked, table_of_results
from jaxnas.report import comparison as page


@pytest.fixture(scope="module")
def table():
    """24 architectures at two fidelities; the test score orders them like validation."""
    space = nas.testing.tiny_space()
    valid = np.linspace(0.0, 0.9, 24)
    return nas.tables.from_arrays(
        space,
        {"valid_accuracy": np.stack([valid / 2, valid], axis=1)},
        columns={"test_accuracy": valid - 0.1, "params": 10.0 * np.arange(24)},
        fidelities=(0.5, 1.0),
        seconds=np.linspace(1.0, 2.0, 24),
    )


@pytest.fixture(scope="module")
def found(table):
    """Five seeds of two strategies; the batch does not divide the evaluations."""
    strategies = {
        "random_search": nas.strategies.random_search(table.space, batch_size=4),
        "evolution": nas.strategies.regularized_evolution(
            table.space, batch_size=4, population_size=4, tournament_size=4
        ),
    }
    return compare(table, strategies, num_evaluations=30, num_seeds=5, seeds_per_call=2)


def test_seed_is_the_search_with_that_key(table, found):
    strategy = nas.strategies.random_search(table.space, batch_size=4)
    evaluator = nas.evaluators.tabular(table)
    for seed in (0, 4):
        _, history = nas.search(jax.random.key(seed), strategy, evaluator, 8)
        fitness = np.maximum.accumulate(history.evaluation.fitness.ravel())[:30]
        searches = found.searches["random_search"]
        np.testing.assert_allclose(searches.fitness[seed], fitness, rtol=1e-6)
        np.testing.assert_allclose(searches.score[seed], fitness - 0.1, atol=1e-6)
        spent = np.cumsum(history.evaluation.cost.ravel())[:30]
        np.testing.assert_allclose(searches.seconds[seed], spent, rtol=1e-5)


def test_text_ranks_by_the_last_mean(found):
    names = [name for name, _ in ranked(found)]
    means = [found.searches[name].score[:, -1].mean() for name in names]
    assert means == sorted(means, reverse=True)
    lines = table_of_results(found, marks=(10, 30)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == names
    assert f"{means[0]:.4f}" in lines[1]


def test_less_is_better_with_a_sign(table):
    strategy = nas.strategies.random_search(table.space, batch_size=1)
    options = {"num_evaluations": 20, "num_seeds": 2, "metric": "-params", "score": "-params"}
    smallest = compare(table, {"random": strategy}, **options)
    assert smallest.optimum == 0.0
    assert (smallest.searches["random"].score <= 0).all()
    assert (np.diff(smallest.searches["random"].score, axis=1) >= 0).all()


def test_searches_without_success_have_no_interval():
    assert np.isnan(interval(np.array([np.nan, np.nan]))).all()


def test_page_says_what_was_found(found):
    text = page.render(found)
    assert text.count("<svg") >= 4  # two figures, a swatch per strategy
    best = ranked(found)[0][0]
    assert f"After 30 evaluations {best} has the best mean test_accuracy" in text
    assert "Against simulated seconds" in text and "num_seeds" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_evaluations": 0}, "num_evaluations"),
        ({"num_evaluations": 5, "num_seeds": 0}, "num_seeds"),
        ({"num_evaluations": 5, "score": "luck"}, "score must be one of"),
        ({"num_evaluations": 5, "metric": "luck"}, "metric must be one of"),
        ({"num_evaluations": 5, "stop": "never"}, "stop must be one of"),
    ],
)
def test_bad_arguments_are_named(table, options, message):
    strategy = nas.strategies.random_search(table.space, batch_size=1)
    with pytest.raises(ValueError, match=message):
        compare(table, {"random": strategy}, **options)
    with pytest.raises(ValueError, match="strategies is empty"):
        compare(table, {}, num_evaluations=5)


def test_command_writes_curves_and_page(table, tmp_path, capsys):
    file, out = tmp_path / "table.npz", tmp_path / "out"
    nas.tables.save(table, file)
    arguments = ["compare", "--table", str(file), "--strategy", "random_search,genetic"]
    arguments += ["--evaluations", "8", "--seeds", "3", "--out", str(out), "--devices", "2"]
    arguments += ["--option", "strategy.population_size=4", "strategy.num_elites=1"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "random_search" in printed and str(out / "report.html") in printed
    arrays = np.load(out / "comparison.npz")
    assert arrays["genetic/score"].shape == (3, 8)
    assert json.loads(str(arrays["description"]))["metric"] == "valid_accuracy"
    assert "Anytime performance" in (out / "report.html").read_text()
    assert cli.main(arguments) == 2  # the folder exists
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "guess"], "unknown strategy 'guess'"),
        (["--table", "nowhere.npz"], "nowhere.npz"),
        (["--option", "strategy.luck=1"], "strategy.luck fits none"),
        (["--option", "data.luck=1"], "options begin with one of"),
        (["--table", "hpolib", "--option", "table.luck=1"], "unknown option table.luck"),
    ],
)
def test_command_names_what_is_wrong(table, tmp_path, capsys, arguments, message):
    file, out = tmp_path / "table.npz", tmp_path / "out"
    nas.tables.save(table, file)
    defaults = ["--table", str(file), "--strategy", "random_search", "--devices", "2"]
    assert cli.main(["compare", *defaults, *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
