"""The report: its numbers against independent calculations, its HTML, and its edge cases."""

import math
import os
import re

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxnas import report, store
from jaxnas.report.analysis import by_strategy, curve, traces
from jaxnas.report.architectures import canonical, decisions, top
from jaxnas.report.markup import DASH, element, number
from tests.unit.report_pages import (
    CONFIG,
    DECISIONS,
    NUM_EVALUATIONS,
    RESULTS,
    Page,
    best_after,
    changed,
    make_rows,
    of_arm,
    render,
)

CASES = {  # rows, configuration, results
    "full": (make_rows(), CONFIG, RESULTS),
    "five seeds": (make_rows(num_seeds=5), CONFIG, RESULTS),
    "one seed": (make_rows(num_seeds=1), CONFIG, {}),
    "no rows": ([], CONFIG, {}),
    "nothing at all": ([], {}, {}),
    "single evaluation": (make_rows(("random_search",), 1, 1, 0.0), {}, {}),
    "all failed": (changed(make_rows(), fitness=lambda r: math.nan), CONFIG, {}),
    "one search failed": (
        changed(make_rows(), fitness=lambda r: math.nan if r.arm == "local-1" else r.fitness),
        CONFIG,
        {},
    ),
    "one arm": (make_rows(("evolution",), 1), CONFIG, {}),
    "infinite": (
        changed(
            make_rows(),
            fitness=lambda r: (math.inf, -math.inf, -1e30, r.fitness)[r.slot],
            cost=lambda r: math.nan if r.step == 1 else math.inf if r.step == 2 else r.cost,
            metrics=lambda r: {"loss": math.nan, "params": math.inf},
        ),
        CONFIG,
        {},
    ),
    "constant": (changed(make_rows(), fitness=lambda r: 0.1, cost=lambda r: 0.0), CONFIG, {}),
    "tiny numbers": (changed(make_rows(), fitness=lambda r: 1e-12 * r.fitness), CONFIG, {}),
    "huge numbers": (changed(make_rows(), fitness=lambda r: -3e8 - r.fitness), CONFIG, {}),
    "partial training": (changed(make_rows(), budget=lambda r: 1 / (1 + r.slot)), CONFIG, {}),
    "unfinished": (make_rows()[:-150], CONFIG, {}),
    "no space": (make_rows(), {"settings": None}, RESULTS),
}


def positions(tag, attributes):
    """The horizontal and the vertical pixel positions that an SVG element names."""
    if tag == "path":
        points = re.findall(r"([MLHV])([-\d.]+)(?: ([-\d.]+))?", attributes["d"])
        x = [first for letter, first, _ in points if letter != "V"]
        y = [first if letter == "V" else last for letter, first, last in points if letter != "H"]
        assert len(points) == len(re.findall("[A-Z]", attributes["d"].replace("Z", "")))
    else:
        x = [attributes[name] for name in ("x", "x1", "x2", "cx", "width") if name in attributes]
        y = [attributes[name] for name in ("y", "y1", "y2", "cy", "height") if name in attributes]
    return list(map(float, x)), list(map(float, y))


@pytest.mark.parametrize("case", CASES)
def test_page_is_well_formed_and_draws_only_inside_its_figures(case):
    page = render(*CASES[case])
    assert {"html", "head", "body", "h1", "title"} <= page.tags
    for tag, attributes in page.elements:
        if tag == "svg":
            width, height = map(float, attributes["viewbox"].split()[2:])
        elif tag in ("line", "circle", "rect", "text", "path"):
            x, y = positions(tag, attributes)
            assert x and y
            assert all(0 <= value <= width for value in x), (tag, attributes)
            assert all(0 <= value <= height for value in y), (tag, attributes)


