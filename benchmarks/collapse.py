"""Does DARTS collapse into skip connections, and do its diagnostics show it coming?

On NAS-Bench-201 the published DARTS ends with a skip connection on every edge, 54.30% on CIFAR-10,
in all runs of both orders (Dong & Yang, 2020, https://arxiv.org/abs/2001.00326, Table 5). Here is
its search with its own rates and its length, about 50 epochs of 390 updates: weights by SGD with
Nesterov momentum from 0.025 to 0.001, weight decay 5e-4, alpha by Adam, 3e-4, betas (0.5, 0.999),
weight decay 1e-3, batches of 64, no affine normalisation. Images and networks are smaller than the
published ones: scikit-learn's digits of 8x8 pixels, or a part of CIFAR-10 averaged down; half of
the training rows train weights, the other half alpha.

At `NUM_MARKS` points of a search are kept: the softmax of every edge, from which follow the
architecture that would be derived, its skip connections and its accuracy in the benchmark's own
table (CIFAR-10 after 200 epochs); the dominant eigenvalue of the architecture Hessian (Zela et al.,
2020, https://arxiv.org/abs/1909.09656); losses and scores. Two remedies stand beside it: robust
DARTS, the same search stopped where its rule says, read off the measurements, and DARTS-, which has
an auxiliary skip connection.

Needs `nasbench201.npz`, and for `cifar` also `cifar10_subset_8k_2k_uint8.npz`, in the folder
`JAXNAS_DATA`.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import one_shot, strategies_tabular
from jaxnas import datasets, oneshot, spaces, tables
from jaxnas.evaluators.low_fidelity import smaller_images
from jaxnas.nn.nasbench201 import EDGES
from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.early_stops import curvature
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.relaxations import linear_schedule, softmax, with_auxiliary
from jaxnas.spaces.nasbench201 import PUBLISHED_OPERATIONS, index_from_arch, string_from_arch
from jaxnas.tables.table import Table
from jaxnas.training import Data, Recipe, Split
from jaxnas.types import OneShot, split_like

METHODS = ("darts", "darts_minus")
NUM_MARKS = 50  # measurements of a search, as many as the published one has epochs
SHOWN = 5  # every such mark is in the table
WINDOW, LOOKBACK, RATIO, BEGIN = 5, 4, 1.3, 0.2  # the rule of robust DARTS
SKIP, NONE = (PUBLISHED_OPERATIONS.index(name) for name in ("skip_connect", "none"))
COLUMNS = ("train_loss", "valid_loss", "valid_score")


@dataclass(frozen=True)
class Setting:
    """One size of the search."""

    images: str  # "digits" or "cifar"
    num_seeds: int
    num_steps: int  # updates of a search, a multiple of NUM_MARKS
    num_channels: int
    num_cells: int  # per stage
    image_size: int = 8  # for cifar 8 or 16
    batch_size: int = 64
    num_train: int = 8000  # rows, for cifar


SETTINGS = MappingProxyType(
    {
        "smoke": Setting("digits", 1, 50, 4, 1),
        "digits": Setting("digits", 1, 20_000, 8, 1),
        "cifar": Setting("cifar", 1, 20_000, 8, 1),
        "cifar-deep": Setting("cifar", 1, 20_000, 4, 3),
        "cifar-16": Setting("cifar", 1, 20_000, 8, 1, image_size=16),
    }
)


class Problem(NamedTuple):
    """What every search is given."""

    setting: Setting
    table: Table
    task: oneshot.Problem
    halves: tuple[Split, Split]  # for weights and for alpha


class Found(NamedTuple):
    """What one search left; M marks."""

    strengths: np.ndarray  # f32[M, 6, 5]
    eigenvalue: np.ndarray  # f32[M], of one batch each
    train_loss: np.ndarray  # f32[M], mean since the mark before, as the next two
    valid_loss: np.ndarray  # f32[M]
    valid_score: np.ndarray  # f32[M]
    compile_seconds: float
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))


def load(setting: Setting) -> Problem:
    """Table, images and supernet.

    Raises:
      ValueError: for a number of updates that is no multiple of `NUM_MARKS`, or another size of
        images than 8 and 16.
      FileNotFoundError: without the table or the images.
    """
    if setting.image_size not in (8, 16):
        raise ValueError(f"image_size must be 8 or 16, got {setting.image_size}")
    if setting.num_steps < 1 or setting.num_steps % NUM_MARKS:
        raise ValueError(
            f"num_steps must be a positive multiple of {NUM_MARKS}, got {setting.num_steps}"
        )
    table = tables.nasbench201("cifar10", strategies_tabular.table_file())
    data = _images(setting)
    half = len(data.train.y) // 2
    halves = tuple(Split(data.train.x[part], data.train.y[part]) for part in one_shot._halves(half))
    size, _, channels = data.train.x.shape[1:]
    space = spaces.nasbench201(
        10,
        num_channels=setting.num_channels,
        num_cells=setting.num_cells,
        image_size=size,
        in_channels=channels,
        affine=False,
    )
    augmented = Recipe(crop=2, flip=True) if setting.images == "cifar" else Recipe()
    return Problem(setting, table, oneshot.from_space(space, data, augmented), halves)


def _images(setting: Setting) -> Data:
    if setting.images == "digits":
        return datasets.digits(jax.random.key(0), images=True)
    return smaller_images(one_shot._cifar(setting), setting.image_size)


def make_method(task: oneshot.Problem, title: str, num_steps: int) -> OneShot:
    """`oneshot.darts` or `oneshot.darts_minus` with the benchmark's recipe, and watched.

    Args:
      task: what is trained.
      title: in `METHODS`.
      num_steps: updates of the search.

    Returns:
      A method whose state holds strengths and eigenvalues of all marks in `early_stop`.
    """
    relaxation = softmax()
    if title == "darts_minus":
        skips = task.where("skip_connect")
        relaxation = with_auxiliary(relaxation, skips, linear_schedule(1.0, 0.0))
    # From the last update on, that is never, alpha would be stopped.
    watch = curvature(num_steps=num_steps, period=num_steps // NUM_MARKS, begin=1.0)
    return bilevel(
        task,
        Parts(relaxation, early_stop=watch),
        num_steps=num_steps,
        weight_optimizer=oneshot.Sgd(nesterov=True, weight_decay=5e-4),
    )


# --- searching ---


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Runs all searches.

    Returns:
      `methods`, and per method and seed the fields of `Found`.
    """
    found = [_searches(problem, title) for title in options.methods]
    fields = {
        name: np.asarray([[getattr(one, name) for one in row] for row in found])
        for name in Found._fields
    }
    return {"methods": list(options.methods), **fields}


