"""Synthetic journals for the tests of the report, and a parser of its pages."""

import math
from html.parser import HTMLParser

import numpy as np

from jaxnas import report
from jaxnas.store import Row

NUM_EVALUATIONS = 40
DECISIONS = [
    {"name": "depth", "choices": [1, 2, 3], "active_if": None},
    {"name": "op_1", "choices": ["conv", "pool", "skip"], "active_if": None},
    {"name": "op_2", "choices": ["conv", "pool", "skip"], "active_if": [0, [1, 2]]},
    {"name": "rate", "choices": [0.001, 0.01], "active_if": [2, [0]]},
]
CONFIG = {
    "versions": {"jax": "0.10.2"},
    "device": {"platform": "cpu", "count": 2},
    "created": "2026-01-02T03:04:05+00:00",
    "space": {"name": "chain", "options": {"stages": 2}, "decisions": DECISIONS},
    "arms": [{"name": "evolution-0"}, {"name": "random_search-0"}],
    "budget": {"num_evaluations": NUM_EVALUATIONS, "seconds": None},
    "settings": {"data": "/data/digits.npz", "baseline": "random_search", "command": "jaxnas s"},
}
RESULTS = {
    "winner": {"arch": [2, 0, 0, 1], "test": {"loss": 0.25, "accuracy": 0.8765}, "seconds": 90.0},
    "plan": {"report": "bucket by width\nbecause 2 < 3"},
    "timing": {"compile_seconds": 12.5},
}


def make_rows(
    strategies=("evolution", "local", "random_search"),
    num_seeds=3,
    num=NUM_EVALUATIONS,
    fail_rate=0.1,
):
    """Rows of searches whose fitness grows with the strategy's place from the end."""
    rng = np.random.default_rng(0)
    rows = []
    for bonus, strategy in enumerate(reversed(strategies)):
        for seed in range(num_seeds):
            wall = 0.0
            for index in range(num):
                arch = tuple(rng.integers((3, 3, 3, 2)).tolist())
                fitness = 0.5 + 0.1 * bonus + 0.05 * arch[0] + 0.02 * rng.normal()
                fitness = math.nan if rng.random() < fail_rate else float(fitness)
                cost = 0.5 + rng.random()
                wall += 0.7 * cost
                metrics = {"accuracy": fitness, "params": 1000.0 * (1 + arch[0])}
                rows.append(
                    Row(
                        f"{strategy}-{seed}", strategy, seed, index // 4, index % 4, arch, 1.0,
                        fitness, (fitness,), metrics, cost, wall, 1.7e9 + wall,
                    )
                )  # fmt: skip
    return rows


class Page(HTMLParser):
    """Parses a page, fails on unbalanced tags, and keeps its elements, text and tables."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.tables, self.text = [], [], {}, ""
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("meta", "br"):
            return
        self.open.append(tag)
        if tag == "table":
            self.cells = []
        elif tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
        elif tag == "caption":
            self.caption = ""

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"unbalanced </{tag}>"
        if tag == "table":
            self.tables[self.caption] = self.cells

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data
        if self.open and self.open[-1] == "caption":
            self.caption += data

    @property
    def tags(self):
        return {tag for tag, _ in self.elements}

    def table(self, start):
        """Rows of the table whose caption begins so, each as a dict by column title."""
        header, *rows = next(cells for name, cells in self.tables.items() if name.startswith(start))
        return [dict(zip(header, row, strict=True)) for row in rows]


def render(rows, config=CONFIG, results=RESULTS):
    return Page(report.render(config, rows, results))


def changed(rows, **changes):
    return [row._replace(**{k: f(row) for k, f in changes.items()}) for row in rows]


def best_after(rows, num):
    """The incumbent after `num` evaluations, in plain Python."""
    ordered = sorted(rows, key=lambda row: (row.step, row.slot))[:num]
    return max(row.fitness for row in ordered if row.fitness == row.fitness)


def of_arm(rows, arm):
    return [row for row in rows if row.arm == arm]
