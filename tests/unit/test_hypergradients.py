"""Hypergradients against a quadratic problem in closed form, and against each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas.oneshot import hypergradients as hg

# Lower: 1/2 w'Hw - w'Ba. Upper: 1/2 |w - t|^2 + 1/2 |a|^2 c. So w*(a) = H^-1 B a.
RNG = np.random.default_rng(0)
BASIS, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
H = jnp.asarray(BASIS @ np.diag([0.5, 0.8, 1.0, 1.5, 2.0]) @ BASIS.T, jnp.float32)
B = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
TARGET = jnp.asarray(RNG.normal(size=5), jnp.float32)
ALPHA = jnp.asarray([0.3, -0.7, 1.1], jnp.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=5), jnp.float32)
RATE = 0.1


def upper(weights, alpha):
    return 0.5 * jnp.sum((weights["w"] - TARGET) ** 2) + 0.05 * jnp.sum(alpha**2), "aux"


def lower_loss(weights, alpha):
    w = weights["w"]
    return 0.5 * w @ H @ w - w @ B @ alpha


def plain_step(gradient, memory, weights):
    return jax.tree.map(lambda w, g: w - RATE * g, weights, gradient), memory


LOWER = hg.Lower(lower_loss, plain_step, ())


def run(hypergradient, weights=WEIGHTS, lower=LOWER):
    def jitted(w, a):
        (loss, _), gradient = hypergradient(lambda w, a: (upper(w, a)[0], ()), lower, w, a)
        return loss, gradient

    return jax.jit(jitted)({"w": weights}, ALPHA)


def unrolled_in_closed_form(num_unrolled):
    """d/da of the upper loss at w_K, where w_k+1 = (1 - rate H) w_k + rate B a."""
    keep, slope, w = jnp.eye(5) - RATE * H, jnp.zeros((5, 3)), WEIGHTS
    for _ in range(num_unrolled):
        slope, w = keep @ slope + RATE * B, keep @ w + RATE * B @ ALPHA
    return slope.T @ (w - TARGET) + 0.1 * ALPHA


def implicit_in_closed_form(weights):
    return B.T @ jnp.linalg.solve(H, weights - TARGET) + 0.1 * ALPHA


def test_first_order_is_the_direct_derivative():
    loss, gradient = run(hg.first_order())
    np.testing.assert_allclose(gradient, 0.1 * ALPHA, rtol=1e-6)
    np.testing.assert_allclose(loss, upper({"w": WEIGHTS}, ALPHA)[0], rtol=1e-6)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("num_unrolled", [1, 2, 7])
def test_unrolled(num_unrolled, recompute):
    _, gradient = run(hg.unrolled(num_unrolled=num_unrolled, recompute=recompute))
    np.testing.assert_allclose(gradient, unrolled_in_closed_form(num_unrolled), rtol=1e-4)


def test_finite_difference_is_one_unrolled_step():
    loss, gradient = run(hg.finite_difference())
    np.testing.assert_allclose(gradient, unrolled_in_closed_form(1), rtol=1e-3)
    np.testing.assert_allclose(loss, run(hg.unrolled())[0], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_looked_through(nesterov):
    optimizer = optax.sgd(RATE, momentum=0.9, nesterov=nesterov)
    memory = optimizer.init({"w": WEIGHTS})
    _, memory = optimizer.update({"w": jnp.ones(5)}, memory)

    def advance(gradient, memory, weights):
        change, memory = optimizer.update(gradient, memory, weights)
        return optax.apply_updates(weights, change), memory

    lower = hg.Lower(lower_loss, advance, memory)
    _, exact = run(hg.unrolled(), lower=lower)
    _, difference = run(hg.finite_difference(), lower=lower)
    np.testing.assert_allclose(difference, exact, rtol=1e-3)
    assert np.abs(exact - run(hg.unrolled())[1]).max() > 1e-3


def test_unrolling_converges_to_the_implicit_gradient():
    # Of the solution of the lower problem, which is where unrolling ends.
    solution = jnp.linalg.solve(H, B @ ALPHA)
    want = implicit_in_closed_form(solution)
    errors = [np.abs(run(hg.unrolled(num_unrolled=k))[1] - want).max() for k in (10, 40, 160)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 1e-2


def test_conjugate_gradient_converges():
    want = implicit_in_closed_form(WEIGHTS)
    errors = [
        np.abs(run(hg.conjugate_gradient(num_iterations=n))[1] - want).max() for n in (1, 3, 5)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


def test_damping_is_added_to_the_diagonal():
    _, gradient = run(hg.conjugate_gradient(damping=0.5))
    want = B.T @ jnp.linalg.solve(H + 0.5 * jnp.eye(5), WEIGHTS - TARGET) + 0.1 * ALPHA
    np.testing.assert_allclose(gradient, want, rtol=1e-4)


def test_neumann_converges():
    want = implicit_in_closed_form(WEIGHTS)
    terms = (0, 5, 20, 80)
    errors = [np.abs(run(hg.neumann(step_size=0.5, num_terms=n))[1] - want).max() for n in terms]
    assert all(a > b for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-4


def test_t1_t2_replaces_the_inverse_by_a_number():
    _, gradient = run(hg.t1_t2(step_size=1.0))
    np.testing.assert_allclose(gradient, B.T @ (WEIGHTS - TARGET) + 0.1 * ALPHA, rtol=1e-4)
    _, series = run(hg.neumann(step_size=1.0, num_terms=0))
    np.testing.assert_allclose(series, gradient, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.unrolled(num_unrolled=0), "num_unrolled"),
        (lambda: hg.neumann(num_terms=-1), "num_terms"),
        (lambda: hg.conjugate_gradient(num_iterations=0), "num_iterations"),
        (lambda: hg.conjugate_gradient(damping=-1.0), "damping"),
        (lambda: hg.finite_difference(radius=-0.1), "radius"),
    ],
)
def test_numbers_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
