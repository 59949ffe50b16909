"""Compares strategies on a table: many whole searches of each in one program, seed by seed.

Seed s of a strategy is `jaxnas.search(jax.random.key(s), ...)`, so every search here can be had
again on its own.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from jaxnas import analysis
from jaxnas._checks import check_count
from jaxnas.evaluators.tabular import tabular
from jaxnas.search import search
from jaxnas.tables.table import Table
from jaxnas.types import Strategy

SEEDS_PER_CALL = 64  # searches side by side on one device: more need memory, fewer waste time


class Searches(NamedTuple):
    """S searches of one strategy over E evaluations; NaN before a search's first success.

    Attributes:
      fitness: of the incumbent, see `jaxnas.analysis.incumbents`.
      score: of the incumbent, what the searches are judged by.
      seconds: simulated, spent after each evaluation; constant once the time is up.
      compile_seconds: spent tracing and compiling.
      run_seconds: spent searching.
    """

    fitness: np.ndarray  # f32[S, E]
    score: np.ndarray  # f32[S, E]
    seconds: np.ndarray  # f32[S, E]
    compile_seconds: float
    run_seconds: float


class Comparison(NamedTuple):
    """What a comparison found.

    Attributes:
      table: the table's name.
      metric: what the strategies maximised.
      score_name: what they are judged by.
      optimum: the best score in the table, after its full training.
      settings: what the searches were given, for reports.
      searches: by strategy.
    """

    table: str
    metric: str
    score_name: str
    optimum: float
    settings: dict[str, Any]
    searches: dict[str, Searches]


def compare(
    table: Table,
    strategies: Mapping[str, Strategy],
    *,
    num_evaluations: int,
    num_seeds: int = 20,
    first_seed: int = 0,
    metric: str = "valid_accuracy",
    score: str | None = None,
    seeds_per_call: int = SEEDS_PER_CALL,
    progress_fn: Callable[[str, Searches], None] | None = None,
    **options: Any,
) -> Comparison:
    """Searches a table with every strategy from every seed.

    Args:
      table: the table.
      strategies: name to strategy, made for `table.space`.
      num_evaluations: E of each search, rounded up to whole steps for those that propose several
        candidates at a time; what exceeds E is not looked at.
      num_seeds: S searches per strategy.
      first_seed: the first of consecutive seeds.
      metric: what fitness is, see `jaxnas.evaluators.tabular`.
      score: what the incumbent is judged by, a metric or column; a leading "-" negates. None: the
        column `test_accuracy` if there is one, else `metric`.
      seeds_per_call: searches that one device runs side by side.
      progress_fn: called with a name and its searches as soon as they are done.
      **options: `seed`, `max_fidelity`, `time_limit` and `stop` of `jaxnas.evaluators.tabular`.

    Returns:
      The comparison.

    Raises:
      ValueError: for an unknown name, a number below 1, or no strategies.

    Example:
      >>> import jaxnas as nas
      >>> space = nas.testing.tiny_space()
      >>> table = nas.tables.from_arrays(space, {"valid_accuracy": np.linspace(0.0, 0.9, 24)})
      >>> strategy = nas.strategies.random_search(space, batch_size=1)
      >>> found = compare(table, {"random": strategy}, num_evaluations=6, num_seeds=4)
      >>> found.searches["random"].fitness.shape
      (4, 6)
    """
    check_count("num_evaluations", num_evaluations)
    check_count("num_seeds", num_seeds)
    check_count("seeds_per_call", seeds_per_call)
    if not strategies:
        raise ValueError("strategies is empty; give at least one")
    if score is None:
        score = "test_accuracy" if "test_accuracy" in table.columns else metric
    name = score.removeprefix("-")
    sign = 1.0 if name == score else -1.0
    if name not in table.names:
        raise ValueError(f"score must be one of {list(table.names)}, got {score!r}")

    def evaluator(table: Table):
        return tabular(table, metric=metric, report=(name,), **options)

    evaluator(table)  # checks the options before anything is searched
    seeds = np.arange(first_seed, first_seed + num_seeds)
    found = {}
    for strategy_name, strategy in strategies.items():
        run_one = partial(_one_search, evaluator, strategy, num_evaluations, name)
        searches = _run(run_one, table, seeds, seeds_per_call)
        found[strategy_name] = searches._replace(score=sign * searches.score)
        if progress_fn is not None:
            progress_fn(strategy_name, found[strategy_name])
    settings = {
        "num_evaluations": num_evaluations,
        "num_seeds": num_seeds,
        "first_seed": first_seed,
        **options,
    }
    optimum = float(jnp.nanmax(sign * table.final(name)))
    return Comparison(table.name, metric, score, optimum, settings, found)


def _one_search(
    evaluator: Callable[[Table], Any],
    strategy: Strategy,
    num_evaluations: int,
    score: str,
    table: Table,
    seed: Array,
) -> tuple[Array, Array, Array]:
    """Incumbent's fitness, incumbent's score and seconds after each evaluation: f32[E] each."""
    key = jax.random.key(seed)
    first = jax.eval_shape(lambda key: strategy.ask(key, strategy.init(key)), key)
    num_steps = -(-num_evaluations // first.arch.shape[0])
    _, history = search(key, strategy, evaluator(table), num_steps)
    fitness = analysis.incumbent_values(history, history.evaluation.fitness)
    scores = analysis.incumbent_values(history, history.evaluation.metrics[score])
    seconds = jnp.cumsum(history.evaluation.cost.ravel())
    return fitness[:num_evaluations], scores[:num_evaluations], seconds[:num_evaluations]


def _run(run_one: Callable, table: Table, seeds: np.ndarray, seeds_per_call: int) -> Searches:
    """Runs all seeds in calls of equal size, dealt over the local devices."""
    devices = jax.local_devices()
    each = min(seeds_per_call, -(-len(seeds) // len(devices)))
    size = each * len(devices)
    mesh = Mesh(np.asarray(devices), ("seed",))
    mapped = jax.shard_map(
        lambda table, seeds: jax.vmap(partial(run_one, table))(seeds),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("seed")),
        out_specs=PartitionSpec("seed"),
        check_vma=False,
    )
    # The last call repeats seeds from the front, so that one program serves all calls.
    padded = np.resize(seeds, -(-len(seeds) // size) * size).reshape(-1, size)
    started = time.perf_counter()
    program = jax.jit(mapped).lower(table, padded[0]).compile()
    compiled = time.perf_counter()
    calls = [jax.tree.map(np.asarray, program(table, row)) for row in padded]
    ended = time.perf_counter()
    fitness, score, seconds = (
        np.concatenate(parts)[: len(seeds)] for parts in zip(*calls, strict=True)
    )
    return Searches(fitness, score, seconds, compiled - started, ended - compiled)


def table_of_results(comparison: Comparison, marks: Sequence[int] | None = None) -> str:
    """The comparison as text: mean score over seeds after some numbers of evaluations.

    Args:
      comparison: the comparison.
      marks: numbers of evaluations; None: a third, two thirds and all of them.

    Returns:
      One line per strategy, the best at the end first, with the 95% interval of its last mean.
    """
    total = next(iter(comparison.searches.values())).score.shape[1]
    marks = marks or sorted({-(-total // 3), -(-2 * total // 3), total})
    lines = [f"{'strategy':<28}" + "".join(f"{f'after {m}':>14}" for m in marks) + f"{'95%':>22}"]
    for name, searches in ranked(comparison):
        low, high = interval(searches.score[:, -1])
        means = "".join(f"{np.nanmean(searches.score[:, mark - 1]):14.4f}" for mark in marks)
        lines.append(f"{name:<28}{means}{f'{low:.4f} to {high:.4f}':>22}")
    return "\n".join(lines)


def ranked(comparison: Comparison) -> list[tuple[str, Searches]]:
    """Strategies and their searches, the best mean score at the end first."""
    return sorted(
        comparison.searches.items(),
        key=lambda item: -np.nan_to_num(_mean(item[1].score[:, -1]), nan=-np.inf),
    )


def interval(scores: np.ndarray) -> tuple[float, float]:
    """Bootstrap 95% interval of the mean of f32[S], of the searches that found anything."""
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return np.nan, np.nan
    low, high = jax.jit(analysis.bootstrap_interval)(jax.random.key(0), jnp.asarray(scores))
    return float(low), float(high)


def _mean(scores: np.ndarray) -> float:
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else np.nan
