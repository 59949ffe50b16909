"""Scores recorded beside what an evaluator measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import proxies
from jaxnas.proxies.recording import PREFIX, recorded
from jaxnas.spaces import mlp
from jaxnas.testing import check_evaluator
from jaxnas.training.data import Split
from jaxnas.types import Evaluator, Proposal

ROWS = Split(jax.random.normal(jax.random.key(1), (6, 12)), jnp.arange(6) % 3)
NAMES = ("snip", "grad_norm")
KEY = jax.random.key(3)
QUIET = {"progress_fn": lambda progress: None}


@pytest.fixture(scope="module")
def space():
    return mlp(3, depths=(1, 2), widths=(4, 8), activations=("tanh", "relu"), dropouts=(0.0,))


def inner(traceable=True):
    made = nas.evaluators.from_function(lambda key, arch: jax.random.normal(key) + arch.sum())
    return Evaluator(made.init, made.evaluate, traceable)


def test_scores_are_added_and_nothing_else_changes(space):
    arch = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, space.num_decisions)), jnp.int32)
    proposal, key = Proposal(arch, jnp.ones(5)), jax.random.key(0)
    expected = proxies.score(KEY, space, arch, ROWS, NAMES)
    plain, _ = inner().evaluate(key, (), proposal)
    for traceable in (True, False):
        evaluator = recorded(KEY, space, inner(traceable), ROWS, NAMES)
        assert evaluator.traceable == traceable
        found, state = evaluator.evaluate(key, (), proposal)
        assert state == ()
        for name, values in expected.items():
            np.testing.assert_allclose(found.metrics[PREFIX + name], values, rtol=1e-4)
        rest = {name: found.metrics[name] for name in plain.metrics}
        jax.tree.map(np.testing.assert_array_equal, found._replace(metrics=rest), plain)


def test_it_is_an_evaluator_like_others(space):
    check_evaluator(recorded(KEY, space, inner(), ROWS, ["grad_norm"]), space)


def test_a_score_does_not_depend_on_its_company(space):
    run = proxies.scorer(KEY, space, ROWS, ["snip"])
    arch = np.random.default_rng(1).integers(0, 2, (6, space.num_decisions))
    whole = run(arch)["snip"]
    np.testing.assert_allclose(run(arch[:4])["snip"], whole[:4], rtol=1e-5)
    np.testing.assert_allclose(
        proxies.score_population(KEY, space, arch, ROWS, ["snip"]).values["snip"], whole, rtol=1e-5
    )
    np.testing.assert_array_equal(run(arch)["snip"], whole)


def test_what_the_space_cannot_score_is_refused_at_once(space):
    with pytest.raises(ValueError, match="different names"):
        recorded(KEY, space, inner(), ROWS, ["snip", "luck"])
    with pytest.raises(ValueError, match="runs none of the layers that the probe 'costs' looks at"):
        recorded(KEY, space, inner(), ROWS, ["parameters"])
    with pytest.raises(ValueError, match="no supernet"):
        recorded(KEY, nas.testing.tiny_space(), inner(), ROWS, ["snip"])


def test_a_resumed_run_has_the_same_scores(space, tmp_path):
    strategy = nas.strategies.regularized_evolution(space, batch_size=4, population_size=4)
    evaluator = recorded(KEY, space, inner(traceable=False), ROWS, NAMES)
    whole = nas.run(tmp_path / "a", space, strategy, evaluator, num_evaluations=12, **QUIET)

    class Enough(Exception):
        pass

    def stop(progress):
        if progress.evaluations == 8:
            raise Enough

    with pytest.raises(Enough):
        nas.run(tmp_path / "b", space, strategy, evaluator, num_evaluations=12, progress_fn=stop)
    again = nas.resume(tmp_path / "b", space, strategy, evaluator, **QUIET)
    assert [row.metrics for row in again.rows()] == [row.metrics for row in whole.rows()]
    assert set(whole.rows()[0].metrics) == {"fitness", "proxy_snip", "proxy_grad_norm"}
