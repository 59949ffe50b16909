"""The host driver: searches with a budget, a journal, checkpoints and a good end on a signal.

Each arm is `jaxnas.search` taken one step at a time: the same keys, so with a traceable evaluator
the journal of seed s equals the history of `search(jax.random.key(s), ...)`. A step is committed to
the journal before it is reported. Resuming replays the journal through the strategy, without
evaluating again, from the last checkpoint or, where there is none, from the start; so a run that
was killed at any moment continues as if nothing had happened.
"""

import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

import jax

from jaxnas import progress, signals, store
from jaxnas.arm import ArmDriver, check_budget
from jaxnas.space import SearchSpace
from jaxnas.store import Arm, Run
from jaxnas.types import Evaluator, Strategy

Strategies = Strategy | Mapping[str, Strategy]

CHECKPOINT_SECONDS = 60.0


def run(
    directory: str | os.PathLike,
    space: SearchSpace,
    strategies: Strategies,
    evaluator: Evaluator,
    *,
    num_evaluations: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    num_seeds: int = 1,
    settings: dict[str, Any] | None = None,
    progress_fn: progress.ProgressFn | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Run:
    """Searches into a new run directory.

    Args:
      directory: the run directory to make.
      space: the space that the strategies were made for.
      strategies: one strategy, or names to strategies; each is searched from each seed.
      evaluator: scores candidates; need not be traceable.
      num_evaluations: budget of each arm, rounded up to whole steps.
      seconds: budget of each arm in wall time instead; no step starts after it is used up.
      seed: first seed. The arm of seed s uses `jax.random.key(s)`.
      num_seeds: arms per strategy, with the seeds from `seed` on.
      settings: simple JSON values to keep in the run's configuration.
      progress_fn: called after each step is journaled; None: a progress line on standard error.
      checkpoint_seconds: least time between two checkpoints of an arm. An evaluator with a state
        is checkpointed after every step.

    Returns:
      The finished run.

    Raises:
      ValueError: for bad arguments, before anything is written.
      RunError: if the directory cannot be written to.
      Interrupted: after SIGINT or SIGTERM, once the step is journaled and a checkpoint saved.

    Example:
      >>> import tempfile, jaxnas as nas
      >>> space = nas.testing.tiny_space()
      >>> strategy = nas.strategies.random_search(space, batch_size=4)
      >>> evaluator = nas.evaluators.from_function(lambda key, arch: arch.sum())
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     result = run(folder, space, strategy, evaluator, num_evaluations=8,
      ...                  progress_fn=lambda progress: None)
      ...     len(result.rows())
      8
    """
    budget = check_budget(num_evaluations, seconds)
    named = _named(strategies)
    if num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {num_seeds}")
    seeds = range(seed, seed + num_seeds)
    config = {
        "space": describe_space(space),
        "arms": [Arm(f"{name}-{s}", name, s)._asdict() for name in named for s in seeds],
        "budget": budget._asdict(),
        "settings": settings,
    }
    opened = store.create(directory, config)
    return _drive(opened, named, evaluator, progress_fn, checkpoint_seconds)


def resume(
    directory: str | os.PathLike,
    space: SearchSpace,
    strategies: Strategies,
    evaluator: Evaluator,
    *,
    progress_fn: progress.ProgressFn | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Run:
    """Continues a run that was stopped or killed; a finished one is left as it is.

    Args:
      directory: the run directory.
      space: as for `run`, like the next two: made in the same way as for the first part.
      strategies: see `run`.
      evaluator: see `run`.
      progress_fn: see `run`.
      checkpoint_seconds: see `run`.

    Returns:
      The finished run.

    Raises:
      ValueError: if the directory is damaged, or does not go with the arguments.
      RunError: if it cannot be written to, or another process uses it.
      Interrupted: as for `run`.
    """
    opened = store.open_run(directory)
    named = _named(strategies)
    expected = {arm.strategy for arm in opened.arms()}
    if set(named) != expected:
        raise ValueError(f"{directory} has strategies {sorted(expected)}, got {sorted(named)}")
    if opened.config["space"] != describe_space(space):
        raise ValueError(f"space {space.name!r} is not the one that {directory} was started with")
    return _drive(opened, named, evaluator, progress_fn, checkpoint_seconds)


def describe_space(space: SearchSpace) -> dict[str, Any]:
    """Name and decisions of a space as simple JSON values.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> describe_space(tiny_space())["decisions"]["a"]
      {'choices': ['x', 'y', 'z']}
    """

    def simple(choice):
        return choice if isinstance(choice, bool | int | float | str) else repr(choice)

    decisions = {}
    for decision in space.decisions:
        decisions[decision.name] = {"choices": [simple(choice) for choice in decision.choices]}
        if decision.active_if is not None:
            parent, allowed = decision.active_if
            decisions[decision.name]["active_if"] = [parent, list(allowed)]
    return {"name": space.name, "decisions": decisions}


def stopped_message(directory: os.PathLike, num_evaluations: int | None = None) -> str:
    """One line that says how to go on."""
    after = "" if num_evaluations is None else f" after {num_evaluations} evaluations"
    return f"stopped{after}; resume with: jaxnas resume {shlex.quote(str(directory))}"


def _named(strategies: Strategies) -> dict[str, Strategy]:
    # A strategy is a tuple, so its type decides, not its shape.
    named = {"strategy": strategies} if isinstance(strategies, Strategy) else dict(strategies)
    if not named:
        raise ValueError("strategies is empty; give at least one")
    for name in named:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"strategy name {name!r} cannot name a folder; use letters and digits")
    return named


def _drive(
    run: Run,
    strategies: dict[str, Strategy],
    evaluator: Evaluator,
    progress_fn: progress.ProgressFn | None,
    checkpoint_seconds: float,
) -> Run:
    show = progress.printer() if progress_fn is None else progress_fn
    # Live steps and replayed ones go through the same compiled functions, hence the same rounding.
    compiled = {name: Strategy(*map(jax.jit, strategy)) for name, strategy in strategies.items()}
    if evaluator.traceable:
        evaluator = Evaluator(jax.jit(evaluator.init), jax.jit(evaluator.evaluate), True)
    with run.lock(), signals.deferred(stopped_message(run.directory)) as stop:
        for arm in run.arms():
            driver = ArmDriver(run, arm, compiled[arm.strategy], evaluator, show)
            driver.advance(stop, checkpoint_seconds)
            if stop.signum is not None:
                message = stopped_message(run.directory, len(run.rows()))
                raise signals.Interrupted(stop.signum, message)
    return run
