"""The report of a run with several objectives."""

import jax
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import report
from jaxnas.objectives import Objective, with_objectives

QUIET = {"progress_fn": lambda progress: None}


def run(folder, num_objectives, **options):
    space = nas.testing.tiny_space()
    inner = nas.evaluators.from_function(lambda key, arch: arch.sum() / 6.0)
    chosen = [Objective("fitness"), Objective("size", minimise=True), Objective("depth")]
    evaluator = with_objectives(
        inner,
        chosen[:num_objectives],
        metrics_fn=lambda arch: {"size": 1.0 + arch[1] * arch[0], "depth": -1.0 * arch[2]},
    )
    strategies = {
        "nsga2": nas.strategies.nsga2(
            space, batch_size=4, population_size=8, num_objectives=num_objectives
        ),
        "random_search": nas.strategies.random_search(space, batch_size=4),
    }
    settings = {"objectives": [each.metric for each in chosen[:num_objectives]]}
    return nas.run(
        folder, space, strategies, evaluator, num_evaluations=24, settings=settings, **QUIET
    )


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_front_and_hypervolume(tmp_path, num_objectives):
    found = run(tmp_path / "run", num_objectives)
    page = report.write(found).read_text()
    assert "Pareto front" in page and "(knee)" in page
    assert ("size against fitness" in page) == (num_objectives == 2)
    rows = found.rows()
    values = np.array([row.objectives for row in rows], np.float32)
    efficient = np.asarray(nas.objectives.pareto.is_efficient(jax.numpy.asarray(values)))
    distinct = {tuple(value) for value in values[efficient]}
    table = page[page.index("Architectures on the front") :]
    assert table[: table.index("</table>")].count('scope="row"') == len(distinct)
    volumes = page[page.index("Hypervolume after") :]
    assert volumes[: volumes.index("</table>")].count('scope="row"') == 2


def test_one_objective_has_no_front(tmp_path):
    assert "Pareto front" not in report.write(run(tmp_path / "run", 1)).read_text()
