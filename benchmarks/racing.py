"""Does a race find an architecture as good as full training of all does, and at which cost?

In every repetition random cells of NAS-Bench-201 are trained twice from the same key: all of them
in full, and as a race that keeps the best third at a ninth and at a third of the epochs. Survivors
of a race are trained as in full, so the race can only lose by dropping the one that would have won.
The winners by validation accuracy, which is the maximum of many noisy ones, are then trained again
with fresh keys and scored on test rows that no choice has seen.

* "difference" is the test accuracy of the race's winner less that of full training's, with
  Student's interval over repetitions; 0 where they are the same architecture.
* "retraining noise" is the standard deviation of one winner's test accuracy over keys, within
  winners: what two equally good winners would differ by.
* costs are in epochs and in measured seconds of training, scoring at the rungs and moving states
  included; compilation is apart. The two sides take turns in going first.

The setting "cifar" needs `cifar10_subset_8k_2k_uint8.npz` in the folder `JAXNAS_DATA`.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from scipy import stats

from benchmarks import _cells
from jaxnas import spaces
from jaxnas.space import SearchSpace, sample
from jaxnas.training import Data, Plan, Recipe, plan, population
from jaxnas.training.data import from_splits
from jaxnas.training.racing import race
from jaxnas.types import split_like

ETA = 3
RUNGS = (1 / 9, 1 / 3, 1.0)
LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Setting:
    """One size of the question."""

    images: str  # "digits" of 8x8 pixels or "cifar" of 16x16
    num_candidates: int
    epochs: int
    num_train: int
    num_held: int  # validation rows, and as many test rows
    num_seeds: int = 5
    num_retrain: int = 3  # fresh trainings of each winner
    num_channels: int = 8
    num_cells: int = 1  # per stage


SETTINGS = MappingProxyType(
    {
        "digits": Setting("digits", num_candidates=96, epochs=18, num_train=1088, num_held=320),
        "cifar": Setting("cifar", num_candidates=27, epochs=9, num_train=2048, num_held=1000),
        "smoke": Setting(
            "digits",
            num_candidates=4,
            epochs=3,
            num_train=128,
            num_held=40,
            num_seeds=2,
            num_retrain=2,
            num_channels=4,
        ),
    }
)


class Problem(NamedTuple):
    """What both sides are given."""

    setting: Setting
    space: SearchSpace
    data: Data  # architectures are chosen by its validation rows
    test: Data  # the same, with the test rows in their place
    recipe: Recipe
    plan: Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--seed", type=int, default=0, help="of the first repetition (default 0)")


def load(setting: Setting) -> Problem:
    """Images, space and plan, the same in every process.

    Raises:
      ValueError: for fewer than two repetitions, or more rows than there are.
      FileNotFoundError: without the images.
    """
    if setting.num_seeds < 2:
        raise ValueError(f"num_seeds must be at least 2 for an interval, got {setting.num_seeds}")
    data, test = _load_data(setting)
    size, _, channels = data.train.x.shape[1:]
    space = spaces.nasbench201(
        10,
        num_channels=setting.num_channels,
        num_cells=setting.num_cells,
        image_size=size,
        in_channels=channels,
    )
    recipe = Recipe(
        epochs=setting.epochs,
        batch_size=_cells.BATCH_SIZE,
        optimizer="nesterov",
        learning_rate=_cells.LEARNING_RATE,
        schedule="cosine",
        weight_decay=5e-4,
    )
    chosen = plan.choose(space, recipe, data, setting.num_candidates)
    return Problem(setting, space, data, test, recipe, chosen)


def _load_data(setting: Setting) -> tuple[Data, Data]:
    x, y = _cells._images(setting.images)
    held, total = setting.num_held, 2 * setting.num_held + setting.num_train
    if total > len(x):
        raise ValueError(f"num_train + 2 num_held must be at most the {len(x)} images, got {total}")
    valid, test, train = (
        (x[start:stop], y[start:stop])
        for start, stop in ((0, held), (held, 2 * held), (2 * held, total))
    )
    options = {"num_classes": 10, "name": setting.images}
    return from_splits(train, valid, test, **options), from_splits(train, test, test, **options)


# --- measuring ---


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """All repetitions.

    Returns:
      `seed`, and `repetitions`: see `repeat`.
    """
    key = jax.random.key(options.seed)
    found = []
    for index in range(problem.setting.num_seeds):
        names = list(SIDES)[:: 1 if index % 2 == 0 else -1]
        found.append(repeat(problem, jax.random.fold_in(key, index), names))
    return {"seed": options.seed, "repetitions": found}


def repeat(problem: Problem, key: Array, names: list[str]) -> dict[str, Any]:
    """One repetition, its sides in the order of `names`.

    Returns:
      Per side the result of that side with `winner` i64[], and `test` f64[K], the winner's test
      accuracies with K fresh keys.
    """
    k_race, k_test = jax.random.split(key)
    sides = {name: SIDES[name](problem, k_race) for name in names}
    for found in sides.values():
        found["winner"] = int(np.argmax(np.nan_to_num(found["fitness"], nan=-np.inf)))
    winners = sorted({found["winner"] for found in sides.values()})
    num_retrain = problem.setting.num_retrain
    arch = np.repeat(architectures(problem, k_race)[winners], num_retrain, axis=0)
    trained = population.train(
        problem.space, arch, problem.test, problem.recipe, k_test, problem.plan
    )
    accuracy = trained.metrics["accuracy"].reshape(len(winners), num_retrain)
    for found in sides.values():
        found["test"] = accuracy[winners.index(found["winner"])]
    return sides


def architectures(problem: Problem, key: Array) -> np.ndarray:
    """The candidates of a repetition: i32[P, 6]."""
    keys = split_like(key, problem.setting.num_candidates)
    return np.asarray(jax.vmap(lambda k: sample(k, problem.space))(keys))


def train_all(problem: Problem, key: Array) -> dict[str, Any]:
    """Every candidate in full: `fitness` f32[P], `epochs` in all, `seconds`, `compile_seconds`."""
    trained = population.train(
        problem.space,
        architectures(problem, key),
        problem.data,
        problem.recipe,
        key,
        problem.plan,
    )
    return _side(trained, trained.metrics["accuracy"])


def race_all(problem: Problem, key: Array) -> dict[str, Any]:
    """The candidates in a race; results as of `train_all`."""
    found = race(
        problem.space,
        architectures(problem, key),
        problem.data,
        problem.recipe,
        key,
        problem.plan,
        rungs=RUNGS,
        eta=ETA,
    )
    return _side(found.training, found.fitness)


SIDES = MappingProxyType({"full": train_all, "race": race_all})


def _side(trained: population.Training, fitness: np.ndarray) -> dict[str, Any]:
    return {
        "fitness": fitness,
        "epochs": float(trained.metrics["epochs"].sum()),
        "seconds": trained.run_seconds,
        "compile_seconds": trained.compile_seconds,
    }


# --- the tables ---


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The tables.

    Args:
      problem: what was measured.
      raw: from `measure`.
      machine: not used.

    Returns:
      "race against full training", one row; "repetitions", a row each.
    """
    del problem, machine
    repetitions = raw["repetitions"]
    test = {name: np.array([np.mean(r[name]["test"]) for r in repetitions]) for name in SIDES}
    total = {
        (side, name): float(sum(r[side][name] for r in repetitions))
        for side in SIDES
        for name in ("epochs", "seconds", "compile_seconds")
    }
    same = [r["race"]["winner"] == r["full"]["winner"] for r in repetitions]
    summary = {
        "full, test": interval(test["full"]),
        "race, test": interval(test["race"]),
        "difference": interval(test["race"] - test["full"]),
        "retraining noise": retraining_noise(repetitions),
        "same winner": f"{sum(same)} of {len(same)}",
        "share of epochs": total["race", "epochs"] / total["full", "epochs"],
        "share of seconds": total["race", "seconds"] / total["full", "seconds"],
        "full, compile s": total["full", "compile_seconds"],
        "race, compile s": total["race", "compile_seconds"],
    }
    rows = [_repetition(*each) for each in zip(repetitions, same, strict=True)]
    return {"race against full training": [summary], "repetitions": rows}


