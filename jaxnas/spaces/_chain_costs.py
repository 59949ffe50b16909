"""What a chain costs, counted without tracing it: a population has thousands of different ones."""

import numpy as np

from jaxnas.nn._chain_design import ChainDesign, write_out
from jaxnas.nn.attention import SelfAttention, key_window
from jaxnas.nn.chain_cnn import Link
from jaxnas.training.costs import NetworkCost

# Scalars written per output: by the product, normalisation and rectifier of a convolution, its sum
# with a shortcut, and pooling, which is one loop but reads nine pixels.
_BLOCK, _SHORTCUT, _MAX_POOL, _AVG_POOL = 5, 2, 9, 3
# By attention: per pair of a pixel and a key of one head, and per channel of its heads.
_PAIR, _HEADS = 7, 20


def chain_cost(design: ChainDesign, arch: np.ndarray) -> NetworkCost:
    """Costs of the stand-alone network of a concrete `arch` i32[D].

    Parameters, flops and products are those of `jaxnas.training.costs.network_cost`, which the
    tests compare; activations are an estimate.
    """
    chain = write_out(design, arch)
    size, total = chain.resolution, _Total()
    if size != design.image_size:
        pixels = size * design.image_size
        total.add(0, 2 * pixels * (design.image_size + size) * design.in_channels, 0, 2)
    width = chain.stem_channels
    total.add_block(Link("conv", 3, width, False), size, design.in_channels)
    for stage, links in enumerate(chain.stages):
        if stage > 0:
            size //= 2
            total.add_block(Link(design.downsampling, 0, width, False), size, width)
            if design.growth > 1:
                total.add_block(Link("conv", 1, chain.channels[stage], False), size, width)
        width = chain.channels[stage]
        for link in links:
            total.add_block(link, size, width)
            width = link.channels
    classes = design.num_classes
    total.add((width + 1) * classes, 2 * width * classes, width, 1)
    parameters, flops, activations, products = total.sums
    return NetworkCost(int(parameters), float(flops), float(activations), int(products))


class _Total:
    def __init__(self):
        self.sums = np.zeros(4)  # parameters, flops, activations, products

    def add(self, *costs: float) -> None:
        self.sums += costs

    def add_block(self, link: Link, size: int, before: int) -> None:
        """One block on images `size` x `size` with `before` channels."""
        pixels, after = size * size, link.channels
        written = (_BLOCK + _SHORTCUT * link.shortcut) * pixels * after
        if link.kind == "conv":
            weights = link.size**2 * before * after
            self.add(weights + 2 * after, 2 * pixels * weights, written, 1)
        elif link.kind == "separable":
            weights = link.size**2 * before + before * after
            self.add(weights + 2 * after, 2 * pixels * weights, written + pixels * before, 2)
        elif link.kind == "attention":
            inner = SelfAttention.num_heads * SelfAttention.head_size
            window = min(key_window(size, size), size)
            keys = (size // window) ** 2
            products = pixels * inner * (before + after) + 2 * keys * inner * before
            flops = 2 * (products + 2 * pixels * keys * inner)
            written += _SHORTCUT * pixels * after + _HEADS * pixels * inner
            written += _PAIR * SelfAttention.num_heads * pixels * keys
            self.add(inner * (3 * before + after) + 2 * after, flops, written, 5)
        elif link.kind == "max_pool":
            self.add(0, 0, _MAX_POOL * pixels * after, 0)
        elif link.kind == "avg_pool":
            self.add(0, 0, _AVG_POOL * pixels * after, 0)
