"""The sides of `population_cells`: how each is run in a process of its own."""

import os
import tempfile
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from benchmarks._cells import BATCH_SIZE, LEARNING_RATE, Problem, Setting, load, make_data
from benchmarks._cells_scaling import compile_seconds
from jaxnas import parallel
from jaxnas.training import population

METRICS = ("train_loss", "loss", "accuracy")


def _fresh(entry: str, request: Any) -> Any:
    """Runs a function of this module in a new process with an empty compilation cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {"JAX_COMPILATION_CACHE_DIR": os.path.join(cache, "empty")}
        name = f"benchmarks._cells_sides:{entry}"
        return harness.in_fresh_process(name, request, environment=environment)


def run_ours(setting: Setting, steps: int, calls: int) -> dict[str, Any]:
    """Ours in a process of its own."""
    return _fresh("measure_ours", (setting, steps, calls))


def measure_ours(request: tuple[Setting, int, int]) -> dict[str, Any]:
    """Entry point of a fresh process: trains the population, cold and perhaps once more."""
    setting, steps, calls = request
    parallel.cpu_devices(harness.num_cores())
    problem, compiled = load(setting), compile_seconds()
    data, recipe = make_data(setting, steps)
    jax.block_until_ready((data.train, data.valid))
    compiled.clear()  # what was compiled to make the problem
    seconds, results, programs = [], [], []
    for seed in range(calls):
        start = time.perf_counter()
        key = jax.random.key(seed)
        results.append(population.train(problem.space, problem.arch, data, recipe, key))
        seconds.append(time.perf_counter() - start)
        programs.append(len(compiled))
    return {
        "seconds": seconds,
        "compile_seconds": results[0].compile_seconds,
        "run_seconds": [result.run_seconds for result in results],
        "programs": programs[0],
        "long_programs": sum(each > 1.0 for each in compiled),
        "later_programs": programs[-1] - programs[0],
        "metrics": {name: np.asarray(results[0].metrics[name]) for name in METRICS},
        "plan": results[0].report,
    }


def run_recompiled(problem: Problem, steps: int, chosen: np.ndarray) -> dict[str, Any]:
    """Each candidate's own jitted program, as if its stand-alone network were all there is."""
    request = (problem.setting, steps, chosen.tolist())
    found = _fresh("measure_recompiled", request)
    return {**found, "seconds": found["seconds"] * len(problem.arch) / len(chosen)}


def measure_recompiled(request: tuple[Setting, int, list[int]]) -> dict[str, Any]:
    """Entry point of a fresh process: one candidate after the other, each compiled anew."""
    setting, steps, chosen = request
    problem = load(setting)
    data, recipe = make_data(setting, steps)
    alone = replace(problem.space, supernet=None)
    jax.block_until_ready((data.train, data.valid))
    start = time.perf_counter()
    results = [
        population.train(alone, problem.arch[[i]], data, recipe, jax.random.key(i)) for i in chosen
    ]
    return {
        "seconds": time.perf_counter() - start,
        "candidates": chosen,
        "compile_seconds": [result.compile_seconds for result in results],
        "run_seconds": [result.run_seconds for result in results],
    }


def run_peer(problem: Problem, form: str, steps: int, chosen: np.ndarray) -> dict[str, Any]:
    """PyTorch in one of its forms; some candidates stand for all."""
    setting, space = problem.setting, problem.space
    data, recipe = make_data(setting, steps)
    names = [decision.name for decision in space.decisions]
    described = [space.describe(problem.arch[i]) for i in chosen]
    request = {
        "form": form,
        "candidates": [tuple(values[name] for name in names) for values in described],
        "network": {
            "num_classes": data.task.num_outputs,
            "num_channels": setting.num_channels,
            "num_cells": setting.num_cells,
            "in_channels": data.train.x.shape[-1],
        },
        "arrays": {
            "x_train": np.asarray(data.train.x),
            "y_train": np.asarray(data.train.y),
            "x_valid": np.asarray(data.valid.x),
            "y_valid": np.asarray(data.valid.y),
        },
        "recipe": {
            "epochs": recipe.epochs,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
        },
        "num_processes": harness.num_cores(),
    }
    measured = harness.in_fresh_process("benchmarks.peers.torch_cells:measure", request)
    measured["candidates"] = chosen
    if len(chosen) < len(problem.arch):
        # As if the processes shared the work perfectly, which favours the peer.
        shares = harness.num_cores() if form == "processes" else 1
        total = measured["candidate_seconds"].sum() / shares
        measured["seconds"] = float(total) * len(problem.arch) / len(chosen)
    return measured