def _searches(problem: Problem, title: str) -> list[Found]:
    """One search per seed; the programs are compiled once."""
    setting = problem.setting
    method = make_method(problem.task, title, setting.num_steps)
    started = time.perf_counter()
    init = jax.jit(lambda key: method.init(split_like(key, 2)[0]))
    go_on = jax.jit(
        lambda key, state, train, valid: oneshot.resume(
            key,
            method,
            state,
            train,
            valid,
            num_steps=setting.num_steps // NUM_MARKS,
            batch_size=setting.batch_size,
        )
    )
    key = jax.random.key(0)
    go_on = go_on.lower(key, init(key), *problem.halves).compile()
    compiling = time.perf_counter() - started
    keys = [jax.random.fold_in(jax.random.key(1), seed) for seed in range(setting.num_seeds)]
    return [_one_search(problem, title, (init, go_on), key, compiling) for key in keys]


def _one_search(problem: Problem, title: str, programs, key, compiling: float) -> Found:
    init, go_on = programs
    started = time.perf_counter()
    state, columns = init(key), {name: [] for name in COLUMNS}
    for mark in range(NUM_MARKS):
        state, history = go_on(key, state, *problem.halves)
        for name, values in columns.items():
            values.append(float(np.mean(history[name])))
        arch = np.argmax(state.strengths, axis=-1)
        if (mark + 1) % SHOWN == 0:
            seconds = time.perf_counter() - started
            print(f"  {title}, {state.step} updates, {seconds:.0f} s: {arch}", file=sys.stderr)
    seconds = time.perf_counter() - started
    watch = jax.device_get(state.early_stop)
    means = [np.asarray(values) for values in columns.values()]
    return Found(watch.kept, watch.values, *means, compiling, seconds)


# --- the tables ---


def smoothed(values: np.ndarray) -> np.ndarray:
    """Means of the last `WINDOW` measurements, of fewer at the beginning: f64[M].

    Example:
      >>> smoothed(np.array([2.0, 4.0, 6.0])).tolist()
      [2.0, 3.0, 4.0]
    """
    starts = np.maximum(np.arange(len(values)) - WINDOW + 1, 0)
    return np.array([np.mean(values[s : i + 1]) for i, s in enumerate(starts)])


