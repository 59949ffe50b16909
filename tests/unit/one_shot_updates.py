"""The tiny problem, one update of a method on it, and whole searches that tests share."""

from functools import cache

import jax
import jax.numpy as jnp

from jaxnas import oneshot
from jaxnas._testing_one_shot import tiny_data
from jaxnas.testing import tiny_problem
from jaxnas.training.data import Split

PROBLEM, DATA = tiny_problem(), tiny_data()
TRAIN, VALID = (Split(s.x[:16], s.y[:16]) for s in (DATA.train, DATA.valid))


def one_update(method, state=None, step=0):
    if state is None:
        state = method.init(jax.random.key(0))._replace(step=jnp.int32(step))
    return state, *jax.jit(method.update)(jax.random.key(1), state, TRAIN, VALID)


def searched(name, num_steps=24, **options):
    return _searched(name, num_steps, tuple(sorted(options.items())))


@cache
def _searched(name, num_steps, options):
    method = oneshot.ALL[name](PROBLEM, num_steps=num_steps, **dict(options))
    run = jax.jit(
        lambda key: oneshot.search(
            key, method, DATA.train, DATA.valid, num_steps=num_steps, batch_size=8
        )
    )
    return method, *run(jax.random.key(0))
