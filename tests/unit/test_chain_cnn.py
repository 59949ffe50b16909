"""The space of convolutional chains: decisions, equal networks in every bucket, costs, training."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxnas import Recipe, config, datasets, testing
from jaxnas.nn.attention import SelfAttention
from jaxnas.nn.chain_cnn import Block, Link, resize, with_channels
from jaxnas.space import canonical, sample
from jaxnas.spaces.chain_cnn import (
    OPERATIONS,
    chain_cnn,
    compound_scaling,
    conv_relu_pool,
    nasnet_table,
)
from jaxnas.training import population
from jaxnas.training.costs import network_cost
from jaxnas.training.plan import choose

TINY: dict[str, Any] = {"image_size": 8, "in_channels": 1}


def tiny(**options: Any):
    return chain_cnn(3, **(TINY | {"depths": (1, 2, 3), "filters": (4, 6)} | options))


def names(space):
    return [decision.name for decision in space.decisions]


# Decisions.


@pytest.mark.parametrize(
    "space",
    [
        chain_cnn(3, **TINY, depths=(1, 2), filters=(4, 6)),
        conv_relu_pool(3, **TINY, depths=(1, 2), filters=(4, 6)),
        nasnet_table(3, **TINY, filters=(4, 6)),
        compound_scaling(3, **TINY, filters=(4,)),
    ],
    ids=["defaults", "conv_relu_pool", "nasnet_table", "compound_scaling"],
)
def test_contract(space):
    testing.check_space(space)


@pytest.mark.slow
def test_contract_of_twelve_layers():
    testing.check_space(chain_cnn(3, **TINY, filters=(4, 6)))


def test_default_choices():
    space = chain_cnn()
    choices = {decision.name: decision.choices for decision in space.decisions}
    assert choices.pop("depth") == (4, 5, 6, 7, 8, 9, 10, 11, 12)
    assert choices.pop("width_multiplier") == (0.5, 0.75, 1.0, 1.25, 1.5)
    assert choices.pop("filters") == (16, 32, 64, 128, 256, 512)
    assert choices.pop("skip_connection") == (False, True)
    assert choices == {f"operation_{layer}": OPERATIONS for layer in range(1, 13)}
    assert [d.name for d in space.decisions if d.reshapes] == ["width_multiplier", "filters"]


def test_presets_are_the_tables():
    assert nasnet_table(image_size=8).num_choices == (9, 6, 3, 2)
    assert names(nasnet_table()) == ["repeats", "filters", "kernel", "skip_connection"]
    assert names(compound_scaling()) == ["depth", "width_multiplier", "resolution"]
    space = conv_relu_pool()
    assert names(space)[:4] == ["depth", "filters_1", "kernel_1", "filters_2"]
    assert space.num_decisions == 1 + 2 * 12


def test_lists_of_one_value_are_no_decisions():
    space = tiny(
        depths=(2,), filters=(4,), width_multipliers=(0.5,), operations=("conv",), kernels=(3, 5),
        skip_connections=(True,),
    )  # fmt: skip
    assert names(space) == ["kernel"]
    for options in ({"kernels": None}, {"kernels": ()}, {"kernels": (5,)}):
        with pytest.raises(ValueError, match=r"decisions .* is empty"):
            tiny(
                depths=(2,), filters=(4,), width_multipliers=None, operations=("conv",),
                skip_connections=None, **options,
            )  # fmt: skip


def test_decisions_that_nothing_heeds_are_inactive():
    every = ("operation", "filters", "kernel", "skip_connection")
    space = tiny(operations=("conv", "conv_3x3", "max_pool"), per_layer=every)
    arch = space.arch({"depth": 3, "operation_2": "conv_3x3", "operation_3": "max_pool"})
    seen = space.describe(arch)
    assert {"filters_1", "kernel_1", "skip_connection_1", "filters_2"} <= set(seen)
    assert not {"kernel_2", "filters_3", "kernel_3", "skip_connection_3"} & set(seen)
    assert "operation_2" not in space.describe(space.arch({"depth": 1}))


def test_hyperparameters():
    space = tiny(learning_rates=(0.1, 0.01), optimizers=("adam",), dropouts=(0.0, 0.5))
    assert names(space)[-3:] == ["dropout", "learning_rate", "optimizer"]
    found = space.hyperparameters(space.arch({"learning_rate": 0.01}))
    assert float(found["learning_rate"]) == pytest.approx(0.01) and int(found["optimizer"]) == 0
    assert tiny().hyperparameters(jnp.zeros(9, int)) == {}
    assert space.network(space.arch({"dropout": 0.5})).dropout == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 3}, "image_size must be an integer of at least 4, got 3"),
        ({"image_size": 16, "num_stages": 6}, "image_size must be an integer of at least 32"),
        ({"resolutions": (2, 8)}, "resolution has 2; values must be at least 4"),
        ({"in_channels": 0}, "in_channels must be an integer of at least 1"),
        ({"growth": 0}, "growth must be"),
        ({"depths": ()}, "depth has no values"),
        ({"depths": (0, 1)}, "depth has 0"),
        ({"filters": (8, 4)}, "must ascend"),
        ({"filters": (4, 4)}, "duplicates"),
        ({"operations": ("conv_4x4",)}, "operations has 'conv_4x4'"),
        ({"operations": ("conv_3x5",)}, "operations has 'conv_3x5'"),
        ({"operations": ("sep_conv_3x3",)}, "names must be in"),
        ({"operations": ("conv",), "kernels": (2,)}, "kernel has 2; values must be odd"),
        ({"width_multipliers": (0.0, 1.0)}, "width_multiplier has 0.0"),
        ({"repeats": (0,)}, "repeats has 0"),
        ({"skip_connections": ("yes",)}, "skip_connection has 'yes'"),
        ({"dropouts": (1.0,)}, "dropout has 1.0"),
        ({"learning_rates": (0.0,)}, "learning_rate has 0.0"),
        ({"optimizers": ("magic",)}, "optimizer has 'magic'"),
        ({"per_layer": ("depth",)}, "per_layer must be one of"),
        ({"downsampling": "stride"}, "downsampling must be one of"),
    ],
)
def test_bad_spaces_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


# The network.


def test_blocks_are_dealt_to_stages_and_repeated():
    space = tiny(
        depths=(1, 4), repeats=(1, 2), per_layer=("operation", "filters"), growth=2,
        operations=("conv_3x3", "skip"), width_multipliers=(0.5, 1.25),
    )  # fmt: skip
    values = {"depth": 4, "repeats": 2, "width_multiplier": 1.25, "filters_1": 6}
    network = space.network(space.arch(values | {"operation_3": "skip", "filters_4": 6}))
    wide, narrow = Link("conv", 3, 8, False), Link("conv", 3, 5, False)
    assert network.stem_channels == 5 and network.transitions == (10, 20)
    first, second = (wide, wide, narrow), (narrow, Link("skip", 0, 5, False))
    double = tuple(link._replace(channels=2 * link.channels) for link in (*second, second[-1]))
    last = (Link("conv", 3, 32, False),) * 2
    assert network.stages == (first, double, last)
    assert [len(stage) for stage in space.network(space.arch({"depth": 1})).stages] == [1, 0, 0]


def test_images_are_halved_between_stages():
    space = tiny(image_size=7, depths=(3,), resolutions=(5, 7))
    for resolution, sizes in ((5, [5, 2, 1]), (7, [7, 3, 1])):
        module = space.network(space.arch({"resolution": resolution}))
        seen = []

        def look(call, args, kwargs, context, seen=seen):
            block = isinstance(context.module, Block) and context.method_name == "__call__"
            if block and context.module.name != "stem":
                seen.append(args[0].shape[1])
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            x = jnp.zeros((1, 7, 7, 1))
            jax.eval_shape(lambda m=module, x=x: m.init(jax.random.key(0), x, train=False))
        assert seen == sizes


@pytest.mark.parametrize(("old", "new"), [(8, 6), (4, 8), (7, 3)])
def test_resize_is_bilinear(old, new):
    x = jax.random.normal(jax.random.key(0), (2, old, old, 3))
    expected = jax.jit(lambda x: jax.image.resize(x, (2, new, new, 3), "linear"))(x)
    np.testing.assert_allclose(jax.jit(partial(resize, size=new))(x), expected, atol=1e-5)


def test_shortcuts_fill_or_drop_channels():
    x = jnp.ones((1, 2))
    assert with_channels(x, 3).tolist() == [[1.0, 1.0, 0.0]]
    assert with_channels(x, 1).tolist() == [[1.0]]


def test_attention_by_hand():
    size, window = 12, 2  # 36 keys for 144 pixels
    module = SelfAttention(5, num_heads=2, head_size=3)
    x = jax.random.normal(jax.random.key(0), (2, size, size, 4))
    variables = jax.jit(module.init)(jax.random.key(1), x)
    p = {name: np.asarray(tree["kernel"]) for name, tree in variables["params"].items()}
    pixels = np.asarray(x).reshape(2, -1, 4)
    tokens = np.asarray(x).reshape(2, size // window, window, size // window, window, 4)
    tokens = tokens.mean(axis=(2, 4)).reshape(2, -1, 4)
    parts = []
    for head in (slice(0, 3), slice(3, 6)):
        query, key = pixels @ p["query"][:, head], tokens @ p["key_value"][:, :6][:, head]
        scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(3.0))
        shares = scores / scores.sum(axis=-1, keepdims=True)
        parts.append(shares @ (tokens @ p["key_value"][:, 6:][:, head]))
    expected = (np.concatenate(parts, axis=-1) @ p["output"]).reshape(2, size, size, 5)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


# The supernet.

RICH = {
    "depths": (1, 3),
    "operations": ("conv", "separable_3x3", "max_pool", "avg_pool", "attention"),
    "kernels": (1, 3),
    "filters": (4, 6),
    "width_multipliers": (0.5, 1.0),
    "repeats": (1, 2),
    "dropouts": (0.0, 0.5),
    "per_layer": ("operation", "filters", "kernel", "skip_connection"),
    "num_stages": 2,
    "growth": 2,
}

ARCHES = (
    {
        "depth": 3, "repeats": 1, "width_multiplier": 0.5, "filters_1": 6, "operation_1": "conv",
        "kernel_1": 3, "operation_2": "separable_3x3", "filters_2": 4, "skip_connection_2": True,
        "operation_3": "attention",
    },
    {
        "depth": 3, "repeats": 2, "width_multiplier": 1.0, "operation_1": "max_pool",
        "operation_2": "conv", "filters_2": 6, "kernel_2": 1, "skip_connection_2": True,
        "operation_3": "avg_pool",
    },
)  # fmt: skip


def perturbed(variables):
    """Normalisations that are not the identity, the same at a position whatever stands beyond."""

    def one(path, leaf):
        if path[-2].key != "norm":
            return leaf
        place = sum(jnp.indices(leaf.shape)) if leaf.ndim else 0
        scale = 0.02 if path[-1].key == "var" else 1.0  # of the order of what is normalised
        return scale * (leaf + 0.3 + 0.2 * jnp.sin(3.0 * place))

    return jax.tree_util.tree_map_with_path(one, variables)


def everything(apply, variables, x):
    """Logits without and with training, new statistics, and gradients of a loss."""

    def loss(params):
        found = {**variables, "params": params}
        y, new = apply(found, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), (y, new["batch_stats"])

    gradients, (trained, stats) = jax.grad(loss, has_aux=True)(variables["params"])
    return apply(variables, x, train=False), trained, stats, gradients


@pytest.fixture(
    scope="module",
    params=[1, pytest.param(2, marks=pytest.mark.slow)],
    ids=["one_stage", "two_stages"],
)
def rich(request):
    """A space of everything, images, its whole supernet and what is compiled of that."""
    space = tiny(**RICH | {"num_stages": request.param})
    x = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
    whole = space.supernet(space.full_bucket)
    init = jax.jit(lambda arch: whole.init(jax.random.key(1), x, arch, train=False))

    def run(variables, arch):
        apply = partial(whole.apply, rngs={"dropout": jax.random.key(2)})
        apply = lambda v, x, apply=apply, **o: apply(v, x, arch, **o)  # noqa: E731
        return everything(apply, variables, x)

    return space, x, whole, init, jax.jit(run)


def close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("values", ARCHES, ids=["weighted", "repeated"])
def test_the_whole_bucket_holds_every_network(rich, values):
    space, x, whole, init, run = rich
    arch = space.arch(values)
    variables = perturbed(init(arch))
    logits, trained, stats, gradients = run(variables, arch)

    # Padding does not change the first weights.
    exact = space.supernet(tuple((int(c),) for c in arch))
    own = jax.jit(lambda: perturbed(exact.init(jax.random.key(1), x, arch, train=False)))()
    alone = whole.extract(variables, arch)
    close(exact.extract(own, arch), alone)

    # The stand-alone network.
    network = space.network(arch)
    made = jax.eval_shape(lambda: network.init(jax.random.key(0), x, train=False))
    assert jax.tree.map(jnp.shape, alone) == jax.tree.map(jnp.shape, made)
    expected = jax.jit(lambda v: everything(network.apply, v, x))(alone)
    close((logits, trained), expected[:2])
    taken = whole.extract({"params": gradients, "batch_stats": stats}, arch)
    close(taken["batch_stats"], expected[2])
    close(taken["params"], expected[3])

    # Nothing else has a gradient.
    total = sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(gradients))
    used = sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(taken["params"]))
    assert total > 0.0 and total == pytest.approx(used, rel=1e-5)


@pytest.mark.slow
def test_the_exact_bucket_computes_the_same(rich):
    space, x, _, init, run = rich
    arch = space.arch(ARCHES[0])
    module = space.supernet(tuple((int(c),) for c in arch))
    own = jax.jit(lambda: perturbed(module.init(jax.random.key(1), x, arch, train=False)))()
    found = jax.jit(lambda v: everything(lambda v, x, **o: module.apply(v, x, arch, **o), v, x))(
        own
    )
    expected = run(perturbed(init(arch)), arch)
    close(found[:2], expected[:2])
    taken, wanted = (
        space.supernet(bucket).extract({"params": gradients}, arch)
        for bucket, gradients in ((module.bucket, found[3]), (space.full_bucket, expected[3]))
    )
    close(taken, wanted)


def test_each_resolution_has_its_branch():
    space = tiny(**RICH | {"operations": ("conv_3x3",), "repeats": None, "resolutions": (4, 6, 8)})
    x = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
    bucket = list(space.full_bucket)
    bucket[space.index("resolution")] = (1, 2)
    module = space.supernet(tuple(bucket))
    arch = space.arch({"depth": 3, "width_multiplier": 1.0, "filters_2": 6, "resolution": 6})
    init = jax.jit(lambda: module.init(jax.random.key(1), x, arch, train=False))
    variables = perturbed(init())
    apply = jax.jit(lambda v, arch: module.apply(v, x, arch, train=False))
    for size in (6, 8):
        one = space.arch({**space.describe(arch), "resolution": size})
        network = space.network(one)
        alone = jax.jit(partial(network.apply, train=False))(module.extract(variables, one), x)
        close(apply(variables, one), alone)
    assert not np.allclose(apply(variables, arch), alone, atol=1e-3)


def test_dropout_falls_on_the_head_in_training_only(rich):
    space, _, _, init, run = rich
    arch = space.arch(ARCHES[0])
    other = space.arch({**ARCHES[0], "dropout": 0.5})
    variables = init(arch)
    (logits, trained, *_), (same, dropped, *_) = run(variables, arch), run(variables, other)
    np.testing.assert_array_equal(logits, same)
    assert not np.allclose(trained, dropped, atol=1e-3)


def test_weight_decay_falls_on_kernels_only(rich):
    space, _, whole, init, _ = rich
    params = jax.eval_shape(init, space.arch(ARCHES[0]))["params"]
    for path, weight in jax.tree.leaves_with_path(whole.weights(params)):
        assert weight == ("kernel" in jax.tree_util.keystr(path))


def test_a_bucket_holds_what_its_choices_need(rich):
    space, x, *_ = rich
    arch = space.arch(ARCHES[1])
    module = space.supernet(tuple((int(c),) for c in arch))
    made = jax.eval_shape(lambda: module.init(jax.random.key(1), x, arch, train=False))["params"]
    # Six blocks of the stem's 4 channels and the convolution's 6.
    kernels = [tree["conv"]["kernel"].shape for name, tree in made.items() if "_conv" in name]
    assert kernels in ([(6, 1, 1, 6, 6)], [(3, 1, 1, 6, 6), (3, 1, 1, 12, 12)])
    assert not any("separable" in name or "attention" in name for name in made)


def test_images_of_another_shape_are_refused():
    module = tiny().supernet(tiny().full_bucket)
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 1\), got \(8, 8, 3\)"):
        module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(9, int), train=False)


# Costs.


def test_costs_are_those_of_the_traced_network():
    space = tiny(**RICH | {"resolutions": (5, 8)})
    rows = [space.arch(values | {"resolution": 5}) for values in ARCHES]
    rows += [space.arch({"depth": 3, "repeats": 2}), space.arch({"depth": 1, "filters_1": 6})]
    for arch in rows:
        counted = space.cost(arch)
        traced = network_cost(space.network(arch), (8, 8, 1))
        assert counted.parameters == traced.parameters and counted.flops == traced.flops
        assert counted.products == traced.products


@pytest.mark.parametrize("operation", ["conv_3x3", "separable_5x5", "attention"])
def test_activations_are_estimated(operation):
    options = {"operations": (operation,), "filters": (32,), "downsampling": "avg_pool"}
    space = tiny(depths=(2, 6), **options)
    arch = space.arch({"depth": 6})
    traced = network_cost(space.network(arch), (8, 8, 1))
    assert space.cost(arch).activations == pytest.approx(traced.activations, rel=0.2)


def test_padding_is_charged_at_the_widest():
    space = tiny(**RICH)
    arch = space.arch(ARCHES[0])
    charged = space.supernet(space.full_bucket).charged(np.asarray(arch))
    assert space.cost(charged).flops > space.cost(arch).flops
    same = canonical(space, jnp.asarray(charged))
    assert space.describe(same)["operation_1"] == "conv"
    exact = space.supernet(tuple((int(c),) for c in arch))
    assert exact.charged(np.asarray(arch)).tolist() == arch.tolist()


# Training.


@pytest.mark.slow
def test_training_under_two_plans():
    data = datasets.digits(jax.random.key(0), images=True)
    space = chain_cnn(
        10, **TINY, depths=(2, 4), filters=(8, 12), width_multipliers=None,
        operations=("max_pool", "attention", "separable_3x3", "conv_3x3"),
    )  # fmt: skip
    recipe = Recipe(epochs=5, batch_size=64, optimizer="adam", learning_rate=5e-3)
    keys = jax.random.split(jax.random.key(3), 6)
    arch = np.asarray(jax.vmap(lambda key: sample(key, space))(keys))
    results = []
    for cells in (((0,), (1,)), ((0, 1),)):
        plan = choose(space, recipe, data, len(arch), arch=arch, cells={"filters": cells})
        key = jax.random.key(5)
        results.append(population.train(space, arch, data, recipe, key, plan, keep_variables=True))
    first, second = results
    assert np.isfinite(first.metrics["loss"]).all()
    assert first.metrics["accuracy"].max() > 0.6 and np.median(first.metrics["accuracy"]) > 0.3
    np.testing.assert_allclose(first.train_curve, second.train_curve, rtol=1e-3)
    # Averaged statistics enter here for the first time, and with them all rounding so far.
    np.testing.assert_allclose(first.metrics["loss"], second.metrics["loss"], rtol=0.03)
    best = int(np.argmax(first.metrics["accuracy"]))
    network = space.network(arch[best])
    logits = jax.jit(lambda v: network.apply(v, data.valid.x, train=False))(first.variables[best])
    accuracy = float((jnp.argmax(logits, -1) == data.valid.y).mean())
    np.testing.assert_allclose(accuracy, first.metrics["accuracy"][best], atol=0.005)


def test_the_command_line_builds_it():
    settings = config.Settings(
        space="chain_cnn",
        strategies=("random_search",),
        data="digits",
        num_evaluations=8,
        batch_size=4,
        options={"data": {"images": True}, "space": {"filters": [4, 8], "depths": [1, 2]}},
    )
    made = config.build(settings)
    assert made.space.name == "chain_cnn" and made.space.decisions[0].choices == (1, 2)
