"""The recurrent space against a plain NumPy cell, the published cells and itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import testing
from jaxnas.nn.language_model import HIDDEN, LSTM, Dropout
from jaxnas.nn.recurrent import RecurrentSupernet
from jaxnas.space import sample
from jaxnas.spaces.recurrent import (
    GENOTYPES,
    PUBLISHED_ACTIVATIONS,
    Genotype,
    arch_from_genotype,
    genotype_from_arch,
    recurrent,
)

NUM_SYMBOLS, NUM_UNITS, NUM_NODES = 7, 4, 3
X = jax.random.randint(jax.random.key(1), (3, 6), 0, NUM_SYMBOLS)


def tiny(**options):
    sizes = {"num_units": NUM_UNITS, "num_nodes": NUM_NODES}
    return recurrent(NUM_SYMBOLS, **(sizes | options))


def supernet(space) -> RecurrentSupernet:
    return space.supernet(space.full_bucket)


def initial(space, scale=3.0):
    """Variables with weights far from zero, where activations differ, and moved statistics."""
    arch = jnp.zeros(space.num_decisions, jnp.int32)
    made = jax.jit(lambda: supernet(space).init(jax.random.key(0), X, arch, train=False))()
    made["params"] = jax.tree.map(lambda leaf: scale * leaf, made["params"])
    if "batch_stats" in made:
        made["batch_stats"]["mean"] += 0.1
        made["batch_stats"]["var"] *= 0.5
    return made


def one_hot(arch, num_nodes=NUM_NODES):
    """Weights f32[R, 5] that are 1 at the operations of `arch`."""
    weights = np.zeros((num_nodes * (num_nodes + 1) // 2, 5), np.float32)
    for i in range(num_nodes):
        weights[i * (i + 1) // 2 + int(arch[2 * i]), 1 + int(arch[2 * i + 1])] = 1.0
    return jnp.asarray(weights)


def reference(params, x, genotype):
    """Logits f64[B, T, V] of one architecture, node by node and symbol by symbol."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    sigmoid = lambda z: 1.0 / (1.0 + np.exp(-z))  # noqa: E731
    fns = {
        "tanh": np.tanh,
        "relu": lambda z: np.maximum(z, 0.0),
        "sigmoid": sigmoid,
        "identity": lambda z: z,
    }

    def gated(s, product, fn):
        c, f = np.split(product, 2, axis=-1)
        return s + sigmoid(c) * (fn(f) - s)

    kernel = np.concatenate([p["input_kernel"], p["hidden_kernel"]])
    h, logits = np.zeros((len(x), NUM_UNITS)), []
    for symbols in np.asarray(x).T:
        nodes = [gated(h, np.concatenate([p["embedding"][symbols], h], -1) @ kernel, np.tanh)]
        for i, (name, source) in enumerate(genotype.recurrent):
            s = nodes[source]
            nodes.append(gated(s, s @ p["node_kernels"][i], fns[name]))
        h = np.mean([nodes[i] for i in genotype.concat], axis=0)
        logits.append(h @ p["embedding"].T + p["bias"])
    return np.stack(logits, axis=1)


def test_space_keeps_the_contract():
    testing.check_space(tiny())


