"""The supernet of the DARTS space: equal to the stand-alone networks, and to sums by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import Recipe
from jaxnas.nn._darts_cells import EDGES, stages_of
from jaxnas.nn._darts_stage import SupernetStage
from jaxnas.nn.auxiliary import COLLECTION
from jaxnas.nn.darts import edge_operation, input_operation
from jaxnas.nn.drop_path import DropPath
from jaxnas.nn.mixed import operation_variables
from jaxnas.space import sample
from jaxnas.spaces.darts import DARTS_OPERATIONS, GENOTYPES, arch_from_genotype, darts
from jaxnas.training import population
from jaxnas.training.data import from_arrays

FEW = ("none", "skip_connect", "max_pool_3x3", "dil_conv_3x3")
SMALL: dict[str, Any] = {"num_channels": 4, "image_size": 8, "in_channels": 1}


@pytest.fixture(autouse=True)
def unoptimised(compilation):
    """Programs here are compiled for much longer than they run."""
    del compilation  # which sets the option for the other files
    jax.config.update("jax_disable_most_optimizations", True)


def small(**options):
    return darts(3, **(SMALL | options))


def full_supernet(space):
    return space.supernet(space.full_bucket)


def randomised(tree, seed):
    """Variables of which no normalisation is the identity."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.uniform(0.05, 0.5, leaf.shape).astype(np.float32), tree
    )


def zeros_like(made):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), made)


def images(batch_size=4, size=8):
    return jax.random.normal(jax.random.key(0), (batch_size, size, size, 1))


def assert_close(found, expected, tolerance=1e-4):
    found, expected = dict(found), dict(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, leaf), wanted in pairs:
        scale = max(1.0, float(np.abs(wanted).max()))
        place = jax.tree_util.keystr(path)
        np.testing.assert_allclose(leaf, wanted, atol=tolerance * scale, rtol=0, err_msg=place)


# Routed, extracted, mixed.


@pytest.fixture(scope="module")
def trained():
    """A space of 7 cells, its supernet, variables, and one step's results of a routed network."""
    space = small(num_cells=7, operations=FEW, search=True, auxiliary=True)
    supernet, x = full_supernet(space), images()
    made = jax.eval_shape(
        lambda k: supernet.init(k, x, jnp.zeros(24, jnp.int32), train=False), jax.random.key(1)
    )
    variables = randomised(zeros_like(made), 2)
    return space, supernet, variables, x, jax.jit(lambda *a: step(supernet, x, *a))


def step(module, x, variables, *choice):
    """Gradients and outcomes of training with drop-path and the auxiliary head."""
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}

    def loss_fn(params):
        logits, updated = module.apply(
            {"params": params, **rest},
            x,
            *choice,
            train=True,
            drop_path=DropPath(jnp.float32(0.3), jnp.array([3, 4], jnp.uint32)),
            mutable=["batch_stats", COLLECTION],
        )
        updated = dict(updated)
        heads = jax.tree.leaves(updated.pop(COLLECTION))
        losses = [jax.nn.logsumexp(out) - out[0, 0] for out in (logits, *heads)]
        return sum(losses), (logits, heads, updated)

    gradients, outcome = jax.grad(loss_fn, has_aux=True)(params)
    return gradients, outcome


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_routed_step_is_the_step_of_the_extracted_network(trained, seed):
    space, supernet, variables, x, routed_fn = trained
    arch = np.asarray(sample(jax.random.key(seed), space))
    network = space.network(arch)
    alone = supernet.extract(variables, arch)
    made = jax.eval_shape(lambda k: network.init(k, x, train=False), jax.random.key(0))
    assert jax.tree.map(jnp.shape, alone) == jax.tree.map(jnp.shape, dict(made))
    gradients, (logits, heads, updated) = routed_fn(variables, jnp.asarray(arch))
    found = supernet.extract({"params": gradients, **updated}, arch)
    wanted, (logits_alone, heads_alone, updated_alone) = jax.jit(lambda v: step(network, x, v))(
        alone
    )
    np.testing.assert_allclose(logits, logits_alone, atol=1e-4)
    np.testing.assert_allclose(heads[0], heads_alone[0], atol=1e-4)
    assert_close(found, {"params": wanted, **updated_alone})
    # The rest of the supernet has no share in it.
    totals = [sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(g)) for g in (gradients, wanted)]
    np.testing.assert_allclose(*totals, rtol=1e-4)


def test_a_mixture_that_is_one_hot_is_a_route(trained):
    space, supernet, variables, x, _ = trained
    apply = jax.jit(lambda choice: supernet.apply(variables, x, choice, train=False))
    for seed in (2, 3):
        arch = sample(jax.random.key(seed), space)
        mixed = apply(supernet.mixture(arch))
        np.testing.assert_allclose(apply(arch), mixed, atol=1e-4)
        assert np.ptp(mixed, axis=0).min() > 1e-3  # images are told apart


