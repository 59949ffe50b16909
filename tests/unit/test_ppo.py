"""PPO against Eq. 7 written out in NumPy, and against REINFORCE where the two agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas.strategies.ppo import ppo
from jaxnas.types import Evaluation
from tests.unit import smooth_problem


def one_step(strategy, fitness, seed=0):
    state = strategy.init(jax.random.key(seed))
    proposal = jax.jit(strategy.ask)(jax.random.key(seed + 1), state)
    fitness = jnp.asarray(fitness, jnp.float32)
    evaluation = Evaluation(fitness, fitness[:, None], {}, jnp.ones_like(fitness))
    return state, proposal, jax.jit(strategy.tell)(jax.random.key(2), state, proposal, evaluation)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def log_prob(logits, arch):
    return np.log(softmax(logits))[np.arange(arch.shape[1]), arch].sum(axis=1)


def clipped_ascent(logits, arch, advantage, num_epochs, clip_range, rate):
    """Eq. 7 with Adam, for independent decisions, in float64."""
    old, start = log_prob(logits, arch), logits
    first, second, num_clipped = np.zeros_like(logits), np.zeros_like(logits), 0
    for epoch in range(1, num_epochs + 1):
        ratio = np.exp(log_prob(logits, arch) - old)
        held = np.where(advantage > 0, ratio > 1 + clip_range, ratio < 1 - clip_range)
        num_clipped += held.sum()
        score = np.eye(logits.shape[1])[arch] - softmax(logits)
        weight = np.where(held, 0.0, ratio * advantage)
        gradient = np.mean(weight[:, None, None] * score, axis=0)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9**epoch), second / (1 - 0.999**epoch)
        logits = logits + rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    assert num_clipped > 0
    return logits - start


def test_epochs_follow_equation_7():
    # Enough candidates for every choice to occur: Adam blows the gradient 0 of others up to noise.
    batch_size, num_epochs, clip_range, rate = 40, 6, 0.1, 0.1
    strategy = ppo(
        smooth_problem.space(),
        batch_size=batch_size,
        policy="factorised",
        num_epochs=num_epochs,
        clip_range=clip_range,
        learning_rate=rate,
        entropy_weight=0.0,
    )
    fitness = np.random.default_rng(0).normal(size=batch_size)
    before, proposal, after = one_step(strategy, fitness)
    logits = np.asarray(before.params["logits"], np.float64)
    arch, advantage = np.asarray(proposal.arch), fitness - fitness.mean()
    wanted = clipped_ascent(logits, arch, advantage, num_epochs, clip_range, rate)
    moved = np.asarray(after.params["logits"]) - logits
    np.testing.assert_allclose(moved, wanted, atol=2e-4)


@pytest.mark.parametrize("policy", ["recurrent", "factorised"])
def test_one_epoch_is_reinforce(policy):
    space = nas.testing.conditional_space()
    fitness = [0.1, 0.5, jnp.nan, 0.2, 0.9, -0.4]

    def step(factory, **options):
        strategy = factory(
            space,
            batch_size=6,
            policy=policy,
            hidden_size=8,
            num_layers=2,
            learning_rate=0.01,
            baseline_decay=0.9,
            entropy_weight=0.01,
            **options,
        )
        return one_step(strategy, fitness)

    got, wanted = step(ppo, num_epochs=1), step(nas.strategies.reinforce)
    np.testing.assert_array_equal(got[1].arch, wanted[1].arch)
    for a, b in zip(jax.tree.leaves(got[2]), jax.tree.leaves(wanted[2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_failures_teach_nothing():
    strategy = ppo(nas.testing.tiny_space(), batch_size=4, policy="factorised")
    before, _, after = one_step(strategy, [jnp.nan, jnp.inf, -jnp.inf, jnp.nan])
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_contract_of_the_factorised_policy():
    space = nas.testing.conditional_space()
    strategy = ppo(space, batch_size=1, policy="factorised", learning_rate=0.1)
    nas.testing.check_strategy(strategy, space, eager=False)


def test_float_hyperparameters_may_be_swept():
    space = nas.testing.tiny_space()
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))
    names = ("clip_range", "learning_rate", "entropy_weight", "baseline_decay")

    def search(options):
        strategy = ppo(space, batch_size=4, policy="factorised", **options)
        return nas.search(jax.random.key(0), strategy, evaluator, 12)[1].arch

    swept = {name: jnp.array([0.05, 0.9]) for name in names}
    together = jax.jit(jax.vmap(search))(swept)
    alone = [jax.jit(search)({name: v[i] for name, v in swept.items()}) for i in range(2)]
    np.testing.assert_array_equal(together, jnp.stack(alone))
    assert (together[0] != together[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"hidden_size": 24, "learning_rate": 0.01}, {"policy": "factorised", "learning_rate": 0.1}],
    ids=["recurrent", "factorised"],
)
def test_beats_random_search(options):
    strategy = ppo(smooth_problem.space(), batch_size=8, **options)
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"clip_range": -0.1}, "clip_range"),
        ({"policy": "transformer"}, "policy"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ppo(nas.testing.tiny_space(), **options)
