"""Flax layers over the engine's fast primitives.

Kernels and biases start from U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), PyTorch's default, drawn from
a counter: a layer's initial weights depend on its path and on positions only, not on how many
channels it is padded to. Parameters are float32 whatever a layer computes in.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnas import counter
from jaxnas.nn.conv import conv
from jaxnas.nn.norm import batch_norm, normalise


def _parameter(module: nn.Module, name: str, make: Callable[[], Array]) -> Array:
    if module.is_initializing():
        return module.param(name, lambda _: make())
    # Reading directly skips the shape check of `param`, which would trace the draw again.
    return module.get_variable("params", name)


def _uniform(module: nn.Module, name: str, shape: tuple[int, ...], fan_in: int) -> Array:
    """The parameter `name`: a kernel f32[..., inputs, outputs] or a bias f32[outputs]."""

    def draw() -> Array:
        seed = counter.fold(counter.module_seed(module, "params"), zlib.crc32(name.encode()))
        # The counter gives every leading axis 16 bits, and has 32: all taps are one axis.
        flat = (int(np.prod(shape[:-2])), *shape[-2:])
        bound = np.float32(1.0 / np.sqrt(fan_in))
        return (2.0 * counter.uniform(seed, flat).reshape(shape) - 1.0) * bound

    return _parameter(module, name, draw)


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class Conv(nn.Module):
    """Convolution that keeps the image's size at stride 1 (for odd kernels).

    Attributes:
      features: channels of the output.
      kernel_size: side of the square kernel.
      stride: pixels between outputs.
      dilation: pixels between the kernel's taps.
      groups: of channels that are convolved apart; as many as channels: a depthwise convolution.
      use_bias: whether to add one number per channel.
      dtype: of computation and output, such as `jnp.bfloat16`; None: the input's.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x f[N, H, W, C] to f[N, H', W', features]."""
        _check(features=self.features, kernel_size=self.kernel_size, groups=self.groups)
        x = x if self.dtype is None else x.astype(self.dtype)
        channels = x.shape[-1] // self.groups
        fan_in = max(1, channels * self.kernel_size**2)
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = _uniform(self, "kernel", shape, fan_in)
        y = conv(x, kernel, stride=self.stride, dilation=self.dilation, groups=self.groups)
        if self.use_bias:
            y = y + _uniform(self, "bias", (self.features,), fan_in).astype(y.dtype)
        return y


class Dense(nn.Module):
    """Fully connected layer.

    Attributes:
      features: of the output.
      use_bias: whether to add one number per feature.
      dtype: of computation and output, such as `jnp.bfloat16`; None: the input's.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x f[..., C] to f[..., features]."""
        _check(features=self.features)
        x = x if self.dtype is None else x.astype(self.dtype)
        kernel = _uniform(self, "kernel", (x.shape[-1], self.features), x.shape[-1])
        y = x @ kernel.astype(x.dtype)
        if self.use_bias:
            y = y + _uniform(self, "bias", (self.features,), x.shape[-1]).astype(y.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last.

    In training it normalises by the batch's own statistics; where the collection "batch_stats" is
    mutable, it also moves the running mean and the running variance (of the unbiased estimate, as
    PyTorch does), by which it normalises otherwise. All of this is float32 for any input.

    Attributes:
      affine: whether there is a learned scale and bias per channel.
      momentum: share of the running averages that a step keeps (1 minus PyTorch's).
      epsilon: is added to the variance.
    """

    affine: bool = True
    momentum: float | Array = 0.9
    epsilon: float | Array = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises x f[..., C]; the same shape and dtype."""
        channels = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = bias = None
        if self.affine:
            scale = _parameter(self, "scale", lambda: jnp.ones(channels))
            bias = _parameter(self, "bias", lambda: jnp.zeros(channels))
        if not train:
            return normalise(x, mean.value, var.value, scale, bias, self.epsilon)
        y, batch_mean, batch_var = batch_norm(x, scale, bias, epsilon=self.epsilon)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = batch_var * (count / max(count - 1, 1))
            mean.value += (1.0 - self.momentum) * (batch_mean - mean.value)
            var.value += (1.0 - self.momentum) * (unbiased - var.value)
        return y


class Relu(nn.Module):
    """Rectifier, as a module so that `jaxnas.nn.probes` finds it; it has no variables."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns max(x, 0) of x f[...]."""
        return nn.relu(x)
