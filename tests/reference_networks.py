"""Well-known networks from the package's own layers, to compare its costs with published numbers.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", 2016,
https://arxiv.org/abs/1512.03385: Table 1 (ImageNet) and Section 4.2 (CIFAR-10, shortcuts of option
A, which have no parameters). In networks with bottlenecks the stride is that of the 3x3
convolution, as in torchvision, whose multiply-adds are usually quoted, unless `early_stride` says
that it is that of the first 1x1 convolution, as in the paper. Sandler, Howard, Zhu, Zhmoginov &
Chen, "MobileNetV2", 2018, https://arxiv.org/abs/1801.04381: Table 2, width 1.
"""

import jax.numpy as jnp
from flax import linen as nn

from jaxnas.nn.layers import BatchNorm, Conv, Dense, Relu
from jaxnas.nn.pooling import max_pool


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, and perhaps a rectifier, which may end at 6."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    last: str = "relu"

    @nn.compact
    def __call__(self, x, *, train):
        conv = Conv(self.features, self.kernel_size, stride=self.stride, groups=self.groups)
        x = BatchNorm(name="norm")(conv(x), train=train)
        if self.last == "relu6":
            return jnp.clip(x, 0.0, 6.0)
        return Relu()(x) if self.last == "relu" else x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of three, beside a shortcut."""

    features: int
    stride: int
    bottleneck: bool
    projects: bool  # whether a shortcut that changes shape is a 1x1 convolution
    early_stride: bool

    @nn.compact
    def __call__(self, x, *, train):
        features, first = self.features, self.stride if self.early_stride else 1
        if self.bottleneck:
            out = 4 * features
            y = ConvNorm(features, 1, first, name="reduce")(x, train=train)
            y = ConvNorm(features, 3, self.stride // first, name="middle")(y, train=train)
            y = ConvNorm(out, 1, last="", name="expand")(y, train=train)
        else:
            out = features
            y = ConvNorm(features, 3, self.stride, name="first")(x, train=train)
            y = ConvNorm(features, 3, last="", name="second")(y, train=train)
        if x.shape != y.shape and self.projects:
            x = ConvNorm(out, 1, self.stride, last="", name="shortcut")(x, train=train)
        elif x.shape != y.shape:
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, [(0, 0)] * 3 + [(0, out - x.shape[-1])])
        return Relu()(x + y)


class ResNet(nn.Module):
    """Residual networks for ImageNet, or with a small stem for CIFAR."""

    stages: tuple[int, ...]
    num_classes: int = 1000
    features: int = 64
    bottleneck: bool = False
    small: bool = False
    early_stride: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        if self.small:
            x = ConvNorm(self.features, 3, name="stem")(x, train=train)
        else:
            x = ConvNorm(self.features, 7, 2, name="stem")(x, train=train)
            x = max_pool(x, 3, stride=2, padding=1)
        for stage, num_blocks in enumerate(self.stages):
            for index in range(num_blocks):
                block = ResidualBlock(
                    self.features * 2**stage,
                    2 if stage > 0 and index == 0 else 1,
                    self.bottleneck,
                    not self.small,
                    self.early_stride,
                    name=f"stage_{stage}_block_{index}",
                )
                x = block(x, train=train)
        return Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection, and the input where shapes agree."""

    features: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x, *, train):
        wide = self.expansion * x.shape[-1]
        y = x
        if self.expansion > 1:
            y = ConvNorm(wide, 1, last="relu6", name="expand")(y, train=train)
        depthwise = ConvNorm(wide, 3, self.stride, wide, last="relu6", name="depthwise")
        y = ConvNorm(self.features, 1, last="", name="project")(
            depthwise(y, train=train), train=train
        )
        return x + y if x.shape == y.shape else y


# Expansion, channels, blocks, stride of the first: Table 2.
MOBILE_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1."""

    num_classes: int = 1000

    @nn.compact
    def __call__(self, x, *, train):
        x = ConvNorm(32, 3, 2, last="relu6", name="stem")(x, train=train)
        for stage, (expansion, features, num_blocks, stride) in enumerate(MOBILE_STAGES):
            for index in range(num_blocks):
                own = stride if index == 0 else 1
                name = f"stage_{stage}_block_{index}"
                x = InvertedResidual(features, own, expansion, name=name)(x, train=train)
        x = ConvNorm(1280, 1, last="relu6", name="last")(x, train=train)
        return Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


def resnet(depth, **options):
    """ResNet-18, -34, -50, -101 or -152 for ImageNet."""
    stages = {
        18: (2, 2, 2, 2),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }[depth]
    return ResNet(stages, bottleneck=depth >= 50, **options)


def small_resnet(depth):
    """ResNet-20, -32, -44, -56 or -110 for CIFAR-10."""
    return ResNet(((depth - 2) // 6,) * 3, num_classes=10, features=16, small=True)
