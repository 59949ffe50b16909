"""Training many NAS-Bench-201 networks in PyTorch, as a user would write it, in two forms.

`train_loop` is the plain loop over candidates, `train_processes` one process of one thread per core
with the longest candidates handed out first, the strongest form we know on a CPU. Both train the
networks of `jaxnas.spaces.nasbench201` with the recipe of `jaxnas.training.population`: PyTorch's
default initial weights, SGD with Nesterov momentum and a cosine schedule.

Where there was a choice, the one that makes the peer faster was taken: an edge with `none` costs
nothing; autograd leaves out the backward pass of edges that lead nowhere; data are tensors in
memory; the memory format (channels first or last), the optimiser's implementation (a loop over
parameters, `foreach` or `fused`) and the number of threads of the loop are the fastest of short
trials before the clock starts; denormals are flushed; processes are started, torch imported and
everything warmed up before the clock starts. `torch.compile` is not among the forms: it compiles
every candidate anew, for longer than these candidates train.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Candidate = tuple[str, ...]  # an operation's name per edge, in the order of `EDGES`

NUM_NODES = 4
NUM_STAGES = 3
EDGES = tuple((target, source) for target in range(NUM_NODES) for source in range(target))

SWITCHES = {"forloop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
FORMATS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}

PROBE_STEPS = 4  # training steps per candidate of a probe
PROBE_ROUNDS = 3  # the fastest of these counts


class Network(NamedTuple):
    """The shape that all candidates share."""

    num_classes: int
    num_channels: int
    num_cells: int  # per stage
    in_channels: int


class Recipe(NamedTuple):
    """How every candidate is trained."""

    epochs: int
    batch_size: int
    learning_rate: float


class Data(NamedTuple):
    """Tensors in memory; images are f32[N, C, H, W]."""

    x_train: Tensor
    y_train: Tensor  # i64[N]
    x_valid: Tensor
    y_valid: Tensor


class Choices(NamedTuple):
    """What was found fastest."""

    optimizer: str = "foreach"
    memory_format: str = "channels_first"


DEFAULT = Choices()


def to_data(arrays: Mapping[str, np.ndarray]) -> Data:
    """Tensors of `x_train`, `x_valid` f32[N, H, W, C] and of the labels `y_train`, `y_valid`."""

    def images(x: np.ndarray) -> Tensor:
        return torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2).contiguous()

    return Data(
        images(arrays["x_train"]),
        torch.tensor(arrays["y_train"], dtype=torch.int64),
        images(arrays["x_valid"]),
        torch.tensor(arrays["y_valid"], dtype=torch.int64),
    )


# --- the network ---


class ReluConvNorm(nn.Sequential):
    """Rectifier, convolution, batch normalisation."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )


def operation(name: str, channels: int) -> nn.Module:
    """A fresh module of one edge's operation; `none` has none."""
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return ReluConvNorm(channels, channels, {"nor_conv_1x1": 1, "nor_conv_3x3": 3}[name])


