"""Training many multilayer perceptrons in PyTorch, as a user would write it, in two forms.

`train_loop` is the plain loop over candidates. `train_processes` is the strongest form we know on
a CPU: one process of one thread per core, candidates handed out longest first. Both train the same
networks on the same data with the same recipe as `jaxnas.training.population`.

Where there was a choice, the one that makes the peer faster was taken: data are tensors in memory,
shuffled once per epoch and sliced; a dropout rate of 0 has no dropout layer; of the optimiser
implementations that PyTorch has for this device (a loop over parameters, `foreach`, `fused`) and
of one thread or many the fastest is measured before the clock starts; denormals are flushed;
processes are started, torch imported and everything warmed up before the clock starts.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Candidate = Mapping[str, Any]  # depth, width, activation, learning_rate, optimizer, dropout

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}
IMPLEMENTATIONS = {
    "adam": ("forloop", "foreach", "fused"),
    "sgd": ("forloop", "foreach", "fused"),
    "rmsprop": ("forloop", "foreach"),
}
SWITCHES = {"forloop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}

PROBE_STEPS = 10  # training steps per probe
PROBE_ROUNDS = 3  # the fastest of these counts


class Recipe(NamedTuple):
    """How every candidate is trained."""

    task: str  # "classification" or "regression"
    num_outputs: int
    epochs: int
    batch_size: int | None  # None: full batch


class Data(NamedTuple):
    """Tensors in memory."""

    x_train: Tensor  # f32[N, F]
    y_train: Tensor  # i64[N] classes or f32[N, num_outputs]
    x_valid: Tensor
    y_valid: Tensor


def to_data(arrays: Mapping[str, np.ndarray], task: str) -> Data:
    """Tensors of the arrays `x_train`, `y_train`, `x_valid`, `y_valid`, targets as `task` needs."""

    def target(y: np.ndarray) -> Tensor:
        if task == "classification":
            return torch.tensor(y, dtype=torch.int64)
        return torch.tensor(y, dtype=torch.float32).reshape(len(y), -1)

    return Data(
        torch.tensor(arrays["x_train"], dtype=torch.float32),
        target(arrays["y_train"]),
        torch.tensor(arrays["x_valid"], dtype=torch.float32),
        target(arrays["y_valid"]),
    )


def build(candidate: Candidate, num_inputs: int, num_outputs: int) -> nn.Sequential:
    """The candidate's network."""
    layers: list[nn.Module] = []
    fan_in = num_inputs
    for _ in range(candidate["depth"]):
        layers += [nn.Linear(fan_in, candidate["width"]), ACTIVATIONS[candidate["activation"]]()]
        if candidate["dropout"] > 0:
            layers.append(nn.Dropout(candidate["dropout"]))
        fan_in = candidate["width"]
    return nn.Sequential(*layers, nn.Linear(fan_in, num_outputs))


def train(
    candidate: Candidate,
    data: Data,
    recipe: Recipe,
    implementations: Mapping[str, str],
    seed: int,
) -> dict[str, float]:
    """Trains one candidate from scratch; one whose loss is no longer finite stops there.

    Args:
      candidate: decision name to value.
      data: tensors.
      recipe: task, epochs, batch size.
      implementations: optimiser name to "forloop", "foreach" or "fused".
      seed: of PyTorch's generator.

    Returns:
      `train_loss`, `loss` and `accuracy` or `r2` after training, NaN after divergence; the `epochs`
      trained and the `seconds` it all took.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    network = build(candidate, data.x_train.shape[1], recipe.num_outputs)
    name = candidate["optimizer"]
    optimizer = OPTIMIZERS[name](
        network.parameters(), lr=candidate["learning_rate"], **SWITCHES[implementations[name]]
    )
    loss_fn = nn.CrossEntropyLoss() if recipe.task == "classification" else nn.MSELoss()
    network.train()
    epochs = 0
    healthy = True
    while healthy and epochs < recipe.epochs:
        total = torch.zeros(())
        for x, y in _batches(data, recipe.batch_size):
            optimizer.zero_grad()
            loss = loss_fn(network(x), y)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        healthy = bool(total.isfinite())
        epochs += 1
    metrics = _metrics(network, data, loss_fn, recipe.task)
    if not (healthy and np.isfinite(metrics["loss"]) and np.isfinite(metrics["train_loss"])):
        metrics = dict.fromkeys(metrics, float("nan"))
    return {**metrics, "epochs": epochs, "seconds": time.perf_counter() - start}


def _batches(data: Data, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch; a last one that is not full is dropped."""
    if batch_size is None:
        yield data.x_train, data.y_train
        return
    order = torch.randperm(len(data.x_train))
    x, y = data.x_train[order], data.y_train[order]
    for end in range(batch_size, len(x) + 1, batch_size):
        yield x[end - batch_size : end], y[end - batch_size : end]


def _metrics(network: nn.Module, data: Data, loss_fn: nn.Module, task: str) -> dict[str, float]:
    network.eval()
    with torch.inference_mode():
        train_loss = loss_fn(network(data.x_train), data.y_train).item()
        outputs = network(data.x_valid)
        metrics = {"train_loss": train_loss, "loss": loss_fn(outputs, data.y_valid).item()}
        if task == "classification":
            metrics["accuracy"] = (outputs.argmax(1) == data.y_valid).float().mean().item()
        else:
            centred = data.y_valid - data.y_valid.mean(0)
            residual = ((outputs - data.y_valid) ** 2).sum()
            metrics["r2"] = (1 - residual / (centred**2).sum()).item()
    return metrics


