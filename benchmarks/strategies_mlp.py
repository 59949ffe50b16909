"""Which strategy finds the better perceptron with equal evaluations: RL, evolution or chance?

Every strategy searches the joint space of architectures and hyperparameters on a regression task
(R2 on the validation rows) with the same number of evaluations, each of which trains a network from
scratch. The tasks are real data, diabetes, where many networks come close to what noise allows, and
Friedman's first function, where architecture and hyperparameters matter more. Many seeds: a seed
decides the search, the initial weights, the order of the rows and the dropout; the split of the
data is one and the same.

All searches advance in lockstep. A strategy is vmapped over its seeds, and the candidates that all
searches propose in a step are trained as one population.

Candidates are chosen by a score that is the best of many noisy ones, which flatters the winner and
the more so the more a strategy explores. So the winner of every search is also trained again, with
fresh seeds, and scored on the test rows.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import stats
from sklearn.datasets import make_friedman1

from jaxnas import datasets, spaces, strategies
from jaxnas.space import SearchSpace
from jaxnas.training import Data, Plan, Recipe, population
from jaxnas.training import plan as planning
from jaxnas.training.data import from_arrays
from jaxnas.types import Evaluation, Strategy, rank_value

BASELINE = "random search"
CONFIDENCE = 0.95
# A network that diverged without overflowing can have an R2 of minus a million, which would drown
# every other reward of a policy gradient; strategies that only rank do not notice.
LOWEST_R2 = -1.0


@dataclass(frozen=True)
class Setting:
    """One task and size of the question."""

    task: str  # "diabetes" or "friedman"
    num_seeds: int
    evaluations: int  # per search
    batch_size: int  # candidates per step of a search
    epochs: int
    rows_per_step: int  # the recipe's batch size
    num_retrains: int  # of every winner, for the test score


SETTINGS = MappingProxyType(
    {task: Setting(task, 20, 128, 4, 20, 32, 5) for task in ("diabetes", "friedman")}
)


class Problem(NamedTuple):
    """What every strategy is given."""

    setting: Setting
    data: Data
    space: SearchSpace
    recipe: Recipe
    strategies: Mapping[str, Strategy]


class Searches(NamedTuple):
    """The histories of all searches: K strategies, S seeds, E evaluations in order."""

    arch: np.ndarray  # i32[K, S, E, D]
    fitness: np.ndarray  # f32[K, S, E]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own; `--set num_seeds=4 evaluations=32` makes it shorter."""
    del parser


