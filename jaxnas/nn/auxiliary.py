"""An auxiliary head: a second classifier half-way up, whose loss helps the layers below it.

Szegedy et al., "Going Deeper with Convolutions", 2015, https://arxiv.org/abs/1409.4842, Section 5;
the layers are those of NASNet and DARTS for CIFAR-10 (`AuxiliaryHeadCIFAR` in the authors' code,
https://github.com/quark0/darts), which hang it two thirds up the network and weigh its loss by 0.4.

A network that has a head calls `auxiliary_logits`, which leaves the logits in the Flax collection
`COLLECTION` for a caller that asks for it with `mutable`, as the trainer does while
`Recipe.auxiliary_weight` is above 0. For everybody else, and when the network is scored, the head
is not run; its variables are there in any case.

Deviation: theirs is made for images of 8x8 pixels where the head begins, of which an average over
5x5 windows 3 apart leaves 2x2. Here windows keep that proportion, so 2x2 pixels are left of images
of any size (one, if there was only one), and those of 8x8 are treated as in the original.
"""

from flax import linen as nn
from jax import Array

from jaxnas.nn.layers import BatchNorm, Conv, Dense
from jaxnas.nn.pooling import avg_pool

COLLECTION = "auxiliary"


class AuxiliaryHead(nn.Module):
    """Rectifier, pooling to 2x2 pixels, two convolutions with batch normalisation, classifier.

    Attributes:
      num_classes: outputs.
      features: channels of the first convolution, over one pixel.
      hidden: channels of the second one, over all pixels.
    """

    num_classes: int
    features: int = 128
    hidden: int = 768

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x f32[batch, size, size, channels] to logits f32[batch, num_classes]."""
        size = x.shape[1]
        stride = max(1, 3 * size // 8)
        x = avg_pool(nn.relu(x), max(1, size - stride), stride=stride)
        x = Conv(self.features, 1, name="pointwise")(x)
        x = nn.relu(BatchNorm(name="pointwise_norm")(x, train=train))
        # A convolution whose kernel is as large as the image.
        x = Dense(self.hidden, use_bias=False, name="whole")(x.reshape(x.shape[0], -1))
        x = nn.relu(BatchNorm(name="whole_norm")(x, train=train))
        return Dense(self.num_classes, name="head")(x)


def auxiliary_logits(network: nn.Module, x: Array, num_classes: int, *, train: bool) -> None:
    """Runs the head `auxiliary` of a network on x f32[batch, size, size, channels], if asked to.

    Args:
      network: whose compact `__call__` this is part of.
      x: f32[batch, size, size, channels].
      num_classes: outputs.
      train: static.
    """
    asked = train and network.is_mutable_collection(COLLECTION)
    if not asked and not network.is_initializing():
        return
    logits = AuxiliaryHead(num_classes, name="auxiliary")(x, train=train)
    if not network.is_initializing():
        network.sow(COLLECTION, "logits", logits)
