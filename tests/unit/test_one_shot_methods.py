"""What each named method adds to the frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import oneshot
from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.optimizers import Adam, Sgd
from jaxnas.oneshot.p_darts import deepen
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.relaxations import softmax
from tests.unit.one_shot_updates import DATA, PROBLEM, one_update, searched


@pytest.mark.parametrize("name", ["gdas", "proxyless", "fbnet"])
def test_sampling_methods_learn_too(name):
    _, _, history = searched(name, num_steps=200)
    loss = np.asarray(history["train_loss"])
    assert loss[-20:].mean() < loss[:20].mean()


def test_pc_darts_weighs_edges():
    problem = PROBLEM._replace(nodes=(1, 2, 2))
    method = oneshot.pc_darts(problem, num_steps=10, begin=0.0)
    _, state, _ = one_update(method)
    totals = np.asarray(state.strengths).sum(axis=1)
    np.testing.assert_allclose([totals[0], totals[1] + totals[2]], 1.0, rtol=1e-5)
    assert state.alpha[1].shape == (3,) and abs(float(state.alpha[1][1])) > 0.0


def test_drnas_prunes_half_way():
    _, state, _ = searched("drnas", num_kept=2)
    assert np.asarray(state.mask).sum(axis=1).tolist() == [2, 2, 2]


def test_fair_darts_starts_at_a_half_without_none():
    method = oneshot.fair_darts(PROBLEM, num_steps=10)
    strengths = method.init(jax.random.key(0)).strengths
    np.testing.assert_allclose(strengths[1], [0.0, 0.5, 0.5, 0.5], atol=1e-3)


def test_darts_pt_decides_every_row():
    method, state, history = searched("darts_pt", search_rate=0.5)
    assert np.asarray(state.mask).sum(axis=1).tolist() == [1, 1, 1]
    np.testing.assert_array_equal(method.derive(state), jnp.argmax(state.mask, axis=1))
    searching = np.isfinite(history["alpha_gradient_norm"])
    np.testing.assert_array_equal(searching, np.arange(24) < 12)
    with pytest.raises(ValueError, match="num_steps must leave an update"):
        oneshot.darts_pt(PROBLEM, num_steps=4)


def test_p_darts_narrows_and_goes_deeper():
    method, state, history = searched("p_darts", num_kept=(3, 2), max_skips=1)
    assert np.asarray(state.mask).sum(axis=1).tolist() == [2, 2, 2]
    assert int((method.derive(state) == 1).sum()) <= 1
    turns = np.isfinite(history["valid_loss"]).reshape(3, 8)  # epochs of 25 / 8 updates
    np.testing.assert_array_equal(turns, np.tile(np.arange(8) * 25 / 8 >= 10, (3, 1)))
    deeper = deepen(jax.random.key(5), method, state)
    np.testing.assert_array_equal(deeper.mask, state.mask)
    assert (
        int(deeper.step) == 24
        and (deeper.weights["head"]["kernel"] != state.weights["head"]["kernel"]).any()
    )
    np.testing.assert_allclose(jnp.sum(deeper.strengths, axis=1), 1.0, rtol=1e-5)


def test_robust_darts_measures_and_stops():
    _, state, history = searched(
        "robust_darts", period=2, stop_ratio=1e-3, stop_begin=0.5, window=1, lookback=2
    )
    eigenvalue = np.asarray(history["eigenvalue"])
    assert np.isnan(eigenvalue[0]) and (eigenvalue[1:] > 0.0).all()
    assert bool(state.early_stop.stopped)
    np.testing.assert_array_equal(state.strengths, state.early_stop.final)
    going = np.isfinite(history["alpha_gradient_norm"])
    np.testing.assert_array_equal(going, np.arange(24) < 14)


def test_proxyless_pays_for_costs():
    costs = jnp.where(PROBLEM.mask, jnp.arange(4.0), 0.0)
    options = {"begin": 0.0, "period": 1, "alpha_optimizer": Adam(0.05, b1=0.0, weight_decay=0.0)}
    options = {**options, "num_steps": 60, "costs": costs}

    @jax.jit
    def cost_of(weight):
        method = oneshot.proxyless(PROBLEM, cost_weight=weight, **options)
        key, splits = jax.random.key(0), (DATA.train, DATA.valid)
        state, _ = oneshot.search(key, method, *splits, num_steps=60, batch_size=8)
        return jnp.sum(state.strengths * costs)

    found = {weight: float(cost_of(jnp.float32(weight))) for weight in (0.0, 10.0)}
    assert found[10.0] < 0.7 * found[0.0]


def test_lambda_zero_is_the_training_loss():
    plain = bilevel(PROBLEM, Parts(softmax(), objective=oneshot.objectives.training), num_steps=10)
    _, want, _ = one_update(plain)
    _, got, _ = one_update(oneshot.lambda_bilevel(PROBLEM, num_steps=10, factor=0.0))
    np.testing.assert_allclose(got.alpha, want.alpha, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("darts", {"order": 3}, "order"),
        ("darts", {"begin": 1.5}, "begin"),
        ("darts", {"period": 0}, "period"),
        ("darts", {"weight_optimizer": Sgd(learning_rate=-1.0)}, "learning_rate"),
        ("darts", {"alpha_optimizer": Adam(b1=1.5)}, "b1"),
        ("sdarts", {"kind": "kind"}, "kind"),
        ("sdarts", {"radius": -1.0}, "radius"),
        ("gdas", {"last_temperature": 0.0}, "last_temperature"),
        ("fbnet", {"costs": np.ones(3)}, "costs"),
        ("robust_darts", {"window": 0}, "window"),
        ("fair_darts", {"zero_one_weight": -1.0}, "weight"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        oneshot.ALL[name](PROBLEM, num_steps=10, **options)
