"""Do one-shot methods find better cells than random search at equal cost?

Each method searches the supernet of NAS-Bench-201 on real images: scikit-learn's digits of 8x8
pixels, or a part of CIFAR-10 averaged down to 16x16. Half of the training rows train weights, the
other half architecture parameters, as in Dong & Yang, 2020, https://arxiv.org/abs/2001.00326, whose
one-shot searches have no affine normalisation either. The validation rows choose among what single
paths and their evolution find, the test rows only judge. Every derived architecture is looked up in
the benchmark's own table (test accuracy on CIFAR-10 after 200 epochs) and trained here from scratch
with a short recipe.

Random search trains a pool of random architectures with that recipe. It is given as many of them as
take the CPU seconds that the method's search took, compilation aside, and picks by validation
accuracy; its result is the expectation over the architectures that it may have drawn. "Chance" is
the table's mean over all architectures. Seconds are of the CPU, not of a clock, because a search
and a population keep different numbers of cores busy.

Adam moves a parameter by its learning rate per update at most, and the published searches make
about 20,000 updates; so that parameters get as far here, their rates are multiplied by
`alpha_factor`. All else about a method is its own.

What goes wrong in a search is visible while it does: the number of skip connections and of `none`
in the architecture that would be derived, the entropy of the operations' strengths, and for robust
DARTS the dominant eigenvalue of the architecture Hessian, at `NUM_MARKS` points of every search.

Needs `nasbench201.npz`, and for `cifar` also `cifar10_subset_8k_2k_uint8.npz`, in the folder
`JAXNAS_DATA`.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, rank_agreement, strategies_tabular
from jaxnas import datasets, evaluators, oneshot, search, spaces, strategies, tables
from jaxnas.search import best
from jaxnas.space import SearchSpace, sample
from jaxnas.spaces.nasbench201 import PUBLISHED_OPERATIONS, index_from_arch
from jaxnas.tables.table import Table
from jaxnas.training import Data, Recipe, Split, population
from jaxnas.training.data import from_splits
from jaxnas.types import OneShot, PyTree, split_like

# Title to name in `oneshot.ALL`; an evolution searches what `single_path` has trained.
METHODS = MappingProxyType(
    {
        "darts": "darts",
        "gdas": "gdas",
        "drnas": "drnas",
        "pc_darts": "pc_darts",
        "robust_darts": "robust_darts",
        "random_weight_sharing": "random_weight_sharing",
        "single_path + evolution": "single_path",
    }
)
EVOLVED = "single_path"
# Adam's learning rates for architecture parameters in the papers.
ALPHA_RATES = MappingProxyType(
    {"darts": 3e-4, "gdas": 3e-4, "drnas": 6e-4, "pc_darts": 6e-4, "robust_darts": 3e-4}
)
PARTIAL = MappingProxyType({"pc_darts": 4})  # the share of the channels that operations see
NUM_MARKS = 5  # points of a search at which its state is looked at
POPULATION, CHILDREN = 20, 5  # of the evolution


@dataclass(frozen=True)
class Setting:
    """One size of the question."""

    images: str  # "digits" or "cifar"
    num_seeds: int
    num_steps: int  # updates of a search, a multiple of NUM_MARKS
    evaluations: int  # of the evolution, a multiple of CHILDREN
    num_random: int  # architectures in the pool of random search
    epochs: int  # of every training from scratch
    num_channels: int = 8
    batch_size: int = 64
    num_train: int = 8000  # rows, for cifar
    alpha_factor: int = 25  # of `ALPHA_RATES`


SETTINGS = MappingProxyType(
    {
        "smoke": Setting("digits", 1, 10, 10, 2, 1, num_channels=4),
        "digits": Setting("digits", 3, 500, 200, 32, 10),
        "cifar": Setting("cifar", 3, 500, 200, 32, 6),
    }
)


class Problem(NamedTuple):
    """What every method is given."""

    setting: Setting
    table: Table
    data: Data
    halves: tuple[Split, Split]  # for weights and for architecture parameters
    recipe: Recipe

    def space(self, method: str = "") -> SearchSpace:
        """The space whose supernet `method` trains; "": for networks of their own."""
        size, _, channels = self.data.train.x.shape[1:]
        options = {"affine": False, "partial": PARTIAL.get(method, 1)} if method else {}
        return spaces.nasbench201(
            10,
            num_channels=self.setting.num_channels,
            num_cells=1,
            image_size=size,
            in_channels=channels,
            **options,
        )


class Found(NamedTuple):
    """What one search gave; M marks."""

    arch: np.ndarray  # i32[6]
    marks: np.ndarray  # i32[M, 6], what would have been derived
    entropy: np.ndarray  # f32[M], of the strengths, in units of its largest value
    eigenvalue: np.ndarray  # f32[M]
    valid_score: np.ndarray  # f32[M], mean since the mark before
    compile_seconds: float
    seconds: float  # of the CPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))


def load(setting: Setting) -> Problem:
    """Table and images; the same rows in every process.

    Raises:
      ValueError: for a number of updates or evaluations that is no multiple of what it must be.
      FileNotFoundError: without the table or the images.
    """
    for name, number, of in (
        ("num_steps", setting.num_steps, NUM_MARKS),
        ("evaluations", setting.evaluations, CHILDREN),
    ):
        if number < 1 or number % of:
            raise ValueError(f"{name} must be a positive multiple of {of}, got {number}")
    table = tables.nasbench201("cifar10", strategies_tabular.table_file())
    digits = setting.images == "digits"
    data = datasets.digits(jax.random.key(0), images=True) if digits else _cifar(setting)
    half = len(data.train.y) // 2
    halves = tuple(Split(data.train.x[part], data.train.y[part]) for part in _halves(half))
    recipe = Recipe(
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        optimizer="nesterov",
        learning_rate=0.1,
        schedule="cosine",
        weight_decay=5e-4,
        crop=0 if digits else 2,
        flip=not digits,
    )
    return Problem(setting, table, data, halves, recipe)


def _halves(half: int) -> tuple[slice, slice]:
    return slice(half), slice(half, 2 * half)


def _cifar(setting: Setting) -> Data:
    """Training rows of the subset; its test rows are halved into validation and test."""
    with np.load(rank_agreement._cells.cifar_file()) as raw:
        train = rank_agreement._picked(raw["x_train"], raw["y_train"], setting.num_train)
        x, y = rank_agreement._picked(raw["x_test"], raw["y_test"], len(raw["y_test"]))
    valid, test = ((x[part], y[part]) for part in _halves(len(y) // 2))
    return from_splits(train, valid, test, num_classes=10, name="cifar")


# --- searching ---


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Runs all searches, then trains from scratch what they found and a pool of random cells.

    Returns:
      `methods`, per method and seed the fields of `Found` as arrays, `retrained` f32[methods,
      seeds], and of the pool `pool` i32[P, 6], `pool_valid` f32[P], `pool_test` f32[P] and
      `pool_seconds`, of the CPU, per architecture.
    """
    found = {title: _searches(problem, title) for title in options.methods}
    arch = np.stack([[one.arch for one in row] for row in found.values()])
    keys = split_like(jax.random.key(1), problem.setting.num_random)
    pool = np.asarray(jax.vmap(lambda key: sample(key, problem.space()))(keys))
    valid = _trained(problem, problem.data, pool, jax.random.key(2))
    # Those that judge are trainings of their own, for the chosen one's flatters it.
    tested = dataclasses.replace(problem.data, valid=problem.data.test)
    everything = np.concatenate([arch.reshape(-1, 6), pool])
    started = time.process_time()
    judged = _trained(problem, tested, everything, jax.random.key(3))
    pool_seconds = (time.process_time() - started - judged.compile_seconds) / len(everything)
    test = judged.metrics["accuracy"]
    fields = {
        name: [[getattr(one, name) for one in row] for row in found.values()]
        for name in Found._fields
    }
    return {
        **fields,
        "methods": list(found),
        "retrained": test[: -len(pool)].reshape(arch.shape[:2]),
        "pool": pool,
        "pool_valid": valid.metrics["accuracy"],
        "pool_test": test[-len(pool) :],
        "pool_seconds": pool_seconds,
    }