@pytest.mark.parametrize("name", ["darts_v2", "enas"])
def test_network_is_that_of_the_papers(name):
    genotype = GENOTYPES[name]
    arch = arch_from_genotype(genotype)
    output = "loose" if name == "enas" else "all"
    network = tiny(num_nodes=len(arch) // 2, output=output).network(np.asarray(arch))
    made = jax.jit(lambda: network.init(jax.random.key(0), X, train=False))()
    variables = jax.tree.map(lambda leaf: 3.0 * leaf, made)
    got = jax.jit(lambda v: network.apply(v, X, train=False))(variables)
    np.testing.assert_allclose(got, reference(variables["params"], X, genotype), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "train"),
    [({}, False), ({"normalise": True}, False), ({"normalise": True}, True),
     ({"output": "loose"}, True)],
    ids=["plain", "normalised", "in training", "loose"],
)  # fmt: skip
def test_supernet_has_the_logits_of_the_extracted_network(options, train):
    space = tiny(**options)
    net, variables = supernet(space), initial(space)
    run = jax.jit(lambda arch: net.apply(variables, X, arch, train=train, mutable=list(variables)))
    for seed in range(2):
        arch = sample(jax.random.key(seed), space)
        extracted = net.extract(variables, np.asarray(arch))
        network = space.network(np.asarray(arch))
        alone = network.apply(extracted, X, train=train, mutable=list(variables))
        pairs = zip(jax.tree.leaves(run(arch)), jax.tree.leaves(alone), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalised", [False, True])
def test_mixing_with_one_hot_weights_is_routing(normalised):
    space = tiny(normalise=normalised)
    net, variables = supernet(space), initial(space)
    run = jax.jit(lambda choice: net.apply(variables, X, choice, train=False))
    for seed in range(3):
        arch = sample(jax.random.key(seed), space)
        np.testing.assert_allclose(run(one_hot(arch)), run(arch), rtol=1e-4, atol=1e-5)


def test_mixing_sums_over_inputs_and_activations_and_none_is_zero():
    space = recurrent(NUM_SYMBOLS, num_units=NUM_UNITS, num_nodes=1)
    net, variables = supernet(space), initial(space)
    weights = jax.random.uniform(jax.random.key(3), (1, 5))
    no_none = weights.at[:, 0].set(0.0)
    mixed = net.apply(variables, X[:, :1], weights, train=False)
    np.testing.assert_allclose(mixed, net.apply(variables, X[:, :1], no_none, train=False))
    # After one symbol the logits are linear in the only node, as that is in the weights.
    bias = variables["params"]["bias"]
    archs = [jnp.array([0, k]) for k in range(4)]
    terms = [net.apply(variables, X[:, :1], arch, train=False) - bias for arch in archs]
    expected = sum(w * term for w, term in zip(weights[0, 1:], terms, strict=True))
    np.testing.assert_allclose(mixed - bias, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_weights_and_mixture():
    space = tiny(normalise=True)
    net, variables = supernet(space), initial(space)
    rest = {"batch_stats": variables["batch_stats"]}

    def loss(params, weights):
        options = {"train": True, "mutable": ["batch_stats"]}
        logits, _ = net.apply({"params": params, **rest}, X, weights, **options)
        return jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)

    weights = jnp.full((6, 5), 0.2)
    loss = jax.jit(loss)
    gradients = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], weights)
    for leaf in jax.tree.leaves(gradients[0]):
        assert (leaf != 0.0).any()
    assert (gradients[1][:, 0] == 0.0).all()
    assert (gradients[1][:, 1:] != 0.0).all()
    # Against a finite difference along one direction.
    direction, size = jax.random.normal(jax.random.key(5), weights.shape), 2e-3
    ends = [loss(variables["params"], weights + sign * size * direction) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * size)
    np.testing.assert_allclose(jnp.sum(gradients[1] * direction), slope, rtol=1e-2)


def test_normalised_nodes_have_mean_zero_and_running_statistics_follow():
    space = recurrent(NUM_SYMBOLS, num_units=NUM_UNITS, num_nodes=1, normalise=True)
    net, variables = supernet(space), initial(space)
    arch, x = jnp.array([0, 0]), jnp.arange(NUM_SYMBOLS)[:, None]
    logits, updated = net.apply(variables, x, arch, train=True, mutable=["batch_stats"])
    params = variables["params"]
    centre = params["bias"]  # the only node is the output; its batch mean is zero
    np.testing.assert_allclose(logits.mean(axis=0)[0], centre, atol=1e-5)
    alone = tiny(num_nodes=1)
    plain = supernet(alone)
    _, carried = plain.apply({"params": params}, x, arch, train=False, mutable=[HIDDEN])
    assert carried[HIDDEN]["state"].shape == (1, NUM_SYMBOLS, NUM_UNITS)
    gates, f = jnp.split(params["embedding"] @ params["input_kernel"], 2, axis=-1)
    first = jax.nn.sigmoid(gates) * jnp.tanh(f)  # node 0 of every symbol, before normalisation
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"][0], 0.9 * 0.1 + 0.1 * first.mean(0), atol=1e-5)
    np.testing.assert_allclose(stats["var"][0], 0.9 * 0.5 + 0.1 * first.var(0, ddof=1), atol=1e-5)


def test_derive_takes_the_best_input_and_activation_of_each_node():
    space = recurrent(NUM_SYMBOLS, num_units=NUM_UNITS)
    net = supernet(space)
    assert net.rows == (5,) * 36
    assert net.row_operations[0] == ("none", *PUBLISHED_ACTIVATIONS)
    assert net.nodes[:6] == (1, 2, 2, 3, 3, 3)
    for genotype in (GENOTYPES["darts_v1"], GENOTYPES["darts_v2"]):
        arch = arch_from_genotype(genotype)
        strengths = one_hot(arch, num_nodes=8).at[:, 0].set(9.0)  # `none` is never taken
        noise = 0.1 * jax.random.uniform(jax.random.key(0), strengths.shape)
        np.testing.assert_array_equal(jax.jit(net.derive)(strengths + noise), arch)


def test_published_sizes():
    """Table 3 and Table 4 of the DARTS paper: 23 and 33 million parameters."""
    penn = recurrent(10_000, num_units=850)
    assert penn.cost(jnp.zeros(16)).parameters == 22_960_000
    wikitext = recurrent(33_278, num_units=700)
    assert wikitext.cost(jnp.zeros(16)).parameters == 33_127_878
    assert np.prod([float(n) for n in penn.num_choices]) == 2_642_411_520


