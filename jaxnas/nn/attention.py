"""Multi-head self-attention over the positions of an image.

Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762, Section 3.2,
with a pixel as a token. Deviations: heads have a size of their own rather than a share of the
channels, so that a layer padded to more channels computes the same; and keys and values of large
images are averaged over windows, as in the Pyramid Vision Transformer (Wang et al., 2021,
https://arxiv.org/abs/2102.12122, Section 3.3), for the cost to grow with the pixels rather than
with their square. There is no code of positions: the convolutions before tell them apart.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxnas.nn.layers import Dense
from jaxnas.nn.pooling import avg_pool

MAX_SIDE = 8  # of the grid of keys


class SelfAttention(nn.Module):
    """Every pixel asks all others; neither residual nor normalisation.

    Attributes:
      features: channels of the output.
      num_heads: heads, at least 1.
      head_size: channels of a head's queries, keys and values.
    """

    features: int
    num_heads: int = 4
    head_size: int = 8

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x f32[batch, height, width, channels] to f32[batch, height, width, features]."""
        inner = self.num_heads * self.head_size
        query = Dense(inner, use_bias=False, name="query")(x)
        both = Dense(2 * inner, use_bias=False, name="key_value")(_shrink(x))
        key, value = both[..., :inner], both[..., inner:]
        query, key, value = (self._heads(part) for part in (query, key, value))
        weights = jax.nn.softmax(query @ key.swapaxes(-1, -2) * self.head_size**-0.5)
        seen = (weights @ value).swapaxes(1, 2).reshape(*x.shape[:3], inner)
        return Dense(self.features, use_bias=False, name="output")(seen)

    def _heads(self, part: Array) -> Array:
        """f32[batch, heads, positions, head_size]."""
        return part.reshape(len(part), -1, self.num_heads, self.head_size).swapaxes(1, 2)


def key_window(height: int, width: int) -> int:
    """Side of the windows of an image over which keys and values are averaged.

    Example:
      >>> key_window(8, 8), key_window(32, 32)
      (1, 4)
    """
    return -(-max(height, width) // MAX_SIDE)


def _shrink(x: Array) -> Array:
    window = min(key_window(x.shape[1], x.shape[2]), x.shape[1], x.shape[2])
    return x if window == 1 else jnp.asarray(avg_pool(x, window, stride=window))
