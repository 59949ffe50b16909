"""Candidate operations of convolutional cells: Flax modules, and a factory of each by name.

Names and structure are those of NAS-Bench-201 (Dong & Yang, 2020, https://arxiv.org/abs/2001.00326,
Section 2.1) and DARTS (Liu et al., 2019, https://arxiv.org/abs/1806.09055, Section 3.1). Every
convolution is preceded by a rectifier and followed by batch normalisation. A name means the same
module in both spaces; the batch normalisation that DARTS puts behind pooling while it searches is
the cell's business.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxnas.nn.layers import BatchNorm, Conv, Relu
from jaxnas.nn.pooling import avg_pool, max_pool


class Zero(nn.Module):
    """No connection: zeros.

    Attributes:
      features: channels of the output.
      stride: 1 or 2.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x f32[batch, height, width, channels] to zeros [batch, h, w, features]."""
        batch, height, width, _ = x.shape
        shape = (batch, -(-height // self.stride), -(-width // self.stride), self.features)
        return jnp.zeros(shape, x.dtype)


class Identity(nn.Module):
    """The input itself."""

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Returns x f32[...]."""
        return x


class ReluConvNorm(nn.Module):
    """Rectifier, dense convolution, batch normalisation.

    Attributes:
      features: channels of the output.
      kernel_size: side of the kernel, odd.
      stride: 1 or 2.
      affine: whether the normalisation has a learned scale and bias.
    """

    features: int
    kernel_size: int
    stride: int = 1
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x f32[batch, height, width, channels] to f32[batch, h, w, features]."""
        x = Conv(self.features, self.kernel_size, stride=self.stride, name="conv")(Relu()(x))
        return BatchNorm(affine=self.affine, name="norm")(x, train=train)


class DepthwiseSeparable(nn.Module):
    """Rectifier, depthwise convolution, pointwise convolution, batch normalisation.

    Attributes:
      features: channels of the output.
      kernel_size: side of the depthwise kernel, odd.
      stride: 1 or 2.
      dilation: spacing of the depthwise kernel's taps.
      affine: whether the normalisation has a learned scale and bias.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x f32[batch, height, width, channels] to f32[batch, h, w, features]."""
        channels = x.shape[-1]
        x = Conv(
            channels,
            self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            groups=channels,
            name="depthwise",
        )(Relu()(x))
        x = Conv(self.features, 1, name="pointwise")(x)
        return BatchNorm(affine=self.affine, name="norm")(x, train=train)


class SeparableConv(nn.Module):
    """Two depthwise-separable convolutions in a row, the first with the stride.

    Attributes:
      features: channels of the output.
      kernel_size: side of the depthwise kernels, odd.
      stride: 1 or 2.
      affine: whether the normalisations have a learned scale and bias.
    """

    features: int
    kernel_size: int
    stride: int = 1
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x f32[batch, height, width, channels] to f32[batch, h, w, features]."""
        size, affine = self.kernel_size, self.affine
        first = DepthwiseSeparable(x.shape[-1], size, self.stride, affine=affine, name="first")
        second = DepthwiseSeparable(self.features, size, affine=affine, name="second")
        return second(first(x, train=train), train=train)


class Pool(nn.Module):
    """3x3 pooling over the pixels inside the image; keeps the channels.

    Attributes:
      kind: "avg" or "max".
      stride: 1 or 2.
    """

    kind: str
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x f32[batch, height, width, channels] to f32[batch, h, w, channels]."""
        pool = avg_pool if self.kind == "avg" else max_pool
        return pool(x, 3, stride=self.stride, padding=1)


class FactorizedReduce(nn.Module):
    """Halves the image without losing pixels: two 1x1 convolutions of stride 2, one pixel apart.

    Attributes:
      features: channels of the output, at least 2.
      affine: whether the normalisation has a learned scale and bias.
    """

    features: int
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x f32[batch, height, width, channels] to f32[batch, h, w, features]."""
        x = Relu()(x)
        shifted = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
        half = self.features // 2
        parts = [
            Conv(half, 1, stride=2, name="even")(x),
            Conv(self.features - half, 1, stride=2, name="odd")(shifted),
        ]
        return BatchNorm(affine=self.affine, name="norm")(
            jnp.concatenate(parts, axis=-1), train=train
        )


def _none(features: int, stride: int = 1, affine: bool = True, **flax: Any) -> nn.Module:
    return Zero(features, stride, **flax)


def _skip(features: int, stride: int = 1, affine: bool = True, **flax: Any) -> nn.Module:
    return Identity(**flax) if stride == 1 else FactorizedReduce(features, affine, **flax)


def _pool(kind: str) -> Callable[..., nn.Module]:
    return lambda features, stride=1, affine=True, **flax: Pool(kind, stride, **flax)


def _conv(kind: type[nn.Module], **fixed: Any) -> Callable[..., nn.Module]:
    return lambda features, stride=1, affine=True, **flax: kind(
        features=features, stride=stride, affine=affine, **fixed, **flax
    )


# Name to `(features, stride=1, affine=True, **flax) -> Module`, whose `__call__(x, *, train)` takes
# images with `features` channels and returns as many; `flax` is Flax's own `name` and `parent`.
OPERATIONS: MappingProxyType[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "none": _none,
        "skip_connect": _skip,
        "nor_conv_1x1": _conv(ReluConvNorm, kernel_size=1),
        "nor_conv_3x3": _conv(ReluConvNorm, kernel_size=3),
        "avg_pool_3x3": _pool("avg"),
        "max_pool_3x3": _pool("max"),
        "sep_conv_3x3": _conv(SeparableConv, kernel_size=3),
        "sep_conv_5x5": _conv(SeparableConv, kernel_size=5),
        "dil_conv_3x3": _conv(DepthwiseSeparable, kernel_size=3, dilation=2),
        "dil_conv_5x5": _conv(DepthwiseSeparable, kernel_size=5, dilation=2),
    }
)
