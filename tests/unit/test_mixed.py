"""Mixed operations and cells: routed, mixed, scanned and unrolled forms agree."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxnas.nn import _mixing
from jaxnas.nn.mixed import Cell, MixedOp, operation_variables
from jaxnas.nn.operations import OPERATIONS
from jaxnas.spaces.nasbench201 import nasbench201

NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
FEATURES = 4
OPS = tuple((name, partial(OPERATIONS[name], FEATURES)) for name in NAMES)
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
CELL = Cell(OPS, num_nodes=4, edges=EDGES)
CHOICE = jnp.array([3, 1, 2, 4, 0, 3])  # one of every operation
ALPHA = jax.nn.softmax(jax.random.normal(jax.random.key(5), (6, 5)))

SPACE = nasbench201(3, num_channels=4, num_cells=2, image_size=8, in_channels=2)
INPUTS = jax.random.normal(jax.random.key(0), (6, 8, 8, 2))


class Counted(nn.Module):
    """A user's operation: plain Flax layers, dropout, and a collection of its own."""

    @nn.compact
    def __call__(self, x, *, train):
        calls = self.variable("counts", "calls", jnp.zeros, (), jnp.int32)
        if self.is_mutable_collection("counts") and not self.is_initializing():
            calls.value += 1
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(x.shape[-1])(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


class Noise(nn.Module):
    """Dropout alone, so that the result shows the random numbers."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5, deterministic=not train)(x)


class Curved(nn.Module):
    """Two smooth functions, with and without parameters."""

    dense: bool

    @nn.compact
    def __call__(self, x, *, train):
        if not self.dense:
            return jnp.sin(x)
        shape = (x.shape[-1], x.shape[-1])
        return jnp.tanh(x @ self.param("kernel", nn.initializers.lecun_normal(), shape))


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 3, FEATURES)), jnp.float32)


@pytest.fixture(scope="module")
def op_variables(images):
    return init(MixedOp(OPS), images, jnp.int32(0))


@pytest.fixture(scope="module")
def cell_variables(images):
    return init(CELL, images, jnp.zeros(6, jnp.int32))


def init(module, x, choice):
    return jax.jit(lambda key, x: module.init(key, x, choice, train=False))(jax.random.key(0), x)


def split(variables):
    rest = dict(variables)
    return rest.pop("params"), rest


def assert_close(found, wanted, tol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol), found, wanted)


def assert_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(wanted))


@partial(jax.jit, static_argnums=0)
def trained(apply, params, x, choice):
    """`apply(params, x, choice) -> (y, rest)`: a loss, the rest, and all gradients."""

    def loss(params, x, choice):
        y, rest = apply(params, x, choice)
        return jnp.sum(jnp.sin(y)), rest

    routes = jnp.issubdtype(choice.dtype, jnp.integer)
    argnums = (0, 1) if routes else (0, 1, 2)
    return jax.value_and_grad(loss, argnums, has_aux=True)(params, x, choice)


def apply_fn(module, rest):
    def apply(params, x, choice):
        return module.apply({"params": params, **rest}, x, choice, train=True, mutable=list(rest))

    return apply


def unrolled_fn(rest):
    """The cell written out: one `MixedOp` per edge, fed with its part of the variables."""

    def apply(params, x, choice):
        nodes = [x] + [jnp.zeros_like(x)] * 3
        after = []
        for edge, (source, target) in enumerate(EDGES):
            own = jax.tree.map(lambda leaf, e=edge: leaf[e], {"params": params, **rest})
            module = apply_fn(MixedOp(OPS), {c: own[c] for c in rest})
            y, updated = module(own["params"], nodes[source], choice[edge])
            nodes[target] += y
            after.append(updated)
        return nodes[-1], jax.tree.map(lambda *leaves: jnp.stack(leaves), *after)

    return apply


class TestMixedOp:
    @pytest.mark.parametrize("residuals", ["recompute", "auto"])
    def test_a_mixture_is_computed_again_instead_of_kept(
        self, monkeypatch, images, op_variables, residuals
    ):
        monkeypatch.setattr(_mixing, "_LARGE", images.size)
        params, rest = split(op_variables)
        kept, again = (apply_fn(MixedOp(OPS, residuals=r), rest) for r in ("union", residuals))
        assert_close(
            trained(again, params, images, ALPHA[0]), trained(kept, params, images, ALPHA[0])
        )

        def size(apply):
            pull = jax.vjp(lambda *a: apply(*a)[0], params, images, ALPHA[0])[1]
            return sum(leaf.size for leaf in jax.tree.leaves(pull))

        operands = sum(leaf.size for leaf in jax.tree.leaves((op_variables, images, ALPHA[0])))
        assert size(again) <= operands < size(kept)

    def test_routing_equals_the_operation_itself(self, images, op_variables):
        params, rest = split(op_variables)
        routed = apply_fn(MixedOp(OPS), rest)
        for choice, (chosen, factory) in enumerate(OPS):
            own_params, own_rest = split({"params": {}} | operation_variables(op_variables, chosen))

            def alone(params, x, _, factory=factory, rest=own_rest):
                own = {"params": params, **rest}
                return factory().apply(own, x, train=True, mutable=["batch_stats"])

            found = trained(routed, params, images, jnp.int32(choice))
            wanted = trained(alone, own_params, images, jnp.int32(choice))
            (loss, after), (slopes, x_slope) = found
            assert_close((loss, x_slope), (wanted[0][0], wanted[1][1]))
            for name, slope in slopes.items():
                zeros = jax.tree.map(jnp.zeros_like, slope)
                assert_close(slope, wanted[1][0] if name == chosen else zeros)
            for name, stats in after["batch_stats"].items():
                if name == chosen:
                    assert_close(stats, wanted[0][1]["batch_stats"])
                else:
                    assert_equal(stats, rest["batch_stats"][name])

    def test_mixing_is_the_weighted_sum(self, images, op_variables):
        params, rest = split(op_variables)
        alpha = jnp.array([0.3, -0.5, 0.2, 1.4, 0.0])

        def summed(params, x, alpha):
            total, stats = jnp.zeros_like(x), {}
            for k, (name, factory) in enumerate(OPS):
                own = operation_variables({"params": params, **rest}, name)
                y, updated = factory().apply(own, x, train=True, mutable=["batch_stats"])
                total += alpha[k] * y
                stats |= {name: updated["batch_stats"]} if updated else {}
            return total, {"batch_stats": stats}

        found = trained(apply_fn(MixedOp(OPS), rest), params, images, alpha)
        assert_close(found, trained(summed, params, images, alpha))

    def test_one_hot_mixing_equals_routing(self, images, op_variables):
        run = jax.jit(lambda choice: MixedOp(OPS).apply(op_variables, images, choice, train=False))
        for choice in range(len(NAMES)):
            assert_close(run(jax.nn.one_hot(choice, len(NAMES))), run(jnp.int32(choice)))

    def test_initial_values_depend_on_the_name_alone(self, images, op_variables):
        assert_equal(init(MixedOp(OPS[::-1]), images, jnp.int32(0)), op_variables)
        few = init(MixedOp(OPS, keep=(3,)), images, ALPHA[0])
        assert list(few["params"]) == ["nor_conv_3x3"]
        found, wanted = (operation_variables(v, "nor_conv_3x3") for v in (few, op_variables))
        assert_equal(found, wanted)

    def test_a_kept_part_gives_the_same(self, images, op_variables):
        def run(choice, keep=None):
            module = MixedOp(OPS, keep=keep)
            return jax.jit(lambda c: module.apply(op_variables, images, c, train=False))(choice)

        for choice in (jnp.int32(1), jnp.int32(3)):
            assert_close(run(choice, keep=(3, 1)), run(choice))
        found = run(jnp.array([9.0, 0.5, 9.0, 2.0, 9.0]), keep=(3, 1))
        assert_close(found, run(jnp.array([0.0, 0.5, 0.0, 2.0, 0.0])))

    def test_any_module_will_do(self):
        module = MixedOp((("counted", Counted), ("noise", Noise)))
        x = jnp.ones((8, 3))
        variables = init(module, x, jnp.int32(1))
        assert set(variables) == {"params", "batch_stats", "counts"}

        @jax.jit
        def run(choice, key):
            mutable = ["batch_stats", "counts"]
            rngs = {"dropout": key}
            return module.apply(variables, x, choice, train=True, mutable=mutable, rngs=rngs)

        after = [run(jnp.int32(k), jax.random.key(0))[1]["counts"] for k in (0, 1)]
        assert [int(counts["counted"]["calls"]) for counts in after] == [1, 0]
        one, again, other = (run(jnp.int32(1), jax.random.key(k))[0] for k in (0, 0, 1))
        np.testing.assert_array_equal(one, again)
        assert jnp.any(one != other)

    def test_initialisation_leaves_statistics_alone(self, images):
        start = jax.jit(
            lambda key: MixedOp(OPS).init(key, images, jnp.int32(3), train=True)["batch_stats"]
        )(jax.random.key(0))
        assert not jnp.any(start["nor_conv_3x3"]["norm"]["mean"])

    @pytest.mark.parametrize(
        ("options", "choice", "match"),
        [
            ({"ops": ()}, jnp.int32(0), "ops must be at least one"),
            ({"ops": OPS[:1] * 2}, jnp.int32(0), "ops must be .* under different names"),
            ({"ops": OPS, "keep": (7,)}, jnp.int32(0), "keep must be .* from 0 to 4"),
            ({"ops": OPS, "keep": ()}, jnp.int32(0), "keep must be different positions"),
            ({"ops": OPS}, jnp.zeros(3), r"choice must be integers of shape \(\)"),
            ({"ops": OPS}, jnp.zeros(2, jnp.int32), r"choice must be integers of shape \(\)"),
        ],
    )
    def test_errors(self, images, options, choice, match):
        with pytest.raises(ValueError, match=match):
            MixedOp(**options).init(jax.random.key(0), images, choice, train=False)


class TestCell:
    @pytest.mark.parametrize("choice", [CHOICE, ALPHA], ids=["routed", "mixed"])
    def test_scan_equals_unrolled(self, images, cell_variables, choice):
        params, rest = split(cell_variables)
        found = trained(apply_fn(CELL, rest), params, images, choice)
        assert_close(found, trained(unrolled_fn(rest), params, images, choice), 5e-4)

    def test_one_hot_mixing_equals_routing(self, images, cell_variables):
        run = jax.jit(lambda choice: CELL.apply(cell_variables, images, choice, train=False))
        assert_close(run(jax.nn.one_hot(CHOICE, len(NAMES))), run(CHOICE))

    @pytest.mark.slow
    def test_second_derivatives(self, images, cell_variables):
        """The gradient along the architecture's weights through a step on the parameters."""
        params, rest = split(cell_variables)

        def stepped(apply):
            def loss(params, alpha):
                return jnp.sum(jnp.sin(apply(params, images, alpha)[0]))

            def outer(alpha):
                slopes = jax.grad(loss)(params, alpha)
                moved = jax.tree.map(lambda p, s: p - 0.01 * s, params, slopes)
                return loss(moved, alpha)

            return jax.jit(jax.grad(outer))(ALPHA)

        assert_close(stepped(apply_fn(CELL, rest)), stepped(unrolled_fn(rest)), 2e-3)

    def test_curvature_of_a_routed_cell(self):
        """Forward over reverse and reverse over reverse agree with the cell written out."""
        ops = (("dense", partial(Curved, True)), ("sine", partial(Curved, False)))
        cell = Cell(ops, num_nodes=3, edges=((0, 1), (0, 2), (1, 2)))
        x, choice = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), jnp.array([0, 1, 0])
        variables = init(cell, x, choice)

        def routed(x):
            return jnp.sum(cell.apply(variables, x, choice, train=False) ** 2)

        def written_out(x):
            kernel = variables["params"]["dense"]["kernel"]
            return jnp.sum((jnp.sin(x) + jnp.tanh(jnp.tanh(x @ kernel[0]) @ kernel[2])) ** 2)

        wanted = jax.hessian(written_out)(x)
        assert_close(jax.jacfwd(jax.grad(routed))(x), wanted)
        assert_close(jax.jacrev(jax.grad(routed))(x), wanted)

    def test_edges_start_from_values_of_their_own(self, cell_variables):
        kernels = cell_variables["params"]["nor_conv_3x3"]["conv"]["kernel"]
        assert kernels.shape == (6, 3, 3, FEATURES, FEATURES)
        assert len({float(kernel.sum()) for kernel in kernels}) == 6

    def test_initial_values_are_the_same_in_every_form(self, images, cell_variables):
        two = init(Cell(OPS, 4, EDGES, num_cells=2), images, jnp.zeros(6, jnp.int32))
        few = init(Cell(OPS, 4, EDGES, keep=(3,)), images, ALPHA)
        wanted = operation_variables(cell_variables, "nor_conv_3x3", edge=4)
        assert_equal(operation_variables(two, "nor_conv_3x3", cell=0, edge=4), wanted)
        assert_equal(operation_variables(few, "nor_conv_3x3", edge=4), wanted)

    def test_dropout_differs_by_edge_and_cell(self):
        ops, x, rngs = (("noise", Noise),), jnp.ones((64, 2)), {"dropout": jax.random.key(0)}
        cell = Cell(ops, num_nodes=3, edges=((0, 1), (0, 2)), output=(1, 2))
        y = cell.apply({}, x, jnp.zeros(2, jnp.int32), train=True, rngs=rngs)
        assert jnp.any(y[:, :2] != y[:, 2:])
        row = Cell(ops, num_nodes=2, edges=((0, 1),), num_cells=2)
        y = row.apply({}, x, jnp.zeros(1, jnp.int32), train=True, rngs=rngs)
        # The same mask twice would leave half of the ones, different masks leave a quarter.
        assert 0.1 < float((y > 0).mean()) < 0.4

    def test_cells_follow_one_another(self, images):
        row = Cell(OPS, num_nodes=4, edges=EDGES, num_cells=3)
        variables = init(row, images, CHOICE)
        params, rest = split(variables)
        each = jnp.stack([CHOICE, jnp.ones_like(CHOICE), CHOICE[::-1]])

        def chained(params, x, choices):
            after = []
            for cell, choice in enumerate(choices):
                own = jax.tree.map(lambda leaf, c=cell: leaf[c], {"params": params, **rest})
                module = apply_fn(CELL, {c: own[c] for c in rest})
                x, updated = module(own["params"], x, choice)
                after.append(updated)
            return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *after)

        wanted = trained(chained, params, images, each)
        assert_close(trained(apply_fn(row, rest), params, images, each), wanted, 2e-3)
        same = jnp.stack([CHOICE] * 3)
        found, wanted = (row.apply(variables, images, c, train=False) for c in (CHOICE, same))
        np.testing.assert_array_equal(found, wanted)

    def test_mapped_over_choices(self, images, cell_variables):
        """Told so or not: with gradients and statistics of every candidate's own."""
        params, rest = split(cell_variables)
        choices = jnp.stack([CHOICE, CHOICE[::-1]])

        def mapped(module):
            run = lambda choice: trained(apply_fn(module, rest), params, images, choice)  # noqa: E731
            return jax.jit(jax.vmap(run))(choices)

        assert_close(mapped(CELL.clone(vmapped=True)), mapped(CELL))

    def test_two_inputs_and_concatenation(self, images):
        edges = ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
        cell = Cell(OPS, num_nodes=4, edges=edges, num_inputs=2, output="concat", keep=(1,))
        skips, inputs = jnp.ones(5, jnp.int32), (images, 2.0 * images)
        y = cell.apply({}, inputs, skips, train=False)
        # Node 2 is the sum of both inputs, node 3 that of both inputs and node 2.
        assert_close(y, jnp.concatenate([3.0 * images, 6.0 * images], axis=-1))

    def test_candidates_in_a_map(self, images, cell_variables):
        params, rest = split(cell_variables)
        archs = jnp.stack([CHOICE, jnp.ones_like(CHOICE)])

        def one(arch):
            return trained(apply_fn(CELL, rest), params, images, arch)

        found = jax.jit(lambda archs: jax.lax.map(one, archs))(archs)
        each = [one(arch) for arch in archs]
        assert_close(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), 5e-4)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"edges": ()}, "edges must hold at least one"),
            ({"edges": ((1, 1),)}, "edges must lead from a node to a later one"),
            ({"edges": ((0, 4),)}, "edges must lead from a node to a later one"),
            ({"edges": ((1, 2), (0, 1))}, "edges must come in an order"),
            ({"num_inputs": 4}, "num_inputs must be from 1 to num_nodes - 1 = 3"),
            ({"num_inputs": 2}, "edges must lead from a node to a later one that is not an input"),
            ({"output": "first"}, "output must be 'last', 'concat' or nodes"),
            ({"output": (4,)}, "output must be 'last', 'concat' or nodes"),
            ({"num_cells": 0}, "num_cells must be at least 1"),
            ({"num_cells": 2, "output": "concat"}, "num_cells must be None unless"),
            ({"ops": (("thin", partial(OPERATIONS["nor_conv_1x1"], 3)),)}, "ops must return"),
            ({"residuals": "none"}, "residuals must be one of"),
        ],
    )
    def test_errors(self, images, options, match):
        found = {"ops": OPS, "num_nodes": 4, "edges": EDGES, **options}
        inputs = [images] * found.get("num_inputs", 1)
        choice = jnp.zeros(len(found["edges"]), jnp.int32)
        with pytest.raises(ValueError, match=match):
            Cell(**found).init(jax.random.key(0), inputs, choice, train=False)

    def test_number_of_inputs(self, images):
        with pytest.raises(ValueError, match="x must be 1 arrays, got 2"):
            CELL.init(jax.random.key(0), [images, images], jnp.zeros(6, jnp.int32), train=False)


def test_scanned_cells_equal_the_network_written_out():
    supernet = SPACE.supernet(SPACE.full_bucket)
    network = SPACE.network(np.asarray(CHOICE))
    variables = jax.jit(lambda key: supernet.init(key, INPUTS, CHOICE, train=False))(
        jax.random.key(1)
    )
    alone = supernet.extract(variables, np.asarray(CHOICE))

    def outcome(module, variables, *choice):
        def loss(params):
            own = {**variables, "params": params}
            y, updated = module.apply(own, INPUTS, *choice, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, updated["batch_stats"])

        gradient, (y, stats) = jax.grad(loss, has_aux=True)(variables["params"])
        return y, {"params": gradient, "batch_stats": stats}

    wanted = jax.jit(lambda v: outcome(network, v))(alone)
    routed = jax.jit(lambda v: outcome(supernet, v, CHOICE))(variables)
    y, changed = routed[0], supernet.extract(routed[1], np.asarray(CHOICE))
    np.testing.assert_allclose(y, wanted[0], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), changed, wanted[1])
