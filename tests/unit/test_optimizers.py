"""Optimisers against optax, and the choice among them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas.training.optimizers import OPTIMIZERS, Step, init_any, step_any

REFERENCES = {
    "adam": optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
    "sgd": optax.identity(),
    "momentum": optax.trace(decay=0.9),
    "nesterov": optax.trace(decay=0.9, nesterov=True),
    "rmsprop": optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False),
    "lion": optax.scale_by_lion(b1=0.9, b2=0.99),
}
PARAMS = {
    "kernel": jax.random.normal(jax.random.key(0), (4, 3)),
    "bias": jax.random.normal(jax.random.key(1), (3,)),
}
DECAYED = {"kernel": True, "bias": False}
RATE, DECAY = 0.1, 0.2


def gradient(count):
    return jax.tree.map(lambda p: jax.random.normal(jax.random.key(count), p.shape), PARAMS)


def ours(names, index, decay=None, decoupled=False, active=None, steps=6):
    optimizers = [OPTIMIZERS[name] for name in names]
    params, moments = PARAMS, init_any(optimizers, PARAMS)

    @jax.jit
    def advance(count, gradients, moments, params):
        step = Step(jnp.int32(index), count, jnp.float32(RATE), decay, decoupled)
        return step_any(optimizers, step, active, gradients, moments, params, DECAYED)

    for count in range(1, steps + 1):
        params, moments = advance(jnp.float32(count), gradient(count), moments, params)
    return params, moments


def reference(name, decay=0.0, decoupled=False, steps=6):
    added = optax.add_decayed_weights(decay, mask=DECAYED)
    parts = [REFERENCES[name], added] if decoupled else [added, REFERENCES[name]]
    transform = optax.chain(*parts, optax.scale(-RATE))
    params, state = PARAMS, transform.init(PARAMS)
    for count in range(1, steps + 1):
        updates, state = transform.update(gradient(count), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_same(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, wanted)


def test_every_optimizer_has_a_reference():
    assert set(OPTIMIZERS) == set(REFERENCES)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decoupled", [False, True])
def test_each_is_the_one_of_optax(name, decoupled):
    assert_same(ours([name], 0)[0], reference(name))
    found, _ = ours([name], 0, jnp.float32(DECAY), decoupled)
    assert_same(found, reference(name, DECAY, decoupled))


def test_the_chosen_one_steps_whatever_stands_beside_it():
    names = list(OPTIMIZERS)
    for index, name in enumerate(names):
        assert_same(ours(names, index)[0], reference(name))


def test_moments_that_a_choice_does_not_use_stay_zero():
    _, moments = ours(["adam", "sgd", "rmsprop"], 2)
    assert np.any(moments[0]["kernel"])
    assert not np.any(moments[1]["kernel"])


def test_an_inactive_group_stands_still():
    params, moments = ours(["adam"], 0, active=jnp.asarray(False))
    assert_same(params, PARAMS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(moments))
