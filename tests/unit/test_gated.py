"""Gated choices, partial channels and the search form of the NAS-Bench-201 supernet."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.nn.mixed import Cell, Gated, MixedOp
from jaxnas.nn.operations import OPERATIONS
from jaxnas.spaces.nasbench201 import nasbench201

NAMES = ("none", "skip_connect", "nor_conv_1x1", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2))
X = jax.random.normal(jax.random.key(0), (4, 4, 4, 4))


def operations(features):
    return tuple((name, partial(OPERATIONS[name], features)) for name in NAMES)


def variables_of(module, choice):
    return jax.jit(lambda key: module.init(key, X, choice, train=False))(jax.random.key(1))


@pytest.mark.parametrize("num_cells", [None, 2])
def test_gated_equals_mixing_by_one_hot_plus_scalars(num_cells):
    cell = Cell(operations(4), num_nodes=3, edges=EDGES, num_cells=num_cells)
    op = jnp.array([2, 1, 3])
    variables = variables_of(cell, op)
    heaviest = jax.nn.one_hot(op, 4)

    def mixed(weights):
        return jnp.sum(jnp.sin(cell.apply(variables, X, weights, train=False)))

    def gated(weights):
        scale = jnp.sum(weights * heaviest, axis=-1)
        choice = Gated(op, scale, jnp.zeros(3))
        return jnp.sum(jnp.sin(cell.apply(variables, X, choice, train=False)))

    weights = 1.5 * heaviest
    (want, want_slope), (got, slope) = (
        jax.jit(jax.value_and_grad(f))(weights) for f in (mixed, gated)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(slope, want_slope * heaviest, rtol=1e-4, atol=1e-5)


def test_shift_is_added_to_every_element():
    place = MixedOp(operations(4))
    variables = variables_of(place, jnp.int32(0))
    choice = Gated(jnp.int32(1), jnp.float32(2.0), jnp.float32(0.5))
    got = place.apply(variables, X, choice, train=False)
    np.testing.assert_allclose(got, 2.0 * X + 0.5, rtol=1e-6)


def test_gated_moves_the_statistics_of_the_chosen_operation_only():
    ops = (*operations(4), ("other", partial(OPERATIONS["nor_conv_1x1"], 4)))
    place = MixedOp(ops)
    variables = variables_of(place, jnp.int32(0))
    choice = Gated(jnp.int32(2), jnp.float32(1.0), jnp.float32(0.0))
    _, after = place.apply(variables, X, choice, train=True, mutable=["batch_stats"])
    before = variables["batch_stats"]
    moved = {
        name: not np.array_equal(tree["norm"]["mean"], before[name]["norm"]["mean"])
        for name, tree in after["batch_stats"].items()
    }
    assert moved == {"nor_conv_1x1": True, "other": False}


def test_gated_shapes_are_checked():
    cell = Cell(operations(4), num_nodes=3, edges=EDGES)
    short = Gated(jnp.zeros(2, jnp.int32), jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match="choice must be Gated of shape"):
        cell.init(jax.random.key(0), X, short, train=False)


def test_partial_runs_the_first_channels_and_shuffles():
    place = MixedOp(operations(2), partial=2)
    skip = jnp.int32(NAMES.index("skip_connect"))
    variables = variables_of(place, skip)
    y = place.apply(variables, X, skip, train=False)
    np.testing.assert_array_equal(y, X[..., jnp.array([0, 2, 1, 3])])
    none = place.apply(variables, X, jnp.int32(0), train=False)
    np.testing.assert_array_equal(none[..., ::2], jnp.zeros_like(none[..., ::2]))
    np.testing.assert_array_equal(none[..., 1::2], X[..., 2:])
    conv = variables["params"]["nor_conv_1x1"]["conv"]["kernel"]
    assert conv.shape[-2:] == (2, 2)


def test_partial_pools_where_operations_halve_the_image():
    ops = tuple((name, partial(OPERATIONS[name], 2, stride=2)) for name in ("none", "nor_conv_3x3"))
    place = MixedOp(ops, partial=2)
    y = place.apply(variables_of(place, jnp.int32(0)), X, jnp.int32(0), train=False)
    largest = X.reshape(4, 2, 2, 2, 2, 4).max(axis=(2, 4))[..., 2:]
    np.testing.assert_allclose(y[..., 1::2], largest)


@pytest.mark.parametrize(("features", "count", "message"), [(4, 3, "divide"), (4, 0, "at least 1")])
def test_partial_is_checked(features, count, message):
    with pytest.raises(ValueError, match=f"partial must .*{message}"):
        variables_of(MixedOp(operations(features), partial=count), jnp.int32(0))


SMALL = {"num_channels": 4, "num_cells": 1, "image_size": 8, "in_channels": 4}
IMAGES = jax.random.normal(jax.random.key(2), (4, 8, 8, 4))


def test_network_extracted_without_affine_has_equal_logits():
    space = nasbench201(3, affine=False, **SMALL)
    arch = np.array([3, 1, 2, 4, 0, 3])
    module = space.supernet(space.full_bucket)
    init = jax.jit(lambda key: module.init(key, IMAGES, jnp.asarray(arch), train=False))
    variables = init(jax.random.key(0))
    assert "params" in variables and "scale" not in str(variables["params"]["stage_0"])
    want = module.apply(variables, IMAGES, jnp.asarray(arch), train=False)
    alone = module.extract(variables, arch)
    fresh = jax.eval_shape(lambda: space.network(arch).init(jax.random.key(0), IMAGES, train=False))
    assert jax.tree.structure(dict(alone)) == jax.tree.structure(dict(fresh))
    got = space.network(arch).apply(alone, IMAGES, train=False)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_networks_of_partial_supernets_are_refused():
    space = nasbench201(3, partial=2, **SMALL)
    with pytest.raises(ValueError, match="partial must be 1 to extract"):
        space.supernet(space.full_bucket).extract({}, np.zeros(6, int))
    with pytest.raises(ValueError, match="partial must divide num_channels"):
        nasbench201(3, partial=3, **SMALL)
