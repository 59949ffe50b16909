"""Routed edges in shared buffers: values and derivatives are those of the cell written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.nn._branches import RESIDUALS
from jaxnas.nn._routed_cell import Operation, route_edges

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
CHOICES = ((3, 1, 2, 0, 2, 3), (0, 0, 0, 2, 0, 0), (2, 2, 3, 1, 1, 2))
X = jax.random.normal(jax.random.key(0), (4, 3))


def none(x, fixed, changed, shared):
    return jnp.zeros_like(x), changed


def skip(x, fixed, changed, shared):
    return x * shared["scale"], changed


def dense(x, fixed, changed, shared):
    """A residual, a result that is one, and statistics that depend on parameters."""
    u = jax.nn.relu(x) @ fixed["w"]
    return jnp.tanh(u) + changed["mean"], {"mean": 0.5 * changed["mean"] + u.mean(0)}


def exponent(x, fixed, changed, shared):
    return jnp.exp(0.1 * x @ fixed["w"]), changed


def draw_rows(seed):
    draw = np.random.default_rng(seed).normal
    fixed = {"w": jnp.asarray(draw(size=(6, 3, 3)), jnp.float32)}
    return fixed, {"mean": jnp.asarray(draw(size=(6, 3)), jnp.float32)}


ROWS = ({}, {}), ({}, {}), draw_rows(1), (draw_rows(2)[0], {})
SHARED = {"scale": jnp.linspace(0.5, 1.5, 6)}
CALLS = (none, skip, dense, exponent)


def routed(x, rows, shared, choice, residuals="auto"):
    operations = [Operation(call, *own) for call, own in zip(CALLS, rows, strict=True)]
    nodes = jnp.zeros((4, *x.shape)).at[0].set(x)
    nodes, changed = route_edges(
        operations, jnp.asarray(choice), EDGES, nodes, shared, residuals=residuals
    )
    return nodes, [changed[2]["mean"]]


def written_out(x, rows, shared, choice):
    nodes, mean = [x] + [jnp.zeros_like(x)] * 3, rows[2][1]["mean"]
    for edge, (source, target) in enumerate(EDGES):
        own = jax.tree.map(lambda leaf, e=edge: leaf[e], (*rows[choice[edge]], shared))
        y, changed = CALLS[choice[edge]](nodes[source], *own)
        nodes[target] += y
        if choice[edge] == 2:
            mean = mean.at[edge].set(changed["mean"])
    return jnp.stack(nodes), [mean]


def assert_close(found, wanted):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, found, wanted)


def loss_fn(fun):
    def loss(x, rows, shared, choice):
        nodes, (mean,) = fun(x, rows, shared, choice)
        return jnp.sum(jnp.sin(nodes[-1])) + jnp.sum(nodes[1] * X) + jnp.sum(jnp.cos(mean))

    return loss


@pytest.mark.parametrize("residuals", RESIDUALS)
def test_values_and_gradients(residuals):
    fun = lambda *args: routed(*args, residuals=residuals)  # noqa: E731

    @jax.jit
    def run(choice):
        gradient = jax.value_and_grad(loss_fn(fun), (0, 1, 2))
        return fun(X, ROWS, SHARED, choice), gradient(X, ROWS, SHARED, choice)

    for choice in CHOICES:
        gradient = jax.value_and_grad(loss_fn(written_out), (0, 1, 2))
        wanted = written_out(X, ROWS, SHARED, choice), gradient(X, ROWS, SHARED, choice)
        assert_close(run(jnp.asarray(choice)), wanted)


def test_gradients_of_statistics_alone():
    """No cotangent reaches the nodes, and only some buffers move."""
    choice = CHOICES[0]

    def slope(fun):
        def loss(fixed):
            rows = (*ROWS[:2], (fixed, ROWS[2][1]), ROWS[3])
            return jnp.sum(jnp.cos(fun(X, rows, SHARED, choice)[1][0]))

        return jax.jit(jax.grad(loss))(ROWS[2][0])

    assert_close(slope(routed), slope(written_out))


def test_second_derivatives():
    choice = CHOICES[0]

    def curvature(fun, outer):
        loss = lambda x: loss_fn(fun)(x, ROWS, SHARED, choice)  # noqa: E731
        return jax.jit(outer(jax.grad(loss)))(X)

    wanted = curvature(written_out, jax.jacfwd)
    for outer in (jax.jacfwd, jax.jacrev):
        assert_close(curvature(routed, outer), wanted)


def test_values_that_operations_close_over():
    def loss(factor, fun):
        first = Operation(lambda x, *rest: (factor * jnp.sin(x), {}), {}, {})
        second = Operation(lambda x, *rest: (fun(x), {}), {}, {})
        nodes = jnp.stack([X, jnp.zeros_like(X), jnp.zeros_like(X)])
        nodes, _ = route_edges([first, second], jnp.array([0, 1]), ((0, 1), (1, 2)), nodes, ())
        return jnp.sum(nodes[-1])

    found = jax.grad(loss)(jnp.float32(2.0), jnp.cos)
    wanted = jax.grad(lambda factor: jnp.sum(jnp.cos(factor * jnp.sin(X))))(jnp.float32(2.0))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_candidates_side_by_side():
    gradient = jax.jit(lambda choice: jax.grad(loss_fn(routed), (0, 1))(X, ROWS, SHARED, choice))
    choices = jnp.array(CHOICES)
    found = jax.jit(jax.vmap(gradient))(choices)
    each = [gradient(choice) for choice in choices]
    assert_close(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x, *rest: (x[:, :2], {}), "ops must return the shape"),
        (lambda x, *rest: (x, {"mean": x}), "ops must keep the kinds"),
    ],
)
def test_bad_operations_are_refused(call, match):
    nodes = jnp.zeros((2, *X.shape))
    with pytest.raises(ValueError, match=match):
        route_edges([Operation(call, {}, {})], jnp.zeros(1, jnp.int32), ((0, 1),), nodes, ())