def cost(candidate: Candidate, data: Data, recipe: Recipe) -> float:
    """Multiply-adds of one forward pass over one row: what the candidates are ordered by."""
    sizes = [data.x_train.shape[1], *[candidate["width"]] * candidate["depth"], recipe.num_outputs]
    return float(sum(a * b for a, b in pairwise(sizes)))


# --- choosing what is fastest for the peer, before the clock starts ---


class Probe(NamedTuple):
    """A few steps of the real work: a cheap, a middling and a dear candidate."""

    candidates: list[Candidate]
    data: Data
    recipe: Recipe

    def seconds(self, implementations: Mapping[str, str]) -> float:
        """Seconds to train the probe's candidates."""
        work = self.data, self.recipe, implementations
        return sum(train(candidate, *work, seed=0)["seconds"] for candidate in self.candidates)


def probe(candidates: Sequence[Candidate], data: Data, recipe: Recipe) -> Probe:
    """A probe of `PROBE_STEPS` steps per candidate."""
    ordered = sorted(candidates, key=lambda candidate: cost(candidate, data, recipe))
    chosen = [ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75)]
    if recipe.batch_size is None:
        return Probe(chosen, data, recipe._replace(epochs=PROBE_STEPS))
    rows = slice(PROBE_STEPS * recipe.batch_size)
    few = data._replace(x_train=data.x_train[rows], y_train=data.y_train[rows])
    return Probe(chosen, few, recipe._replace(epochs=1))


def fastest_implementations(work: Probe) -> dict[str, str]:
    """Per optimiser the fastest implementation."""
    chosen = {}
    for name, implementations in IMPLEMENTATIONS.items():
        mine: list[Candidate] = [{**candidate, "optimizer": name} for candidate in work.candidates]
        seconds = dict.fromkeys(implementations, float("inf"))
        for _ in range(PROBE_ROUNDS):  # alternating, so that a burst of noise hits all alike
            for implementation in implementations:
                took = work._replace(candidates=mine).seconds({name: implementation})
                seconds[implementation] = min(seconds[implementation], took)
        chosen[name] = min(seconds, key=seconds.__getitem__)
    return chosen


def fastest_num_threads(work: Probe, implementations: Mapping[str, str], default: int) -> int:
    """One thread or the `default` number, whichever is faster."""
    seconds = {1: float("inf"), default: float("inf")}
    for _ in range(PROBE_ROUNDS):
        for num_threads in seconds:
            torch.set_num_threads(num_threads)
            seconds[num_threads] = min(seconds[num_threads], work.seconds(implementations))
    return min(seconds, key=seconds.__getitem__)


# --- the two forms ---


def train_loop(
    candidates: Sequence[Candidate],
    data: Data,
    recipe: Recipe,
    implementations: Mapping[str, str],
    *,
    num_threads: int = 1,
) -> tuple[list[dict[str, float]], float]:
    """The plain loop: one candidate after the other.

    Returns:
      Per candidate what `train` returns, and the wall-clock seconds of the whole loop.
    """
    torch.set_num_threads(num_threads)
    start = time.perf_counter()
    results = [
        train(candidate, data, recipe, implementations, seed)
        for seed, candidate in enumerate(candidates)
    ]
    return results, time.perf_counter() - start


_worker: dict[str, Any] = {}  # what `_start_worker` left in this process for `_work`


def _start_worker(arrays, recipe, implementations, flush_denormal, warm_up, barrier) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(flush_denormal)
    data = to_data(arrays, recipe.task)
    _worker.update(data=data, recipe=recipe, implementations=implementations)
    probe(warm_up, data, recipe).seconds(implementations)
    _worker["barrier"] = barrier


def _wait_for_all(_: int) -> None:
    _worker.pop("barrier").wait()


def _work(job: tuple[int, Candidate]) -> dict[str, float]:
    seed, candidate = job
    return train(candidate, **_worker, seed=seed)


def train_processes(
    candidates: Sequence[Candidate],
    arrays: Mapping[str, np.ndarray],
    recipe: Recipe,
    implementations: Mapping[str, str],
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
    data = to_data(arrays, recipe.task)
    barrier = context.Barrier(num_processes)
    setup = (dict(arrays), recipe, dict(implementations), flush_denormal, candidates, barrier)
    order = sorted(range(len(candidates)), key=lambda i: -cost(candidates[i], data, recipe))
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
      request: `form` ("loop" or "processes"), `candidates`, `arrays`, `recipe` (the fields of
        `Recipe`) and `num_processes`.

    Returns:
      `seconds`, `candidate_seconds` f64[P], `metrics` (name to f64[P]) and `choices`, what was
      found fastest.
    """
    recipe = Recipe(**request["recipe"])
    candidates, arrays = request["candidates"], request["arrays"]
    data = to_data(arrays, recipe.task)
    work = probe(candidates, data, recipe)
    flush_denormal = torch.set_flush_denormal(True)
    default_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    implementations = fastest_implementations(work)
    choices: dict[str, Any] = {"optimizers": implementations, "flush_denormal": flush_denormal}
    if request["form"] == "loop":
        choices["threads"] = fastest_num_threads(work, implementations, default_threads)
        results, seconds = train_loop(
            candidates, data, recipe, implementations, num_threads=choices["threads"]
        )
    else:
        choices["processes"] = request["num_processes"]
        results, seconds = train_processes(
            candidates,
            arrays,
            recipe,
            implementations,
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
