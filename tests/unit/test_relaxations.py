"""From architecture parameters to choices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.oneshot import relaxations as rx
from jaxnas.oneshot.proxyless import one_path, two_paths

MASK = jnp.array([[True, True, True, False], [True, True, True, True], [False, True, True, False]])
ALPHA = jax.random.normal(jax.random.key(0), MASK.shape)
CONTEXT = rx.Context(jnp.float32(0.25), MASK)
MIXING = {
    "softmax": rx.softmax(),
    "sigmoid": rx.sigmoid(),
    "concrete": rx.concrete(lambda progress: 1.0 - 0.5 * progress),
    "dirichlet": rx.dirichlet(),
}


@pytest.mark.parametrize("name", MIXING)
def test_operations_outside_the_mask_weigh_nothing(name):
    relaxation = MIXING[name]
    weights = relaxation.choose(jax.random.key(1), ALPHA, CONTEXT)
    strengths = relaxation.strengths(ALPHA, MASK)
    assert (np.asarray(weights)[~np.asarray(MASK)] == 0.0).all()
    assert (np.asarray(strengths)[~np.asarray(MASK)] == 0.0).all()
    if name != "sigmoid":
        np.testing.assert_allclose(jnp.sum(weights, axis=1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(jnp.sum(strengths, axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", MIXING)
def test_gradients_are_finite_and_inside_the_mask(name):
    def total(alpha):
        weights = MIXING[name].choose(jax.random.key(1), alpha, CONTEXT)
        return jnp.sum(weights * jnp.arange(4.0))

    slope = np.asarray(jax.grad(total)(ALPHA))
    assert np.isfinite(slope).all() and (slope[:2][np.asarray(MASK)[:2]] != 0.0).any()
    # Log-softmax of a concrete distribution sees the dropped ones, without effect on the weights.
    np.testing.assert_allclose(slope[~np.asarray(MASK)], 0.0, atol=1e-6)


def test_hard_concrete_runs_the_heaviest_with_the_gradient_of_all():
    temperature = rx.linear_schedule(2.0, 1.0)
    soft, hard = rx.concrete(temperature), rx.hard_concrete(temperature)
    outputs = jax.random.normal(jax.random.key(2), MASK.shape)
    choice = hard.choose(jax.random.key(1), ALPHA, CONTEXT)
    weights = soft.choose(jax.random.key(1), ALPHA, CONTEXT)
    np.testing.assert_array_equal(choice.op, jnp.argmax(weights, axis=1))
    np.testing.assert_allclose(choice.scale, 1.0)
    np.testing.assert_allclose(choice.shift, 0.0, atol=1e-6)

    def run(alpha):
        gates = hard.choose(jax.random.key(1), alpha, CONTEXT)
        own = jnp.take_along_axis(outputs, gates.op[:, None], axis=1)[:, 0]
        return jnp.sum(gates.scale * own + gates.shift)

    def written_out(alpha):
        weights = soft.choose(jax.random.key(1), alpha, CONTEXT)
        heaviest = jax.nn.one_hot(choice.op, 4)
        # The operation that was drawn, and scalars of the others.
        return jnp.sum(weights * (heaviest * outputs + (1.0 - heaviest)))

    np.testing.assert_allclose(
        jax.grad(run)(ALPHA), jax.grad(written_out)(ALPHA), rtol=1e-4, atol=1e-6
    )


def test_draws_of_a_cold_concrete_follow_the_softmax():
    relaxation = rx.hard_concrete(lambda progress: 0.1)
    keys = jax.random.split(jax.random.key(3), 4000)
    ops = jax.vmap(lambda key: relaxation.choose(key, ALPHA, CONTEXT).op)(keys)
    shares = jnp.mean(jax.nn.one_hot(ops, 4), axis=0)
    np.testing.assert_allclose(shares, rx.masked_softmax(ALPHA, MASK), atol=0.03)


def test_dirichlet_has_its_mean_and_the_gradient_of_its_mean():
    relaxation = rx.dirichlet()
    keys = jax.random.split(jax.random.key(4), 4000)
    factors = jnp.arange(4.0)

    def mean_draw(alpha):
        drawn = jax.vmap(lambda key: relaxation.choose(key, alpha, CONTEXT))(keys)
        return jnp.sum(jnp.mean(drawn, axis=0) * factors)

    def exact(alpha):
        return jnp.sum(relaxation.strengths(alpha, MASK) * factors)

    np.testing.assert_allclose(mean_draw(ALPHA), exact(ALPHA), rtol=0.02)
    np.testing.assert_allclose(jax.grad(mean_draw)(ALPHA), jax.grad(exact)(ALPHA), atol=0.03)


def test_edge_weights_are_a_softmax_over_the_edges_of_a_node():
    relaxation = rx.with_edge_weights(rx.softmax(), nodes=(1, 2, 2))
    beta = jnp.array([5.0, 0.0, jnp.log(3.0)])
    strengths = relaxation.strengths((ALPHA, beta), MASK)
    np.testing.assert_allclose(jnp.sum(strengths, axis=1), [1.0, 0.25, 0.75], rtol=1e-5)
    choice = relaxation.choose(jax.random.key(0), (ALPHA, beta), CONTEXT)
    np.testing.assert_allclose(choice, strengths)
    alpha = relaxation.init(jax.random.key(0), MASK.shape)
    assert [leaf.shape for leaf in alpha] == [(3, 4), (3,)]


def test_auxiliary_weight_fades_and_is_not_strength():
    where = np.zeros(MASK.shape, bool)
    where[:, 1] = True
    relaxation = rx.with_auxiliary(rx.softmax(), where, rx.linear_schedule(1.0, 0.0))
    extra = relaxation.choose(jax.random.key(0), ALPHA, CONTEXT) - rx.masked_softmax(ALPHA, MASK)
    np.testing.assert_allclose(extra, 0.75 * where, atol=1e-6)
    np.testing.assert_allclose(relaxation.strengths(ALPHA, MASK), rx.masked_softmax(ALPHA, MASK))


def test_dropout_keeps_the_expected_weight():
    where = np.zeros(MASK.shape, bool)
    where[:, 1] = True
    relaxation = rx.with_dropout(rx.softmax(), where, lambda progress: 2.0 * progress)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: relaxation.choose(key, ALPHA, CONTEXT))(keys))
    usual = np.asarray(rx.masked_softmax(ALPHA, MASK))
    np.testing.assert_allclose((drawn[..., 1] == 0.0).mean(axis=0), 0.5, atol=0.04)
    np.testing.assert_allclose(drawn.mean(axis=0), usual, atol=0.03)
    np.testing.assert_array_equal(drawn[..., 2], np.broadcast_to(usual[:, 2], (4000, 3)))


def test_one_path_is_drawn_from_the_softmax():
    keys = jax.random.split(jax.random.key(5), 4000)
    gates = jax.vmap(lambda key: one_path(key, ALPHA, CONTEXT))(keys)
    shares = jnp.mean(jax.nn.one_hot(gates.op, 4), axis=0)
    np.testing.assert_allclose(shares, rx.masked_softmax(ALPHA, MASK), atol=0.03)


def test_two_paths_have_the_gradient_of_their_softmax():
    outputs = jax.random.normal(jax.random.key(2), MASK.shape)
    key = jax.random.key(6)
    gates = two_paths(key, ALPHA, CONTEXT)
    np.testing.assert_allclose(jnp.sort(gates, axis=1)[:, -1], 1.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(gates, axis=1), 1.0, rtol=1e-6)
    slope = jax.grad(lambda alpha: jnp.sum(two_paths(key, alpha, CONTEXT) * outputs))(ALPHA)
    assert (np.count_nonzero(slope, axis=1) == 2).all()
    # Equation 4 with the two that were drawn: sum_j dL/dg_j p_j (delta_ij - p_i).
    pair = slope != 0.0
    p = rx.masked_softmax(ALPHA, pair)
    want = p * (outputs - jnp.sum(p * outputs, axis=1, keepdims=True)) * pair
    np.testing.assert_allclose(slope, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("first", "last"), [(0.0, 1.0), (1.0, -1.0)])
def test_temperatures_are_checked(first, last):
    with pytest.raises(ValueError, match="temperature must be"):
        rx.check_temperatures(first, last)