class Cell(nn.Module):
    """Nodes 0 (the input) to 3 (the output), each the sum of its edges from the earlier ones."""

    def __init__(self, candidate: Candidate, channels: int):
        super().__init__()
        self.edges = nn.ModuleDict(
            {
                f"{target}<-{source}": operation(name, channels)
                for (target, source), name in zip(EDGES, candidate, strict=True)
                if name != "none"
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps images of some shape to the same shape."""
        nodes = [x]
        for target in range(1, NUM_NODES):
            terms = [
                self.edges[name](nodes[source])
                for source in range(target)
                if (name := f"{target}<-{source}") in self.edges
            ]
            nodes.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x))
        return nodes[-1]


class ReductionBlock(nn.Module):
    """Residual block that halves the image."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = ReluConvNorm(inputs, outputs, 3, stride=2)
        self.second = ReluConvNorm(outputs, outputs, 3)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2), nn.Conv2d(inputs, outputs, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps f32[N, inputs, H, W] to f32[N, outputs, H / 2, W / 2]."""
        return self.second(self.first(x)) + self.shortcut(x)


class CellNetwork(nn.Module):
    """The stand-alone network of one candidate."""

    def __init__(self, candidate: Candidate, network: Network):
        super().__init__()
        channels = network.num_channels
        self.stem = nn.Conv2d(network.in_channels, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.reductions = nn.ModuleList()
        self.stages = nn.ModuleList()
        for stage in range(NUM_STAGES):
            if stage > 0:
                self.reductions.append(ReductionBlock(channels, 2 * channels))
                channels *= 2
            cells = [Cell(candidate, channels) for _ in range(network.num_cells)]
            self.stages.append(nn.Sequential(*cells))
        self.head_norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, network.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images f32[N, C, H, W] to logits f32[N, classes]."""
        x = self.stages[0](self.stem_norm(self.stem(x)))
        for reduction, stage in zip(self.reductions, self.stages[1:], strict=True):
            x = stage(reduction(x))
        return self.head(functional.relu(self.head_norm(x)).mean((2, 3)))


# --- training ---


def make_optimizer(
    network: nn.Module, recipe: Recipe, implementation: str
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9."""
    return torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=0.9,
        nesterov=True,
        **SWITCHES[implementation],
    )


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, rate: float, x: Tensor, y: Tensor
) -> Tensor:
    """One gradient and one update; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss = functional.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def train(
    candidate: Candidate,
    shape: Network,
    data: Data,
    recipe: Recipe,
    choices: Choices = DEFAULT,
    seed: int = 0,
) -> dict[str, float]:
    """Trains one candidate from scratch; one whose loss is no longer finite stops there.

    Args:
      candidate: operations of the edges.
      shape: of the network.
      data: tensors, in the memory format of `choices`.
      recipe: epochs, batch size, peak learning rate.
      choices: how.
      seed: of PyTorch's generator.

    Returns:
      `train_loss`, `loss` and `accuracy` after training, NaN after divergence; the `epochs` trained
      and the `seconds` it all took.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    network = CellNetwork(candidate, shape).to(memory_format=FORMATS[choices.memory_format])
    optimizer = make_optimizer(network, recipe, choices.optimizer)
    network.train()
    num_rows, rows = len(data.x_train), recipe.batch_size
    num_steps = recipe.epochs * (num_rows // rows)
    step = epochs = 0
    healthy = True
    while healthy and epochs < recipe.epochs:
        total = torch.zeros(())
        order = torch.randperm(num_rows)
        for end in range(rows, num_rows + 1, rows):
            chosen = order[end - rows : end]
            rate = recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
            x, y = data.x_train[chosen], data.y_train[chosen]
            total += train_step(network, optimizer, rate, x, y)
            step += 1
        healthy = bool(total.isfinite())
        epochs += 1
    metrics = _metrics(network, data)
    if not (healthy and np.isfinite(metrics["loss"]) and np.isfinite(metrics["train_loss"])):
        metrics = dict.fromkeys(metrics, float("nan"))
    return {**metrics, "epochs": epochs, "seconds": time.perf_counter() - start}


def _metrics(network: nn.Module, data: Data) -> dict[str, float]:
    network.eval()
    with torch.inference_mode():
        outputs = network(data.x_valid)
        return {
            "train_loss": functional.cross_entropy(network(data.x_train), data.y_train).item(),
            "loss": functional.cross_entropy(outputs, data.y_valid).item(),
            "accuracy": (outputs.argmax(1) == data.y_valid).float().mean().item(),
        }


def cost(candidate: Candidate) -> float:
    """What the candidates are ordered by: about the milliseconds of a step."""
    weights = {"none": 0, "skip_connect": 1, "nor_conv_1x1": 4, "nor_conv_3x3": 6}
    return float(sum(weights.get(name, 5) for name in candidate))


# --- choosing what is fastest for the peer, before the clock starts ---


def in_format(data: Data, choices: Choices) -> Data:
    """The data with images in the memory format of `choices`."""
    to = {"memory_format": FORMATS[choices.memory_format]}
    return data._replace(
        x_train=data.x_train.contiguous(**to), x_valid=data.x_valid.contiguous(**to)
    )


class Probe(NamedTuple):
    """A few steps of the real work: a cheap, a middling and a dear candidate."""

    candidates: list[Candidate]
    shape: Network
    data: Data
    recipe: Recipe

    def seconds(self, choices: Choices) -> float:
        """Seconds to train the probe's candidates."""
        data = in_format(self.data, choices)
        work = (self.shape, data, self.recipe, choices)
        return sum(train(candidate, *work)["seconds"] for candidate in self.candidates)


def probe(candidates: Sequence[Candidate], shape: Network, data: Data, recipe: Recipe) -> Probe:
    """A probe of `PROBE_STEPS` steps per candidate."""
    ordered = sorted(candidates, key=cost)
    chosen = [ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75)]
    rows = slice(PROBE_STEPS * recipe.batch_size)
    one = slice(recipe.batch_size)
    few = Data(data.x_train[rows], data.y_train[rows], data.x_valid[one], data.y_valid[one])
    return Probe(chosen, shape, few, recipe._replace(epochs=1))


def fastest_choices(work: Probe) -> Choices:
    """The fastest memory format with the fastest implementation of the optimiser."""
    every = [Choices(optimizer, memory) for memory in FORMATS for optimizer in SWITCHES]
    seconds = dict.fromkeys(every, float("inf"))
    for _ in range(PROBE_ROUNDS):  # alternating, so that a burst of noise hits all alike
        for choices in every:
            seconds[choices] = min(seconds[choices], work.seconds(choices))
    return min(seconds, key=seconds.__getitem__)


def fastest_num_threads(work: Probe, choices: Choices, default: int) -> int:
    """One thread or the `default` number, whichever is faster."""
    seconds = {1: float("inf"), default: float("inf")}
    for _ in range(PROBE_ROUNDS):
        for num_threads in seconds:
            torch.set_num_threads(num_threads)
            seconds[num_threads] = min(seconds[num_threads], work.seconds(choices))
    return min(seconds, key=seconds.__getitem__)


# --- the two forms ---


def train_loop(
    candidates: Sequence[Candidate],
    shape: Network,
    data: Data,
    recipe: Recipe,
    choices: Choices = DEFAULT,
    *,
    num_threads: int = 1,
) -> tuple[list[dict[str, float]], float]:
    """The plain loop: one candidate after the other.

    Returns:
      Per candidate what `train` returns, and the wall-clock seconds of the whole loop.
    """
    torch.set_num_threads(num_threads)
    data = in_format(data, choices)
    start = time.perf_counter()
    results = [
        train(candidate, shape, data, recipe, choices, seed)
        for seed, candidate in enumerate(candidates)
    ]
    return results, time.perf_counter() - start


_worker: dict[str, Any] = {}  # what `_start_worker` left in this process for `_work`


def _start_worker(arrays, shape, recipe, choices, flush_denormal, warm_up, barrier) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(flush_denormal)
    data = to_data(arrays)
    probe(warm_up, shape, data, recipe).seconds(choices)
    data = in_format(data, choices)
    _worker.update(shape=shape, data=data, recipe=recipe, choices=choices)
    _worker["barrier"] = barrier


def _wait_for_all(_: int) -> None:
    _worker.pop("barrier").wait()


def _work(job: tuple[int, Candidate]) -> dict[str, float]:
    seed, candidate = job
    return train(candidate, **_worker, seed=seed)


def train_processes(
    candidates: Sequence[Candidate],
    shape: Network,
    arrays: Mapping[str, np.ndarray],
    recipe: Recipe,
    choices: Choices = DEFAULT,
    *,
    num_processes: int = 2,
    flush_denormal: bool = True,
) -> tuple[list[dict[str, float]], float]:
    """The strongest form: single-threaded processes take candidates from one queue.

    The longest candidates go first, so that the processes end together. The clock starts when all
    processes have imported torch, hold the data and are warm.

    Returns:
      Per candidate what `train` returns, and the wall-clock seconds of the whole work.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(num_processes)
    setup = (dict(arrays), shape, recipe, choices, flush_denormal, list(candidates), barrier)
    order = sorted(range(len(candidates)), key=lambda i: -cost(candidates[i]))
    with ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=_start_worker, initargs=setup
    ) as pool:
        list(pool.map(_wait_for_all, range(num_processes)))
        start = time.perf_counter()
        by_cost = list(pool.map(_work, [(i, candidates[i]) for i in order]))
        seconds = time.perf_counter() - start
    results: list[dict[str, float]] = [{}] * len(candidates)
    for i, result in zip(order, by_cost, strict=True):
        results[i] = result
    return results, seconds


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Entry point of a fresh process: `benchmarks.harness.in_fresh_process`.

    Args:
      request: `form` ("loop" or "processes"), `candidates`, `network` (the fields of `Network`),
        `arrays`, `recipe` (the fields of `Recipe`) and `num_processes`.

    Returns:
      `seconds`, `candidate_seconds` f64[P], `metrics` (name to f64[P]) and `choices`, what was
      found fastest.
    """
    shape, recipe = Network(**request["network"]), Recipe(**request["recipe"])
    candidates, arrays = request["candidates"], request["arrays"]
    data = to_data(arrays)
    work = probe(candidates, shape, data, recipe)
    flush_denormal = torch.set_flush_denormal(True)
    default_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fastest = fastest_choices(work)
    choices: dict[str, Any] = {**fastest._asdict(), "flush_denormal": flush_denormal}
    if request["form"] == "loop":
        choices["threads"] = fastest_num_threads(work, fastest, default_threads)
        results, seconds = train_loop(
            candidates, shape, data, recipe, fastest, num_threads=choices["threads"]
        )
    else:
        choices["processes"] = request["num_processes"]
        results, seconds = train_processes(
            candidates,
            shape,
            arrays,
            recipe,
            fastest,
            num_processes=request["num_processes"],
            flush_denormal=flush_denormal,
        )
    columns = {name: np.array([result[name] for result in results]) for name in results[0]}
    return {
        "seconds": seconds,
        "candidate_seconds": columns.pop("seconds"),
        "metrics": columns,
        "choices": {**choices, "torch": torch.__version__, "cpus": os.cpu_count()},
    }
