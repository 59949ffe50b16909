"""Deep Q-learning: temporal differences against a loop, its target network, what it learns."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import enumeration
from jaxnas.strategies.dqn import dqn
from jaxnas.types import Evaluation
from tests.unit import smooth_problem

module = importlib.import_module("jaxnas.strategies.dqn")  # the package has the factory


def one_step(strategy, state, seed, fitness_fn):
    proposal = strategy.ask(jax.random.key(seed), state)
    fitness = jax.vmap(fitness_fn)(proposal.arch)
    evaluation = Evaluation(fitness, fitness[:, None], {}, jnp.ones_like(fitness))
    return strategy.tell(jax.random.key(seed + 1), state, proposal, evaluation)


def prefix(space, arch, index):
    blocks = np.zeros((space.num_decisions, max(space.num_choices)))
    for d, active in enumerate(space.active_mask(arch)):
        if active and d < index:
            blocks[d, arch[d]] = 1.0
    return blocks.ravel()


def linear(params, x, index):
    return x @ params["pairs"][index] + params["singles"][index]


def perceptron(params, x, index):
    x = np.concatenate([x, np.eye(5)[index]])
    x = np.maximum(x @ params["kernel_0"] + params["bias_0"], 0.0)
    return x @ params["kernel_1"] + params["bias_1"]


def differences(space, q, params, target, arch, reward, discount):
    """The errors along one trajectory as the algorithm states them."""
    active = np.flatnonzero(space.active_mask(arch))
    errors = np.zeros(len(arch))
    for d, following in itertools.zip_longest(active, active[1:]):
        wanted = reward
        if following is not None:
            ahead = q(target, prefix(space, arch, following), following)
            wanted = discount * ahead[: space.num_choices[following]].max()
        errors[d] = wanted - q(params, prefix(space, arch, d), d)[arch[d]]
    return errors


@pytest.mark.parametrize("function", ["linear", "perceptron"])
def test_temporal_differences_are_the_loop(function):
    space, rng = nas.testing.conditional_space(), np.random.default_rng(0)
    model = module._linear(5, 3) if function == "linear" else module._perceptron(5, 3, 4, 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params, target = (
        jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), shapes)
        for _ in range(2)
    )
    q = linear if function == "linear" else perceptron
    got = jax.jit(
        jax.vmap(
            lambda arch, reward: module._errors(space, model, params, target, arch, reward, 0.8)
        )
    )
    every = enumeration.all_architectures(space)
    rewards = rng.uniform(size=len(every)).astype(np.float32)
    wanted = [
        differences(space, q, params, target, *row, 0.8) for row in zip(every, rewards, strict=True)
    ]
    np.testing.assert_allclose(got(every, rewards), wanted, atol=1e-5)


def test_the_target_is_renewed_at_intervals():
    strategy = dqn(
        nas.testing.tiny_space(),
        batch_size=4,
        function="linear",
        num_updates=2,
        target_interval=6,
    )
    state = strategy.init(jax.random.key(0))
    for index in range(1, 7):
        before = state
        state = one_step(strategy, state, index, lambda arch: arch.mean())
        if index % 3 == 0:
            jax.tree.map(np.testing.assert_array_equal, state.target, state.params)
        else:
            jax.tree.map(np.testing.assert_array_equal, state.target, before.target)
        assert int(state.num_updates) == 2 * index
    assert np.abs(state.params["pairs"]).max() > 0


def test_the_linear_function_finds_the_value_of_every_prefix():
    # One decision for itself and a pair: what the features can express, at every prefix.
    space = nas.testing.tiny_space()
    gains = jax.random.uniform(jax.random.key(5), (3, 4, 2))
    fitness = gains[:, :1, :1] * 0.5 + gains[:1] * 0.5

    strategy = dqn(
        space,
        batch_size=24,
        function="linear",
        num_evaluations=10**6,  # uniform draws throughout
        num_updates=400,
        learning_rate=0.02,
    )
    state, _ = jax.jit(
        lambda key: nas.search(
            key,
            strategy,
            nas.evaluators.from_function(lambda key, arch: fitness[tuple(arch)]),
            6,
        )
    )(jax.random.key(0))
    params = jax.tree.map(np.asarray, state.strategy.params)
    table = np.asarray(fitness)
    for a, b in itertools.product(range(3), range(4)):
        got = linear(params, prefix(space, [a, b, 0], 2), 2)[:2]
        np.testing.assert_allclose(got, table[a, b], atol=0.05)
    got = linear(params, prefix(space, [0, 0, 0], 0), 0)[:3]
    np.testing.assert_allclose(got, table.max(axis=(1, 2)), atol=0.05)


@pytest.mark.slow
def test_contract_of_the_linear_function():
    space = nas.testing.conditional_space()
    options = {"num_evaluations": 40, "num_updates": 4, "capacity": 30}
    strategy = dqn(space, batch_size=1, function="linear", **options)
    nas.testing.check_strategy(strategy, space, eager=False)


def test_float_hyperparameters_may_be_swept():
    space = nas.testing.tiny_space()
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))
    options = {"function": "linear", "num_evaluations": 20, "num_updates": 4}

    def search(learning_rate, discount):
        strategy = dqn(
            space, batch_size=4, learning_rate=learning_rate, discount=discount, **options
        )
        return nas.search(jax.random.key(0), strategy, evaluator, 12)[1].arch

    low, high = jnp.array([0.001, 0.9]), jnp.array([0.1, 0.9])
    together = jax.jit(jax.vmap(search))(low, high)
    alone = jnp.stack([jax.jit(search)(a, b) for a, b in zip(low, high, strict=True)])
    np.testing.assert_array_equal(together, alone)
    assert (together[0] != together[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("function", ["linear", "perceptron"])
def test_beats_random_search(function):
    strategy = dqn(
        smooth_problem.space(),
        batch_size=8,
        function=function,
        num_evaluations=192,
        hidden_size=32,
    )
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"function": "tree"}, "function"),
        ({"num_evaluations": 0}, "num_evaluations"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"discount": 1.5}, "discount"),
        ({"num_updates": 0}, "num_updates"),
        ({"replay_size": 0}, "replay_size"),
        ({"target_interval": 0}, "target_interval"),
        ({"batch_size": 4, "capacity": 3}, "capacity"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_layers": 0}, "num_layers"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dqn(nas.testing.tiny_space(), **options)
