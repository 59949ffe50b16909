"""The frame, and what each named method adds to it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import oneshot
from jaxnas.oneshot import hypergradients as hg
from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.optimizers import Sgd
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.relaxations import softmax
from jaxnas.training.data import Split
from tests.unit.one_shot_updates import PROBLEM, TRAIN, VALID, one_update, searched


def test_weights_take_pytorch_s_step():
    sgd = Sgd(learning_rate=0.1, final_learning_rate=0.05, weight_decay=0.01, clip_norm=0.3)
    method = bilevel(PROBLEM, Parts(softmax()), num_steps=10, weight_optimizer=sgd)
    before, after, _ = one_update(method)
    choice = jax.nn.softmax(
        jnp.where(PROBLEM.mask, after.alpha, -jnp.inf), axis=-1
    )  # alpha goes first
    gradient = jax.grad(
        lambda w: PROBLEM.loss(jax.random.key(9), w, before.rest, choice, TRAIN, True)[0]
    )(before.weights)
    factor = jnp.minimum(1.0, 0.3 / optax.tree.norm(gradient))
    want = jax.tree.map(
        lambda w, g: w - 0.1 * (factor * g + 0.01 * w * (w.ndim > 1)), before.weights, gradient
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.weights, want
    )


def test_learning_rate_falls_along_a_cosine():
    schedule = Sgd(learning_rate=0.1, final_learning_rate=0.02).schedule(100)
    found = [float(schedule(jnp.int32(step))) for step in (0, 50, 100, 200)]
    np.testing.assert_allclose(found, [0.1, 0.06, 0.02, 0.02], rtol=1e-5)


def test_alpha_descends_the_validation_loss():
    method = oneshot.darts(PROBLEM, num_steps=10)
    before, after, info = one_update(method)
    slope = jax.grad(
        lambda a: PROBLEM.loss(
            jax.random.key(9), before.weights, before.rest, softmax_of(a), VALID, True
        )[0]
    )(before.alpha)
    np.testing.assert_allclose(info["alpha_gradient_norm"], jnp.linalg.norm(slope), rtol=1e-3)
    moved = np.sign(np.asarray(before.alpha - after.alpha))
    big = np.abs(slope) > 1e-3
    np.testing.assert_array_equal(moved[big], np.sign(slope)[big])


def softmax_of(alpha):
    return jax.nn.softmax(jnp.where(PROBLEM.mask, alpha, -jnp.inf), axis=-1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_second_order_differs_and_agrees_with_its_finite_difference(momentum):
    sgd = Sgd(learning_rate=0.5, momentum=momentum)
    norms = {}
    for name, hypergradient in {
        "first": hg.first_order(),
        "exact": hg.unrolled(),
        "difference": hg.finite_difference(),
    }.items():
        method = oneshot.darts(
            PROBLEM, num_steps=10, hypergradient=hypergradient, weight_optimizer=sgd
        )
        norms[name] = float(one_update(method)[2]["alpha_gradient_norm"])
    np.testing.assert_allclose(norms["difference"], norms["exact"], rtol=1e-3)
    assert abs(norms["first"] / norms["exact"] - 1.0) > 0.01


@pytest.mark.parametrize(
    ("options", "step", "moves"),
    [
        ({"begin": 0.5}, 4, False),
        ({"begin": 0.5}, 5, True),
        ({"end": 0.5}, 5, False),
        ({"period": 3}, 4, False),
        ({"period": 3}, 6, True),
    ],
)
def test_whose_turn_it_is(options, step, moves):
    method = oneshot.darts(PROBLEM, num_steps=10, **options)
    before, after, info = one_update(method, step=step)
    assert bool((before.alpha != after.alpha).any()) == moves
    assert bool(jnp.isfinite(info["valid_loss"])) == moves
    assert (before.weights["head"]["kernel"] != after.weights["head"]["kernel"]).any()


def test_a_gradient_that_is_not_finite_leaves_alpha_alone():
    method = oneshot.darts(PROBLEM, num_steps=10)
    state = method.init(jax.random.key(0))
    bad = Split(jnp.full_like(VALID.x, jnp.nan), VALID.y)
    after, info = jax.jit(method.update)(jax.random.key(1), state, TRAIN, bad)
    np.testing.assert_array_equal(after.alpha, state.alpha)
    assert not np.isfinite(info["alpha_gradient_norm"]) and np.isfinite(info["train_loss"])
    assert np.isfinite(after.weights["head"]["kernel"]).all()


def test_excluded_operations_are_never_derived():
    _, state, _ = searched("darts", exclude=("none", "skip_connect"))
    assert not state.mask[:, :2].any() and not state.strengths[:, :2].any()
    with pytest.raises(ValueError, match="exclude must leave every row an operation"):
        oneshot.darts(PROBLEM, num_steps=3, exclude=("none", "skip_connect", "dense"))


def test_a_search_learns():
    _, state, history = searched("darts", num_steps=200)
    loss = np.asarray(history["valid_loss"])
    assert loss[-20:].mean() < 0.8 * loss[:20].mean()
    assert state.strengths.shape == (3, 4)


@pytest.mark.parametrize(("decline", "quarter"), [("cosine", 0.853553), ("linear", 0.75)])
def test_the_learning_rate_falls_as_asked(decline, quarter):
    rate = Sgd(learning_rate=1.0, final_learning_rate=0.0, decline=decline).schedule(8)
    np.testing.assert_allclose([rate(0), rate(2), rate(8), rate(9)], [1, quarter, 0, 0], atol=1e-6)
    with pytest.raises(ValueError, match="decline must be one of"):
        Sgd(decline="step").make(8, lambda weights: weights)
