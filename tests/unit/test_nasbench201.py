"""The NAS-Bench-201 space against its published tables and a plain NumPy network."""

import itertools
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import Recipe, testing
from jaxnas.nn.operations import OPERATIONS
from jaxnas.space import SearchSpace
from jaxnas.space import representative as space_representative
from jaxnas.spaces.nasbench201 import PUBLISHED_OPERATIONS as OPS
from jaxnas.spaces.nasbench201 import (
    arch_from_index,
    arch_from_string,
    index_from_arch,
    nasbench201,
    published_costs,
    representative,
    string_from_arch,
)
from jaxnas.training import population
from jaxnas.training.data import from_arrays

DATA = Path(os.environ.get("JAXNAS_DATA", Path(__file__).parents[3] / "shared" / "data"))


TINY: dict[str, Any] = {"num_channels": 4, "num_cells": 1, "image_size": 8, "in_channels": 1}


def tiny(**options: Any) -> SearchSpace:
    return nasbench201(3, **(TINY | options))


def tiny_supernet(bucket=None):
    space = tiny()
    assert space.supernet is not None
    return space.supernet(bucket or space.full_bucket)


@pytest.fixture(scope="module")
def table():
    path = DATA / "nasbench201.npz"
    if not path.exists():
        pytest.skip("the published tables are not here")
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def every():
    return np.indices((5,) * 6).reshape(6, -1).T


# Names of an architecture.


def test_known_rows_of_the_published_tables():
    strings = {
        0: "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
        "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
        9: "|avg_pool_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|",
    }
    for index, string in strings.items():
        assert string_from_arch(arch_from_index(index)) == string
        assert int(index_from_arch(arch_from_string(string))) == index


def test_every_row_of_the_published_tables(table):
    assert tuple(table["op_names"]) == OPS
    assert tuple(table["edge_order"]) == tuple(d.name for d in tiny().decisions)
    rows = np.arange(len(table["ops"]))
    np.testing.assert_array_equal(arch_from_index(rows), table["ops"])
    np.testing.assert_array_equal(index_from_arch(table["ops"].astype(np.int32)), rows)


def test_index_is_a_bijection_and_traceable(every):
    index = np.asarray(jax.jit(index_from_arch)(every))
    np.testing.assert_array_equal(np.sort(index), np.arange(15625))
    np.testing.assert_array_equal(jax.jit(arch_from_index)(index), every)
    assert arch_from_index(7).shape == (6,) and arch_from_index(7).dtype == jnp.int32


def test_strings_round_trip(every):
    for arch in every[::61]:
        np.testing.assert_array_equal(arch_from_string(string_from_arch(arch)), arch)
    assert len({string_from_arch(arch) for arch in every}) == 15625
    few = ("none", "sep_conv_3x3")
    string = string_from_arch([0, 1, 0, 1, 1, 0], few)
    assert arch_from_string(string, few).tolist() == [0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("", "must have the form"),
        ("|none~0|+|none~0|none~1|", "must have the form"),
        ("|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "must have the form"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|nothing~2|", "'nothing'"),
    ],
)
def test_bad_strings_are_refused(string, message):
    with pytest.raises(ValueError, match=message):
        arch_from_string(string)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="index must be in 0 to 15624"):
        arch_from_index(15625)
    for arch in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]):
        with pytest.raises(ValueError, match="arch must be 6 choices from 0 to 4"):
            string_from_arch(arch)


# Classes of equal networks.


def test_representative_parts_the_space_as_published(table):
    found = np.asarray(index_from_arch(representative(table["ops"].astype(np.int32))))
    pairs = set(zip(found.tolist(), table["iso_id"].tolist(), strict=True))
    assert len(pairs) == len(set(found.tolist())) == len(set(table["iso_id"].tolist())) == 6466


