"""How the cost of `population_cells` grows with candidates, devices and processes."""

import os
import resource
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from benchmarks._cells import Setting, load, make_data
from jaxnas import parallel
from jaxnas.training import plan as planning
from jaxnas.training import population

SIZES = (8, 64, 512, 4096)
# name to (processes, devices per process)
PLACEMENTS = {
    "1 process, 1 device": (1, 1),
    "1 process, 2 devices": (1, 2),
    "2 processes, 1 device each": (2, 1),
}


def compile_seconds() -> list[float]:
    """A list that grows by the seconds of every program that XLA compiles from now on."""
    found: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


# --- more candidates ---


def measure_flat(setting: Setting, steps: int) -> dict[str, Any]:
    """A fresh process for every size up to the setting's."""
    sizes = [size for size in SIZES if size <= setting.num_candidates]
    requests = [(replace(setting, num_candidates=size), steps) for size in sizes]
    entry = "benchmarks._cells_scaling:measure_size"
    return {"rows": [harness.in_fresh_process(entry, request) for request in requests]}


def measure_size(request: tuple[Setting, int]) -> dict[str, Any]:
    """Entry point of a fresh process: one population, its seconds and the process's memory."""
    setting, steps = request
    parallel.cpu_devices(harness.num_cores())
    problem = load(setting)
    data, recipe = make_data(setting, steps)
    start = time.perf_counter()
    found = population.train(problem.space, problem.arch, data, recipe, jax.random.key(0))
    whole = time.perf_counter() - start
    return {
        "candidates": setting.num_candidates,
        "steps": steps,
        "compile s": found.compile_seconds,
        "run s": found.run_seconds,
        "ms per candidate, run": 1e3 * found.run_seconds / setting.num_candidates,
        "ms per candidate, all but compiling": (
            1e3 * (whole - found.compile_seconds) / setting.num_candidates
        ),
        "peak memory MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


# --- devices and processes ---


def measure_placement(setting: Setting, steps: int, repeats: int) -> dict[str, Any]:
    """Alternating runs of the placements, each in fresh processes."""
    sides = {
        name: lambda placement=placement: _run_placement(setting, steps, *placement)
        for name, placement in PLACEMENTS.items()
    }
    return {"placements": harness.alternate(sides, repeats)}


def _run_placement(
    setting: Setting, steps: int, num_processes: int, num_devices: int
) -> dict[str, Any]:
    """What the first of the processes measured, with the results of all."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
    requests = [
        (setting, steps, num_devices, coordinator, num_processes, index)
        for index in range(num_processes)
    ]
    entry = "benchmarks._cells_scaling:measure_process"
    with ThreadPoolExecutor(num_processes) as pool:
        found = list(pool.map(lambda request: harness.in_fresh_process(entry, request), requests))
    return {**found[0], "losses": [each["loss"] for each in found]}


def measure_process(request: tuple[Setting, int, int, str, int, int]) -> dict[str, Any]:
    """Entry point of a fresh process: trains its share twice, with a core per device."""
    setting, steps, num_devices, coordinator, num_processes, index = request
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        mine = [cores[(index + k) % len(cores)] for k in range(num_devices)]
        os.sched_setaffinity(0, mine)
    parallel.cpu_devices(num_devices)
    if num_processes > 1:
        parallel.join(coordinator, num_processes, index)
    problem = load(setting)
    data, recipe = make_data(setting, steps)
    plan = planning.choose(problem.space, recipe, data, setting.num_candidates)
    results = [
        population.train(problem.space, problem.arch, data, recipe, jax.random.key(0), plan)
        for _ in range(2)
    ]
    return {
        "compile_seconds": results[0].compile_seconds,
        "run_seconds": results[1].run_seconds,
        "loss": np.asarray(results[1].metrics["loss"]),
    }


# --- what it means ---


def score(raw: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The table of either question."""
    if "rows" in raw:
        return {"cost per candidate and memory": raw["rows"]}
    placements = raw["placements"]
    first, *_ = placements.values()
    alone = [run["run_seconds"] for run in first]
    reference = _floats(first[0]["losses"][0])
    rows = []
    for name, runs in placements.items():
        seconds = [run["run_seconds"] for run in runs]
        ratios = [a / s for a, s in zip(alone, seconds, strict=True)]
        losses = [_floats(loss) for run in runs for loss in run["losses"]]
        rows.append(
            {
                "placement": name,
                "run s": harness.format_spread(harness.spread(seconds)),
                "times as fast": harness.format_spread(harness.spread(ratios)),
                "compile s": runs[0]["compile_seconds"],
                "largest difference of a loss": float(
                    max(np.nanmax(np.abs(loss - reference)) for loss in losses)
                ),
                "equal to the bit": all(
                    np.array_equal(loss, reference, equal_nan=True) for loss in losses
                ),
            }
        )
    return {"placement": rows}


def _floats(values: Any) -> np.ndarray:
    """f64[P]; None is not a number."""
    return np.array(values, np.float64)