def make_strategies(space: SearchSpace, setting: Setting) -> dict[str, Strategy]:
    """The contestants, with populations and learning rates that suit a hundred evaluations."""
    batch_size = setting.batch_size
    members = max(2 * batch_size, setting.evaluations // 5)
    return {
        BASELINE: strategies.random_search(space, batch_size=batch_size),
        "regularized evolution": strategies.regularized_evolution(
            space, batch_size=batch_size, population_size=members, tournament_size=8
        ),
        "genetic": strategies.genetic(
            space, batch_size=batch_size, population_size=members, num_elites=members // 4
        ),
        "reinforce, recurrent": strategies.reinforce(
            space, batch_size=batch_size, policy="recurrent", learning_rate=0.03
        ),
        "reinforce, factorised": strategies.reinforce(
            space, batch_size=batch_size, policy="factorised", learning_rate=0.1
        ),
    }


def _friedman() -> Data:
    """Friedman, "Multivariate Adaptive Regression Splines", Annals of Statistics 19 (1991).

    Ten uniform features, of which five count; noise of variance 1, which leaves R2 at most 0.96.
    """
    x, y = make_friedman1(500, noise=1.0, random_state=0)
    return from_arrays(jax.random.key(0), x, y, name="friedman")


def load(setting: Setting) -> Problem:
    """Data, space and strategies; the split comes from a fixed key.

    Raises:
      ValueError: if the evaluations are not a multiple of the batch, or there are under 2 seeds.
    """
    if setting.evaluations < 1 or setting.evaluations % setting.batch_size:
        raise ValueError(
            f"evaluations must be a positive multiple of batch_size = {setting.batch_size}, "
            f"got {setting.evaluations}"
        )
    if setting.num_seeds < 2:
        raise ValueError(f"num_seeds must be at least 2 for an interval, got {setting.num_seeds}")
    data = _friedman() if setting.task == "friedman" else datasets.diabetes(jax.random.key(0))
    space = spaces.mlp(1, depths=(1, 2, 3, 4), widths=(16, 32, 64, 128))
    recipe = Recipe(epochs=setting.epochs, batch_size=setting.rows_per_step)
    return Problem(setting, data, space, recipe, make_strategies(space, setting))


# --- searching ---


def evaluate(
    problem: Problem, data: Data, plan: Plan, arch: np.ndarray, key: Array
) -> tuple[np.ndarray, population.Training]:
    """Trains `arch` i32[..., D]; returns the R2 f32[...] on `data.valid`, and the training."""
    rows = arch.reshape(-1, arch.shape[-1])
    trained = population.train(problem.space, rows, data, problem.recipe, key, plan)
    r2 = np.maximum(trained.metrics["r2"], LOWEST_R2)  # NaN stays NaN
    return r2.reshape(arch.shape[:-1]), trained


def lockstep(
    problem: Problem, plan: Plan, key: Array
) -> tuple[Searches, list[population.Training]]:
    """Runs all searches of all strategies side by side.

    Args:
      problem: the problem.
      plan: how the populations are trained.
      key: PRNG key of everything.

    Returns:
      The histories, and the trainings of the steps.
    """
    setting, contestants = problem.setting, list(problem.strategies.values())
    k_train, k_search = jax.random.split(key)
    # One key per search, also across strategies; folded with 0 for init, then odd to ask, even to
    # tell.
    keys = list(jax.random.split(k_search, (len(contestants), setting.num_seeds)))
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))

    @jax.jit
    def init():
        return [jax.vmap(s.init)(fold(k, 0)) for s, k in zip(contestants, keys, strict=True)]

    @jax.jit
    def ask(step, states):
        each = zip(contestants, keys, states, strict=True)
        return [jax.vmap(s.ask)(fold(k, 2 * step + 1), state) for s, k, state in each]

    @jax.jit
    def tell(step, states, proposals, fitness):
        told = zip(states, proposals, _evaluations(fitness), strict=True)
        each = zip(contestants, keys, told, strict=True)
        return [jax.vmap(s.tell)(fold(k, 2 * step + 2), *t) for s, k, t in each]

    states, steps, trainings = init(), [], []
    num_steps = setting.evaluations // setting.batch_size
    for step in range(num_steps):
        proposals = ask(step, states)
        arch = np.stack([np.asarray(proposal.arch) for proposal in proposals])
        k_step = jax.random.fold_in(k_train, step)
        fitness, trained = evaluate(problem, problem.data, plan, arch, k_step)
        states = tell(step, states, proposals, jnp.asarray(fitness))
        steps.append(Searches(arch, fitness))
        trainings.append(trained)
        print(
            f"  step {step + 1} of {num_steps}: trained {fitness.size} networks, "
            f"compile {trained.compile_seconds:.1f} s, run {trained.run_seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    return Searches(
        *(np.concatenate(field, axis=2) for field in zip(*steps, strict=True))
    ), trainings


def _evaluations(fitness: Array) -> list[Evaluation]:
    """Per strategy what `tell` is told, from f32[K, S, B]."""
    return [
        Evaluation(mine, mine[..., None], {"r2": mine}, jnp.zeros_like(mine)) for mine in fitness
    ]


def _ranked(searches: Searches) -> np.ndarray:
    """The fitness f32[K, S, E] with failures last."""
    return np.asarray(rank_value(jnp.asarray(searches.fitness)))