def test_representative_is_one_of_its_class_and_comes_first(every):
    space = tiny()
    found = np.asarray(jax.jit(jax.vmap(lambda a: space_representative(space, a)))(every))
    assert len(np.unique(found, axis=0)) == 6466
    np.testing.assert_array_equal(representative(found), found)
    assert (found @ 5 ** np.arange(6)[::-1] <= every @ 5 ** np.arange(6)[::-1]).all()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([3, 0, 0, 1, 0, 0], [2, 4, 3, 1, 0, 0], True),  # nodes 1 and 2 lead nowhere
        ([3, 0, 0, 0, 1, 0], [0, 0, 0, 3, 0, 0], True),  # through node 1, or directly
        ([3, 0, 0, 0, 1, 0], [0, 3, 0, 0, 0, 1], False),  # node 2 is "#+(0)@nor_conv_3x3"
        ([3, 3, 4, 1, 3, 1], [3, 1, 3, 3, 4, 1], False),  # one sum, its terms in another order
        ([2, 0, 0, 0, 1, 0], [3, 0, 0, 0, 1, 0], False),
    ],
)
def test_classes_by_hand(one, other, same):
    found = representative(jnp.asarray([one, other]))
    assert bool((found[0] == found[1]).all()) == same


def test_classes_of_other_operations():
    names = ("sep_conv_3x3", "skip_connect", "none")
    classes = representative(np.indices((3,) * 6).reshape(6, -1).T, names)
    # The published definition sees operations as letters: the same classes with 1x1 for `sep`.
    published = np.indices((3,) * 6).reshape(6, -1).T[:, :, None] == np.arange(3)
    translated = representative((published * [2, 1, 0]).sum(axis=-1))
    assert len(np.unique(classes, axis=0)) == len(np.unique(translated, axis=0))
    assert tiny(operations=tuple(OPERATIONS)).representative is not None


# Sizes.


def test_sizes_of_every_network(table):
    costs = published_costs(table["ops"])
    np.testing.assert_array_equal(costs.parameters, table["params_c10"])
    np.testing.assert_array_equal(costs.flops, table["flops_c10"])


def test_sizes_in_closed_form(every):
    ones, threes = (every == 2).sum(axis=1), (every == 3).sum(axis=1)
    costs = published_costs(every)
    np.testing.assert_array_equal(costs.parameters, 73_306 + 28_000 * ones + 243_040 * threes)
    flops = 7_783_050 + 3_932_160 * ones + 35_389_440 * threes
    np.testing.assert_array_equal(costs.flops, flops)
    small = published_costs(every[:9], 120, image_size=16)
    assert (small.parameters - costs.parameters[:9] == 7_150).all()


@pytest.mark.parametrize("index", [0, 2, 3, 15624])
def test_sizes_are_those_of_the_real_network(index):
    arch = np.asarray(arch_from_index(index))
    module = nasbench201().network(arch)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    made = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    found = sum(leaf.size for leaf in jax.tree.leaves(made["params"]))
    assert found == published_costs(arch).parameters


# The stand-alone network.


def _numpy_conv(x, kernel, stride=1):
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = (x.shape[1] - size) // stride + 1
    y = np.zeros((len(x), out, out, kernel.shape[3]))
    for i in range(out):
        for j in range(out):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, i, j] = np.tensordot(window, kernel, 3)
    return y


def _numpy_norm(x, params, stats):
    y = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return y * params["scale"] + params["bias"]


def _numpy_block(x, params, stats, stride=1):
    y = _numpy_conv(np.maximum(x, 0.0), params["conv"]["kernel"], stride)
    return _numpy_norm(y, params["norm"], stats["norm"])


def _numpy_edge(name, x, params, stats):
    if name == "none":
        return 0.0
    if name == "skip_connect":
        return x
    if name != "avg_pool_3x3":
        return _numpy_block(x, params, stats)
    ones = np.ones((3, 3, 1, 1))
    inside = _numpy_conv(np.ones_like(x[..., :1]), ones)
    return np.concatenate([_numpy_conv(c, ones) for c in np.split(x, x.shape[-1], -1)], -1) / inside


