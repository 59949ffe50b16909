"""NAO: its network against NumPy, what its loss achieves, its steps, and that it learns."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import enumeration
from jaxnas.strategies._nao_model import code_model
from jaxnas.strategies.nao import nao
from tests.unit import smooth_problem

module = importlib.import_module("jaxnas.strategies.nao")  # the package has the factory

NET = {"hidden_size": 8, "embedding_size": 4}
SMALL = {"num_initial": 8, "num_parents": 3, "num_steps": 3, "num_updates": 4, "replay_size": 8,
         "capacity": 48} | NET  # fmt: skip


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def lstm(p, name, token, output, memory):
    gates = np.concatenate([token, output]) @ p[name] + p[f"{name}_bias"]
    take, keep, give, value = np.split(gates, 4)
    memory = sigmoid(keep) * memory + sigmoid(take) * np.tanh(value)
    return sigmoid(give) * np.tanh(memory), memory


def code_in_numpy(p, arch):
    output, memory, outputs = np.zeros(8), np.zeros(8), []
    for d, choice in enumerate(arch):
        output, memory = lstm(p, "encoder", p["embedding"][d, choice], output, memory)
        outputs.append(output)
    return unit(np.stack(outputs))


def log_likelihood_in_numpy(p, code, arch, num_choices):
    output = memory = unit(code.mean(axis=0))
    token, total = np.zeros(4), 0.0
    for d, choice in enumerate(arch):
        output, memory = lstm(p, "decoder", token, output, memory)
        weights = np.exp(code @ output)
        context = weights / weights.sum() @ code
        attended = np.tanh(np.concatenate([output, context]) @ p["attended"])
        logits = (attended @ p["head"][d])[: num_choices[d]]
        total += logits[choice] - np.log(np.exp(logits).sum())
        token = p["embedding"][d, choice]
    return total / len(arch)


def test_the_network_is_the_one_described():
    space = nas.testing.conditional_space()
    net = code_model(space, **NET)
    params = jax.tree.map(lambda p: 2 * p, net.init(jax.random.key(0)))
    p = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    for arch in ([1, 2, 1, 0, 0], [2, 0, 1, 2, 2]):
        code = code_in_numpy(p, arch)
        got = jax.jit(net.encode)(params, jnp.asarray(arch))
        np.testing.assert_allclose(got, code, atol=1e-5)
        hidden = np.maximum(unit(code.mean(axis=0)) @ p["score"] + p["score_bias"], 0.0)
        wanted = sigmoid(hidden @ p["score_last"])
        np.testing.assert_allclose(net.score(params, got), wanted, atol=1e-5)
        wanted = log_likelihood_in_numpy(p, code, arch, space.num_choices)
        found = jax.jit(net.log_likelihood)(params, got, jnp.asarray(arch))
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@functools.cache
def trained(cell):
    """The network after one training on all of a space, which has 24 architectures."""
    space = nas.testing.tiny_space()
    every = jnp.asarray(enumeration.all_architectures(space))
    fitness = 5.0 + every.sum(axis=1)
    strategy = nao(space, batch_size=24, num_initial=24, cell=cell, capacity=24, num_updates=400,
                   learning_rate=0.01)  # fmt: skip
    net = code_model(space, cell=cell, hidden_size=24, embedding_size=16)

    def train(key):
        proposal = nas.Proposal(every, jnp.ones(24))
        evaluation = nas.Evaluation(fitness, fitness[:, None], {}, jnp.ones(24))
        return strategy.tell(key, strategy.init(key), proposal, evaluation).params

    return net, jax.jit(train)(jax.random.key(0)), every, fitness


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_decoder_reconstructs_and_predictor_predicts(cell):
    net, params, every, fitness = trained(cell)
    codes = jax.vmap(lambda arch: net.encode(params, arch))(every)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), 1.0, rtol=1e-4)
    decoded = jax.vmap(lambda code: net.decode(params, code))(codes)
    assert (decoded == every).mean() > 0.95
    score = np.asarray(jax.vmap(lambda code: net.score(params, code))(codes))
    target = (fitness - fitness.min()) / np.ptp(fitness)
    assert np.abs(score - target).mean() < 0.1


def test_steps_raise_the_predicted_score_and_lead_to_better_architectures():
    net, params, every, fitness = trained("lstm")
    parents = every[np.argsort(fitness)[:16]]
    steps = jnp.array([0.0, 0.3, 3.0, 30.0])
    codes = module.ascend(net, params, parents, steps)
    assert codes.shape == (4, 16, 3, 24)
    score = np.asarray(jax.vmap(jax.vmap(lambda code: net.score(params, code)))(codes))
    assert (score[1] > score[0]).all()
    assert (np.diff(score.mean(axis=1)) > 0).all()
    reached = jax.vmap(jax.vmap(lambda code: net.decode(params, code)))(codes)
    mean = np.asarray(reached.sum(axis=2)).mean(axis=1)
    assert mean[3] > mean[0] + 0.5


def test_targets_are_scaled_over_the_successes():
    fitness = jnp.array([3.0, -jnp.inf, 7.0, 4.0])
    mask = jnp.array([True, False, True, True])
    np.testing.assert_allclose(module.scaled(fitness, mask), [0.0, 0.0, 1.0, 0.25])
    np.testing.assert_array_equal(module.scaled(fitness, mask & False), 0.0)
    np.testing.assert_array_equal(module.scaled(jnp.full(4, 2.0), mask), 0.0)


def test_nothing_is_learned_from_failures():
    space = nas.testing.tiny_space()
    strategy = nao(space, batch_size=8, **SMALL)
    state = strategy.init(jax.random.key(0))
    arch = jnp.asarray(enumeration.all_architectures(space))[:8]
    tell = jax.jit(strategy.tell)
    learned = []
    for fitness in (jnp.full(8, jnp.nan), jnp.arange(8.0)):
        evaluation = nas.Evaluation(fitness, fitness[:, None], {}, jnp.ones(8))
        proposal = nas.Proposal(arch, jnp.ones(8))
        params = tell(jax.random.key(1), state, proposal, evaluation).params
        learned.append((params["encoder"] != state.params["encoder"]).any())
    assert learned == [False, True]


def test_the_loss_weighs_both_parts():
    net, params, every, _ = trained("lstm")
    target = jnp.full(24, 0.5)
    losses = [float(module.joint_loss(net, params, every, target, w)) for w in (0.0, 0.8, 1.0)]
    np.testing.assert_allclose(losses[1], 0.2 * losses[0] + 0.8 * losses[2], rtol=1e-4)
    codes = jax.vmap(lambda arch: net.encode(params, arch))(every)
    score = jax.vmap(lambda code: net.score(params, code))(codes)
    np.testing.assert_allclose(losses[2], np.mean((score - 0.5) ** 2), rtol=1e-4)


def test_nothing_is_evaluated_twice():
    space = smooth_problem.space()
    evaluator = nas.evaluators.from_function(
        lambda key, arch: jnp.where(arch[0] == 0, jnp.nan, arch.mean() / 4)
    )
    strategy = nao(space, batch_size=4, refit_every=4, **SMALL)
    run = jax.jit(jax.vmap(lambda key: nas.search(key, strategy, evaluator, 10)[1].arch))
    for arch in run(jax.random.split(jax.random.key(0), 4)):
        assert len(np.unique(arch.reshape(40, -1), axis=0)) == 40


@pytest.mark.slow
def test_beats_random_search():
    strategy = nao(
        smooth_problem.space(),
        batch_size=8,
        num_initial=48,
        refit_every=24,
        num_updates=100,
        learning_rate=0.01,
        hidden_size=16,
        embedding_size=8,
        capacity=192,
    )
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.slow
def test_contract_where_decisions_depend_on_others():
    space = nas.testing.conditional_space()
    strategy = nao(space, batch_size=4, refit_every=4, **SMALL)
    nas.testing.check_strategy(strategy, space, eager=False)


@pytest.mark.slow
def test_contract_of_the_simple_cell_where_the_space_is_exhausted():
    space = nas.testing.tiny_space()
    strategy = nao(space, batch_size=4, refit_every=8, cell="rnn", **SMALL)
    nas.testing.check_strategy(strategy, space, eager=False)


def test_floats_may_be_swept():
    space = nas.testing.tiny_space()
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))

    @jax.jit
    @jax.vmap
    def search(learning_rate, step_size, score_weight):
        floats = {"step_size": step_size, "score_weight": score_weight}
        strategy = nao(space, batch_size=4, learning_rate=learning_rate, **floats, **SMALL)
        return nas.search(jax.random.key(0), strategy, evaluator, 5)[1].arch

    low, high = search(jnp.array([0.0, 0.3]), jnp.array([0.1, 30.0]), jnp.array([0.8, 0.5]))
    np.testing.assert_array_equal(low[:2], high[:2])
    assert (low[2:] != high[2:]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_initial": 0}, "num_initial"),
        ({"refit_every": 0}, "refit_every"),
        ({"num_parents": 0}, "num_parents"),
        ({"step_size": -1.0}, "step_size"),
        ({"num_steps": 0}, "num_steps"),
        ({"cell": "gru"}, "cell"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"embedding_size": 0}, "embedding_size"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"num_updates": 0}, "num_updates"),
        ({"replay_size": 0}, "replay_size"),
        ({"score_weight": 1.5}, "score_weight"),
        ({"batch_size": 4, "capacity": 3}, "capacity"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        nao(nas.testing.tiny_space(), **options)
