"""Regularisers, perturbations, pruning and early stops, each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import digamma, gammaln

from jaxnas.oneshot import early_stops, perturbations, pruning, regularisers
from jaxnas.oneshot.p_darts import limited
from jaxnas.oneshot.relaxations import concentrations, masked_softmax
from jaxnas.testing import tiny_problem

MASK = jnp.array([[True, True, True, False], [True, True, True, True]])
ALPHA = jax.random.normal(jax.random.key(0), MASK.shape)
WEIGHTS = masked_softmax(ALPHA, MASK)
LOSS = jnp.float32(2.0)


def test_zero_one_counts_the_mask_only():
    found = regularisers.zero_one(10.0)(LOSS, (), jnp.where(MASK, 0.75, 0.0), MASK)
    np.testing.assert_allclose(found, 2.0 - 10.0 * 0.0625, rtol=1e-6)


def test_dirichlet_divergence_against_the_textbook():
    found = regularisers.dirichlet_divergence(1.0)(LOSS, ALPHA, (), MASK) - LOSS
    want = 0.0
    for row, inside in zip(np.asarray(concentrations(ALPHA)), np.asarray(MASK), strict=True):
        own = row[inside]
        total = own.sum()
        want += gammaln(total) - gammaln(own).sum() - gammaln(1.0 * inside.sum())
        want += ((own - 1.0) * (digamma(own) - digamma(total))).sum()
    np.testing.assert_allclose(found, want, rtol=1e-4)
    uniform = regularisers.dirichlet_divergence(1.0)(LOSS, jnp.zeros_like(ALPHA), (), MASK)
    np.testing.assert_allclose(uniform, LOSS, rtol=1e-4)


def test_costs():
    costs = jnp.array([[1.0, 2.0, 3.0, 0.0], [4.0, 5.0, 6.0, 7.0]])
    chosen = jax.nn.one_hot(jnp.array([2, 0]), 4)
    fn = regularisers.log_cost_factor(costs, factor=0.2, exponent=0.6)
    np.testing.assert_allclose(
        fn(LOSS, ALPHA, chosen, MASK), 2.0 * 0.2 * np.log(7.0) ** 0.6, rtol=1e-5
    )
    fn = regularisers.relative_cost(costs, 5.0, weight=0.5, strengths=lambda a, m: chosen)
    np.testing.assert_allclose(fn(LOSS, ALPHA, (), MASK), 2.0 + 0.5 * (7.0 - 5.0) / 5.0)
    with pytest.raises(ValueError, match="costs must have shape"):
        regularisers.checked_costs(tiny_problem(), jnp.ones((2, 2)))


def test_noise_stays_near_and_sums_to_one():
    perturb = perturbations.uniform_noise(0.2)
    key = jax.random.key(0)
    same = perturb(key, WEIGHTS, MASK, jnp.float32(0.0), None)
    np.testing.assert_allclose(same, WEIGHTS, rtol=1e-5)
    found = perturb(key, WEIGHTS, MASK, jnp.float32(1.0), None)
    np.testing.assert_allclose(jnp.sum(found, axis=1), 1.0, rtol=1e-5)
    assert float(found[0, 3]) == 0.0 and (found >= 0.0).all()
    assert 0.01 < np.abs(found - WEIGHTS).max() < 0.5


def test_adversary_is_worse_than_noise():
    slope = jax.random.normal(jax.random.key(1), WEIGHTS.shape)
    loss_fn = lambda choice: jnp.sum(choice * slope)  # noqa: E731
    attack, noise = perturbations.adversarial(0.1), perturbations.uniform_noise(0.1)
    for seed in range(5):
        key = jax.random.key(seed)
        worst, usual = (
            loss_fn(fn(key, WEIGHTS, MASK, jnp.float32(1.0), loss_fn)) for fn in (attack, noise)
        )
        assert worst > usual and worst > loss_fn(WEIGHTS)


def test_a_row_with_nothing_left_becomes_even():
    found = perturbations._mixture(-jnp.ones(MASK.shape), MASK)
    np.testing.assert_allclose(found[0], [1 / 3, 1 / 3, 1 / 3, 0.0], rtol=1e-6)


def test_strongest_are_kept_when_it_is_time():
    part = pruning.keep_strongest((3, 5), (2, 1))
    state, mask, counts = part.init(jax.random.key(0), MASK), MASK, []
    for step in range(6):
        strengths = jnp.where(mask, WEIGHTS, 0.0)
        state, mask = part.update(None, jnp.int32(step), state, mask, strengths, None)
        counts.append(np.asarray(mask).sum(axis=1).tolist())
    assert counts == [[3, 4], [3, 4], [2, 2], [2, 2], [1, 1], [1, 1]]
    np.testing.assert_array_equal(jnp.argmax(mask, axis=1), jnp.argmax(WEIGHTS, axis=1))


def test_selection_keeps_what_is_missed_most():
    worth = jnp.array([[0.1, 0.9, 0.3, 0.0], [0.2, 0.3, 0.8, 0.7]])

    def score_fn(choice):
        return jnp.sum(jnp.where(choice > 0.0, worth, 0.0)), jnp.float32(1.0)

    part = pruning.select_by_removal(begin=2, period=3)
    state, mask = part.init(jax.random.key(0), MASK), MASK
    update = jax.jit(lambda step, state, mask, s: part.update(None, step, state, mask, s, score_fn))
    sizes = []
    for step in range(9):
        state, mask = update(jnp.int32(step), state, mask, masked_softmax(ALPHA, mask))
        sizes.append(int(mask.sum()))
    assert sizes[:4] == [7] * 4 and sizes[4] < 7 and sizes[7] == sizes[8] == 2
    np.testing.assert_array_equal(jnp.argmax(mask, axis=1), [1, 2])


def test_removal_of_the_last_operation_changes_nothing():
    mask = jnp.array([[False, True]])
    strengths = jnp.array([[0.0, 1.0]])
    found = pruning.without_operation(strengths, mask, jnp.int32(0), jnp.int32(1))
    np.testing.assert_array_equal(found, strengths)


def test_sizes_of_pruning_are_checked():
    with pytest.raises(ValueError, match="counts must be as many"):
        pruning.keep_strongest((1, 2), (3,))
    with pytest.raises(ValueError, match="period must be"):
        pruning.select_by_removal(0, 0)


def test_only_the_strongest_skips_stay():
    strengths = jnp.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    skips = jnp.array([[True, False]] * 4)
    found = limited(strengths, skips, 2)
    np.testing.assert_array_equal(jnp.argmax(found, axis=1), [1, 0, 1, 0])


def test_dominant_eigenvalue():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    matrix = jnp.asarray(basis @ np.diag([1.0, -2.0, 0.5, 4.0, 0.1, 3.0]) @ basis.T, jnp.float32)
    fn = lambda a: 0.5 * jnp.ravel(a["x"]) @ matrix @ jnp.ravel(a["x"])  # noqa: E731
    at = {"x": jnp.ones((2, 3))}
    value = early_stops.dominant_eigenvalue(jax.random.key(0), fn, at, num_iterations=60)
    np.testing.assert_allclose(value, 4.0, rtol=1e-4)


@pytest.mark.parametrize(("growth", "want"), [(1.0, None), (1.2, 21)])
def test_growing_curvature_stops_with_earlier_strengths(growth, want):
    part = early_stops.curvature(num_steps=40, period=2, begin=0.5, window=2, lookback=4)

    @jax.jit
    def update(step, watch, scale, strengths):
        fn = lambda a: 0.5 * scale * jnp.sum(a**2)  # noqa: E731
        return part.update(jax.random.key(0), step, watch, ALPHA, strengths, fn)

    watch = part.init(WEIGHTS)
    for step in range(40):
        own = jnp.full(WEIGHTS.shape, float(step))
        watch, standing, info = update(jnp.int32(step), watch, jnp.float32(growth**step), own)
        if want is not None and bool(watch.stopped):
            break
    if want is None:
        assert not bool(watch.stopped) and float(standing[0, 0]) == 39.0
        np.testing.assert_allclose(info["eigenvalue"], 1.0, rtol=1e-4)
    else:  # measured at the end of every second update, from the 21st on
        assert step == want and float(standing[0, 0]) == want - 2 * 4