def brought(module, variables, name, x, halves=False):
    """An input of a cell in the cell's shape."""
    bring = input_operation(module.stage.features, halves=halves, search=module.search)
    own = {collection: tree[name] for collection, tree in variables.items() if name in tree}
    return bring.apply(own, x, train=False)


def cell_by_hand(module, variables, inputs, weights, cell):
    """Equation 2 of the paper on every edge, with sums over edges in loops."""
    nodes, from_input = dict(enumerate(inputs)), [e for e in EDGES if e[0] < 2]
    for row, (source, target) in enumerate(EDGES):
        strided = module.stage.reduces and source < 2
        edge = row
        if module.stage.reduces:
            group = from_input if strided else [e for e in EDGES if e[0] >= 2]
            edge = group.index((source, target))
        for weight, operation in zip(weights[row], module.operations, strict=True):
            if operation != "none":
                one = edge_operation(
                    operation, module.stage.features, 1 + strided, search=module.search
                )
                name = "strided_" * strided + operation
                own = operation_variables(variables, name, edge=edge, cell=cell)
                y = weight * one.apply(own, nodes[source], train=False)
                nodes[target] = nodes[target] + y if target in nodes else y
    return jnp.concatenate([nodes[node] for node in (2, 3, 4, 5)], axis=-1)


@pytest.mark.parametrize("place", [0, 1], ids=["normal", "reduction"])
@pytest.mark.parametrize("search", [False, True])
def test_a_mixture_is_the_weighted_sum_by_hand(place, search):
    stage = stages_of(2, 3)[place]
    every = tuple(range(len(FEW)))
    module = SupernetStage(stage, FEW, every, search=search, residuals="auto")
    older, newer = images(2, 4), images(2, 4) ** 2
    rng = np.random.default_rng(place)
    weights = rng.uniform(-1.0, 1.0, (14, len(FEW))).astype(np.float32)
    made = jax.eval_shape(
        lambda: module.init(jax.random.key(0), older, newer, weights, train=False)
    )
    variables = randomised(zeros_like(made), 5)
    run = jax.jit(lambda v, w: module.apply(v, older, newer, w, train=False))
    _, found = run(variables, weights)
    inputs = [
        brought(module, variables, f"{n}_0", x) for n, x in (("older", older), ("newer", newer))
    ]
    expected = cell_by_hand(module, variables, inputs, weights, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("place", "late"), [(0, 2), (4, 1)], ids=["first", "later"])
def test_cells_of_a_stage_follow_one_another_by_hand(place, late):
    """Three cells, of which the first ones take from before the stage."""
    stage = stages_of(1, 10)[place]
    assert stage.num_cells == 3 and not stage.reduces
    few = ("none", "skip_connect", "max_pool_3x3")
    module = SupernetStage(stage, few, (0, 1, 2), search=True, residuals="auto")
    older, newer = images(2, 8 if stage.halved else 4), images(2, 4) ** 2
    if late == 1:  # what a cell of these channels returns
        newer = newer * jnp.arange(1.0, 4 * stage.features + 1)
    weights = np.random.default_rng(0).uniform(0.0, 1.0, (14, 3)).astype(np.float32)
    make = lambda k: module.init(k, older, newer, weights, train=False)  # noqa: E731
    variables = randomised(zeros_like(jax.eval_shape(make, jax.random.key(0))), 6)
    found = jax.jit(lambda v: module.apply(v, older, newer, weights, train=False))(variables)
    outputs = [older, newer]
    for cell in range(3):
        inputs = []
        for name, own_late, source in zip(("older", "newer"), (late, 1), outputs[-2:], strict=True):
            if cell < own_late:
                halves = stage.halved and (cell, name) == (0, "older")
                inputs.append(brought(module, variables, f"{name}_{cell}", source, halves))
            else:
                at = operation_variables(variables, name, cell=cell - own_late)
                one = {collection: {name: tree} for collection, tree in at.items()}
                inputs.append(brought(module, one, name, source))
        outputs.append(cell_by_hand(module, variables, inputs, weights, cell))
    for leaf, expected in zip(found, outputs[-2:], strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-4)


# Buckets, weights, errors.