def winners(searches: Searches) -> np.ndarray:
    """The best architecture of every search, the first one on ties: i32[K, S, D]."""
    best = np.argmax(_ranked(searches), axis=-1)
    return np.take_along_axis(searches.arch, best[..., None, None], axis=2)[:, :, 0]


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Runs all searches, then trains every winner again and scores it on the test rows."""
    del options
    setting = problem.setting
    k_search, k_retrain = jax.random.split(jax.random.key(1))
    num_searches = len(problem.strategies) * setting.num_seeds
    plan = planning.choose(
        problem.space, problem.recipe, problem.data, num_searches * setting.evaluations
    )
    searches, trainings = lockstep(problem, plan, k_search)
    best = winners(searches)
    many = np.repeat(best[:, :, None], setting.num_retrains, axis=2)
    tested = dataclasses.replace(problem.data, valid=problem.data.test)
    test_r2, retraining = evaluate(problem, tested, plan, many, k_retrain)
    trainings.append(retraining)
    return {
        "strategies": list(problem.strategies),
        "incumbent": np.maximum.accumulate(_ranked(searches), axis=-1),
        "winner": best,
        "winner_test_r2": test_r2,
        "failed": np.isnan(searches.fitness).sum(axis=(1, 2)),
        "compile_seconds": sum(t.compile_seconds for t in trainings),
        "run_seconds": sum(t.run_seconds for t in trainings),
        "plan": plan.report,
    }


# --- what it means ---


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The comparison, and how the best score grows with the evaluations.

    Intervals are Student's for the mean over seeds. A win rate is the share of all pairs of a
    search of this strategy and one of random search in which this one is better, a tie counting
    one half; its p is Mann and Whitney's. The rank among the strategies is averaged over seeds.
    """
    del machine
    names = raw["strategies"]
    valid = np.asarray(raw["incumbent"])[..., -1]
    test = np.asarray(raw["winner_test_r2"]).mean(axis=-1)
    baseline = names.index(BASELINE)
    ranks = stats.rankdata(-valid, axis=0).mean(axis=1)
    final = [
        {
            "strategy": name,
            "best valid R2": interval(valid[k]),
            "wins": win_rate(valid[k], valid[baseline]),
            "mean rank": float(ranks[k]),
            "test R2 of winner": interval(test[k]),
            "test wins": win_rate(test[k], test[baseline]),
            "failed": int(raw["failed"][k]),
        }
        for k, name in enumerate(names)
    ]
    setting = problem.setting
    title = f"{setting.num_seeds} seeds of {setting.evaluations} evaluations"
    return {title: final, "mean best valid R2 so far": _growth(names, raw["incumbent"])}


def _growth(names, incumbent) -> list[dict[str, Any]]:
    incumbent = np.asarray(incumbent)
    evaluations = incumbent.shape[-1]
    points = sorted({max(1, evaluations // divisor) for divisor in (8, 4, 2, 1)})
    return [
        {
            "strategy": name,
            **{f"after {n}": float(incumbent[k, :, n - 1].mean()) for n in points},
        }
        for k, name in enumerate(names)
    ]


def interval(values: np.ndarray) -> str:
    """Mean and Student's interval for it, of f[S].

    Example:
      >>> interval(np.array([0.4, 0.5, 0.6]))
      '0.500 [0.252 to 0.748]'
    """
    mean, error = values.mean(), stats.sem(values)
    reach = error * stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
    return f"{mean:.3f} [{mean - reach:.3f} to {mean + reach:.3f}]"


def win_rate(values: np.ndarray, baseline: np.ndarray) -> str:
    """Share of pairs in which `values` f[S] is better than `baseline` f[S], and its p.

    Example:
      >>> win_rate(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 2.5]))
      '0.61 (p = 0.82)'
    """
    test = stats.mannwhitneyu(values, baseline)
    return f"{test.statistic / (len(values) * len(baseline)):.2f} (p = {test.pvalue:.2g})"