def _numpy_network(names, variables, x):
    """The published network with one cell per stage, written out."""
    p, s = variables["params"], variables["batch_stats"]
    x = _numpy_norm(_numpy_conv(x, p["stem"]["kernel"]), p["stem_norm"], s["stem_norm"])
    for stage in range(3):
        if stage:
            own, seen = p[f"reduction_{stage}"], s[f"reduction_{stage}"]
            y = _numpy_block(x, own["first"], seen["first"], 2)
            y = _numpy_block(y, own["second"], seen["second"])
            half = x.shape[1] // 2
            pooled = x.reshape(len(x), half, 2, half, 2, -1).mean(axis=(2, 4))
            x = y + _numpy_conv(pooled, own["shortcut"]["kernel"])
        cell = f"stage_{stage}_cell_0"

        def edge(position, source, to, cell=cell):
            key = f"{to}<-{position}"
            order = ["1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2"]
            own = [tree.get(cell, {}).get(key) for tree in (p, s)]
            return _numpy_edge(names[order.index(key)], source, *own)

        one = edge(0, x, 1) + np.zeros_like(x)
        two = edge(0, x, 2) + edge(1, one, 2) + np.zeros_like(x)
        x = edge(0, x, 3) + edge(1, one, 3) + edge(2, two, 3) + np.zeros_like(x)
    x = np.maximum(_numpy_norm(x, p["head_norm"], s["head_norm"]), 0.0)
    return x.mean(axis=(1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]


def _randomised(variables, seed):
    """Variables with norms that are not the identity."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.uniform(0.05, 0.5, leaf.shape).astype(np.float32),
        variables,
    )


ARCHES = ([3, 2, 4, 1, 3, 2], [4, 0, 3, 2, 0, 1], [0, 1, 2, 0, 3, 4])


@pytest.mark.parametrize("arch", ARCHES)
def test_network_computes_what_is_published(arch):
    module = tiny().network(np.asarray(arch))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    variables = _randomised(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), made), 1)
    logits = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, x)
    expected = _numpy_network([OPS[c] for c in arch], variables, x.astype(np.float64))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_network_refuses_other_images():
    module = tiny().network(np.zeros(6, int))
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 1\), got \(8, 8, 3\)"):
        module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 2}, "image_size must be a multiple of 4, got 2"),
        ({"image_size": 30}, "image_size must be a multiple of 4"),
        ({"image_size": 0}, "image_size must be a whole number above 0"),
        ({"num_classes": 0}, "num_classes must be a whole number above 0"),
        ({"num_cells": 1.0}, "num_cells must be a whole number"),
        ({"operations": ()}, "operations must be at least one name"),
        ({"operations": ("none", "none")}, "none twice"),
        ({"operations": ("none", "conv")}, "operations has 'conv'"),
    ],
)
def test_bad_spaces_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nasbench201(**options)


# Operations.


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_keep_channels_and_divide_the_image(name):
    for size, stride, half in ((6, 1, 6), (6, 2, 3), (5, 2, 3)):
        x = jnp.zeros((2, size, size, 4))
        call = partial(OPERATIONS[name](4, stride).init_with_output, train=True)
        y, _ = jax.eval_shape(call, jax.random.key(0), x)
        assert y.shape == (2, half, half, 4)


def test_factorized_reduce_sees_every_second_diagonal():
    module = OPERATIONS["skip_connect"](2, 2, affine=False)
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
    variables = module.init(jax.random.key(1), x, train=False)
    kernels = [variables["params"][name]["kernel"][0, 0] for name in ("even", "odd")]
    positive = jnp.maximum(x, 0.0)
    parts = [positive[:, ::2, ::2] @ kernels[0], positive[:, 1::2, 1::2] @ kernels[1]]
    expected = jnp.concatenate(parts, -1) / np.sqrt(1.0 + 1e-5)
    found = jnp.asarray(module.apply(variables, x, train=False))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_parameters_of_separable_and_dilated_convolutions():
    def count(name, **options):
        x = jnp.zeros((1, 6, 6, 8))
        module = OPERATIONS[name](8, **options)
        made = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
        return sum(leaf.size for leaf in jax.tree.leaves(made["params"]))

    assert count("sep_conv_5x5") == 2 * (25 * 8 + 8 * 8 + 16)
    assert count("sep_conv_3x3", affine=False) == 2 * (9 * 8 + 8 * 8)
    assert count("dil_conv_3x3") == 9 * 8 + 8 * 8 + 16


# The supernet.


def test_contract():
    testing.check_space(tiny())


@pytest.fixture(scope="module")
def supernet():
    """A supernet with norms that are not the identity, its variables, images and applications."""
    module = tiny_supernet()
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    zeros = jnp.zeros(6, jnp.int32)
    made = jax.jit(lambda key: module.init(key, x, zeros, train=False))(jax.random.key(1))
    apply = jax.jit(lambda v, choice: module.apply(v, x, choice, train=False))
    return module, _randomised(made, 2), x, apply


@pytest.mark.parametrize("arch", ARCHES)
def test_supernet_routes_to_the_extracted_network(supernet, arch):
    module, variables, x, apply = supernet
    alone = module.extract(variables, np.asarray(arch))
    network = tiny().network(np.asarray(arch))
    made = jax.eval_shape(lambda: network.init(jax.random.key(0), x, train=False))
    assert jax.tree.map(jnp.shape, alone) == jax.tree.map(jnp.shape, made)
    expected = jax.jit(lambda v: network.apply(v, x, train=False))(alone)
    np.testing.assert_allclose(apply(variables, jnp.asarray(arch)), expected, rtol=1e-5, atol=1e-5)


def test_edges_that_lead_nowhere_have_no_operation(every):
    """Live edges lie on a path to the output; paths are listed here, out of any node."""
    order = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    paths = [p for n in range(3) for p in itertools.combinations(range(4), n + 2) if p[-1] == 3]
    steps = [[order.index(step) for step in zip(p[1:], p, strict=False)] for p in paths]
    assert len(steps) == 7
    live = np.zeros(every.shape, bool)
    for edges in steps:
        live[:, edges] |= (every[:, edges] != 0).all(axis=1, keepdims=True)
    space = tiny()
    module = space.supernet(space.full_bucket)
    found = jax.vmap(lambda arch: module._live(arch, tuple(range(5))))(jnp.asarray(every))
    np.testing.assert_array_equal(found, np.where(live, every, 0))
    # Without `none` in the bucket, every edge keeps what it has.
    assert module._live(jnp.asarray(every[-1]), (1, 4)).tolist() == every[-1].tolist()


@pytest.mark.slow
def test_edges_that_lead_nowhere_are_left_out(supernet):
    """Everything else learns as in the network that has them; so do edges behind empty nodes."""
    module, variables, x, _ = supernet
    dead = (
        [3, 3, 2, 3, 0, 0],
        [0, 1, 2],
    )  # an architecture, and its edges to nodes without a way out
    empty = [0, 1, 3, 0, 0, 3], []  # node 1 has no input, but the edge out of it has a bias

    def outcome(module, variables, *choice):
        def loss(params):
            own = {**variables, "params": params}
            y, updated = module.apply(own, x, *choice, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), updated["batch_stats"]

        (value, stats), slopes = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return value, {"params": slopes, "batch_stats": stats}

    run = jax.jit(partial(outcome, module))
    for arch, left_out in (dead, empty):
        found, changed = run(variables, jnp.asarray(arch))
        changed = module.extract(changed, np.asarray(arch))
        start = module.extract(variables, np.asarray(arch))
        network = tiny().network(np.asarray(arch))
        value, wanted = jax.jit(partial(outcome, network))(start)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        for stage in range(3):
            stats, params = (wanted[c][f"stage_{stage}_cell_0"] for c in ("batch_stats", "params"))
            assert left_out or np.any(params["2<-1"]["norm"]["bias"])
            for edge in left_out:
                name = "{}<-{}".format(*[(1, 0), (2, 0), (2, 1)][edge])
                assert not any(np.any(leaf) for leaf in jax.tree.leaves(params[name]))
                stats[name] = start["batch_stats"][f"stage_{stage}_cell_0"][name]
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
        jax.tree.map(close, changed, wanted)


def test_all_zero_network_ignores_the_stem(supernet):
    _, variables, _, apply = supernet
    logits = apply(variables, jnp.zeros(6, jnp.int32))
    np.testing.assert_allclose(logits, jnp.broadcast_to(logits[:1], logits.shape), atol=1e-6)


def test_every_network_runs(supernet, every):
    _, variables, _, apply = supernet
    for arch in every[::1301]:
        assert np.isfinite(apply(variables, jnp.asarray(arch, jnp.int32))).all()


def test_a_mixture_that_is_one_hot_is_a_route(supernet):
    _, variables, _, apply = supernet
    arch = jnp.asarray(ARCHES[0], jnp.int32)
    mixed = apply(variables, jax.nn.one_hot(arch, 5))
    np.testing.assert_allclose(mixed, apply(variables, arch), rtol=1e-4, atol=1e-5)


def test_a_bucket_holds_the_operations_it_needs(supernet):
    _, variables, x, apply = supernet
    module = tiny_supernet(((1, 3), (3,), (1,), (0, 3), (3,), (1,)))
    arch = jnp.asarray([3, 3, 1, 0, 3, 1], jnp.int32)
    made = jax.eval_shape(lambda: module.init(jax.random.key(1), x, arch, train=False))
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(made)}
    assert any("3x3" in path for path in paths) and not any("1x1" in path for path in paths)
    logits = logits_in_bucket(module, made, variables, x, arch)
    np.testing.assert_allclose(logits, apply(variables, arch), rtol=1e-5, atol=1e-5)


def logits_in_bucket(module, made, variables, x, arch):
    """Logits of a bucket's module with the weights that the full supernet has for it."""
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(made)}
    kept = [v for p, v in jax.tree.leaves_with_path(variables) if jax.tree_util.keystr(p) in paths]
    kept = jax.tree.unflatten(jax.tree.structure(made), kept)
    return jax.jit(lambda v: module.apply(v, x, arch, train=False))(kept)


