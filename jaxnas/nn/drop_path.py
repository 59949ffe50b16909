"""Drop-path: in training, what an operation adds to a node is left out of some rows at random.

Larsson et al., "FractalNet: Ultra-Deep Neural Networks without Residuals", 2017,
https://arxiv.org/abs/1605.07648, Section 3, in the scheduled form of Zoph et al., "Learning
Transferable Architectures for Scalable Image Recognition", 2018, https://arxiv.org/abs/1707.07012:
the rate rises linearly over training. Details are those of DARTS (Liu et al., 2019,
https://arxiv.org/abs/1806.09055; `drop_path` in the authors' code,
https://github.com/quark0/darts): one draw per row and edge, survivors are divided by 1 - rate, and
an edge that is the identity is never dropped, so that a row always has a way through. A skip of
stride 2 has weights and is dropped like a convolution.

Deviations: FractalNet's rule that one input of a join survives is not in NASNet and DARTS, nor
here. NASNet also drops deep cells more often than early ones; DARTS, like this, treats all alike.
DARTS sets the rate epoch by epoch; `Recipe.drop_path_rate` sets it step by step.

A network that takes part has an optional argument `drop_path: DropPath | None` in its `__call__`,
folds it once for each part that it has many of (stages, cells, edges), and hands it to
`drop_output`. What is dropped then depends on the rate, the seed and the place, not on whether the
network is a supernet or stands alone; None adds nothing to the program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxnas import counter
from jaxnas.nn.operations import Identity, Zero


class DropPath(NamedTuple):
    """The draw of one place in a network, or of several along leading axes."""

    rate: Array  # f32[...], chance that a row is dropped, in [0, 1)
    seed: Array  # u32[..., 2]

    def fold(self, tag: int | Array) -> "DropPath":
        """Another draw of the same rate, for part `tag`; see `counter.fold`."""
        # XLA's CPU compiler would write the hash of a hash of a hash into every operation that a
        # row's scale reaches, and take minutes over it.
        return DropPath(self.rate, jax.lax.optimization_barrier(counter.fold(self.seed, tag)))


def drop_output(drop_path: DropPath | None, operation: nn.Module, y: Array) -> Array:
    """What `operation`, which returned `y`, passes on.

    Args:
      drop_path: the draw; None: nothing is dropped.
      operation: decides whether it may be: identities are kept, and zeros have nothing to drop.
      y: f32[batch, ...].

    Returns:
      `y` with some rows 0 and the others larger, of the same shape and dtype.

    Example:
      >>> always = DropPath(jnp.float32(0.999), jnp.zeros(2, jnp.uint32))
      >>> drop_output(always, Identity(), jnp.ones(3)).tolist()
      [1.0, 1.0, 1.0]
      >>> drop_output(always, nn.Dense(1), jnp.ones(3)).tolist()
      [0.0, 0.0, 0.0]
    """
    if drop_path is None or isinstance(operation, Identity | Zero):
        return y
    keep = counter.uniform(drop_path.seed, y.shape[:1]) >= drop_path.rate
    scale = jnp.where(keep, 1.0 / (1.0 - drop_path.rate), 0.0).astype(y.dtype)
    return y * scale.reshape(-1, *[1] * (y.ndim - 1))
