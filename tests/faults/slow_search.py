"""A small search that takes its time, for the kill tests: starts a run, or resumes it.

    python -m tests.faults.slow_search DIRECTORY NUM_STEPS SECONDS_PER_STEP [STATEMENT NUMBER]

Prints one line per step once it is journaled. With a statement, the process kills itself when
SQLite is about to run the statement that starts so, for the NUMBER-th time.
"""

import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxnas import evaluators, signals, strategies, testing
from jaxnas.run import resume, run
from jaxnas.types import Evaluator

SPACE = testing.tiny_space()
BATCH = 4


def fitness(key, arch):
    """Noisy, and NaN for a twelfth of the architectures."""
    value = testing.trap_fitness(SPACE)(key, arch) + 0.1 * jax.random.normal(key)
    return jnp.where(arch[1] + arch[2] == 4, jnp.nan, value)


def search(directory: Path, num_steps: int, seconds: float, progress_fn):
    """Runs the search in `directory`, from its start or from where it was left."""
    inner = evaluators.from_function(fitness)

    def evaluate(key, state, proposal):
        time.sleep(seconds)
        return inner.evaluate(key, state, proposal)

    strategy = strategies.regularized_evolution(
        SPACE, batch_size=BATCH, population_size=8, tournament_size=3
    )
    evaluator = Evaluator(inner.init, evaluate, traceable=False)
    options = {"progress_fn": progress_fn, "checkpoint_seconds": 4 * seconds}
    if directory.exists():
        return resume(directory, SPACE, strategy, evaluator, **options)
    budget = {"num_evaluations": num_steps * BATCH, "num_seeds": 2}
    return run(directory, SPACE, strategy, evaluator, **budget, **options)


def kill_self_at(statement: str, number: int) -> None:
    """Makes this process kill itself before its `number`-th such SQL statement."""
    connect, seen = sqlite3.connect, 0

    def trace(text):
        nonlocal seen
        seen += text.strip().startswith(statement)
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*args, **options):
        connection = connect(*args, **options)
        connection.set_trace_callback(trace)
        return connection

    sqlite3.connect = traced


def report(progress) -> None:
    print(progress.arm, progress.evaluations, repr(progress.best), flush=True)


if __name__ == "__main__":
    path, steps, pause, *moment = sys.argv[1:]
    if moment:
        kill_self_at(moment[0], int(moment[1]))
    try:
        search(Path(path), int(steps), float(pause), report)
    except signals.Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
