"""Routing: values and derivatives are those of the chosen branch, and only its work is done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxnas.nn.conv import conv
from jaxnas.nn.norm import batch_norm
from jaxnas.nn.pooling import avg_pool, max_pool
from jaxnas.nn.routing import RESIDUALS, _Plan, route

SHAPE = (4, 3)


@jax.custom_vjp
def tripled(x):
    return x * x


# A derivative that autodiff would not find, so that ignoring it is noticed.
tripled.defvjp(lambda x: (x * x, x), lambda x, g: (3.0 * x * g,))


@jax.custom_jvp
def softened(x):
    return jnp.maximum(x, 0.0)


softened.defjvp(lambda primals, tangents: (softened(*primals), 0.5 * tangents[0] * primals[0]))

BRANCHES = {
    "identity": lambda x, p: x,
    "zero": lambda x, p: jnp.zeros_like(x),
    "constant": lambda x, p: jnp.full_like(x, 2.0),
    "bias": lambda x, p: x + p["b"],
    "dense": lambda x, p: jnp.tanh(jax.nn.relu(x) @ p["w"]),
    "deep": lambda x, p: jax.nn.gelu(jax.nn.silu(x @ p["w"] + p["b"]) @ p["w"].T) * x,
    "custom_vjp": lambda x, p: tripled(x) * p["b"],
    "custom_jvp": lambda x, p: softened(x @ p["w"]),
    "loop": lambda x, p: lax.fori_loop(0, 3, lambda _, h: jnp.sin(h @ p["w"]), x),
    "scan": lambda x, p: lax.scan(lambda h, w: (jnp.cos(h) * w, None), x, p["w"])[0],
    "branch": lambda x, p: lax.cond(x.sum() > 0, lambda h: h * h, jnp.sin, x),
    "batch_norm": lambda x, p: batch_norm(x, p["b"], None)[0],
    "softmax": lambda x, p: jax.nn.softmax(x, axis=-1) * p["b"].sum(),
    "integer": lambda x, p: x * p["n"],
    "repeated": lambda x, p: jnp.where(p["n"] > 0, x @ p["w"] + x @ p["w"], x),
}


def draw_operands(seed):
    draw = np.random.default_rng(seed).normal
    x, w, b = (jnp.asarray(draw(size=size), jnp.float32) for size in (SHAPE, (3, 3), 3))
    return x, {"w": w, "b": b, "n": jnp.int32(3)}


@pytest.fixture
def operands():
    return draw_operands(0)


def loss_fn(function):
    """Sum of a nonlinear function of the result, of the floating-point operands alone."""

    def loss(floats, n):
        x, w, b = floats
        return jnp.sum(jnp.sin(function(x, {"w": w, "b": b, "n": n})))

    return loss


def derivatives(function, operands, second=False):
    """Value, gradient, and the gradient of the gradient along a fixed direction."""
    x, p = operands
    floats, n = (x, p["w"], p["b"]), p["n"]
    loss = loss_fn(function)
    first = jax.value_and_grad(loss)(floats, n)
    if not second:
        return first
    direction = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), floats)

    def slope(floats):
        gradient = jax.grad(loss)(floats, n)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        return sum(jnp.vdot(g, d) for g, d in pairs)

    return first, jax.grad(slope)(floats)


def assert_close(found, wanted, rtol=1e-4, atol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, wanted)


@pytest.fixture(scope="module")
def wanted():
    run = jax.jit(lambda: [derivatives(b, draw_operands(0)) for b in BRANCHES.values()])
    return run()


class TestDerivatives:
    @pytest.mark.parametrize("residuals", RESIDUALS)
    def test_equal_the_branch_itself(self, residuals, operands, wanted):
        branches = list(BRANCHES.values())

        @jax.jit
        def routed(index):
            def function(*operands):
                return route(branches, index, *operands, residuals=residuals)

            return derivatives(function, operands)

        for index, own in enumerate(wanted):
            assert_close(routed(index), own)

    @pytest.mark.parametrize("residuals", RESIDUALS)
    @pytest.mark.parametrize("names", [("deep", "zero", "batch_norm"), ("custom_vjp", "scan")])
    def test_second_order(self, names, residuals, operands):
        branches = [BRANCHES[name] for name in names]

        @jax.jit
        def routed(index):
            def function(*operands):
                return route(branches, index, *operands, residuals=residuals)

            return derivatives(function, operands, second=True)

        for index, branch in enumerate(branches):
            wanted = jax.jit(lambda b=branch: derivatives(b, operands, second=True))()
            assert_close(routed(index), wanted)

    @settings(max_examples=6, deadline=None, derandomize=True)
    @given(st.data())
    def test_equal_plain_switch_for_any_set(self, data):
        names = data.draw(st.lists(st.sampled_from(sorted(BRANCHES)), min_size=1, max_size=3))
        residuals = data.draw(st.sampled_from(RESIDUALS))
        second = data.draw(st.booleans())
        index = data.draw(st.integers(-1, len(names)))
        branches = [BRANCHES[name] for name in names]
        operands = draw_operands(1)

        def plain(*operands):
            return lax.switch(index, branches, *operands)

        def own(*operands):
            return route(branches, jnp.int32(index), *operands, residuals=residuals)

        found = jax.jit(lambda: derivatives(own, operands, second))()
        assert_close(found, jax.jit(lambda: derivatives(plain, operands, second))())

    def test_forward_over_reverse(self, operands):
        branches = [BRANCHES["dense"], BRANCHES["deep"]]
        x, p = operands

        def product(function):
            gradient = jax.grad(lambda x: jnp.sum(function(x, p) ** 2))
            return jax.jvp(gradient, (x,), (jnp.ones_like(x),))[1]

        found = product(lambda x, p: route(branches, jnp.int32(1), x, p))
        assert_close(found, product(branches[1]))

    def test_third_order(self):
        branches = [lambda x: x, lambda x: jnp.sin(x) * x**2]
        third = jax.grad(jax.grad(jax.grad(lambda x: route(branches, jnp.int32(1), x))))
        # d3/dx3 (x^2 sin x) = 6 cos x - 6 x sin x - x^2 cos x
        x = 0.7
        wanted = 6 * np.cos(x) - 6 * x * np.sin(x) - x * x * np.cos(x)
        assert third(jnp.float32(x)) == pytest.approx(wanted, rel=1e-5)

    def test_results_may_be_pytrees_with_integers(self):
        def count(x, n):
            return {"y": x * x, "n": n + 1}

        def keep(x, n):
            return {"y": x, "n": n}

        def loss(x):
            found = route([count, keep], jnp.int32(0), x, jnp.int32(4))
            return found["y"], found["n"]

        (value, n), slope = jax.value_and_grad(loss, has_aux=True)(3.0)
        assert (value, n, slope) == (9.0, 5, 6.0)

    def test_a_result_nobody_uses(self):
        branches = [lambda x: (x * x, jnp.exp(x)), lambda x: (x, x)]
        assert jax.grad(lambda x: route(branches, jnp.int32(0), x)[0])(3.0) == 6.0

    def test_keys_are_operands_too(self):
        def dropped(x, key):
            return jnp.where(jax.random.bernoulli(jax.random.split(key)[0], 0.5, x.shape), x, 0.0)

        x, key = jnp.arange(1.0, 9.0), jax.random.key(3)
        found = jax.grad(lambda x: route([lambda x, _: x, dropped], 1, x, key).sum())(x)
        assert_close(found, (dropped(x, key) != 0).astype(jnp.float32))


class TestTransformations:
    branches = (lambda x, w: x, lambda x, w: jnp.tanh(x @ w), lambda x, w: jnp.sin(x))

    @pytest.fixture
    def arrays(self):
        draw = np.random.default_rng(2).normal
        return tuple(jnp.asarray(draw(size=s), jnp.float32) for s in ((5, *SHAPE), (3, 3)))

    def gradient(self, index, x, w):
        return jax.grad(lambda *a: jnp.sum(route(self.branches, index, *a) ** 2), (0, 1))(x, w)

    def wanted(self, index, x, w):
        function = self.branches[int(index)]
        return jax.grad(lambda *a: jnp.sum(function(*a) ** 2), (0, 1))(x, w)

    @pytest.mark.parametrize("index", range(3))
    def test_vmap_over_operands_stays_a_conditional(self, arrays, index):
        mapped = jax.jit(jax.vmap(self.gradient, in_axes=(None, 0, None)))
        found = mapped(index, *arrays)
        assert_close(found, jax.vmap(lambda x: self.wanted(index, x, arrays[1]))(arrays[0]))
        assert mapped.lower(index, *arrays).as_text().count("stablehlo.case") == 2

    def test_gradient_of_vmap(self, arrays):
        def loss(w, index):
            routed = jax.vmap(lambda x: route(self.branches, index, x, w))(arrays[0])
            return jnp.sum(routed**2)

        found = jax.jit(jax.grad(loss))
        wanted = jax.vmap(lambda x: self.wanted(1, x, arrays[1])[1])(arrays[0]).sum(0)
        assert_close(found(arrays[1], 1), wanted)
        assert found.lower(arrays[1], 1).as_text().count("stablehlo.case") == 2

    def test_vmap_over_index(self, arrays):
        indices = jnp.array([0, 2, 1, 1, 0])
        found = jax.jit(jax.vmap(self.gradient, in_axes=(0, 0, None)))(indices, *arrays)
        pairs = zip(indices, arrays[0], strict=True)
        each = [self.wanted(index, x, arrays[1]) for index, x in pairs]
        assert_close(found, jax.tree.map(lambda *parts: jnp.stack(parts), *each))

    def test_map_and_scan(self, arrays):
        def chained(indices, x, w):
            def step(h, index):
                return route(self.branches, index, h, w), None

            return jnp.sum(lax.scan(step, x, indices)[0] ** 2)

        archs = jnp.array([[0, 1, 2], [1, 1, 0]])
        x, w = arrays[0][0], arrays[1]
        found = jax.jit(lambda: lax.map(lambda a: jax.grad(chained, (1, 2))(a, x, w), archs))()

        def unrolled(arch):
            def loss(x, w):
                for index in arch:
                    x = self.branches[index](x, w)
                return jnp.sum(x**2)

            return jax.grad(loss, (0, 1))(x, w)

        each = [unrolled(arch) for arch in archs.tolist()]
        assert_close(found, jax.tree.map(lambda *parts: jnp.stack(parts), *each))

    def test_shard_map(self, arrays):
        mesh = Mesh(np.array(jax.devices()[:2]), ("candidate",))
        x, w = arrays[0][:2], arrays[1]

        def each(indices, x):
            return lax.map(lambda pair: self.gradient(*pair, w), (indices, x))

        spec = P("candidate")
        sharded = jax.shard_map(
            each, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False
        )
        found = jax.jit(sharded)(jnp.array([1, 2]), x)
        parts = [self.wanted(1, x[0], w), self.wanted(2, x[1], w)]
        assert_close(found, jax.tree.map(lambda *p: jnp.stack(p), *parts))

    def test_checkpoint(self, arrays):
        x, w = arrays[0][0], arrays[1]
        inner = jax.checkpoint(lambda x: route(self.branches, 1, x, w))
        assert_close(jax.grad(lambda x: jnp.sum(inner(x) ** 2))(x), self.wanted(1, x, w)[0])

    def test_branches_may_close_over_traced_arrays(self, arrays):
        x, w = arrays[0][0], arrays[1]

        @jax.jit
        def loss(w):
            scale = w.sum()
            closing = [lambda x: x, lambda x: scale * jnp.tanh(x @ w), lambda x: x * w[0]]
            return jnp.sum(route(closing, jnp.int32(1), x))

        wanted = jax.grad(lambda w: jnp.sum(w.sum() * jnp.tanh(x @ w)))(w)
        assert_close(jax.grad(loss)(w), wanted)

    def test_bfloat16(self, arrays):
        x, w = (a.astype(jnp.bfloat16) for a in (arrays[0][0], arrays[1]))
        found = self.gradient(1, x, w)
        assert all(g.dtype == jnp.bfloat16 for g in found)
        assert_close(*(jax.tree.map(jnp.float32, g) for g in (found, self.wanted(1, x, w))))


def image_branches():
    """The operations of NAS-Bench-201 and max pooling, as pure functions."""

    def dense(name):
        def run(x, p):
            y = conv(jax.nn.relu(x), p[name])
            return batch_norm(y, p["scale"], p["bias"])[0]

        return run

    return [
        lambda x, p: jnp.zeros_like(x),
        lambda x, p: x,
        dense("1x1"),
        dense("3x3"),
        lambda x, p: avg_pool(x, 3, padding=1),
        lambda x, p: max_pool(x, 3, padding=1),
    ]


@pytest.fixture
def image_operands():
    draw = np.random.default_rng(3).normal
    p = {"1x1": draw(size=(1, 1, 8, 8)), "3x3": draw(size=(3, 3, 8, 8))}
    p |= {"scale": draw(size=8), "bias": draw(size=8)}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (draw(size=(4, 6, 6, 8)), p))


def plan_of(branches, operands, residuals):
    """What the derivative of all operands keeps."""
    leaves, tree = jax.tree.flatten(operands)
    bodies = [lambda *a, b=branch: (b(*jax.tree.unflatten(tree, a)),) for branch in branches]
    return _Plan(bodies, residuals, tuple(range(len(leaves))), leaves)


class TestWhatIsKept:
    def test_convolution_images_share_one_slot(self, image_operands):
        plan = plan_of(image_branches()[:5], image_operands, "union")
        images = [s for s in plan.slots if s.shape == image_operands[0].shape]
        # The convolution's result; the rectifier and its mask follow from the operand.
        assert len(images) == 1
        assert all(s.shape == (8,) for s in plan.slots if s not in images)

    def test_nothing_where_nothing_is_needed(self, image_operands):
        branches = [lambda x, p: x, lambda x, p: jnp.zeros_like(x), lambda x, p: 2.0 * x]
        assert plan_of(branches, image_operands, "union").slots == []

    def test_results_are_not_kept_twice(self, image_operands):
        branches = [lambda x, p: x, lambda x, p: jnp.exp(avg_pool(x, 3, padding=1))]
        assert plan_of(branches, image_operands, "union").slots == []

    def test_recompute_keeps_operands_only(self, image_operands):
        assert plan_of(image_branches(), image_operands, "recompute").slots == []

    def test_auto_runs_greedy_branches_again(self):
        def greedy(x):
            for _ in range(20):
                x = jnp.sin(jnp.cumsum(x))
            return x

        branches = [lambda x: x, lambda x: jnp.cumsum(x) ** 2, greedy]
        x = jnp.ones(16)
        assert len(plan_of(branches, (x,), "union").slots) == 20
        assert len(plan_of(branches, (x,), "auto").slots) == 1
        found = jax.grad(lambda x: route(branches, 2, x).sum())(x)
        assert_close(found, jax.grad(lambda x: greedy(x).sum())(x))

    @pytest.mark.parametrize("residuals", RESIDUALS)
    def test_image_operations(self, image_operands, residuals):
        branches = image_branches()

        def gradients(function):
            return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(function(*a))), (0, 1))(
                *image_operands
            )

        routed = jax.jit(
            lambda i: gradients(lambda *a: route(branches, i, *a, residuals=residuals))
        )
        for index, branch in enumerate(branches):
            wanted = jax.jit(gradients, static_argnums=0)(branch)
            assert_close(routed(index), wanted)


class TestErrors:
    def test_no_branches(self):
        with pytest.raises(ValueError, match="branches must hold at least one function"):
            route([], 0, 1.0)

    def test_unequal_results(self):
        with pytest.raises(ValueError, match=r"equal structures, shapes and dtypes.*branches\[1\]"):
            route([lambda x: x, lambda x: (x, x)], 0, 1.0)

    def test_unknown_residuals(self):
        with pytest.raises(ValueError, match="residuals must be one of"):
            route([lambda x: x], 0, 1.0, residuals="all")
