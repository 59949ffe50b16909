"""The FLOPs that XLA counts in the networks of NAS-Bench-201 are the published ones, term by term.

The published number counts multiply-adds of convolutions and of the last layer. XLA counts

* a multiply-add as two operations, and none for taps that fall into the padding;
* normalisations, rectifiers, pooling and sums, which the published number has for free;
* only what the logits depend on: the trace drops edges that lead nowhere.

All of this has a closed form, and with it the two agree to the last operation, or to the rounding
of the float32 in which XLA keeps large counts. It is the lowered program that is counted. The
compiled one has the same convolutions, but elementwise work as the backend arranges it, some of it
more than once: it counts several percent more.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas.nn.nasbench201 import EDGES
from jaxnas.spaces.nasbench201 import PUBLISHED_OPERATIONS as OPS
from jaxnas.spaces.nasbench201 import nasbench201, published_costs
from jaxnas.training.costs import network_cost

SMALL = {"num_channels": 4, "num_cells": 2, "image_size": 16}
PUBLISHED = {"num_channels": 16, "num_cells": 5, "image_size": 32}
NUM_CLASSES, IN_CHANNELS = 10, 3
CONVOLUTIONS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


@lru_cache
def shapes_of(module):
    """Variables of a network; making them takes longer to trace than the network."""
    x = jax.ShapeDtypeStruct((1, *module.image_shape), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)


def variables_of(arch, space):
    """The same, from the five networks with one operation on all edges."""
    pure = [shapes_of(space.network([choice] * len(EDGES))) for choice in range(len(OPS))]
    chosen = {
        f"{target}<-{source}": pure[c] for (target, source), c in zip(EDGES, arch, strict=True)
    }

    def picked(collection, name, whole):
        if not name.startswith("stage_"):
            return whole
        cells = {key: tree[collection].get(name, {}) for key, tree in chosen.items()}
        return {key: cell[key] for key, cell in cells.items() if key in cell}

    return {
        collection: {name: picked(collection, name, whole) for name, whole in tree.items()}
        for collection, tree in pure[OPS.index("nor_conv_3x3")].items()
    }


def lowered(arch, sizes, platform):
    """The network of an architecture, lowered for one image in inference mode."""
    space = nasbench201(**sizes)
    module = space.network(arch)
    x = jax.ShapeDtypeStruct((1, *module.image_shape), jnp.float32)
    traced = jax.jit(lambda v, x: module.apply(v, x, train=False)).trace(
        variables_of(arch, space), x
    )
    return traced.lower(lowering_platforms=(platform,))


def counted(arch, sizes, platform="cuda"):
    """What XLA counts; other platforms than the CPU have XLA's own convolutions."""
    return lowered(arch, sizes, platform).cost_analysis()["flops"]


# --- the closed form; the parts of a network are pairs: published multiply-adds, XLA's operations


def conv(size, inputs, outputs, kernel, stride=1):
    pixels = size // stride
    outside = kernel // 2 * (2 if stride == 1 else 1)  # taps of a line that fall into the padding
    inside = (kernel * pixels - outside) ** 2
    whole = inputs * outputs * kernel**2 * pixels**2
    return np.array([whole, 2 * inputs * outputs * inside])


def free(operations):
    return np.array([0, operations])


def norm(size, channels):
    return free(3 * size**2 * channels + 2 * channels)


def relu(size, channels):
    return free(size**2 * channels)


def pool(size, channels, kernel, stride):
    """Sums along one axis, then along the other, times the reciprocal of the window."""
    pixels, padding = size // stride, 2 * (kernel // 2 if stride == 1 else 0)
    along = (kernel - 1) * pixels * (size + padding + pixels)
    return free(channels * (along + pixels**2))


def edge(name, size, channels, is_added):
    total = free(size**2 * channels * is_added)
    if name in CONVOLUTIONS:
        total += relu(size, channels) + conv(size, channels, channels, CONVOLUTIONS[name])
        total += norm(size, channels)
    if name == "avg_pool_3x3":
        total += pool(size, channels, 3, 1)
    return total


def reduction(size, channels):
    """Of an image of `size` with half as many `channels`."""
    half, first = size // 2, channels // 2
    block = relu(size, first) + conv(size, first, channels, 3, stride=2) + norm(half, channels)
    block += relu(half, channels) + conv(half, channels, channels, 3) + norm(half, channels)
    shortcut = pool(size, first, 2, 2) + conv(half, first, channels, 1)
    return block + shortcut + free(half**2 * channels)


def head(size, channels):
    products = channels * NUM_CLASSES
    total = norm(size, channels) + relu(size, channels) + free(size**2 * channels)  # and mean
    return total + np.array([products + NUM_CLASSES, 2 * products + NUM_CLASSES])


