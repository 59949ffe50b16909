"""Chains of convolutional blocks: the block, and the stand-alone network.

A chain is a stem, stages of blocks one after another, and a linear head over the mean of the
pixels. Stages follow one another through a transition that halves the image.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnas import counter
from jaxnas.nn.attention import SelfAttention
from jaxnas.nn.layers import BatchNorm, Conv, Dense, Relu
from jaxnas.nn.pooling import avg_pool, max_pool

CONVOLUTIONS = ("conv", "separable")  # kinds with a kernel size
WEIGHTED = (*CONVOLUTIONS, "attention")  # kinds with parameters
KINDS = (*WEIGHTED, "max_pool", "avg_pool", "skip")
DOWNSAMPLINGS = ("max_pool", "avg_pool")


class Link(NamedTuple):
    """One block of a concrete chain.

    Attributes:
      kind: one of `KINDS`.
      size: side of the kernel; 0 for kinds without one.
      channels: of the output.
      shortcut: whether the input is added before the rectifier; for convolutions.
    """

    kind: str
    size: int
    channels: int
    shortcut: bool


class Block(nn.Module):
    """One operation on images of one size.

    Convolutions are followed by batch normalisation and a rectifier, self-attention by batch
    normalisation, the sum with its input and a rectifier. Pooling is 3x3 with stride 1. A separable
    convolution is a depthwise and a pointwise one with nothing between.

    Attributes:
      kind: one of `KINDS`.
      size: side of the kernel, odd; only for convolutions.
      features: channels of the output; pooling and skipping keep those of the input.
    """

    kind: str
    size: int
    features: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, shortcut: Array | bool = False) -> Array:
        """Runs the block.

        Args:
          x: f32[batch, height, width, channels].
          train: static.
          shortcut: whether a convolution's input is added to its result, a bool or f32[] 0 or 1.
            Channels that are missing are zeros, channels too many are dropped (He et al., 2016,
            https://arxiv.org/abs/1512.03385, Section 3.3, option A).

        Returns:
          f32[batch, height, width, features].
        """
        if self.kind == "skip":
            return x
        if self.kind == "max_pool":
            return max_pool(x, 3, padding=1)
        if self.kind == "avg_pool":
            return avg_pool(x, 3, padding=1)
        y = BatchNorm(name="norm")(self._product(x), train=train)
        if self.kind == "attention":
            shortcut = True
        if shortcut is not False:
            y = y + shortcut * with_channels(x, self.features)
        return Relu()(y)

    def _product(self, x: Array) -> Array:
        if self.kind == "conv":
            return Conv(self.features, self.size, name="conv")(x)
        if self.kind == "separable":
            channels = x.shape[-1]
            x = Conv(channels, self.size, groups=channels, name="depthwise")(x)
            return Conv(self.features, 1, name="pointwise")(x)
        return SelfAttention(self.features, name="attention")(x)


def with_channels(x: Array, channels: int) -> Array:
    """`x` f32[..., C] with zeros for the channels that it lacks, or without those too many."""
    missing = channels - x.shape[-1]
    if missing <= 0:
        return x[..., :channels]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def resize(x: Array, size: int) -> Array:
    """Square images f32[N, H, H, C] in another size, bilinear, averaged where they shrink."""
    if x.shape[1] == size:
        return x
    matrix = jnp.asarray(_interpolation(x.shape[1], size))
    return jnp.einsum("ph,nhwc,qw->npqc", matrix, x, matrix)


def _interpolation(old: int, new: int) -> np.ndarray:
    """Weights f32[new, old] of the old pixels: triangles around each new one's centre."""
    reach = max(1.0, old / new)
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(old) - centres[:, None]) / reach)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def halve(x: Array, downsampling: str) -> Array:
    """Images of half the size; an odd last row and column are dropped."""
    return (max_pool if downsampling == "max_pool" else avg_pool)(x, 2, stride=2)


class ChainCNN(nn.Module):
    """The stand-alone network of one chain; nothing is masked.

    Attributes:
      stages: blocks, stage by stage; a stage may be empty.
      stem_channels: channels of the 3x3 convolution that comes first.
      transitions: channels of a 1x1 convolution at the begin of every stage but the first; 0: none.
      num_classes: outputs.
      resolution: the images are brought to this height and width.
      downsampling: one of `DOWNSAMPLINGS`, 2x2 windows between stages.
      dropout: rate in [0, 1) before the head.
    """

    stages: tuple[tuple[Link, ...], ...]
    stem_channels: int
    transitions: tuple[int, ...]
    num_classes: int
    resolution: int
    downsampling: str = "max_pool"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps images f32[batch, height, width, channels] to logits f32[batch, num_classes]."""
        x = resize(x, self.resolution)
        x = Block("conv", 3, self.stem_channels, name="stem")(x, train=train)
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = halve(x, self.downsampling)
                if channels := self.transitions[index - 1]:
                    block = Block("conv", 1, channels, name=f"transition_{index}")
                    x = block(x, train=train)
            for place, link in enumerate(stage):
                name = f"stage_{index}_block_{place}"
                block = Block(link.kind, link.size, link.channels, name=name)
                x = block(x, train=train, shortcut=link.shortcut)
        h = x.mean(axis=(1, 2))
        if train and self.dropout > 0.0:
            seed = counter.module_seed(self, "dropout")
            h = counter.dropout(seed, self.dropout, h, 1.0 / (1.0 - self.dropout))
        return Dense(self.num_classes, name="head")(h)
