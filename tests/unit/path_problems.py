"""Problems on which methods that train sampled paths compile in no time."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnas.nn.layers import BatchNorm, Dense
from jaxnas.nn.mixed import MixedOp
from jaxnas.oneshot.problem import Problem
from jaxnas.space import Decision, SearchSpace
from jaxnas.training.data import Split, from_splits

NAMES = ("none", "skip_connect", "dense")
NUM_ROWS = 3


class Op(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, *, train):
        if self.kind == "dense":
            return BatchNorm(name="norm")(Dense(x.shape[-1], name="dense")(x), train=train)
        return x if self.kind == "skip_connect" else jnp.zeros_like(x)


class Tiny(nn.Module):
    """Three mixed operations in a row, each beside a residual connection."""

    @nn.compact
    def __call__(self, x, choice, *, train):
        ops = tuple((name, lambda name=name: Op(name)) for name in NAMES)
        h = Dense(4, name="stem")(x)
        for row in range(NUM_ROWS):
            h = h + MixedOp(ops, name=f"row_{row}")(h, choice[row], train=train)
        return Dense(2, name="head")(nn.relu(h))


def tiny_space():
    decisions = tuple(Decision(f"row_{row}", NAMES) for row in range(NUM_ROWS))
    return SearchSpace("tiny", decisions, lambda arch: nn.Dense(2), lambda bucket: Tiny())


def blobs(num_rows=64):
    """Two classes of points around different means."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, num_rows)
    x = rng.normal(size=(num_rows, 3)) + y[:, None]
    pair = x.astype(np.float32), y
    return from_splits(pair, pair, pair, num_classes=2, name="blobs")


def counting_problem(score_fn, rows=(3, 3, 3)):
    """No network: `rest` counts what was trained, f32[R, K], and a path's score is given.

    Rows of data only matter if they are NaN.
    """

    def sample(key):
        return jnp.floor(jax.random.uniform(key, (len(rows),)) * jnp.asarray(rows)).astype(
            jnp.int32
        )

    def loss(key, weights, rest, choice, batch, train):
        rest = rest + jax.nn.one_hot(choice, max(rows))
        nothing = 0.0 * jnp.mean(batch.x)
        return jnp.square(weights).sum() + nothing, (rest, score_fn(key, choice) + nothing)

    return Problem(
        rows=rows,
        row_operations=tuple(tuple(map(str, range(n))) for n in rows),
        init=lambda key: (jnp.ones(2), jnp.zeros((len(rows), max(rows)))),
        loss=loss,
        derive=lambda strengths: jnp.argmax(strengths, axis=1).astype(jnp.int32),
        sample=sample,
        decayed=lambda weights: True,
    )


def no_data(num_rows=8):
    return Split(jnp.zeros((num_rows, 1)), jnp.zeros(num_rows, jnp.int32))
