"""The sections with figures; each gives None where it has nothing to show."""

import math

import numpy as np

from jaxnas.report import figures
from jaxnas.report.analysis import MIN_SEEDS_T
from jaxnas.report.blocks import figure, note, section, table
from jaxnas.report.importance import ChoiceStats, choice_stats, shared_stats
from jaxnas.report.markup import DASH, Markup, count, element, number
from jaxnas.report.summary import Summary
from jaxnas.report.verdict import budget_text, interval_text

MILESTONES = (0.1, 0.25, 0.5, 1.0)  # of the evaluations


def legend(summary: Summary) -> Markup:
    """The look of every strategy."""
    entries = [
        element("li", look.swatch, name + (" (baseline)" if name == summary.baseline else ""))
        for name, look in summary.looks.items()
    ]
    return element("ul", entries, class_="legend")


def trajectory(summary: Summary) -> Markup | None:
    """Figure 1, the milestones and the comparison with the baseline."""
    drawn = []
    for axis in ("evaluations", "seconds"):
        curves = summary.curves(axis)
        if any(curve.x[-1] > 0 for curve in curves):
            title = f"Against {'charged ' if axis == 'seconds' else ''}{axis}"
            drawn.append(figure(title, figures.trajectory(curves, summary.looks, axis)))
    if not drawn:
        return None
    return section(
        "Search trajectory",
        note(_trajectory_note(summary)),
        legend(summary),
        element("div", drawn, class_="grid-2"),
        _milestones(summary),
        _comparison(summary),
    )


def _trajectory_note(summary: Summary) -> str:
    sizes = {len(group) for group in summary.groups.values()}
    partial = sum(row.budget < 1 for row in summary.rows)
    sentences = [
        "Fitness of the best candidate so far; the vertical axis leaves out what the first "
        "tenth of the search improved."
    ]
    if max(sizes) == 1:
        sentences.append("One seed per strategy, so no interval can be drawn.")
    else:
        sentences.append("Lines are means over seeds, as far as every seed has come.")
        if any(size >= MIN_SEEDS_T for size in sizes):
            sentences.append(f"Bands are 95% t intervals from {MIN_SEEDS_T} seeds on.")
        if any(1 < size < MIN_SEEDS_T for size in sizes):
            sentences.append(
                f"Bands of strategies with 2 to {MIN_SEEDS_T - 1} seeds reach from the lowest to "
                "the highest seed."
            )
    if partial:
        sentences.append(
            f"{count(partial, 'evaluation')} trained only partially: compare by charged seconds."
        )
    return " ".join(sentences)


def _milestones(summary: Summary) -> Markup | None:
    curves = summary.curves("evaluations")
    if not curves:
        return None
    end = max(curve.x[-1] for curve in curves)
    marks = sorted({math.ceil(share * end) for share in MILESTONES})
    rows = []
    for curve in sorted(curves, key=lambda curve: curve.strategy == summary.baseline):
        cells = []
        for mark in marks:
            within = curve.x[0] <= mark <= curve.x[-1]
            best = [t.best_at("evaluations", mark) for t in summary.groups[curve.strategy]]
            cells.append(number(float(np.mean(best))) if within else DASH)
        rows.append((curve.strategy, f"{curve.num_seeds}", *cells))
    return table(
        "Best fitness so far after a number of evaluations, mean over seeds",
        ("strategy", "seeds", *(f"{mark:,}" for mark in marks)),
        rows,
        numeric=range(1, len(marks) + 2),
    )


def _comparison(summary: Summary) -> Markup | None:
    rows = []
    for gain in sorted(summary.gains.values(), key=lambda gain: -gain.difference):
        known = min(gain.num_seeds) > 1
        interval = interval_text(gain).removeprefix("95% interval ")
        rows.append(
            (
                gain.strategy,
                " / ".join(map(str, gain.num_seeds)),
                budget_text(gain),
                number(gain.mean),
                number(gain.baseline),
                number(gain.difference, signed=True),
                interval if known else "one seed: not evidence",
            )
        )
    if not rows:
        return None
    return table(
        f"Strategies against {summary.baseline} at equal budget, where the shortest search ends "
        "(Welch's t interval of the difference of means)",
        ("strategy", "seeds", "budget each", "mean", "baseline", "gain", "95% interval"),
        rows,
        numeric=(1, 2, 3, 4, 5, 6),
    )


def evaluations(summary: Summary) -> Markup | None:
    """Figure 2: fitness of every evaluation."""
    limits = figures.fitness_limits(summary.searches)
    if limits is None:
        return None
    end = max(len(trace.fitness) for trace in summary.searches)
    drawn = [
        figure(
            name,
            figures.dots(group, summary.looks[name], limits, end),
            count(sum(len(trace.fitness) for trace in group), "evaluation"),
        )
        for name, group in summary.groups.items()
    ]
    fitness = np.concatenate([trace.fitness for trace in summary.searches])
    below, failed = int((fitness < limits[0]).sum()), int(np.isnan(fitness).sum())
    largest = max(sum(len(trace.fitness) for trace in group) for group in summary.groups.values())
    return section(
        "Every evaluation",
        note(
            "Fitness of each candidate in the order of evaluation, all seeds together.",
            f"Triangles: {below:,} far below the rest, outside the axis." if below else "",
            f"Crosses: {failed:,} failed." if failed else "",
            f"Panels show at most {figures.MAX_DOTS:,} evenly picked evaluations."
            if largest > figures.MAX_DOTS
            else "",
        ),
        element("div", drawn, class_="grid-3"),
    )


def importance(summary: Summary) -> Markup | None:
    """Figure 3: fitness by choice."""
    limits = figures.fitness_limits(summary.searches)
    if limits is None:
        return None
    stats = choice_stats(summary.space, summary.rows, lowest=limits[0])
    if not stats:
        return None
    shared = shared_stats(summary.space, summary.rows, lowest=limits[0])
    outliers = any(row.fitness < limits[0] for row in summary.rows)
    axis = figures.choice_limits([*stats, *shared], limits)
    known = [entry for entry in stats if not math.isnan(entry.share)]
    return section(
        "What mattered",
        note(
            "Mean fitness by choice with 95% t intervals, over all evaluations in which the "
            "decision was active and the candidate did not fail. The strategies picked these "
            "candidates, so this is association, not cause. Shares of variance are adjusted for "
            "the number of choices (epsilon squared) and need not add up to 100%.",
            "Decisions with the same choices are also shown together, where an evaluation counts "
            "once for each of them."
            if shared
            else "",
            f"Far outliers count as {number(limits[0])}." if outliers else "",
        ),
        element(
            "div",
            figure("Variance explained", figures.shares(known)) if known else None,
            [_panel(entry, axis, "together") for entry in shared],
            [_panel(entry, axis, f"explains {entry.share:.1%}") for entry in known],
            [_panel(entry, axis, "") for entry in stats if math.isnan(entry.share)],
            class_="grid-3",
        ),
    )


def _panel(stats: ChoiceStats, limits: tuple[float, float], extra: str) -> Markup:
    return figure(stats.title, figures.choices(stats, limits), extra)
