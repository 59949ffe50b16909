"""The benchmark of Bayesian optimisation: both sides do the same, and the tables say what ran."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from benchmarks import gp_search
from benchmarks.peers import sklearn_gp
from jaxnas import enumeration
from jaxnas.strategies.gaussian_process import gaussian_process
from jaxnas.surrogates.warping import half_rank

EVALUATIONS = 24


@pytest.fixture(scope="module")
def searched():
    """A small space, the fitness of its rows, and the rows that the peer evaluated."""
    decisions = tuple(nas.Decision(f"d{i}", tuple(range(4))) for i in range(4))
    space = nas.SearchSpace("square", decisions, nas.testing.tiny_space().network)
    arch = enumeration.all_architectures(space)
    fitness = arch @ [0.1, 0.2, 0.05, -0.3] + 0.1 * np.random.default_rng(0).normal(size=256)
    request = {
        "evaluations": EVALUATIONS,
        "num_initial": gp_search.NUM_INITIAL,
        "lengthscale": gp_search.LENGTHSCALE,
        "noise": gp_search.NOISE,
    }
    return space, arch, fitness, sklearn_gp.search(arch, fitness, 0, request)


def test_doctests():
    found = doctest.testmod(sklearn_gp, extraglobs={"np": np})
    assert found.attempted > 0 and found.failed == 0


def test_peer_warps_like_we_do(searched):
    _, _, fitness, rows = searched
    ours = half_rank(jnp.asarray(fitness[rows]), jnp.ones(EVALUATIONS, bool))
    np.testing.assert_allclose(sklearn_gp.half_rank(fitness[rows]), ours, atol=1e-5)


def test_peer_asks_for_what_we_ask_for(searched):
    space, arch, fitness, rows = searched
    strategy = gaussian_process(
        space,
        num_initial=gp_search.NUM_INITIAL,
        lengthscale=gp_search.LENGTHSCALE,
        noise=gp_search.NOISE,
        capacity=EVALUATIONS + 1,
    )

    def follow(state, row):
        proposal = strategy.ask(jax.random.key(0), state)
        told = nas.Proposal(jnp.asarray(arch)[row][None], proposal.budget)
        value = jnp.asarray(fitness, jnp.float32)[row][None]
        evaluation = nas.Evaluation(value, value[:, None], {}, jnp.zeros(1))
        return strategy.tell(jax.random.key(0), state, told, evaluation), proposal.arch[0]

    start = strategy.init(jax.random.key(0))
    _, asked = jax.jit(lambda: jax.lax.scan(follow, start, jnp.asarray(rows)))()
    same = (np.asarray(asked) == arch[rows]).all(axis=1)[gp_search.NUM_INITIAL :]
    # Symmetric candidates tie, and rounding decides.
    assert same.mean() > 0.8
    assert fitness[rows].max() > np.sort(fitness)[-3]


def test_score_compares_times_per_search():
    curves = np.linspace(0.1, 0.3, 30).reshape(1, -1)
    ours = {
        kind: {"seconds": seconds, "cpu_seconds": 2 * seconds, "curves": np.repeat(curves, n, 0)}
        for kind, seconds, n in (("cold", 4.0, 4), ("steady", 2.0, 4), ("many", 3.0, 12))
    }
    theirs = {"seconds": 10.0, "cpu_seconds": 10.0, "curves": np.repeat(curves, 2, 0)}
    setting = gp_search.Setting("cifar100", 4, 3, 2, 30)
    problem = gp_search.Problem(setting, np.zeros((1, 6)), np.zeros(1))
    tables = gp_search.score(problem, {"runs": {"ours": [ours], "sklearn": [theirs]}}, {})
    rows = tables["time per search"]
    assert [row["ms"] for row in rows] == ["1000", "500", "250", "5000"]
    assert [row["x sklearn, ms"] for row in rows] == ["5.0", "10.0", "20.0", "1.0"]
    assert [row["x sklearn, CPU ms"] for row in rows] == ["2.5", "5.0", "10.0", "1.0"]
    assert tables["best validation accuracy so far"][0]["after 30"].startswith("0.3000")


def test_too_few_evaluations_are_rejected():
    with pytest.raises(ValueError, match="evaluations must be at least 10, got 9"):
        gp_search.load(gp_search.Setting("cifar100", 2, 1, 1, 9))
