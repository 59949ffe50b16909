"""One arm of a run: replays its journal, then searches on, one committed step at a time."""

import math
import time
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnas import checkpoints, progress, signals
from jaxnas.search import start, step, step_key
from jaxnas.store import Arm, Row, Run
from jaxnas.types import Evaluation, Evaluator, Proposal, Strategy

Steps = list[list[Row]]  # the journaled steps of one arm


class Budget(NamedTuple):
    """What every arm may spend: one of the two is None."""

    num_evaluations: int | None = None
    seconds: float | None = None  # wall time of the arm's own steps, summed over resumes

    def fraction(self, num_evaluations: int, seconds: float) -> float:
        """How much of it so many journaled evaluations in so many seconds are, in [0, 1]."""
        if self.num_evaluations is not None:
            return min(1.0, num_evaluations / self.num_evaluations)
        assert self.seconds is not None
        return min(1.0, seconds / self.seconds)


def check_budget(num_evaluations: int | None, seconds: float | None) -> Budget:
    """The budget, or ValueError unless exactly one of the two is given and makes sense."""
    if (num_evaluations is None) == (seconds is None):
        raise ValueError("give either num_evaluations or seconds as the budget, not both")
    if num_evaluations is not None and num_evaluations < 1:
        raise ValueError(f"num_evaluations must be at least 1, got {num_evaluations}")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be positive and finite, got {seconds}")
    return Budget(num_evaluations, seconds)