def final_mark(eigenvalue: np.ndarray) -> int:
    """The mark whose strengths stand by the rule of robust DARTS, the last one if it never stops.

    Args:
      eigenvalue: f32[M], magnitudes.

    Example:
      >>> final_mark(np.array([1.0] * 20 + [2.0] * 30))
      17
    """
    means = smoothed(eigenvalue)
    for mark in range(LOOKBACK, len(means)):
        late = mark + 1 > BEGIN * len(means)
        if late and means[mark] > RATIO * means[mark - LOOKBACK]:
            return mark - LOOKBACK
    return len(means) - 1


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The tables: what is derived, how the searches went, and every edge at the end."""
    del machine
    accuracy = np.asarray(problem.table.columns["test_accuracy"])
    ends, course, edges = [], [], []
    for k, title in enumerate(raw["methods"]):
        last = [NUM_MARKS - 1] * len(raw["eigenvalue"][k])
        ends.append(_end(title, raw, k, last, accuracy))
        if title == "darts":
            stops = [final_mark(np.asarray(values)) for values in raw["eigenvalue"][k]]
            ends.append(_end("robust_darts, the same searches", raw, k, stops, accuracy))
        course += _course(problem, title, raw, k, accuracy)
        edges += _edges(title, np.asarray(raw["strengths"][k])[:, -1].mean(axis=0))
    references = {
        "all skip connections": accuracy[index_from_arch(np.full(6, SKIP))],
        "mean of all": accuracy.mean(),
        "best of all": accuracy.max(),
    }
    return {
        "what is derived": ends,
        "the course of the searches, means over seeds": course,
        "every edge at the end, means over seeds": edges,
        "accuracy in the table, for comparison": [{k: float(v) for k, v in references.items()}],
    }


def _derived(strengths: Any) -> np.ndarray:
    """The strongest operation of every edge, `none` included: i64[..., 6]."""
    return np.argmax(np.asarray(strengths), axis=-1)


def _end(title: str, raw, k: int, marks: list[int], accuracy: np.ndarray) -> dict[str, Any]:
    """What is derived at a mark of every seed's search."""
    arch = _derived([s[mark] for s, mark in zip(raw["strengths"][k], marks, strict=True)])
    return {
        "method": title,
        "stopped at": float(np.mean([(mark + 1) / NUM_MARKS for mark in marks])),
        "skip connections": float((arch == SKIP).sum(axis=-1).mean()),
        "none": float((arch == NONE).sum(axis=-1).mean()),
        "accuracy in the table": float(accuracy[index_from_arch(arch)].mean()),
        "seconds": float(np.mean(raw["seconds"][k])),
        "first seed's": string_from_arch(arch[0]),
    }


def _course(problem: Problem, title: str, raw, k: int, accuracy) -> list[dict[str, Any]]:
    """One row per `SHOWN` marks."""
    strengths = np.asarray(raw["strengths"][k])  # [S, M, 6, 5]
    arch = _derived(strengths)
    eigenvalue = np.mean([smoothed(np.asarray(one)) for one in raw["eigenvalue"][k]], axis=0)
    means = {name: np.mean(np.asarray(raw[name][k]), axis=0) for name in COLUMNS}
    rows = []
    for mark in range(SHOWN - 1, NUM_MARKS, SHOWN):
        now = strengths[:, mark]
        rows.append(
            {
                "method": title,
                "updates": problem.setting.num_steps * (mark + 1) // NUM_MARKS,
                "skip connections": float((arch[:, mark] == SKIP).sum(axis=-1).mean()),
                "none": float((arch[:, mark] == NONE).sum(axis=-1).mean()),
                "weight of skip": float(now[..., SKIP].mean()),
                "of none": float(now[..., NONE].mean()),
                "entropy": one_shot.strength_entropy(now.reshape(-1, now.shape[-1])),
                "eigenvalue": float(eigenvalue[mark]),
                **{name.replace("_", " "): float(values[mark]) for name, values in means.items()},
                "accuracy in the table": float(accuracy[index_from_arch(arch[:, mark])].mean()),
            }
        )
    return rows


def _edges(title: str, strengths: np.ndarray) -> list[dict[str, Any]]:
    """One row per edge: the weights f32[6, 5] of its operations."""
    return [
        {
            "method": title,
            "edge": f"{target}<-{source}",
            **{name: float(weight) for name, weight in zip(PUBLISHED_OPERATIONS, row, strict=True)},
        }
        for (target, source), row in zip(EDGES, strengths, strict=True)
    ]