def live_edges(arch):
    """Edges that the cell's output depends on, and whether it depends on the cell's input."""
    needed, live = {3}, []
    for index in reversed(range(len(EDGES))):  # later targets first
        target, source = EDGES[index]
        if target in needed and OPS[arch[index]] != "none":
            needed.add(source)
            live.append(index)
    return live[::-1], 0 in needed


def computed_edges(arch):
    """The live edges that XLA computes: index to whether there is a sum to add it to.

    It folds 0 + x, so there is none in a node that was zero, and no identity of such a node.
    """
    zero, computed = {1, 2, 3}, {}
    for index in live_edges(arch)[0]:
        target, source = EDGES[index]
        if OPS[arch[index]] != "skip_connect" or source not in zero:
            computed[index] = target not in zero
            zero.discard(target)
    return computed


def expected(arch, sizes):
    """Multiply-adds as published, and XLA's operations: i64[2]."""
    size, channels = sizes["image_size"], sizes["num_channels"]
    computed, connected = computed_edges(arch), live_edges(arch)[1]
    published, operations = 0, 0

    def add(part, is_live):
        nonlocal published, operations
        published += part[0]
        operations += part[1] * is_live

    add(conv(size, IN_CHANNELS, channels, 3) + norm(size, channels), connected)
    for stage in range(3):
        if stage:
            add(reduction(size, 2 * channels), connected)
            size, channels = size // 2, 2 * channels
        for cell in range(sizes["num_cells"]):
            is_last = stage == 2 and cell == sizes["num_cells"] - 1
            for index, choice in enumerate(arch):
                part = edge(OPS[choice], size, channels, computed.get(index, False))
                add(part, index in computed and (connected or is_last))
    add(head(size, channels), True)
    return np.array([published, operations])


# --- the tests


def sample(num, seed=0):
    """Different architectures, uniformly from the space."""
    rows = np.random.default_rng(seed).choice(5**6, num, replace=False)
    return np.stack(np.unravel_index(rows, (5,) * 6), axis=1)


SPECIAL = [
    *([choice] * 6 for choice in range(5)),
    [3, 0, 0, 0, 0, 0],  # leads nowhere
    [0, 0, 3, 0, 2, 3],  # comes from nowhere
    [0, 3, 1, 3, 4, 1],  # the identity of nothing
    [3, 2, 4, 1, 3, 0],  # node 2 leads nowhere
]


@pytest.mark.parametrize("arch", [*SPECIAL, *sample(4)])
def test_the_lowered_network_has_the_published_flops(arch):
    published, operations = expected(arch, SMALL)
    assert published == published_costs(arch, **SMALL).flops
    assert counted(arch, SMALL) == operations


def test_the_networks_of_the_cpu_differ_by_their_stem_alone():
    """It is a sum of shifted images, taps in the padding included."""
    arch, sizes = [3, 2, 4, 1, 3, 2], PUBLISHED | {"num_cells": 1}
    size, channels = sizes["image_size"], sizes["num_channels"]
    shifted = (2 * 9 * IN_CHANNELS - 1) * size**2 * channels
    operations = expected(arch, sizes)[1] - conv(size, IN_CHANNELS, channels, 3)[1] + shifted
    assert counted(arch, sizes, "cpu") == pytest.approx(operations, rel=1e-6)


@pytest.mark.slow
def test_a_sample_of_the_published_size():
    archs = sample(200)
    found = np.array([counted(arch, PUBLISHED) for arch in archs])
    both = np.array([expected(arch, PUBLISHED) for arch in archs])
    published = published_costs(archs).flops
    np.testing.assert_array_equal(both[:, 0], published)
    np.testing.assert_allclose(found, both[:, 1], rtol=1e-6)
    lives = [live_edges(arch) for arch in archs]
    whole = np.array(
        [c and len(e) == np.count_nonzero(a) for (e, c), a in zip(lives, archs, strict=True)]
    )
    ratio = (found / (2 * published))[whole]  # where nothing is dropped
    assert whole.sum() == 151 and ratio.min() > 0.91 and ratio.max() < 1.14
    assert stats.spearmanr(found[whole], published[whole]).statistic > 0.995


@pytest.mark.slow
def test_the_jaxpr_has_the_published_flops():
    for arch in sample(20):
        module = nasbench201().network(arch)
        flops = 2 * (published_costs(arch).flops - NUM_CLASSES)  # no bias
        assert network_cost(module, module.image_shape).flops == flops


@pytest.mark.slow
def test_the_compiled_network_counts_more():
    if jax.default_backend() != "cpu":
        pytest.skip("convolutions are calls of libraries there, which XLA does not count")
    arch = [3, 2, 4, 1, 3, 2]
    before = lowered(arch, SMALL, "cpu")
    after = before.compile().cost_analysis()["flops"]
    assert before.cost_analysis()["flops"] <= after < 1.5 * expected(arch, SMALL)[1]