def _trained(problem: Problem, data: Data, arch: np.ndarray, key: jax.Array) -> Any:
    return population.train(problem.space(), arch, data, problem.recipe, key)


def _searches(problem: Problem, title: str) -> list[Found]:
    """One search per seed; the programs are compiled once."""
    setting, name = problem.setting, METHODS[title]
    space = problem.space(name)
    augmented = dataclasses.replace(problem.recipe, epochs=1)
    task = oneshot.from_space(space, problem.data, augmented)
    options = {}
    if name in ALPHA_RATES:
        rate = setting.alpha_factor * ALPHA_RATES[name]
        options["alpha_optimizer"] = oneshot.Adam(learning_rate=rate)
    method = oneshot.ALL[name](task, num_steps=setting.num_steps, **options)
    started = time.perf_counter()
    init = jax.jit(lambda key: method.init(split_like(key, 2)[0]))
    state = init(jax.random.key(0))
    go_on = _compiled(
        lambda key, state, train, valid: oneshot.resume(
            key,
            method,
            state,
            train,
            valid,
            num_steps=setting.num_steps // NUM_MARKS,
            batch_size=setting.batch_size,
        ),
        jax.random.key(0),
        state,
        *problem.halves,
    )
    evolve = None
    if name == EVOLVED:
        evolve = _compiled(_evolution(problem, space), jax.random.key(0), _variables(state))
    compiling = time.perf_counter() - started
    every = []
    for seed in range(setting.num_seeds):
        key = jax.random.fold_in(jax.random.key(4), seed)
        one = _one_search(problem, method, (init, go_on, evolve), key, compiling)
        print(
            f"  {title}, seed {seed}: {one.arch}, {one.seconds:.0f} s", file=sys.stderr, flush=True
        )
        every.append(one)
    return every