def test_exact_bucket_full_supernet_and_stand_alone_network_agree(supernet):
    full, variables, x, apply = supernet
    arch = np.asarray([3, 1, 1, 3, 0, 1], np.int32)
    exact = tiny_supernet(tuple((int(c),) for c in arch))
    made = jax.eval_shape(lambda: exact.init(jax.random.key(1), x, arch, train=False))
    names = {k for stage in range(3) for k in made["params"].get(f"stage_{stage}", {})}
    assert names == {"nor_conv_3x3"}
    wanted = apply(variables, jnp.asarray(arch))
    found = logits_in_bucket(exact, made, variables, x, jnp.asarray(arch))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    network = tiny().network(arch)
    run = jax.jit(lambda v: network.apply(v, x, train=False))
    np.testing.assert_allclose(run(full.extract(variables, arch)), wanted, rtol=1e-5, atol=1e-5)


def test_weight_decay_falls_on_kernels_only(supernet):
    module, variables, _, _ = supernet
    marked = module.weights(variables["params"])
    assert jax.tree.structure(marked) == jax.tree.structure(variables["params"])
    for path, weight in jax.tree.leaves_with_path(marked):
        assert weight == ("kernel" in jax.tree_util.keystr(path))


@pytest.mark.slow
def test_training_and_the_found_network():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 96)
    x = rng.normal(size=(96, 8, 8, 1)) * 0.3
    x[np.arange(96), y + 2, :, 0] += 2.0
    data = from_arrays(jax.random.key(0), x, y)
    recipe = Recipe(epochs=3, batch_size=16, optimizer="nesterov", learning_rate=0.05)
    arch = np.asarray(ARCHES)
    trained = population.train(tiny(), arch, data, recipe, jax.random.key(0), keep_variables=True)
    assert np.isfinite(trained.metrics["loss"]).all()
    assert trained.metrics["accuracy"].max() > 0.6
    costs = published_costs(arch, 3, **TINY)
    np.testing.assert_array_equal(trained.metrics["parameters"], costs.parameters)
    best = int(np.argmax(trained.metrics["accuracy"]))
    network = tiny().network(arch[best])
    apply = jax.jit(lambda v: network.apply(v, data.valid.x, train=False))
    logits = apply((trained.variables or [])[best])
    accuracy = float((jnp.argmax(logits, -1) == data.valid.y).mean())
    np.testing.assert_allclose(accuracy, trained.metrics["accuracy"][best], atol=1e-6)