class ArmDriver:
    """Takes one arm from its last journaled step to the end of its budget."""

    def __init__(
        self,
        run: Run,
        arm: Arm,
        strategy: Strategy,
        evaluator: Evaluator,
        show: progress.ProgressFn,
    ):
        self.run, self.arm, self.strategy, self.evaluator = run, arm, strategy, evaluator
        self.show = show
        self.budget = Budget(**run.config["budget"])
        self.steps = [list(rows) for _, rows in groupby(run.rows(arm.name), lambda r: r.step)]
        self.meter = progress.Meter([row for rows in self.steps for row in rows])
        self.seconds = self.steps[-1][-1].seconds if self.steps else 0.0
        self.mark = time.perf_counter()  # up to here the arm's time is counted in `seconds`

    @property
    def fraction(self) -> float:
        """How much of the budget is used."""
        return self.budget.fraction(self.meter.evaluations, self.seconds)

    def advance(self, stop: signals.Stop, checkpoint_seconds: float) -> None:
        """Replays what was journaled after the last checkpoint, then searches on."""
        if self.fraction >= 1.0:
            return
        folder = self.run.directory / "checkpoints" / self.arm.name
        key = jax.random.key(self.arm.seed)
        k_steps, state = start(key, self.strategy, self.evaluator)
        index, state = checkpoints.restore(folder, state, at_most=len(self.steps))
        stateful = bool(jax.tree.leaves(state.evaluator))
        self.mark = saved = time.perf_counter()
        while stop.signum is None:
            is_replay = index < len(self.steps)
            if not is_replay and self.fraction >= 1.0:
                break
            evaluator = self.evaluator._replace(evaluate=partial(self._evaluate, index))
            k_step = step_key(k_steps, index)
            state, _ = step(k_step, state, self.strategy, evaluator)
            index += 1
            if is_replay:
                self.mark = time.perf_counter()
            if stateful or time.perf_counter() - saved > checkpoint_seconds:
                checkpoints.save(folder, index, state)
                saved = time.perf_counter()
        checkpoints.save(folder, index, state)

    def _evaluate(self, index: int, key, state, proposal: Proposal) -> tuple[Evaluation, Any]:
        """Stands in for the evaluator's `evaluate` at step `index`."""
        if index < len(self.steps):
            return self._replay(index, key, state, proposal)
        evaluation, state = self.evaluator.evaluate(key, state, proposal)
        evaluation = _on_host(evaluation, proposal)
        rows = self._rows(index, proposal, evaluation)
        self.run.append(rows)
        self.steps.append(rows)
        self.meter.update(rows)
        self.show(self._progress())
        return evaluation, state

    def _replay(self, index: int, key, state, proposal: Proposal) -> tuple[Evaluation, Any]:
        rows = self.steps[index]
        arch, budget = np.asarray(proposal.arch).tolist(), np.asarray(proposal.budget).tolist()
        if (arch, budget) != ([list(row.arch) for row in rows], [row.budget for row in rows]):
            raise ValueError(
                f"arm {self.arm.name} proposes other architectures at step {index} than its "
                "journal has: the code or the options have changed since the run was started"
            )
        evaluation = _from_rows(rows)
        if jax.tree.leaves(state):  # what the evaluator learned is not in the journal
            again, state = self.evaluator.evaluate(key, state, proposal)
            if not np.allclose(again.fitness, evaluation.fitness, rtol=1e-3, equal_nan=True):
                raise ValueError(
                    f"evaluating step {index} of arm {self.arm.name} again gives another fitness "
                    "than its journal has: the code, options or data have changed"
                )
        return evaluation, state

    def _rows(self, index: int, proposal: Proposal, evaluation: Evaluation) -> list[Row]:
        now = time.perf_counter()
        self.seconds += now - self.mark
        self.mark = now
        arch, budget = np.asarray(proposal.arch), np.asarray(proposal.budget)
        return [
            Row(
                *self.arm,
                step=index,
                slot=slot,
                arch=tuple(arch[slot].tolist()),
                budget=float(budget[slot]),
                fitness=float(evaluation.fitness[slot]),
                objectives=tuple(evaluation.objectives[slot].tolist()),
                metrics={name: float(x[slot]) for name, x in evaluation.metrics.items()},
                cost=float(evaluation.cost[slot]),
                seconds=self.seconds,
                time=time.time(),
            )
            for slot in range(len(arch))
        ]

    def _progress(self) -> progress.Progress:
        fraction = self.fraction
        arms = self.run.arms()
        arms_left = len(arms) - 1 - arms.index(self.arm) + 1.0 - fraction
        if self.budget.num_evaluations is not None:
            seconds_left = arms_left * self.budget.num_evaluations / self.meter.rate
        else:
            seconds_left = arms_left * (self.budget.seconds or 0.0)
        return progress.Progress(
            arm=self.arm.name,
            evaluations=self.meter.evaluations,
            total=self.budget.num_evaluations,
            fraction=fraction,
            best=self.meter.best,
            num_failed=self.meter.num_failed,
            rate=self.meter.rate,
            seconds_left=seconds_left,
        )


def _on_host(evaluation: Evaluation, proposal: Proposal) -> Evaluation:
    """The evaluation as NumPy arrays of the contract's dtypes, which is what the journal keeps."""
    host = jax.tree.map(lambda x: np.asarray(x, np.float32), jax.device_get(evaluation))
    size = proposal.arch.shape[0]
    columns = {f"metrics[{name!r}]": x for name, x in host.metrics.items()}
    columns |= {"fitness": host.fitness, "cost": host.cost}
    wrong = {name: x.shape for name, x in columns.items() if x.shape != (size,)}
    if host.objectives.ndim != 2 or len(host.objectives) != size:
        wrong["objectives"] = host.objectives.shape
    if wrong:
        raise ValueError(f"the evaluator returned shapes {wrong} for {size} candidates")
    return host


def _from_rows(rows: list[Row]) -> Evaluation:
    """The evaluation that was journaled as these rows."""

    def column(values) -> Any:
        return np.asarray(list(values), np.float32)

    return Evaluation(
        fitness=column(row.fitness for row in rows),
        objectives=column(row.objectives for row in rows),
        metrics={name: column(row.metrics[name] for row in rows) for name in rows[0].metrics},
        cost=column(row.cost for row in rows),
    )
