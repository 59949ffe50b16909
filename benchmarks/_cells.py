"""The problem of `population_cells`: settings, candidates, images, recipe and operation counts."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import harness
from jaxnas import spaces
from jaxnas.space import SearchSpace, sample
from jaxnas.training import Data, Recipe
from jaxnas.training.data import from_splits
from jaxnas.types import split_like

CIFAR = "cifar10_subset_8k_2k_uint8.npz"
BATCH_SIZE = 64
LEARNING_RATE = 0.1
MAX_STEPS_PER_EPOCH = 20  # few rows, or scoring them after training would be what is measured


@dataclass(frozen=True)
class Setting:
    """One question at one size."""

    name: str
    question: str  # "population", "flat", "placement" or "profile"
    images: str  # "digits" of 8x8 pixels or "cifar" of 16x16
    num_candidates: int
    num_valid: int = 320
    num_channels: int = 16
    num_cells: int = 1  # per stage


class Problem(NamedTuple):
    """What every side is given, but for what depends on the number of steps: see `make_data`."""

    setting: Setting
    space: SearchSpace
    arch: np.ndarray  # i32[P, 6]


def load(setting: Setting) -> Problem:
    """Space and candidates from a fixed seed, the same in every process."""
    space = spaces.nasbench201(
        10,
        num_channels=setting.num_channels,
        num_cells=setting.num_cells,
        image_size=8 if setting.images == "digits" else 16,
        in_channels=1 if setting.images == "digits" else 3,
    )
    keys = split_like(jax.random.key(1), setting.num_candidates)
    return Problem(setting, space, np.asarray(jax.vmap(lambda key: sample(key, space))(keys)))


def cifar_file() -> Path:
    """Where the CIFAR-10 subset would be: in the folder `JAXNAS_DATA`."""
    folder = os.environ.get("JAXNAS_DATA", harness.ROOT.parent / "shared" / "data")
    return Path(folder) / CIFAR


def _images(name: str) -> tuple[np.ndarray, np.ndarray]:
    """f32[N, H, W, C] in [0, 1] and labels i64[N], in a fixed random order."""
    if name == "digits":
        from sklearn.datasets import load_digits  # slow to import

        raw = load_digits()
        x, y = raw.images[..., None] / 16.0, raw.target
    else:
        with np.load(cifar_file()) as raw:
            x, y = raw["x_train"] / 255.0, raw["y_train"]
        x = x.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4))  # 32x32 to 16x16
    order = np.random.default_rng(0).permutation(len(x))
    return x[order].astype(np.float32), y[order].astype(np.int64)


def steps_per_epoch(steps: int) -> int:
    """The largest divisor of `steps` up to `MAX_STEPS_PER_EPOCH`.

    Example:
      >>> steps_per_epoch(100), steps_per_epoch(7)
      (20, 7)
    """
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    return max(n for n in range(1, MAX_STEPS_PER_EPOCH + 1) if steps % n == 0)


def make_data(setting: Setting, steps: int) -> tuple[Data, Recipe]:
    """Rows and recipe with which every candidate takes exactly `steps` steps."""
    x, y = _images(setting.images)
    num_train = steps_per_epoch(steps) * BATCH_SIZE
    held = slice(setting.num_valid)
    train = slice(setting.num_valid, setting.num_valid + num_train)
    valid = (x[held], y[held])  # nothing reads the test rows
    data = from_splits((x[train], y[train]), valid, valid, num_classes=10, name=setting.images)
    recipe = Recipe(
        epochs=steps // steps_per_epoch(steps),
        batch_size=BATCH_SIZE,
        optimizer="nesterov",
        learning_rate=LEARNING_RATE,
        schedule="cosine",
    )
    return data, recipe


def candidate_flops(problem: Problem, steps: int) -> np.ndarray:
    """Floating-point operations that training each candidate takes: f64[P].

    Convolutions and the last layer, for every edge that has one: forward, gradient of the weights,
    and gradient of the inputs except for the stem's; and the forward passes that score it.
    """
    network = problem.space.network(problem.arch[0])
    stem = 2.0 * 9 * network.in_channels * network.num_channels * network.image_size**2
    forward = np.array([problem.space.cost(row).flops for row in problem.arch])
    scored = steps_per_epoch(steps) * BATCH_SIZE + problem.setting.num_valid
    return steps * BATCH_SIZE * (3.0 * forward - stem) + scored * forward
