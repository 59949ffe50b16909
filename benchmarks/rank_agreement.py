"""Does a short training on small images rank architectures as the published full training does?

Architectures of NAS-Bench-201 are drawn without replacement from all 15,625, with a fixed key, and
trained from scratch by `jaxnas.training.population` for a few epochs on a part of CIFAR-10 that is
averaged down to 16x16 pixels, in a network with few channels and one cell per stage. Their
validation accuracy after every epoch is compared with the benchmark's own test accuracy after 200
epochs on all of CIFAR-10 (Dong & Yang, 2020, https://arxiv.org/abs/2001.00326), beside what costs
nothing to know:

* FLOPs, a baseline that many training-free scores do not beat. The number of parameters orders the
  space in the same way, by 3x3 convolutions first and 1x1 convolutions second: its row is a check.
* the sum of the ranks by accuracy and by FLOPs.
* the table's own validation accuracies after 12 and 200 epochs: what more training gives.

Cells whose output does not depend on their input are kept, as they are part of the space: all of
them classify at random, which is easy to predict. The column "connected" is without them, "better
half" is the half of the architectures that is better in truth, where a search has to decide.

The recipe is the benchmark's (Nesterov momentum, cosine decay from 0.1, weight decay 5e-4, flips
and crops) at batch size 64; crops shift by 2 pixels, for the image is half as wide. Validation rows
are those of CIFAR-10's test set in the subset; no architecture and no setting is chosen by them.

Needs `nasbench201.npz` and `cifar10_subset_8k_2k_uint8.npz` in the folder `JAXNAS_DATA`.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import _cells, strategies_tabular
from jaxnas import analysis, spaces, tables
from jaxnas.nn.nasbench201 import EDGES
from jaxnas.space import SearchSpace
from jaxnas.spaces.nasbench201 import PUBLISHED_OPERATIONS
from jaxnas.tables.table import Table
from jaxnas.training import Data, Recipe, population
from jaxnas.training.data import from_splits

IMAGE_SIZE = 16
NUM_RESAMPLES = 2000  # of the bootstrap over architectures
LEVEL = 0.95  # of its intervals


@dataclass(frozen=True)
class Setting:
    """One size of the question; the defaults take minutes on two cores."""

    num_candidates: int = 200
    num_train: int = 4000  # rows, up to 8,000
    num_valid: int = 2000  # rows, up to 2,000
    epochs: int = 4
    num_channels: int = 8
    num_cells: int = 1  # per stage


SETTINGS = MappingProxyType({"cifar": Setting()})


class Problem(NamedTuple):
    """What is trained, and what is known about it."""

    setting: Setting
    space: SearchSpace
    table: Table
    rows: np.ndarray  # i64[P], of the table
    data: Data
    recipe: Recipe

    @property
    def arch(self) -> np.ndarray:
        """The architectures: i32[P, 6]."""
        return np.asarray(self.table.archs)[self.rows]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (default 0)")


def load(setting: Setting) -> Problem:
    """Architectures, images and table; architectures and rows are the same in every process.

    Raises:
      FileNotFoundError: without the table or the images.
    """
    table = tables.nasbench201("cifar10", strategies_tabular.table_file())
    key = jax.random.key(1)
    rows = jax.random.choice(key, table.num_rows, (setting.num_candidates,), replace=False)
    space = spaces.nasbench201(
        10,
        num_channels=setting.num_channels,
        num_cells=setting.num_cells,
        image_size=IMAGE_SIZE,
    )
    return Problem(setting, space, table, np.asarray(rows), _load_data(setting), _recipe(setting))


def _load_data(setting: Setting) -> Data:
    with np.load(_cells.cifar_file()) as raw:
        train = _picked(raw["x_train"], raw["y_train"], setting.num_train)
        valid = _picked(raw["x_test"], raw["y_test"], setting.num_valid)
    return from_splits(train, valid, valid, num_classes=10, name="cifar")  # nothing is tested


def _picked(x: np.ndarray, y: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Images f32[N, 16, 16, 3] in [0, 1] and labels i64[N] of `num_rows` random rows."""
    if not 1 <= num_rows <= len(x):
        raise ValueError(f"the subset has 1 to {len(x)} rows of this kind, got {num_rows}")
    order = np.random.default_rng(0).permutation(len(x))[:num_rows]
    blocks = x[order].reshape(num_rows, IMAGE_SIZE, 2, IMAGE_SIZE, 2, 3) / np.float32(255)
    return blocks.mean(axis=(2, 4)), y[order].astype(np.int64)


def _recipe(setting: Setting) -> Recipe:
    return Recipe(
        epochs=setting.epochs,
        batch_size=_cells.BATCH_SIZE,
        optimizer="nesterov",
        learning_rate=_cells.LEARNING_RATE,
        schedule="cosine",
        weight_decay=5e-4,
        crop=2,
        flip=True,
        curves=True,
    )


