"""The cost model of the device at hand, from a measurement of some seconds.

The measured seconds are those of small programs whose work is known: a matrix product, a
convolution and a normalisation with their gradients, an optimiser's update, and the training of a
tiny perceptron, which is nearly all overhead and whose compilation is timed as well. What one
number stands for several constants, they are the defaults times a common factor.

A plan must not depend on the clock. So the result is kept in a file per kind of device, number of
cores and version of JAX, which every later process reads; and a run that may be resumed has to keep
the model itself, since the file may be gone by then.
"""

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxnas.nn.conv import conv
from jaxnas.nn.mlp import MLP
from jaxnas.nn.norm import batch_norm
from jaxnas.parallel import cache_folder
from jaxnas.training.candidate import Trainee, train_candidate
from jaxnas.training.costs import CONVOLUTIONS, CostModel
from jaxnas.training.data import Split, Task
from jaxnas.training.liveness import operation_names
from jaxnas.training.recipe import Recipe

ROUNDS = 3  # of each measurement; the fastest counts, since other work only ever adds time


def calibrated(folder: str | os.PathLike | None = None) -> CostModel:
    """The cost model of this device: read from the file if there is one, else measured and kept.

    Args:
      folder: where the files are; None: the user's cache folder. One that cannot be written to is
        as good as an empty one.

    Returns:
      The same `CostModel` in every process that uses the folder, and in all processes that train
      together.
    """
    path = Path(cache_folder() if folder is None else folder) / f"calibration-{_digest()}.json"
    model = _read(path)
    if model is None:
        model = _keep(path, calibrate())
    if jax.process_count() > 1:
        values = multihost_utils.broadcast_one_to_all(np.asarray(model, np.float64))
        model = CostModel(*map(float, values))
    return model


def calibrate() -> CostModel:
    """Measures the cost model of the first device; takes some seconds, most of them compiling."""
    default = CostModel()
    training, compiling = _tiny_training(default)
    return CostModel(
        compile_program=default.compile_program * compiling,
        compile_operation=default.compile_operation * compiling,
        compile_convolution=default.compile_convolution * compiling,
        step=default.step * training,
        layer=default.layer * training,
        flop=_matrix_flop(),
        conv_flop=_conv_flop(),
        parameter=_parameter(),
        activation=_activation(),
    )


