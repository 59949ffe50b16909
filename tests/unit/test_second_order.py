"""Second derivatives through convolutions, normalisation and pooling of a real supernet."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import spaces
from jaxnas.oneshot import hypergradients as hg
from jaxnas.oneshot.early_stops import dominant_eigenvalue
from jaxnas.oneshot.problem import from_space
from jaxnas.training.data import Split, from_arrays

SPACE = spaces.nasbench201(
    3, num_channels=4, num_cells=1, image_size=8, in_channels=1, affine=False
)
RNG = np.random.default_rng(0)
DATA = from_arrays(jax.random.key(0), RNG.normal(size=(60, 8, 8, 1)), np.tile(np.arange(3), 20))
PROBLEM = from_space(SPACE, DATA)
TRAIN, VALID = (Split(s.x[:8], s.y[:8]) for s in (DATA.train, DATA.valid))
RATE = 0.05


@pytest.fixture(scope="module")
def variables():
    return jax.jit(PROBLEM.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def alpha():
    return 0.5 * jax.random.normal(jax.random.key(3), (6, 5))


def levels(rest):
    def loss(batch, weights, alpha):
        choice = jax.nn.softmax(alpha, axis=-1)
        return PROBLEM.loss(jax.random.key(1), weights, rest, choice, batch, True)[0]

    def advance(gradient, memory, weights):
        return jax.tree.map(lambda w, g: w - RATE * g, weights, gradient), memory

    upper = lambda w, a: (loss(VALID, w, a), ())  # noqa: E731
    return upper, hg.Lower(lambda w, a: loss(TRAIN, w, a), advance, ())


def hypergradient(method, variables, alpha):
    weights, rest = variables
    upper, lower = levels(rest)
    return jax.jit(lambda w, a: method(upper, lower, w, a)[1])(weights, alpha)


def test_exact_equals_finite_difference(variables, alpha):
    # The weights' gradient jumps where a rectifier's input changes its sign: a radius at which none
    # does is far below the usual 0.01, where on this network the difference is off by a factor.
    exact = hypergradient(hg.unrolled(), variables, alpha)
    difference = hypergradient(hg.finite_difference(radius=3e-4), variables, alpha)
    first = hypergradient(hg.first_order(), variables, alpha)
    size = float(jnp.linalg.norm(exact))
    assert float(jnp.linalg.norm(difference - exact)) < 1e-3 * size
    assert float(jnp.linalg.norm(first - exact)) > 0.5 * size


@pytest.mark.slow
def test_implicit_is_one_step_at_the_weights_themselves(variables, alpha):
    """T1-T2 is a step of the weights whose upper gradient is taken before it."""
    weights, rest = variables
    upper, lower = levels(rest)
    found = hypergradient(hg.t1_t2(step_size=RATE), variables, alpha)

    @jax.jit
    def by_hand(weights, alpha):
        v, direct = jax.grad(lambda w, a: upper(w, a)[0], argnums=(0, 1))(weights, alpha)
        slope = lambda a: optax.tree.vdot(v, jax.grad(lower.loss)(weights, a))  # noqa: E731
        # Forward over reverse, column by column.
        columns = jax.lax.map(
            lambda e: jax.jvp(slope, (alpha,), (e.reshape(alpha.shape),))[1], jnp.eye(alpha.size)
        )
        return direct - RATE * columns.reshape(alpha.shape)

    np.testing.assert_allclose(found, by_hand(weights, alpha), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_curvature_in_alpha(variables, alpha):
    weights, rest = variables
    fn = lambda a: levels(rest)[0](weights, a)[0]  # noqa: E731
    found = jax.jit(lambda a: dominant_eigenvalue(jax.random.key(0), fn, a, num_iterations=30))(
        alpha
    )
    flat = lambda x: fn(x.reshape(alpha.shape))  # noqa: E731
    product = jax.jit(lambda v: jax.jvp(jax.grad(flat), (alpha.ravel(),), (v,))[1])
    matrix = np.stack([product(row) for row in np.eye(alpha.size, dtype=np.float32)])
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-4)
    values = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(abs(found), np.abs(values).max(), rtol=0.02)