def _compiled(function: Callable, *arguments: Any) -> Callable:
    return jax.jit(function).lower(*arguments).compile()


def _variables(state: Any) -> PyTree:
    return {"params": state.weights, **state.rest}


def _evolution(problem: Problem, space: SearchSpace) -> Callable:
    """`(key, variables) -> arch i32[6]`, the best that regularised evolution finds."""
    strategy = strategies.regularized_evolution(
        space, batch_size=CHILDREN, population_size=POPULATION, tournament_size=5
    )

    def evolve(key, variables):
        evaluator = evaluators.shared_weights(
            space, variables, problem.data, batch_size=problem.setting.batch_size
        )
        steps = problem.setting.evaluations // CHILDREN
        return best(search(key, strategy, evaluator, steps)[1])[0]

    return evolve


def _one_search(
    problem: Problem, method: OneShot, programs: tuple, key: jax.Array, compiling: float
) -> Found:
    init, go_on, evolve = programs
    started = time.process_time()
    state, marks, entropy, eigenvalue, scores = init(key), [], [], [], []
    for _ in range(NUM_MARKS):
        state, history = go_on(key, state, *problem.halves)
        marks.append(np.asarray(method.derive(state)))
        entropy.append(strength_entropy(getattr(state, "strengths", None)))
        eigenvalue.append(float(history.get("eigenvalue", jnp.full(1, jnp.nan))[-1]))
        scores.append(float(jnp.nanmean(history["valid_score"])))
    arch = marks[-1] if evolve is None else evolve(jax.random.fold_in(key, 0), _variables(state))
    arch = np.asarray(arch)
    seconds = time.process_time() - started
    columns = [np.asarray(column) for column in (marks, entropy, eigenvalue, scores)]
    return Found(arch, *columns, compiling, seconds)


