"""How well is the memory of training known before it is compiled, and before it is run?

Three figures for the program that trains one candidate at a time on one device: what the planner
predicts from the traced program, what the compiler accounts for, and by how much the resident
memory of a fresh process grows at most while the program runs. The inputs, which are there before,
are added to the growth. The program is run twice: what a process needs once, whatever it trains, is
not what is predicted. It is taken from a compilation cache that another process has filled, for
compiling takes more memory than running and leaves gaps that a run would fill.

The time of compiling is compared with its prediction as well: by the default cost model, and by the
one that is calibrated on this device.
"""

import argparse
import ctypes
import gc
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import harness
from jaxnas import parallel, spaces
from jaxnas.space import SearchSpace
from jaxnas.training import CostModel, Recipe, calibration, prediction
from jaxnas.training.data import Data, from_arrays
from jaxnas.training.memory import MIB, Job, footprint
from jaxnas.training.program import Batch

NUM_SLOTS = 4
NUM_CLASSES = 10


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
      space: "mlp" or "nasbench201".
      batch_size: rows per step.
      num_rows: rows of the data, three fifths of them for training.
      image_size: height and width of its images, for cells.
      num_channels: of the first stage, for cells.
      num_cells: per stage, for cells.
      width: of the widest layers, for perceptrons.
    """

    space: str
    batch_size: int
    num_rows: int
    image_size: int = 8
    num_channels: int = 16
    num_cells: int = 1
    width: int = 2048


SETTINGS = MappingProxyType(
    {
        "mlp": Setting("mlp", 256, 2000),
        "nasbench201-8": Setting("nasbench201", 64, 1000),
        "nasbench201-16": Setting("nasbench201", 64, 1000, image_size=16),
    }
)


class Problem(NamedTuple):
    """What is measured."""

    setting: Setting
    space: SearchSpace
    data: Data
    recipe: Recipe

    @property
    def job(self) -> Job:
        """Training on one device, without keeping variables."""
        return Job(self.space, self.recipe, self.data)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=3, help="processes to measure (default 3)")


def load(setting: Setting) -> Problem:
    """Noise for data: memory does not depend on the values."""
    rng = np.random.default_rng(0)
    if setting.space == "mlp":
        x = rng.normal(size=(setting.num_rows, 64))
        space = spaces.mlp(NUM_CLASSES, widths=(32, setting.width))
    else:
        shape = (setting.image_size, setting.image_size, 3)
        x = rng.normal(size=(setting.num_rows, *shape))
        space = spaces.nasbench201(
            NUM_CLASSES,
            num_channels=setting.num_channels,
            num_cells=setting.num_cells,
            image_size=setting.image_size,
        )
    data = from_arrays(jax.random.key(0), x, rng.integers(0, NUM_CLASSES, setting.num_rows))
    return Problem(setting, space, data, Recipe(epochs=1, batch_size=setting.batch_size))


# --- in processes of their own ---


def predict_and_compile(setting: Setting) -> dict[str, Any]:
    """Predicted and compiled bytes, predicted and measured seconds of compiling."""
    parallel.cpu_devices(1)
    problem = load(setting)
    bucket, job = problem.space.full_bucket, problem.job
    found = footprint(job, (bucket,), 1, NUM_SLOTS)
    program, shapes = job.program((bucket,), 1), job.shapes(1, NUM_SLOTS)
    worked = time.process_time()
    seconds = program.compile(*shapes)
    worked = time.process_time() - worked
    models = {"default": CostModel(), "calibrated": calibration.calibrate()}
    feature_shape = tuple(problem.data.train.x.shape[1:])
    return {
        "predicted": found.total(NUM_SLOTS),
        "compiled": program.compiled_bytes(*shapes),
        "compile_seconds": seconds,
        "compile_processor_seconds": worked,
        **{
            f"{name}_seconds": prediction.compile_seconds(
                model, problem.space, bucket, found.size, feature_shape
            )
            for name, model in models.items()
        },
        "size": found.size._asdict(),
    }


def run_twice(setting: Setting) -> tuple[int, int]:
    """Bytes by which resident memory grows while candidates are trained, inputs added.

    The first time it also holds what a process needs once: machine code, pools of threads and what
    libraries keep for themselves.
    """
    parallel.cpu_devices(1)
    problem = load(setting)
    job, bucket = problem.job, problem.space.full_bucket
    program = job.program((bucket,), 1)
    program.compile(*job.shapes(1, NUM_SLOTS))
    last = np.asarray([n - 1 for n in problem.space.num_choices], np.int32)
    batch = Batch(
        np.tile(last, (1, NUM_SLOTS, 1)),
        np.ones((1, NUM_SLOTS), np.float32),
        np.zeros((1, NUM_SLOTS, 2), np.uint32),
        np.asarray([[0, NUM_SLOTS]], np.int32),
    )
    inputs = parallel.spread(
        parallel.device_mesh(1), (batch, problem.data.train, problem.data.valid)
    )
    jax.block_until_ready(inputs)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(inputs))
    first, second = (_growth(lambda: program(*inputs)) + size for _ in range(2))
    return first, second


def _growth(run: Callable[[], Any]) -> int:
    """Bytes by which resident memory grows at most during `run`."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is not in use is given back
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields[name].split()[0]) * 1024


# --- the tables ---


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Compiles in one process and runs in several others."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

        def call(name):
            entry = f"benchmarks.memory:{name}"
            return harness.in_fresh_process(entry, problem.setting, environment=environment)

        found = call("predict_and_compile")
        runs = [call("run_twice") for _ in range(options.repeats)]
    first, second = zip(*runs, strict=True)
    return {**found, "first": first, "measured": second}


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The tables.

    Args:
      problem: what was measured.
      raw: from `measure`.
      machine: not used.

    Returns:
      "memory": one row with the three figures and their ratios; "compiling": seconds.
    """
    del problem, machine
    measured = harness.spread(raw["measured"])

    def in_mib(values):
        return harness.format_spread(harness.spread([value / MIB for value in values]), 1)

    predicted, compiled = raw["predicted"], raw["compiled"]
    return {
        "memory": [
            {
                "predicted MiB": predicted / MIB,
                "compiled MiB": compiled / MIB,
                "measured MiB": in_mib(raw["measured"]),
                "first time MiB": in_mib(raw["first"]),
                "predicted / compiled": predicted / compiled,
                "predicted / measured": predicted / measured["median"],
            }
        ],
        "compiling": [
            {
                "operations": raw["size"]["operations"],
                "convolutions": raw["size"]["convolutions"],
                "predicted s": raw["default_seconds"],
                "calibrated s": raw["calibrated_seconds"],
                "wall s": raw["compile_seconds"],
                "processor s": raw["compile_processor_seconds"],
            }
        ],
    }