def test_cost_counts_the_parameters_there_are():
    space = tiny()
    variables = jax.eval_shape(
        lambda: space.network(np.zeros(6, int)).init(jax.random.key(0), X, train=False)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert space.cost(np.zeros(6)).parameters == count
    lstm = jax.eval_shape(lambda: LSTM(7, 5).init(jax.random.key(0), X, train=False))
    assert LSTM.count(7, 5) == sum(leaf.size for leaf in jax.tree.leaves(lstm))


@pytest.mark.parametrize("name", GENOTYPES)
def test_genotypes_convert_both_ways(name):
    genotype = GENOTYPES[name]
    output = "loose" if name == "enas" else "all"
    arch = arch_from_genotype(genotype)
    assert genotype_from_arch(arch, output=output) == genotype


def test_published_genotypes_are_those_of_the_code():
    v2 = GENOTYPES["darts_v2"]
    assert v2.recurrent[:4] == (("sigmoid", 0), ("relu", 1), ("relu", 1), ("identity", 1))
    assert v2.recurrent[4:] == (("tanh", 2), ("sigmoid", 5), ("tanh", 3), ("relu", 5))
    assert GENOTYPES["darts_v1"].recurrent[5:] == (("identity", 1), ("relu", 5), ("relu", 1))


def models():
    space = tiny()
    return [space.network(np.array([0, 0, 1, 1, 0, 3])), LSTM(NUM_SYMBOLS, NUM_UNITS)]


@pytest.mark.parametrize("module", models(), ids=["cell", "lstm"])
def test_state_goes_from_window_to_window(module):
    variables = dict(module.init(jax.random.key(0), X, train=False))
    assert HIDDEN not in variables
    whole = module.apply(variables, X, train=False)
    first, carried = module.apply(variables, X[:, :2], train=False, mutable=[HIDDEN])
    second, _ = module.apply({**variables, **carried}, X[:, 2:], train=False, mutable=[HIDDEN])
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-5)
    read_only = module.apply({**variables, **carried}, X[:, 2:], train=False)
    np.testing.assert_allclose(read_only, second, atol=1e-6)
    reset = module.apply({**variables, HIDDEN: module.start(3)}, X, train=False)
    np.testing.assert_allclose(reset, whole, atol=1e-6)
    with pytest.raises(ValueError, match=r"hidden.*must have the shape"):
        module.apply({**variables, HIDDEN: module.start(2)}, X, train=False)


@pytest.mark.parametrize("kind", Dropout._fields)
@pytest.mark.parametrize("frame", ["cell", "lstm"])
def test_dropout_is_one_mask_for_all_steps_and_only_in_training(frame, kind):
    dropout = Dropout(**{kind: 0.5})
    module = LSTM(NUM_SYMBOLS, NUM_UNITS, dropout)
    if frame == "cell":
        module = recurrent(NUM_SYMBOLS, num_units=NUM_UNITS, num_nodes=1, dropout=dropout).network(
            np.array([0, 1])
        )
    x = jnp.zeros((4, 3), jnp.int32)
    variables = module.init(jax.random.key(0), x, train=False)

    @jax.jit
    def run(key):
        return module.apply(variables, x, train=True, rngs={"dropout": key})

    logits = run(jax.random.key(0))
    assert not np.allclose(logits, run(jax.random.key(1)))
    plain = module.apply(variables, x, train=False)
    assert (plain == plain[0]).all()
    if kind == "outputs":  # a dropped unit of the output stays dropped
        table = variables["params"]["embedding"]
        outputs = np.linalg.lstsq(table, logits.reshape(-1, NUM_SYMBOLS).T)[0].T
        dropped = (abs(outputs) < 1e-6).reshape(4, 3, NUM_UNITS)
        assert dropped.any()
        assert (dropped == dropped[:, :1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_units": 0}, "num_units must be a whole number above 0, got 0"),
        ({"activations": ()}, "at least one name"),
        ({"activations": ("tanh", "none")}, "activations has 'none'"),
        ({"output": "last"}, "output must be one of"),
        ({"dropout": Dropout(hidden=1.0)}, r"dropout.hidden must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_spaces_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_bad_calls_are_refused():
    space = tiny(output="loose")
    net, arch = supernet(space), jnp.zeros(6, jnp.int32)
    variables = initial(space)
    with pytest.raises(ValueError, match="only cells with output 'all' can be mixed"):
        net.apply(variables, X, jnp.ones((6, 5)), train=False)
    with pytest.raises(ValueError, match="choice must be integers of shape"):
        net.apply(variables, X, arch[:4], train=False)
    with pytest.raises(ValueError, match="x must be symbols"):
        net.apply(variables, X.astype(jnp.float32), arch, train=False)


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (Genotype((("swish", 0),), (1,)), "activation 'swish' of node 1"),
        (Genotype((("relu", 0), ("relu", 2)), (1, 2)), "input of node 2 must be in 0 to 1, got 2"),
        (Genotype((("relu", 0), ("relu", 1)), (1,)), "concat must be one of"),
    ],
)
def test_bad_genotypes_are_refused(genotype, message):
    with pytest.raises(ValueError, match=message):
        arch_from_genotype(genotype)