def strength_entropy(strengths: Any) -> float:
    """Mean entropy of rows f32[R, K], normalised to sums of 1, over that of equal strengths.

    Example:
      >>> strength_entropy(np.array([[1.0, 1.0], [3.0, 0.0]]))
      0.5
    """
    if strengths is None:
        return float("nan")
    shares = np.maximum(np.asarray(strengths, np.float64), 0.0)
    shares = shares / shares.sum(axis=1, keepdims=True)
    logs = np.log(np.where(shares > 0.0, shares, 1.0))
    return float(-(shares * logs).sum(axis=1).mean() / np.log(shares.shape[1]))


# --- the tables ---


def expected_best(valid: np.ndarray, value: np.ndarray, num: int) -> float:
    """What the best by `valid` of `num` random members of a pool has as its `value`, on average.

    Exact: the member of rank r is the best of a subset with the chance that all others rank lower.

    Args:
      valid: f32[P], by which the best is chosen; NaN is never chosen.
      value: f32[P].
      num: members drawn without replacement, at least 1.

    Example:
      >>> expected_best(np.array([0.1, 0.3, 0.2]), np.array([0.0, 3.0, 6.0]), 2)
      4.0
    """
    size = len(valid)
    num = min(num, size)
    order = np.argsort(np.where(np.isnan(valid), -np.inf, valid))
    below = np.arange(size)  # members that rank lower
    # C(below, num - 1) / C(size, num), as a product so that nothing overflows.
    chance = np.full(size, num / size)
    for i in range(num - 1):
        chance *= np.maximum(below - i, 0) / (size - 1 - i)
    return float(chance @ np.asarray(value, np.float64)[order])


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The tables: what was found against random search, how searches went, and seconds."""
    del machine
    accuracy = np.asarray(problem.table.columns["test_accuracy"])
    pool_true = accuracy[index_from_arch(np.asarray(raw["pool"]))]
    results, course, seconds = [], [], []
    for k, title in enumerate(raw["methods"]):
        took = float(np.mean(raw["seconds"][k]))
        num = max(1, min(len(pool_true), round(took / raw["pool_seconds"])))
        true = accuracy[index_from_arch(np.asarray(raw["arch"][k]))]
        ours = np.asarray(raw["retrained"][k])
        results.append(
            {
                "method": title,
                "test accuracy in the table": harness.format_spread(harness.spread(true), 4),
                "mean": float(true.mean()),
                "random search": expected_best(raw["pool_valid"], pool_true, num),
                "trained here": float(ours.mean()),
                "random search, trained here": expected_best(
                    raw["pool_valid"], raw["pool_test"], num
                ),
                "its candidates": num,
            }
        )
        course += _course(title, raw, k, accuracy)
        seconds.append(
            {"method": title, "compiling": raw["compile_seconds"][k][0], "searching (CPU)": took}
        )
    best_of_all, chance = float(accuracy.max()), float(accuracy.mean())
    whole = {"best of all": best_of_all, "chance": chance}
    whole["CPU seconds per candidate"] = raw["pool_seconds"]
    return {
        f"{problem.setting.num_seeds} searches each": results,
        "the course of the searches, means over seeds": course,
        "seconds": seconds,
        "for comparison": [whole],
    }


def _course(
    title: str, raw: Mapping[str, Any], k: int, accuracy: np.ndarray
) -> list[dict[str, Any]]:
    """One row per mark."""
    marks = np.asarray(raw["marks"][k])  # [S, M, 6]
    skips, nones = (
        (marks == PUBLISHED_OPERATIONS.index(name)).sum(axis=-1).mean(axis=0)
        for name in ("skip_connect", "none")
    )
    true = accuracy[index_from_arch(marks)].mean(axis=0)
    columns = {
        name: np.asarray(raw[name][k]).mean(axis=0)
        for name in ("entropy", "eigenvalue", "valid_score")
    }
    return [
        {
            "method": title,
            "done": (mark + 1) / marks.shape[1],
            "skip connections": float(skips[mark]),
            "none": float(nones[mark]),
            "entropy": float(columns["entropy"][mark]),
            "eigenvalue": float(columns["eigenvalue"][mark]),
            "validation score": float(columns["valid_score"][mark]),
            "accuracy in the table": float(true[mark]),
        }
        for mark in range(marks.shape[1])
    ]