def device_description() -> dict[str, Any]:
    """What a calibration depends on, as simple JSON values."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "processor": platform.processor() or platform.machine(),
        "num_cores": os.cpu_count(),
        "num_devices": jax.local_device_count(),
        "jax": jax.__version__,
        "model": list(CostModel._fields),
    }


def _digest() -> str:
    text = json.dumps(device_description(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> CostModel | None:
    try:
        stored = json.loads(path.read_text())["seconds"]
        return CostModel(**{name: float(stored[name]) for name in CostModel._fields})
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one
        return None


def _keep(path: Path, model: CostModel) -> CostModel:
    """Writes the file, unless another process was faster, whose model counts then."""
    text = json.dumps({"seconds": model._asdict(), **device_description()}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder, "calibration.json")
            whole.write_text(text)
            if _read(path) is None:
                path.unlink(missing_ok=True)
            os.link(whole, path)
    except OSError:
        pass
    return _read(path) or model


# --- measurements ---


def _fastest(run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _repeated(step: Callable[[Any], Any], start: Any, repeats: int) -> float:
    """Seconds of one `step` inside a loop, which is where training takes place."""
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda _, x: step(x), x))
    jax.block_until_ready(loop(start))
    return _fastest(lambda: loop(start)) / repeats


def _descended(loss_fn: Callable[..., Any]) -> Callable[[Any], Any]:
    """A step that changes its operands a little, so that it cannot be left out of a loop."""

    def step(operands):
        gradients = jax.grad(lambda operands: loss_fn(*operands))(operands)
        return jax.tree.map(lambda x, g: x - 1e-6 * g, operands, gradients)

    return step


def _matrix_flop(rows: int = 64, size: int = 256, repeats: int = 50) -> float:
    def loss(x, kernel):
        return jnp.sum(jnp.square(x @ kernel))

    start = (jnp.ones((rows, size)), jnp.full((size, size), 1e-3))
    return _repeated(_descended(loss), start, repeats) / (3 * 2 * rows * size * size)


def _conv_flop(rows: int = 32, size: int = 8, channels: int = 16, repeats: int = 20) -> float:
    def loss(x, kernel):
        return jnp.sum(jnp.square(conv(x, kernel)))

    start = (
        jnp.ones((rows, size, size, channels)),
        jnp.full((3, 3, channels, channels), 1e-3),
    )
    flops = 2 * rows * size * size * 9 * channels * channels
    return _repeated(_descended(loss), start, repeats) / (3 * flops)


def _activation(rows: int = 32, size: int = 8, channels: int = 16, repeats: int = 20) -> float:
    def loss(x, scale, bias):
        y, _, _ = batch_norm(jax.nn.relu(x), scale, bias)
        return jnp.sum(jnp.square(y))

    x = jnp.linspace(-1.0, 1.0, rows * size * size * channels)
    start = (x.reshape(rows, size, size, channels), jnp.ones(channels), jnp.zeros(channels))
    # What `network_cost` counts for a normalisation and a rectifier: six arrays written.
    return _repeated(_descended(loss), start, repeats) / (6 * x.size)


def _parameter(size: int = 500_000, repeats: int = 5) -> float:
    def adam(state):
        params, mean, square = state
        gradient = 1e-3 * params
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * jnp.square(gradient)
        return params - 1e-3 * mean / (jnp.sqrt(square) + 1e-8), mean, square

    start = (jnp.ones(size), jnp.zeros(size), jnp.zeros(size))
    return _repeated(adam, start, repeats) / size


class _Plain:
    """A perceptron in the shape of a supernet."""

    def __init__(self, module: MLP):
        self.init = lambda key, x, choice, train: module.init(key, x, train=train)
        self.apply = lambda variables, x, choice, **options: module.apply(variables, x, **options)
        self.__call__ = module.__call__


def _tiny_training(default: CostModel, epochs: int = 40) -> tuple[float, float]:
    """Overhead of a step and seconds of compiling, both as multiples of the default's."""
    widths, rows, batch_size = (8, 8), 64, 8
    recipe = Recipe(epochs=epochs, batch_size=batch_size)
    trainee = Trainee(
        _Plain(MLP(widths, num_outputs=2)), Task("classification", 2), recipe, ("adam",), None
    )
    split = Split(jnp.zeros((rows, 4)), jnp.zeros(rows, jnp.int32))
    # A constant that no earlier program had, so that compilation is not read from a cache.
    unique = np.frombuffer(os.urandom(8), np.uint32)

    def train(budget):
        outcome, _ = train_candidate(
            trainee, split, split, jnp.zeros(1, jnp.int32), budget, jnp.asarray(unique)
        )
        return outcome.train_curve

    traced = jax.jit(train).trace(jnp.float32(1.0))
    names = operation_names(traced.jaxpr.jaxpr)
    predicted = (
        default.compile_program
        + default.compile_operation * len(names)
        + default.compile_convolution * sum(name in CONVOLUTIONS for name in names)
    )
    # On a busy machine the processor time is the lesser, on an idle one with many cores the other.
    started, worked = time.perf_counter(), time.process_time()
    run = traced.lower().compile()
    seconds = min(time.perf_counter() - started, time.process_time() - worked)
    compiling = seconds / predicted

    jax.block_until_ready(run(jnp.float32(1.0)))
    whole, part = (_fastest(lambda b=b: run(jnp.float32(b))) for b in (1.0, 0.25))
    step = max(1e-9, whole - part) / (0.75 * epochs * (rows // batch_size))
    return step / (default.step + default.layer * (len(widths) + 1)), compiling