# --- measuring ---


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Trains every architecture once.

    Returns:
      `row` i64[P] of the table; `accuracy` f32[P, E] after every epoch; `seed`; `compile_seconds`
      and `run_seconds`.
    """
    trained = population.train(
        problem.space, problem.arch, problem.data, problem.recipe, jax.random.key(options.seed)
    )
    return {
        "row": problem.rows,
        "accuracy": trained.valid_curve,
        "seed": options.seed,
        "compile_seconds": trained.compile_seconds,
        "run_seconds": trained.run_seconds,
    }


# --- the tables ---


def connected(arch: np.ndarray) -> np.ndarray:
    """Whether a cell's output depends on its input: bool[P] of i32[P, 6].

    Example:
      >>> through_node_1, from_nowhere = [3, 0, 0, 0, 1, 0], [0, 0, 3, 0, 0, 3]
      >>> connected(np.array([through_node_1, from_nowhere])).tolist()
      [True, False]
    """
    used = arch != PUBLISHED_OPERATIONS.index("none")
    reached = np.zeros((len(arch), 4), bool)
    reached[:, 0] = True
    for edge, (target, source) in enumerate(EDGES):  # in the order of the targets
        reached[:, target] |= used[:, edge] & reached[:, source]
    return reached[:, -1]


def ranks(values: np.ndarray) -> np.ndarray:
    """From 1 for the least, ties with their mean rank; a failed training is the least.

    Example:
      >>> ranks(np.array([0.5, 0.1, np.nan, 0.5])).tolist()
      [3.5, 2.0, 1.0, 3.5]
    """
    known = jnp.where(jnp.isnan(values), -jnp.inf, values)
    return np.asarray(jax.scipy.stats.rankdata(known, method="average"))


def predictors(problem: Problem, accuracy: np.ndarray) -> dict[str, np.ndarray]:
    """What is compared with the truth, as ranks: name to f32[P].

    Args:
      problem: with the table that the rest is looked up in.
      accuracy: f32[P, E], NaN where a training failed.
    """
    table, rows = problem.table, problem.rows
    epochs = range(1, accuracy.shape[1] + 1)
    ours = {f"accuracy after epoch {e}": ranks(a) for e, a in zip(epochs, accuracy.T, strict=True)}
    flops = ranks(np.asarray(table.columns["flops"])[rows])
    return {
        **ours,
        "FLOPs": flops,
        "parameters": ranks(np.asarray(table.columns["params"])[rows]),
        "accuracy and FLOPs": ranks(list(ours.values())[-1] + flops),
        **{
            f"table's accuracy after {round(200 * float(fidelity))} epochs": ranks(
                np.nanmean(table.metrics["valid_accuracy"][rows, level], axis=-1)
            )
            for level, fidelity in enumerate(table.fidelities)
        },
    }


def bootstrap(key: Array, truth: Array, predictions: Array) -> Array:
    """Spearman's correlations with the truth among architectures drawn with replacement.

    Args:
      key: PRNG key.
      truth: f32[P].
      predictions: f32[K, P].

    Returns:
      f32[NUM_RESAMPLES, K]; a column's differences from another one are paired.
    """

    def resampled(k):
        index = jax.random.randint(k, truth.shape, 0, truth.size)
        return jax.vmap(lambda p: analysis.spearman(p[index], truth[index]))(predictions)

    return jax.lax.map(resampled, jax.random.split(key, NUM_RESAMPLES))


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The tables.

    Args:
      problem: what was measured.
      raw: from `measure`.
      machine: not used.

    Returns:
      "rank correlation with the test accuracy after 200 epochs", one row per predictor, with
      bootstrap intervals over architectures of Spearman's and of its difference from that of FLOPs;
      "architectures"; "seconds".
    """
    del machine
    truth = np.asarray(problem.table.columns["test_accuracy"])[problem.rows]
    found = predictors(problem, np.asarray(raw["accuracy"]))
    alive = connected(problem.arch)
    return {
        "rank correlation with the test accuracy after 200 epochs": _agreement(truth, found, alive),
        "architectures": [_population(problem, raw, truth, alive)],
        "seconds": [_seconds(problem, raw)],
    }


def _agreement(
    truth: np.ndarray, found: Mapping[str, np.ndarray], alive: np.ndarray
) -> list[dict[str, Any]]:
    names, predictions = list(found), np.stack(list(found.values()))
    drawn = np.asarray(jax.jit(bootstrap)(jax.random.key(0), truth, predictions))
    gained = drawn - drawn[:, [names.index("FLOPs")]]
    better = truth >= np.median(truth)

    def spearman(ranked, among):
        return float(analysis.spearman(ranked[among], truth[among]))

    everywhere = np.ones(len(truth), bool)
    free = spearman(found["FLOPs"], everywhere)
    rows = []
    for column, (name, ranked) in enumerate(found.items()):
        whole = spearman(ranked, everywhere)
        rows.append(
            {
                "predictor": name,
                "Spearman": _with_interval(whole, drawn[:, column]),
                "minus FLOPs'": _with_interval(whole - free, gained[:, column]),
                "Kendall": float(analysis.kendall(ranked, truth)),
                "Spearman, connected": spearman(ranked, alive),
                "Spearman, better half": spearman(ranked, better),
            }
        )
    return rows


def _with_interval(value: float, drawn: np.ndarray) -> str:
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return f"{value:.3f} [{low:.3f} to {high:.3f}]"


def _population(
    problem: Problem, raw: Mapping[str, Any], truth: np.ndarray, alive: np.ndarray
) -> dict[str, Any]:
    last = np.asarray(raw["accuracy"])[:, -1]
    chosen = int(np.argmax(np.where(np.isnan(last), -np.inf, last)))
    return {
        "architectures": len(truth),
        "not connected": int((~alive).sum()),
        "different as graphs": len(
            np.unique(spaces.nasbench201().representative(problem.arch), axis=0)
        ),
        "diverged": int(np.isnan(last).sum()),
        "our best accuracy": float(last[chosen]),
        "its test accuracy after 200": float(truth[chosen]),
        "best of all": float(truth.max()),
    }


def _seconds(problem: Problem, raw: Mapping[str, Any]) -> dict[str, float]:
    total = raw["compile_seconds"] + raw["run_seconds"]
    published = np.asarray(problem.table.seconds)[problem.rows, -1].sum()
    return {
        "compiling": raw["compile_seconds"],
        "training": raw["run_seconds"],
        "per architecture": total / len(problem.rows),
        "200 epochs on the table's GPU": float(published),
    }