def _repetition(found: Mapping[str, Any], same: bool) -> dict[str, Any]:
    full, raced = found["full"], found["race"]
    fitness = np.asarray(full["fitness"], float)
    return {
        "full, valid": float(np.nanmax(fitness)),
        "mean of all, valid": float(np.nanmean(fitness)),
        "race's winner, valid": float(fitness[raced["winner"]]),
        "its rank in full": int((fitness > fitness[raced["winner"]]).sum()) + 1,
        "same winner": "yes" if same else "no",
        "full, test": float(np.mean(full["test"])),
        "race, test": float(np.mean(raced["test"])),
        "full, s": full["seconds"],
        "race, s": raced["seconds"],
    }


def interval(values: np.ndarray) -> str:
    """Mean and Student's interval for it, of f[S].

    Example:
      >>> interval(np.array([0.4, 0.5, 0.6]))
      '0.5000 [0.2516 to 0.7484]'
    """
    reach = stats.sem(values) * stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)
    mean = np.mean(values)
    return f"{mean:.4f} [{mean - reach:.4f} to {mean + reach:.4f}]"


def retraining_noise(repetitions: list[Mapping[str, Any]]) -> float:
    """Standard deviation over keys within full training's winners.

    Example:
      >>> found = [{"full": {"test": scores}} for scores in ([0.4, 0.6], [1.0, 1.0])]
      >>> round(retraining_noise(found), 3)
      0.1
    """
    return float(np.sqrt(np.mean([np.var(r["full"]["test"], ddof=1) for r in repetitions])))
