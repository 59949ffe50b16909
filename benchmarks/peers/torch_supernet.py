"""One search step of the DARTS supernet in PyTorch, as a user would write it.

The mathematics of Liu et al., 2019, https://arxiv.org/abs/1806.09055: `SuperNetwork` mixes all
eight operations of every edge by a softmax, `first_order` is their algorithm 1 with xi = 0, and
`finite_difference` equations 7 and 8. Names, shapes and recipe are those of `jaxnas.spaces.darts`
with `search=True` and of `jaxnas.oneshot.darts`: normalisation without scale and bias in all cells,
one more behind pooling; weights by SGD with momentum, clipped, kernels alone decayed; alpha by
Adam.

Where there was a choice, the one that makes the peer faster was taken: the step of alpha asks for
no gradient of the weights where it needs none; `none` is left out of the sums; weights are moved
and brought back in place rather than copied into a second network; the optimisers are PyTorch's
fused ones; denormals are flushed; the memory format is the faster one of a short trial before the
clock starts. `torch.compile` is not among the forms: what it gains here it does not gain back from
minutes of compilation on a CPU.
"""

import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
INPUTS, NODES = (0, 1), (2, 3, 4, 5)
EDGES = tuple((source, target) for target in NODES for source in range(target))
FORMATS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}

RATE, MOMENTUM, DECAY, CLIP = 0.025, 0.9, 3e-4, 5.0  # of the weights
ALPHA_RATE, ALPHA_DECAY = 3e-4, 1e-3
RADIUS = 0.01  # of the finite difference


# --- the network ---


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation without scale and bias."""
    return nn.BatchNorm2d(channels, affine=False)


def conv(inputs: int, outputs: int, size: int, stride=1, dilation=1, groups=1) -> nn.Conv2d:
    """Convolution that keeps the size at stride 1."""
    pad = dilation * (size // 2)
    return nn.Conv2d(inputs, outputs, size, stride, pad, dilation, groups, bias=False)


class ReluConvNorm(nn.Module):
    """Rectifier, 1x1 convolution, normalisation."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv, self.norm = conv(inputs, outputs, 1), norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps f32[N, inputs, H, W] to f32[N, outputs, H, W]."""
        return self.norm(self.conv(functional.relu(x)))


class FactorizedReduce(nn.Module):
    """Halves the image by two 1x1 convolutions, one pixel apart."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.even = conv(inputs, outputs // 2, 1, 2)
        self.odd = conv(inputs, outputs - outputs // 2, 1, 2)
        self.norm = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps f32[N, inputs, H, W] to f32[N, outputs, H / 2, W / 2]."""
        x = functional.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))


class DepthwiseSeparable(nn.Module):
    """Rectifier, depthwise and pointwise convolution, normalisation."""

    def __init__(self, channels: int, size: int, stride: int, dilation: int = 1):
        super().__init__()
        self.depthwise = conv(channels, channels, size, stride, dilation, channels)
        self.pointwise, self.norm = conv(channels, channels, 1), norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to images of as many channels."""
        return self.norm(self.pointwise(self.depthwise(functional.relu(x))))


class SeparableConv(nn.Module):
    """Two of them, the first with the stride."""

    def __init__(self, channels: int, size: int, stride: int):
        super().__init__()
        self.first = DepthwiseSeparable(channels, size, stride)
        self.second = DepthwiseSeparable(channels, size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to images of as many channels."""
        return self.second(self.first(x))


