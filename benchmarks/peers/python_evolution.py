"""Regularised evolution on a table in plain Python: `collections.deque`, `random`, dictionaries.

Written as in Real et al. 2019, Algorithm 1, https://arxiv.org/abs/1802.01548. No jax here, and no
NumPy in the searches: numbers of Python's own are what is fast in such a loop.
"""

import collections
import multiprocessing
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Arch = tuple[int, ...]


def evolution(
    table: Mapping[Arch, float],
    num_choices: Sequence[int],
    rng: random.Random,
    *,
    num_evaluations: int,
    population_size: int,
    tournament_size: int,
) -> list[float]:
    """One search; returns the best fitness after every evaluation."""
    population: collections.deque[tuple[float, Arch]] = collections.deque()
    curve, best = [], float("-inf")
    for number in range(num_evaluations):
        if number < population_size:
            arch = tuple([rng.randrange(n) for n in num_choices])
        else:
            drawn = rng.choices(population, k=tournament_size)
            arch = _mutated(max(drawn)[1], num_choices, rng)
            population.popleft()
        fitness = table[arch]
        population.append((fitness, arch))
        if fitness > best:
            best = fitness
        curve.append(best)
    return curve


def _mutated(arch: Arch, num_choices: Sequence[int], rng: random.Random) -> Arch:
    """`arch` with one decision, picked uniformly, set to another choice."""
    place = rng.randrange(len(arch))
    shift = 1 + rng.randrange(num_choices[place] - 1)
    child = list(arch)
    child[place] = (arch[place] + shift) % num_choices[place]
    return tuple(child)


# --- one process or several ---

_kept: dict[Arch, float] = {}  # the table, once per process


def _keep(table: dict[Arch, float]) -> None:
    _kept.update(table)


def _searches(task: tuple[range, Sequence[int], Mapping[str, int]]) -> tuple[list[float], float]:
    """The best fitness that the search of each seed found, and the CPU seconds that took."""
    seeds, num_choices, options = task
    start = time.process_time()
    best = [evolution(_kept, num_choices, random.Random(s), **options)[-1] for s in seeds]
    return best, time.process_time() - start


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Entry point of a fresh process.

    Args:
      request: `archs` i32[N, D], `fitness` f32[N], `num_choices`, `num_seeds`, `num_processes`, and
        `options` of `evolution`.

    Returns:
      `seconds` of the searches (before, the table was built and the processes started),
      `cpu_seconds` of all processes together, and `best` f64[num_seeds], what each search found.
    """
    rows = map(tuple, request["archs"].tolist())
    _keep(dict(zip(rows, request["fitness"].tolist(), strict=True)))
    num_processes, num_seeds = request["num_processes"], request["num_seeds"]
    # Ten shares per process, so that one that is disturbed does not keep the others waiting.
    num_tasks = 10 * num_processes if num_processes > 1 else 1
    bounds = np.linspace(0, num_seeds, num_tasks + 1).astype(int).tolist()
    tasks = [
        (range(*ends), request["num_choices"], request["options"]) for ends in pairwise(bounds)
    ]
    if num_processes == 1:
        return _timed(lambda: map(_searches, tasks))
    with multiprocessing.get_context("fork").Pool(num_processes) as pool:
        return _timed(lambda: pool.imap(_searches, tasks))


def _timed(run: Callable[[], Iterable[tuple[list[float], float]]]) -> dict[str, Any]:
    start = time.perf_counter()
    parts = list(run())
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": sum(cpu for _, cpu in parts),
        "best": np.concatenate([best for best, _ in parts]),
    }