def test_a_bucket_holds_the_operations_it_needs():
    space = small(num_cells=3, operations=FEW, search=True)
    full, x = full_supernet(space), images()
    arch = np.asarray(space.arch({"normal_3_op_1": "dil_conv_3x3"}))
    exact = space.supernet(tuple((int(c),) for c in arch))

    def shapes(module):
        make = lambda k: module.init(k, x, jnp.asarray(arch), train=False)  # noqa: E731
        return jax.eval_shape(make, jax.random.key(0))

    made, whole = shapes(exact), shapes(full)
    assert "dil_conv_3x3" in made["params"]["normal_0"]
    assert "dil_conv_3x3" not in made["params"]["reduce_1"]
    variables = randomised(zeros_like(whole), 7)
    leaves = {jax.tree_util.keystr(p): v for p, v in jax.tree.leaves_with_path(variables)}
    kept = [leaves[jax.tree_util.keystr(p)] for p, _ in jax.tree.leaves_with_path(made)]
    kept = jax.tree.unflatten(jax.tree.structure(made), kept)
    run = lambda module: jax.jit(lambda v: module.apply(v, x, jnp.asarray(arch), train=False))  # noqa: E731
    np.testing.assert_allclose(run(exact)(kept), run(full)(variables), atol=1e-4)


def test_weight_decay_falls_on_kernels_only(trained):
    _, supernet, variables, _, _ = trained
    marked = supernet.weights(variables["params"])
    assert jax.tree.structure(marked) == jax.tree.structure(variables["params"])
    for path, weight in jax.tree.leaves_with_path(marked):
        assert weight == ("kernel" in jax.tree_util.keystr(path))


@pytest.mark.parametrize("shape", [(23,), (28, 8), (14, 4)])
def test_choices_of_other_shapes_are_refused(shape):
    supernet = full_supernet(small(num_cells=3, operations=FEW))
    choice = jnp.zeros(shape, jnp.int32 if len(shape) == 1 else jnp.float32)
    with pytest.raises(ValueError, match=r"integers of shape \(24,\) or floats of shape \(28, 4\)"):
        supernet.init(jax.random.key(0), images(), choice, train=False)


def test_images_of_other_shapes_are_refused():
    network = small(num_cells=3).network(np.zeros(24, int))
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 1\), got \(4, 4, 1\)"):
        network.init(jax.random.key(0), images(size=4), train=False)


# All operations.


@pytest.mark.slow
@pytest.mark.parametrize(("num_cells", "search"), [(4, True), (9, False)])
def test_every_operation_is_extracted(num_cells, search):
    space = small(num_cells=num_cells, search=search)
    supernet, x = full_supernet(space), images()
    archs = [arch_from_genotype(GENOTYPES["PC_DARTS"])]
    archs += [sample(jax.random.key(seed), space) for seed in range(3)]
    make = lambda k: supernet.init(k, x, archs[0], train=False)  # noqa: E731
    variables = randomised(zeros_like(jax.eval_shape(make, jax.random.key(1))), 8)
    apply = jax.jit(lambda arch: supernet.apply(variables, x, arch, train=False))
    for arch in archs:
        alone = supernet.extract(variables, np.asarray(arch))
        network = space.network(np.asarray(arch))
        wanted = jax.jit(lambda v, n=network: n.apply(v, x, train=False))(alone)
        assert np.abs(apply(arch) - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.slow
def test_initial_values_are_those_of_pytorch():
    space = small(num_cells=8, num_channels=8, search=True)
    supernet, arch = full_supernet(space), jnp.zeros(24, jnp.int32)
    made = jax.jit(lambda k: supernet.init(k, images(), arch, train=False))(jax.random.key(0))
    own = made["params"]["normal_1"]
    pointwise = np.asarray(own["sep_conv_5x5"]["first"]["pointwise"]["kernel"])
    assert pointwise.shape == (2, 14, 1, 1, 16, 16)
    assert np.abs(pointwise).max() <= 1 / 4 and np.abs(pointwise).max() > 0.24
    flat = pointwise.reshape(28, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(28)).max() < 0.3  # cells and edges differ


@pytest.mark.slow
def test_training_and_the_found_network():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 96)
    x = rng.normal(size=(96, 8, 8, 1)) * 0.3
    x[np.arange(96), y + 2, :, 0] += 2.0
    data = from_arrays(jax.random.key(0), x, y)
    space = small(num_cells=4, operations=DARTS_OPERATIONS[1:5])
    recipe = Recipe(epochs=3, batch_size=16, optimizer="nesterov", learning_rate=0.05)
    arch = np.stack([sample(jax.random.key(seed), space) for seed in range(3)])
    trained = population.train(space, arch, data, recipe, jax.random.key(0), keep_variables=True)
    assert np.isfinite(trained.metrics["loss"]).all()
    assert trained.metrics["accuracy"].max() > 0.6
    assert [space.cost(a).parameters for a in arch] == trained.metrics["parameters"].tolist()
    best = int(np.argmax(trained.metrics["accuracy"]))
    network = space.network(arch[best])
    apply = jax.jit(lambda v: network.apply(v, data.valid.x, train=False))
    logits = apply((trained.variables or [])[best])
    accuracy = float((jnp.argmax(logits, -1) == data.valid.y).mean())
    np.testing.assert_allclose(accuracy, trained.metrics["accuracy"][best], atol=1e-6)