def test_nothing_is_loaded_or_run():
    page = report.render(CONFIG, make_rows(), RESULTS)
    parsed = Page(page)
    assert not parsed.tags & {"script", "link", "img", "iframe", "object", "embed", "a", "image"}
    names = {name for _, attributes in parsed.elements for name in attributes}
    assert not names & {"src", "href", "xlink:href", "style", "data"}
    assert not any(name.startswith("on") for name in names)
    assert "url(" not in page and "@import" not in page
    assert "http" not in page.replace("http-equiv", "")
    (policy,) = (a["content"] for _, a in parsed.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_every_figure_and_table_is_announced():
    page = render(make_rows())
    shown = [a for tag, a in page.elements if tag == "svg" and a.get("aria-hidden") != "true"]
    assert len(shown) > 8
    assert all(a["role"] == "img" and a["aria-label"] for a in shown)
    assert len(page.tables) > 8 and all(page.tables)  # by caption


def test_text_is_escaped_everywhere():
    evil = "<script>alert('1')</script>\"&"
    rows = make_rows((evil, "random_search"), 2)
    rows = changed(rows, metrics=lambda r: {evil: 1.0}, arm=lambda r: evil + r.arm)
    config = {
        "space": {"name": evil, "decisions": [{"name": evil, "choices": [evil] * 3}] * 4},
        "data": evil,
        "versions": {evil: evil},
        "device": evil,
        "command": evil,
        "settings": {evil: {evil: [evil]}},
        "created": evil,
    }
    text = report.render(config, rows, {"plan": evil, "timing": {evil: evil}, "winner": {evil: 1}})
    page = Page(text)
    assert "<script" not in text and "script" not in page.tags
    assert page.text.count(evil) > 20
    assert element("p", "<", title='"') == '<p title="&quot;">&lt;</p>'


def test_milestones_and_gains_agree_with_plain_python():
    rows = make_rows()
    np.random.default_rng(1).shuffle(rows)  # only steps and slots say what came first
    page = render(rows)
    ends = {}
    for name in ("evolution", "local", "random_search"):
        (shown,) = (r for r in page.table("Best fitness so far") if r["strategy"] == name)
        assert shown["seeds"] == "3"
        for mark in (4, 10, 20, 40):
            best = [best_after(of_arm(rows, f"{name}-{s}"), mark) for s in range(3)]
            assert shown[str(mark)] == number(sum(best) / 3)
        ends[name] = best
    for shown in page.table("Strategies against random_search"):
        ours, theirs = ends[shown["strategy"]], ends["random_search"]
        interval = scipy_stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
        assert shown["gain"] == number(np.mean(ours) - np.mean(theirs), signed=True)
        low, high = (number(float(end), signed=True) for end in interval)
        assert shown["95% interval"] == f"{low} to {high}"
        assert shown["budget each"] == "40 evaluations" and shown["seeds"] == "3 / 3"
    assert len(page.table("Strategies against random_search")) == 2


def test_band_of_few_seeds_is_their_range_and_the_page_says_so():
    searches = by_strategy(traces(make_rows()))["evolution"]
    found = curve(searches, "evaluations")
    ends = [trace.incumbent[-1] for trace in searches]
    assert (found.low[-1], found.high[-1]) == (min(ends), max(ends))
    assert "reach from the lowest to the highest seed" in render(make_rows()).text
    assert "95% t intervals from 5 seeds on" in render(make_rows(num_seeds=5)).text
    assert curve(traces(CASES["all failed"][0]), "evaluations") is None


def test_best_table_has_distinct_architectures_in_order():
    rows = make_rows()
    space_ = decisions(CONFIG, 4)
    groups = {}
    for row in rows:
        groups.setdefault(tuple(canonical(space_, row.arch).tolist()), []).append(row)
    finite = {a: [r.fitness for r in g if r.fitness == r.fitness] for a, g in groups.items()}
    expected = sorted(groups, key=lambda arch: -max(finite[arch]))[:10]
    shown = render(rows).table("Ranked by their best evaluation")
    assert [row["#"] for row in shown] == [str(rank) for rank in range(1, 11)]
    for arch, row in zip(expected, shown, strict=True):
        assert row["fitness"] == number(max(finite[arch])) == row["accuracy"]
        assert row["mean"] == number(sum(finite[arch]) / len(finite[arch]))
        assert row["seen"] == str(len(groups[arch]))
        assert row["depth"] == str(arch[0] + 1)
        assert row["op_2"] == (DASH if arch[0] == 0 else DECISIONS[2]["choices"][arch[2]])
        assert row["params"] == f"{1000 * (1 + arch[0]):,}"


def test_many_decisions_share_one_column():
    space_ = {"decisions": [{"name": f"d{i}", "choices": [7, 8, 9]} for i in range(12)]}
    rows = changed(make_rows(), arch=lambda r: r.arch * 3)
    first = top(decisions({"space": space_}, 12), rows, 1)[0]
    shown = render(rows, {"space": space_}).table("Ranked")[0]["architecture"]
    assert shown == ", ".join(f"d{i} {7 + choice}" for i, choice in enumerate(first.arch))


def test_costs_count_failures_and_add_up():
    rows = make_rows()
    shown = {row["strategy"]: row for row in render(rows).table("Costs by strategy")}
    for name in ("evolution", "all"):
        members = [row for row in rows if name in (row.strategy, "all")]
        failed = sum(row.fitness != row.fitness for row in members)
        wall = sum(max(r.seconds for r in of_arm(members, arm)) for arm in {r.arm for r in members})
        assert failed > 0
        assert shown[name]["evaluations"] == str(len(members))
        assert shown[name]["failed"] == str(failed)
        assert shown[name]["candidates/s"] == number(len(members) / wall)
        minutes, seconds = divmod(round(sum(row.cost for row in members)), 60)
        assert shown[name]["charged"] == f"{minutes} min {seconds} s"


def test_winner_shows_the_retrained_test_and_dashes_for_inactive_decisions():
    page = render(make_rows())
    winner = {row["decision"]: row["value"] for row in page.table("Architecture")}
    assert winner == {"depth": "3", "op_1": "conv", "op_2": "conv", "rate": "0.01"}
    retrained = {row["name"]: row["value"] for row in page.table("Retrained")}
    assert retrained == {"test.loss": "0.2500", "test.accuracy": "0.8765", "seconds": "1 min 30 s"}
    shallow = {"winner": {"arch": [0, 1, 2, 1]}}
    winner = {r["decision"]: r["value"] for r in render([], results=shallow).table("Architecture")}
    assert winner == {"depth": "1", "op_1": "pool", "op_2": DASH, "rate": DASH}


def test_verdict_claims_no_more_than_the_seeds_allow():
    one, several = (make_rows(("evolution", "random_search"), num) for num in (1, 5))
    assert "One seed: not evidence." in render(one).text
    assert "one seed: not evidence" in render(one).table("Strategies against")[0]["95% interval"]
    text = render(several).text
    assert "evolution ends" in text and "over 5 seeds)." in text and "not evidence" not in text
    equal = changed(
        several, fitness=lambda r: 0.1 * (r.seed % 3) + 0.001 * (r.strategy == "evolution")
    )
    assert "the interval holds zero, so no difference is shown" in render(equal).text
    worse = changed(several, fitness=lambda r: r.fitness - 0.9 * (r.strategy == "evolution"))
    assert "That is the baseline" in render(worse).text
    assert "below random_search on average" in render(worse).text
    assert "picked from 2 strategies" in render(make_rows()).text


def test_verdict_without_a_comparison():
    assert "no gain can be stated" in render(make_rows(("evolution",))).text
    assert "there is nothing to compare" in render(make_rows(("random_search",))).text
    assert "no evaluation yet" in render([]).text
    assert (
        "120 evaluations, all failed"
        in render(changed(make_rows(("evolution",)), fitness=lambda r: math.nan)).text
    )


def test_partial_training_is_compared_by_charged_seconds():
    page = render(CASES["partial training"][0])
    assert all("charged" in row["budget each"] for row in page.table("Strategies against"))
    assert "compare by charged seconds" in page.text


def test_an_unfinished_run_says_how_much_was_planned():
    rows = make_rows(("evolution", "random_search"), 1)
    assert "of 80 planned" in render(rows[:50]).text
    assert "planned" not in render(rows).text


@pytest.fixture
def run(tmp_path):
    opened = store.create(tmp_path / "run", {**CONFIG, "arms": []})
    arms = [{"name": f"random_search-{s}", "strategy": "random_search", "seed": s} for s in (0, 1)]
    opened.config["arms"] = arms
    opened.append(make_rows(("random_search",), 2))
    opened.put_result("winner", RESULTS["winner"])
    return opened


def test_write_reads_the_run(run, tmp_path):
    path = report.write(run)
    assert path == run.directory / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert "chain on digits.npz" in page.text
    assert page.table("Costs by strategy")[0]["evaluations"] == str(2 * NUM_EVALUATIONS)
    assert page.table("Retrained")[1]["value"] == "0.8765"
    elsewhere = report.write(run, str(tmp_path / "other.html"))
    assert elsewhere.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_report_alone(run, monkeypatch):
    path = report.write(run)
    before = path.read_text(encoding="utf-8")
    run.append(changed(make_rows(("random_search",), 1, 4), step=lambda r: 100))

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    files = sorted(run.directory.iterdir())
    with pytest.raises(OSError, match="disk full"):
        report.write(run)
    assert path.read_text(encoding="utf-8") == before
    assert sorted(run.directory.iterdir()) == files