class NormedPool(nn.Module):
    """3x3 pooling over the pixels inside the image, and normalisation."""

    def __init__(self, kind: str, channels: int, stride: int):
        super().__init__()
        average = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        self.pool = average if kind == "avg" else nn.MaxPool2d(3, stride, 1)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to images of as many channels."""
        return self.norm(self.pool(x))


def operation(name: str, channels: int, stride: int) -> nn.Module:
    """The module of an operation other than `none`."""
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    kind, _, size = name.partition("_")
    if kind in ("max", "avg"):
        return NormedPool(kind, channels, stride)
    side = int(size[-1])
    if kind == "sep":
        return SeparableConv(channels, side, stride)
    return DepthwiseSeparable(channels, side, stride, dilation=2)


class Cell(nn.Module):
    """Two inputs and four nodes, every edge a mixture of all operations."""

    def __init__(self, older: int, newer: int, channels: int, *, halved: bool, reduces: bool):
        super().__init__()
        bring = FactorizedReduce if halved else ReluConvNorm
        self.older, self.newer = bring(older, channels), ReluConvNorm(newer, channels)
        self.edges = nn.ModuleList()
        for source, _ in EDGES:
            stride = 2 if reduces and source in INPUTS else 1
            each = {name: operation(name, channels, stride) for name in OPERATIONS[1:]}
            self.edges.append(nn.ModuleDict(each))

    def forward(self, older: Tensor, newer: Tensor, weights: Tensor) -> Tensor:
        """Maps two images to f32[N, 4 channels, h, w]; `weights` is f32[14, 8]."""
        nodes = [self.older(older), self.newer(newer)]
        for target in NODES:
            into = [edge for edge, (_, node) in enumerate(EDGES) if node == target]
            terms = [
                weights[edge, k] * module(nodes[EDGES[edge][0]])
                for edge in into
                for k, module in enumerate(self.edges[edge].values(), start=1)
            ]
            nodes.append(sum(terms[1:], terms[0]))
        return torch.cat(nodes[len(INPUTS) :], dim=1)


class SuperNetwork(nn.Module):
    """Stem, cells, mean over the pixels, linear layer; reduction cells at one and two thirds."""

    def __init__(self, num_classes: int, num_channels: int, num_cells: int, in_channels: int):
        super().__init__()
        channels, width = num_channels, 3 * num_channels
        self.stem, self.stem_norm = conv(in_channels, width, 3), nn.BatchNorm2d(width)
        self.reduces = [i in (num_cells // 3, 2 * num_cells // 3) for i in range(num_cells)]
        self.cells = nn.ModuleList()
        older = newer = width
        halved = False
        for reduces in self.reduces:
            channels *= 1 + reduces
            self.cells.append(Cell(older, newer, channels, halved=halved, reduces=reduces))
            older, newer, halved = newer, len(NODES) * channels, reduces
        self.head = nn.Linear(newer, num_classes)

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        """Maps images f32[N, C, H, W] and alpha f32[28, 8] to logits f32[N, classes]."""
        kinds = functional.softmax(alpha, dim=-1).reshape(2, len(EDGES), len(OPERATIONS))
        older = newer = self.stem_norm(self.stem(x))
        for reduces, cell in zip(self.reduces, self.cells, strict=True):
            older, newer = newer, cell(older, newer, kinds[int(reduces)])
        return self.head(newer.mean((2, 3)))


# --- the search ---


class Batch(NamedTuple):
    """Rows of one step."""

    x: Tensor  # f32[N, C, H, W]
    y: Tensor  # i64[N]


class Search:
    """The supernet, alpha and their optimisers.

    Args:
      network: the supernet.
      alpha: f32[28, 8].
    """

    def __init__(self, network: SuperNetwork, alpha: Tensor):
        self.network, self.alpha = network, nn.Parameter(alpha)
        self.weights = list(network.parameters())
        kernels = [w for w in self.weights if w.ndim > 1]
        others = [w for w in self.weights if w.ndim == 1]
        groups = [{"params": kernels, "weight_decay": DECAY}, {"params": others}]
        self.sgd = torch.optim.SGD(groups, RATE, MOMENTUM, fused=True)
        self.adam = torch.optim.Adam(
            [self.alpha], ALPHA_RATE, (0.5, 0.999), weight_decay=ALPHA_DECAY, fused=True
        )

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(self.network(batch.x, self.alpha), batch.y)

    def first_order(self, train: Batch, valid: Batch) -> Tensor:
        """The gradient of alpha where weights do not answer: f32[28, 8]."""
        del train
        return torch.autograd.grad(self.loss(valid), self.alpha)[0]

    def finite_difference(self, train: Batch, valid: Batch) -> Tensor:
        """The gradient of alpha through one step of the weights: f32[28, 8]."""
        start = [w.detach().clone() for w in self.weights]
        gradients = torch.autograd.grad(self.loss(train), self.weights)
        with torch.no_grad():
            for w, gradient in zip(self.weights, gradients, strict=True):
                change = gradient + (DECAY * w if w.ndim > 1 else 0.0)
                memory = self.sgd.state[w].get("momentum_buffer")
                w.sub_(RATE * (change if memory is None else MOMENTUM * memory + change))
        direct, *pull = torch.autograd.grad(self.loss(valid), [self.alpha, *self.weights])
        radius = RADIUS / float(torch.sqrt(sum((v * v).sum() for v in pull)))
        sides = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for w, first, v in zip(self.weights, start, pull, strict=True):
                    w.copy_(first).add_(v, alpha=sign * radius)
            sides.append(torch.autograd.grad(self.loss(train), self.alpha)[0])
        with torch.no_grad():
            for w, first in zip(self.weights, start, strict=True):
                w.copy_(first)
        return direct - RATE * (sides[0] - sides[1]) / (2.0 * radius)

    def step(self, kind: str, train: Batch, valid: Batch) -> float:
        """One update of alpha and one of the weights; the training loss before the latter."""
        self.alpha.grad = getattr(self, KINDS[kind])(train, valid)
        self.adam.step()
        loss = self.loss(train)
        gradients = torch.autograd.grad(loss, self.weights)
        for w, gradient in zip(self.weights, gradients, strict=True):
            w.grad = gradient
        nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.sgd.step()
        return loss.item()


KINDS = {"first order": "first_order", "finite difference": "finite_difference"}


# --- the measurement ---


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and memory of every kind of step.

    Args:
      request: `shape` (the arguments of `SuperNetwork`), `arrays` (`x_train` f32[N, H, W, C],
        `y_train` i[N] and `x_valid`, `y_valid`), `num_threads`, `num_steps` to be timed, and
        `kinds` of steps.

    Returns:
      `parameters`, `memory_format`, and per kind `seconds` of every step and `bytes`, the maximum
      resident set so far less what was resident before there was a network.
    """
    torch.set_num_threads(request["num_threads"])
    torch.set_flush_denormal(True)
    arrays, before = request["arrays"], _resident()
    layout = min(FORMATS, key=lambda name: _trial(request["shape"], arrays, name))
    torch.manual_seed(0)
    search, batches = _start(request["shape"], arrays, layout)
    found = {}
    for kind in request["kinds"]:
        search.step(kind, *batches)  # fills the caches and the optimisers' memory
        seconds = [
            _seconds(lambda kind=kind: search.step(kind, *batches))
            for _ in range(request["num_steps"])
        ]
        found[kind] = {"seconds": seconds, "bytes": _max_resident() - before}
    parameters = sum(w.numel() for w in search.weights)
    return {"parameters": parameters, "memory_format": layout, "kinds": found}


def _start(shape, arrays, layout: str) -> tuple[Search, list[Batch]]:
    network = SuperNetwork(**shape).to(memory_format=FORMATS[layout])
    alpha = 1e-3 * torch.randn(2 * len(EDGES), len(OPERATIONS))
    batches = []
    for part in ("train", "valid"):
        x = torch.tensor(arrays[f"x_{part}"], dtype=torch.float32).permute(0, 3, 1, 2)
        labels = torch.tensor(np.asarray(arrays[f"y_{part}"]), dtype=torch.int64)
        batches.append(Batch(x.contiguous(memory_format=FORMATS[layout]), labels))
    return Search(network.train(), alpha), batches


def _trial(shape, arrays, layout: str) -> float:
    """Seconds of a first-order step, the second one."""
    search, batches = _start(shape, arrays, layout)
    search.step("first order", *batches)
    return _seconds(lambda: search.step("first order", *batches))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _resident() -> int:
    """Bytes that this process has in memory."""
    return resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[1])


def _max_resident() -> int:
    """Bytes that it has had in memory at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
