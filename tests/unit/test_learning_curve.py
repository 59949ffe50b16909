"""Learning curves: exact against Monte Carlo, calibrated on noise, safe on real curves."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas.surrogates import learning_curve
from jaxnas.surrogates.learning_curve import (
    chances_to_win,
    extrapolate,
    may_stop,
    sum_of_losses,
)

DATA = Path(os.environ.get("JAXNAS_DATA", "../shared/data"))
EPOCHS = 60


def curves(num, noise, seed=0):
    """Random power laws with noise: f32[num, EPOCHS]."""
    rng = np.random.default_rng(seed)
    top, drop = rng.uniform(0.5, 0.95, (num, 1)), rng.uniform(0.2, 0.45, (num, 1))
    rate = rng.uniform(0.3, 2.0, (num, 1))
    epoch = np.arange(1.0, EPOCHS + 1)
    return (top - drop * epoch**-rate + rng.normal(0, noise, (num, EPOCHS))).astype(np.float32)


def test_the_last_value_is_found_without_noise():
    every = curves(100, 0.0)
    found = jax.jit(jax.vmap(lambda curve: extrapolate(curve, 20).mean))(every)
    assert np.abs(np.asarray(found) - every[:, -1]).max() < 0.02


def test_what_was_not_seen_is_not_read():
    curve = curves(1, 0.01)[0]
    hidden = np.where(np.arange(EPOCHS) < 10, curve, np.nan)
    ours, theirs = extrapolate(hidden, 10), extrapolate(curve, 10)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_chance_is_that_of_the_mixture():
    found = extrapolate(curves(1, 0.02)[0], 15)
    for value in np.linspace(0.3, 1.0, 8):
        tails = stats.t.sf(value, float(found.degrees), found.means, found.scales)
        exact = np.sum(np.asarray(found.weights, float) * tails)
        np.testing.assert_allclose(found.chance_above(value), exact, atol=2e-5)
    np.testing.assert_allclose(np.sum(found.weights), 1.0, rtol=1e-5)


def test_evidence_and_prediction_of_one_curve_by_hand():
    """Against the textbook's formulas of Bayesian linear regression, in float64."""
    shape = learning_curve._shapes(EPOCHS)[5]
    y = curves(1, 0.02)[0].astype(float)
    n = 12
    x = np.column_stack([np.ones(n), shape[:n]])
    prior = np.array([0.5, 0.0])
    precision = x.T @ x + 1e-4 * np.eye(2)
    mean = np.linalg.solve(precision, x.T @ y[:n] + 1e-4 * prior)
    scale = 1e-5 + 0.5 * (y[:n] @ y[:n] + 1e-4 * prior @ prior - mean @ precision @ mean)
    last = np.array([1.0, shape[-1]])
    spread = np.sqrt(scale / (1 + n / 2) * (1 + last @ np.linalg.solve(precision, last)))
    seen = jnp.arange(EPOCHS) < n
    arrays = jnp.asarray(shape, jnp.float32), seen, jnp.where(seen, jnp.asarray(y, jnp.float32), 0)
    _, found_mean, found_spread, degrees = learning_curve._fit(*arrays)
    np.testing.assert_allclose(found_mean, last @ mean, rtol=1e-3)
    np.testing.assert_allclose(found_spread, spread, rtol=1e-2)
    assert float(degrees) == 2 + n


def test_intervals_hold_what_they_promise():
    every = curves(400, 0.02, seed=1)
    chance = jax.jit(jax.vmap(lambda curve: extrapolate(curve, 20).chance_above(curve[-1])))
    level = np.asarray(chance(every))
    covered = np.mean((level > 0.05) & (level < 0.95))
    assert 0.8 < covered < 0.98


def test_nothing_stops_without_an_incumbent():
    curve = curves(1, 0.01)[0]
    assert not may_stop(curve, 5, -jnp.inf) and not may_stop(curve, 5, jnp.nan)


def test_sum_of_losses():
    losses = jnp.array([3.0, 2.0, 1.5, jnp.nan, jnp.nan])
    assert float(sum_of_losses(losses, 3)) == -6.5
    assert float(sum_of_losses(losses, 3, decay=0.0)) == -1.5
    np.testing.assert_allclose(sum_of_losses(losses, 3, decay=0.9), -(1.5 + 1.8 + 2.43), rtol=1e-6)
    assert np.isnan(sum_of_losses(losses, 4))


@pytest.mark.skipif(not (DATA / "spikenas_cifar10_curves.npz").exists(), reason="needs the curves")
def test_stopping_real_curves_loses_no_winner_and_saves_epochs():
    """Searches of 100 random candidates; each may stop at a quarter or a half of its epochs."""
    with np.load(DATA / "spikenas_cifar10_curves.npz") as arrays:
        every = arrays["val_acc_x250"].astype(np.float32) / 25000.0
    total = every.shape[1]
    marks = (total // 4, total // 2)
    rule = jax.jit(jax.vmap(may_stop, in_axes=(0, None, 0)), static_argnums=())
    rng = np.random.default_rng(0)
    lost, spent = [], []
    for _ in range(20):
        chosen = every[rng.choice(len(every), 100, replace=False)]
        final = chosen[:, -1]
        best = np.maximum.accumulate(np.concatenate([[-np.inf], final[:-1]]))
        stopped = np.zeros(100, bool)
        epochs = np.full(100, total)
        for mark in marks:
            now = np.asarray(rule(chosen, mark, best)) & ~stopped
            epochs[now] = mark
            stopped |= now
        # Candidates that were stopped would not have raised the incumbent.
        lost.append(final.max() - final[~stopped].max())
        spent.append(epochs.sum() / (100 * total))
    assert np.mean(lost) < 0.002
    # Little is saved: most of these curves rise in their last epochs, and the rule allows for it.
    assert np.mean(spent) < 0.95


def test_chances_to_win_are_those_of_draws_and_bound_the_chance_to_be_first():
    every, num_seen, num_draws = curves(6, 0.02, seed=2), 8, 100_000
    chances = np.asarray(jax.jit(chances_to_win)(every, num_seen))
    found = jax.vmap(lambda curve: extrapolate(curve, num_seen))(every)
    weights, means, scales = (np.asarray(f, np.float64) for f in found[:3])
    rng = np.random.default_rng(0)

    def draw(row):
        curve = rng.choice(len(weights[row]), num_draws, p=weights[row] / weights[row].sum())
        noise = rng.standard_t(float(found.degrees[row]), num_draws)
        return means[row, curve] + scales[row, curve] * noise

    draws = np.stack([draw(row) for row in range(len(every))])
    leader = int(np.argmax((weights * means).sum(axis=1)))
    beaten = (draws > draw(leader)).mean(axis=1)
    np.testing.assert_allclose(chances, beaten, atol=0.02)
    assert 0.0 < np.sort(chances)[-2] < 0.5  # a race that is not decided
    first = np.bincount(draws.argmax(axis=0), minlength=len(every)) / num_draws
    others = np.arange(len(every)) != leader
    assert (first[others] <= chances[others] + 0.02).all()


def test_failed_curves_have_no_chance_and_do_not_lead():
    every = curves(3, 0.01)
    every[1, 4:] = np.nan
    chances = np.asarray(chances_to_win(every, 10))
    assert chances[1] == 0.0 and np.isfinite(chances).all()
    assert chances.max() == pytest.approx(0.5, abs=0.05)
