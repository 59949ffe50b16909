"""Drop-path and auxiliary heads: what the recipe says reaches networks of every form."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxnas import counter, spaces
from jaxnas.nn.auxiliary import COLLECTION, AuxiliaryHead
from jaxnas.nn.drop_path import DropPath, drop_output
from jaxnas.nn.mixed import Cell, MixedOp, operation_variables
from jaxnas.nn.nasbench201 import EDGES, FixedCell
from jaxnas.nn.operations import OPERATIONS, Identity
from jaxnas.space import Decision, SearchSpace
from jaxnas.training import Recipe, population
from jaxnas.training.data import from_arrays

KEY = jax.random.key(0)
DROP = DropPath(jnp.float32(0.4), counter.seed_from_key(jax.random.key(3)))
SIZES: dict[str, Any] = {"num_channels": 4, "num_cells": 2, "image_size": 8, "in_channels": 1}
OPS = ("none", "skip_connect", "nor_conv_1x1", "avg_pool_3x3")
SPACE = spaces.nasbench201(3, **SIZES, operations=OPS, auxiliary=True)
ARCH = np.asarray([2, 1, 3, 3, 0, 2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("drop_path", 1.0),
        ("drop_path", -0.1),
        ("drop_path", float("nan")),
        ("auxiliary_weight", -0.4),
        ("auxiliary_weight", float("inf")),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        Recipe(**{field: value})


# What is dropped.


class Double(nn.Module):
    """An operation whose output shows what was dropped."""

    @nn.compact
    def __call__(self, x, *, train):
        return 2.0 * x


def test_rows_are_dropped_whole_and_survivors_keep_the_mean():
    y = drop_output(DROP, Double(), jnp.ones((4000, 2, 3)))
    rows = np.unique(np.asarray(y).reshape(4000, -1), axis=1)[:, 0]
    np.testing.assert_allclose(np.unique(rows), [0.0, 1.0 / 0.6], rtol=1e-6)
    assert abs((rows == 0.0).mean() - 0.4) < 0.03
    assert (y == rows[:, None, None]).all()


def test_identities_are_kept_and_strided_skips_are_not():
    x = jnp.ones((64, 4, 4, 2))
    assert (drop_output(DROP, Identity(), x) == x).all()
    assert (drop_output(DROP, OPERATIONS["skip_connect"](2, stride=2), x) == 0.0).any()
    assert drop_output(None, Double(), x) is x


def test_every_edge_of_every_cell_draws_for_itself():
    ops, x = (("double", Double),), jnp.ones((64, 1))
    cell = Cell(ops, num_nodes=3, edges=((0, 1), (0, 2)), output=(1, 2))
    y = np.asarray(cell.apply({}, x, jnp.zeros(2, jnp.int32), train=True, drop_path=DROP))
    assert not np.array_equal(y[:, 0], y[:, 1])
    row = Cell(ops, num_nodes=2, edges=((0, 1),), num_cells=2)
    y = np.asarray(row.apply({}, x, jnp.zeros(1, jnp.int32), train=True, drop_path=DROP))
    assert 4 < (y != 0.0).sum() < 45  # about 64 * 0.6 * 0.6, where one draw for both gives 38


def test_a_mixture_keeps_its_identities():
    ops = (("double", Double), ("skip", Identity))
    alpha = jnp.asarray([0.5, 3.0])
    y = MixedOp(ops).apply({}, jnp.ones((64, 1)), alpha, train=True, drop_path=DROP)
    np.testing.assert_allclose(np.unique(np.asarray(y)), [3.0, 3.0 + 1.0 / 0.6], rtol=1e-6)


# One network in all its forms.


@pytest.fixture(scope="module")
def supernet():
    """The module, its variables and a batch of images."""
    assert SPACE.supernet is not None
    module = SPACE.supernet(SPACE.full_bucket)
    x = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    zeros = jnp.zeros(6, jnp.int32)
    return module, jax.jit(lambda k: module.init(k, x, zeros, train=False))(KEY), x


def forward(module, variables, x, *choice, drop_path=DROP):
    """Logits, those of the auxiliary head, and the batch statistics of a training step."""
    mutable = ["batch_stats", COLLECTION]
    y, updated = module.apply(
        variables, x, *choice, train=True, drop_path=drop_path, mutable=mutable
    )
    (head,) = jax.tree.leaves(updated[COLLECTION])
    return y, head, updated["batch_stats"]


@pytest.fixture(scope="module")
def routed(supernet):
    """What `forward` gives, and the gradient of the auxiliary logits."""
    module, variables, x = supernet

    @jax.jit
    def run(variables):
        def loss(params):
            found = forward(module, {**variables, "params": params}, x, jnp.asarray(ARCH))
            return jnp.sum(jnp.sin(found[1])), found

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (_, found), gradient = run(variables)
    return found, gradient


def assert_close(found, wanted, tol=2e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol), found, wanted)


def test_supernet_and_stand_alone_network_drop_alike(supernet, routed):
    module, variables, x = supernet
    network, own = SPACE.network(ARCH), module.extract(variables, ARCH)
    run = jax.jit(lambda own, drop: forward(network, own, x, drop_path=drop))
    *outputs, stats = run(own, DROP)
    assert_close(outputs, list(routed[0][:2]))
    changed = module.extract({"params": variables["params"], "batch_stats": routed[0][2]}, ARCH)
    assert_close(stats, changed["batch_stats"], 2e-3)
    seldom = run(own, DROP._replace(rate=jnp.float32(0.01)))[0]
    assert np.abs(seldom - outputs[0]).max() > 0.01


def test_gradients_of_dropped_edges_are_those_of_the_stand_alone_cell():
    ops = tuple((name, partial(OPERATIONS[name], 4)) for name in OPS)
    edges = tuple((source, target) for target, source in EDGES)
    cell, fixed = Cell(ops, 4, edges, num_cells=1), FixedCell(tuple(OPS[c] for c in ARCH))
    x = jax.random.normal(jax.random.key(2), (16, 3, 3, 4))
    variables = cell.init(KEY, x, jnp.asarray(ARCH), train=False)
    own: dict[str, Any] = {}
    for edge, (target, source) in enumerate(EDGES):
        found = operation_variables(variables, OPS[ARCH[edge]], edge=edge, cell=0)
        for collection, tree in found.items():
            own.setdefault(collection, {})[f"{target}<-{source}"] = tree

    @partial(jax.jit, static_argnums=0)
    def gradient(apply, x, drop):
        return jax.grad(lambda x: jnp.sum(jnp.sin(apply(x, train=True, drop_path=drop))))(x)

    choice = jnp.asarray(ARCH)
    found = gradient(lambda x, **options: cell.apply(variables, x, choice, **options), x, DROP)
    alone = partial(fixed.apply, own)
    wanted = gradient(alone, x, DROP.fold(0))  # cell 0
    assert_close(found, wanted)
    assert np.abs(wanted - gradient(alone, x, DROP.fold(1))).max() > 0.01


def test_routed_and_mixed_supernet_drop_alike(supernet, routed):
    module, variables, x = supernet
    choice = jax.nn.one_hot(ARCH, len(OPS))
    run = jax.jit(lambda v: module.apply(v, x, choice, train=True, drop_path=DROP))
    assert_close(run(variables), routed[0][0])


def test_dropping_and_the_head_cost_nothing_while_off(supernet):
    module, variables, x = supernet
    plain = module.clone(auxiliary=False)
    assert module.auxiliary and not plain.auxiliary

    def jaxpr(module, **options):
        def run(variables, x, choice):
            return module.apply(
                variables, x, choice, train=True, mutable=["batch_stats"], **options
            )

        return str(jax.make_jaxpr(run)(variables, x, jnp.asarray(ARCH)))

    off = jaxpr(plain)
    assert jaxpr(plain, drop_path=None) == off
    assert jaxpr(module) == off
    assert jaxpr(plain, drop_path=DROP) != off


# The auxiliary head.


def test_the_head_has_the_layers_of_darts():
    x = jax.ShapeDtypeStruct((1, 8, 8, 64), jnp.float32)
    made = jax.eval_shape(lambda x: AuxiliaryHead(10).init(KEY, x, train=False), x)
    sizes = [leaf.size for leaf in jax.tree.leaves(made["params"])]
    assert sum(sizes) == 64 * 128 + 256 + 2 * 2 * 128 * 768 + 2 * 768 + 768 * 10 + 10


@pytest.mark.parametrize(("size", "pixels"), [(1, 1), (2, 4), (4, 4), (7, 4), (16, 4)])
def test_the_head_fits_images_of_any_size(size, pixels):
    head = AuxiliaryHead(3, features=5, hidden=7)
    x = jax.ShapeDtypeStruct((2, size, size, 4), jnp.float32)
    y, made = jax.eval_shape(lambda x: head.init_with_output(KEY, x, train=True), x)
    assert y.shape == (2, 3)
    assert made["params"]["whole"]["kernel"].shape == (pixels * 5, 7)


def test_the_head_is_not_counted():
    plain = spaces.nasbench201(3, **SIZES, operations=OPS)
    assert SPACE.cost is not None and plain.cost is not None
    assert SPACE.cost(ARCH) == plain.cost(ARCH)


def test_the_head_trains_the_layers_below_it(routed):
    _, gradient = routed
    norms = {name: max(map(jnp.max, jax.tree.leaves(g))) for name, g in gradient.items()}
    for name in ("stem", "reduction_1", "auxiliary"):
        assert norms[name] > 0.0
    assert norms["stage_2"] == norms["head"] == 0.0


# What the trainer passes on.


class Probe(nn.Module):
    """Logits 0 whatever the input; two heads that are wrong; remembers what it was called with."""

    heads: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x, *, train, drop_path=None):
        rates = self.variable("seen", "rates", jnp.zeros, (16,))
        seeds = self.variable("seen", "seeds", jnp.zeros, (16, 2), jnp.uint32)
        if drop_path is not None:
            rates.value = jnp.roll(rates.value, -1).at[-1].set(drop_path.rate)
            seeds.value = jnp.roll(seeds.value, -1, axis=0).at[-1].set(drop_path.seed)
        logits = 0.0 * nn.Dense(2)(x)
        for k, height in enumerate(self.heads):
            if train:
                self.sow(COLLECTION, f"head_{k}", logits + jnp.asarray([height, 0.0]))
        return logits


def probe_space(*heads: float) -> SearchSpace:
    return SearchSpace("probe", (Decision("nothing", (0,)),), network=lambda arch: Probe(heads))


@pytest.fixture(scope="module")
def data():
    y = np.arange(40) % 2
    x = np.random.default_rng(0).normal(size=(40, 3))
    return from_arrays(KEY, x, y)  # 24 rows to train on


def test_the_rate_rises_linearly_to_its_end(data):
    recipe = Recipe(epochs=4, batch_size=6, drop_path=0.3)
    arch = np.zeros((2, 1), np.int32)
    found = population.train(
        probe_space(), arch, data, recipe, KEY, budget=np.asarray([1.0, 0.5]), keep_variables=True
    )
    seen = [variables["seen"] for variables in found.variables or []]
    np.testing.assert_allclose(seen[0]["rates"], np.linspace(0.0, 0.3, 16), rtol=1e-5)
    np.testing.assert_allclose(seen[1]["rates"][8:], np.linspace(0.0, 0.3, 8), rtol=1e-5)
    seeds = np.concatenate([seen[0]["seeds"], seen[1]["seeds"][8:]])
    assert len(np.unique(seeds, axis=0)) == 24  # another draw in every step of every candidate


def test_the_losses_of_all_heads_are_added_in_training_alone(data):
    recipe = Recipe(epochs=2, batch_size=6, auxiliary_weight=0.4)
    arch = np.zeros((1, 1), np.int32)
    found = population.train(probe_space(1.0, -2.0), arch, data, recipe, KEY)
    cross_entropies = [
        np.mean([np.log(1.0 + np.exp(height)) - height, np.log(1.0 + np.exp(height))])
        for height in (1.0, -2.0)
    ]
    wanted = np.log(2.0) + 0.4 * sum(cross_entropies)
    np.testing.assert_allclose(found.train_curve[0].mean(), wanted, rtol=0.05)
    np.testing.assert_allclose(found.metrics["train_loss"], np.log(2.0), rtol=1e-5)


def test_networks_that_cannot_are_refused(data):
    arch = {"probe": np.zeros((1, 1), np.int32), "mlp": np.zeros((1, 6), np.int32)}
    weighty, dropping = (
        Recipe(batch_size=6, auxiliary_weight=0.4),
        Recipe(batch_size=6, drop_path=0.2),
    )
    cases: list[tuple[SearchSpace, Recipe, str]] = [
        (probe_space(), weighty, "auxiliary_weight = 0.4 needs networks with an auxiliary head"),
        (spaces.mlp(2), weighty, "auxiliary_weight = 0.4 needs"),
        (spaces.mlp(2), dropping, "drop_path = 0.2 needs networks whose __call__ takes"),
    ]
    for space, recipe, message in cases:
        with pytest.raises(ValueError, match=message):
            population.train(space, arch[space.name], data, recipe, KEY)


@pytest.mark.slow
def test_everything_at_once_on_images():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 160)
    x = rng.normal(size=(160, 8, 8, 1)) * 0.3
    x[np.arange(160), y + 2, :, 0] += 2.0
    data = from_arrays(KEY, x, y)
    settings: dict[str, Any] = {"optimizer": "nesterov", "learning_rate": 0.05, "curves": True}
    regularised = {"crop": 1, "flip": True, "cutout": 2, "mixup": 0.2, "label_smoothing": 0.1}
    recipe = Recipe(
        epochs=12,
        batch_size=16,
        schedule="cosine",
        warmup=0.1,
        weight_decay=3e-4,
        clip_norm=5.0,
        average=0.9,
        drop_path=0.2,
        auxiliary_weight=0.4,
        **settings,
        **regularised,
    )
    found = population.train(SPACE, ARCH[None], data, recipe, KEY, keep_variables=True)
    again = population.train(SPACE, np.stack([ARCH, ARCH[::-1]]), data, recipe, KEY)
    assert found.metrics["accuracy"][0] > 0.6
    assert np.isfinite(found.valid_curve).all() and np.isfinite(found.train_curve).all()
    np.testing.assert_array_equal(found.train_curve[0], again.train_curve[0])
    (variables,) = found.variables or []
    network = SPACE.network(ARCH)
    logits = jax.jit(lambda v: network.apply(v, data.valid.x, train=False))(variables)
    accuracy = float((jnp.argmax(logits, -1) == data.valid.y).mean())
    np.testing.assert_allclose(accuracy, found.metrics["accuracy"][0], atol=1e-6)
