"""Parameters and FLOPs of well-known networks are the published ones."""

import pytest

from jaxnas.objectives.breakdown import breakdown
from jaxnas.objectives.costs import forward_cost, network_cost
from tests.reference_networks import MobileNetV2, resnet, small_resnet

IMAGENET, CIFAR = (224, 224, 3), (32, 32, 3)
# Network, shape of an image, parameters, multiply-adds of convolutions and of the head's product.
# ImageNet: torchvision's table of models has these parameters, and 1.81, 3.66, 4.09 and 0.30
# billion multiply-adds. CIFAR-10: Table 6 of the paper has 0.27M and 0.85M parameters.
PUBLISHED = {
    "ResNet-18": (resnet(18), IMAGENET, 11_689_512, 1_814_073_344),
    "ResNet-34": (resnet(34), IMAGENET, 21_797_672, 3_663_761_408),
    "ResNet-50": (resnet(50), IMAGENET, 25_557_032, 4_089_184_256),
    "MobileNetV2": (MobileNetV2(), IMAGENET, 3_504_872, 300_774_272),
    "ResNet-20": (small_resnet(20), CIFAR, 269_722, 40_551_040),
    "ResNet-56": (small_resnet(56), CIFAR, 853_018, 125_485_696),
}
ROUNDED = {  # as the papers print them: millions of parameters, millions of multiply-adds
    "ResNet-18": (None, 1800),
    "ResNet-34": (None, 3600),
    "MobileNetV2": (3.4, 300),
    "ResNet-20": (0.27, None),
    "ResNet-56": (0.85, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_structure_gives_the_published_numbers(name):
    module, shape, parameters, multiply_adds = PUBLISHED[name]
    cost = network_cost(module, shape)
    assert cost.parameters == parameters
    assert cost.flops == 2 * multiply_adds
    printed_size, printed_work = ROUNDED.get(name, (None, None))
    if printed_size is not None:
        assert parameters / 1e6 == pytest.approx(printed_size, rel=0.04)
    if printed_work is not None:
        assert multiply_adds / 1e6 == pytest.approx(printed_work, rel=0.02)


def test_the_paper_puts_the_stride_of_resnet_50_earlier():
    """Table 1 of He et al. says 3.8e9 multiply-adds, which is without the 1x1 shortcuts' work."""
    cost = network_cost(resnet(50, early_stride=True), IMAGENET)
    assert cost.parameters == 25_557_032
    assert cost.flops / 2 / 1e9 == pytest.approx(3.86, abs=0.005)


@pytest.mark.parametrize("depth", [20, 56])
def test_small_residual_networks_by_hand(depth):
    blocks = (depth - 2) // 6
    convolutions = [(3, 16, 32)]  # channels in and out, side of the result
    for stage, (channels, side) in enumerate([(16, 32), (32, 16), (64, 8)]):
        inputs = channels // 2 if stage else channels
        convolutions += [(inputs, channels, side)] + [(channels, channels, side)] * (2 * blocks - 1)
    kernels = sum(9 * a * b for a, b, _ in convolutions)
    norms = sum(2 * b for _, b, _ in convolutions)
    _, _, parameters, multiply_adds = PUBLISHED[f"ResNet-{depth}"]
    assert kernels + norms + 64 * 10 + 10 == parameters
    assert sum(9 * a * b * s * s for a, b, s in convolutions) + 64 * 10 == multiply_adds


def test_layers_of_mobilenet_add_up():
    module, shape, parameters, multiply_adds = PUBLISHED["MobileNetV2"]
    layers = breakdown(module, shape)
    assert sum(layer.parameters for layer in layers) == parameters
    assert sum(layer.flops for layer in layers) == 2 * multiply_adds
    (stem,) = [layer for layer in layers if layer.path == "stem/Conv_0"]
    assert (stem.parameters, stem.flops) == (27 * 32, 2 * 27 * 32 * 112 * 112)
    depthwise = [layer for layer in layers if layer.path.endswith("depthwise/Conv_0")]
    assert len(depthwise) == 17
    assert depthwise[0].flops == 2 * 9 * 32 * 112 * 112


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet-20", "ResNet-18", "MobileNetV2"])
def test_the_compiler_counts_the_same_work(name):
    """It adds elementwise operations, and leaves out taps of kernels that lie in the padding."""
    module, shape, _, multiply_adds = PUBLISHED[name]
    compiled = forward_cost(module, shape)
    assert compiled.flops == pytest.approx(2 * multiply_adds, rel=0.1)
    assert compiled.bytes_moved > 4 * PUBLISHED[name][2]
