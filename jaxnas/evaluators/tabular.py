"""Fitness looked up in a table of finished trainings, with a simulated clock.

The rules of the clock are those of the searches in Dong & Yang, "NAS-Bench-201", 2020,
https://arxiv.org/abs/2001.00326, and Dong, Liu, Musial & Gabrys, "NATS-Bench", 2021,
https://arxiv.org/abs/2009.00437 (https://github.com/D-X-Y/AutoDL-Projects).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnas import counter
from jaxnas._checks import check_number, check_option
from jaxnas.tables.table import Table, check_name
from jaxnas.types import Evaluation, Evaluator, Proposal

SEEDS = ("random", "mean")
STOPS = ("before", "after")


class Clock(NamedTuple):
    """The state of a tabular evaluator."""

    elapsed: Array  # f32[], simulated seconds spent so far
    stopped: Array  # bool[], whether the time is up: nothing is evaluated any more


def tabular(
    table: Table,
    *,
    metric: str = "valid_accuracy",
    seed: str = "random",
    objectives: Sequence[str] = (),
    max_fidelity: float | Array = 1.0,
    time_limit: float | Array | None = None,
    stop: str = "before",
    report: Sequence[str] | None = None,
) -> Evaluator:
    """Scores architectures by looking them up; thousands of searches run in one program.

    Make the evaluator inside the function that is jitted, from a table that is that function's
    argument, as in the example: then there is one table, whatever the number of searches, and none
    is baked into the program. The evaluator's state is its clock alone.

    A proposal's budget times `max_fidelity` buys the largest fidelity at or below it, or the
    smallest one of the table. The published searches on NAS-Bench-201 use the 12-epoch schedule:
    `max_fidelity=12 / 200`, with a `time_limit` of 12,000 simulated seconds and `stop="before"`,
    on CIFAR-10; on NATS-Bench 20,000 (CIFAR-10), 40,000 (CIFAR-100) or 120,000 seconds
    (ImageNet16-120) and `stop="after"`.

    Candidates of a batch are evaluated one after the other, in order, as on one machine. Those
    that the time does not suffice for have NaN fitness, objectives and metrics and cost nothing,
    so that they change neither an incumbent nor the clock. Architectures without a row are NaN and
    free as well; a run that failed is NaN and costs its seconds.

    Names may be metrics or columns of the table. A leading "-" negates, for what is better when
    less: "-latency_ms".

    Shapes: B = candidates of a proposal, M = objectives.

    Args:
      table: from `jaxnas.tables`; may be traced.
      metric: what fitness is. A column, such as "test_accuracy", is the same at all fidelities.
      seed: "random" draws one of the runs that a candidate has at the fidelity, anew for every
        query, and reads all metrics from it; "mean" averages over them.
      objectives: names of the columns of `Evaluation.objectives`; empty: the fitness alone.
      max_fidelity: the fraction of full training that a budget of 1 stands for, in (0, 1].
      time_limit: simulated seconds a search may take; None: no limit.
      stop: "before" ends the search at the first evaluation that would exceed the limit, which is
        not made (NAS-Bench-201); "after" makes evaluations as long as the clock is below the limit,
        so the last may exceed it (NATS-Bench).
      report: names that `Evaluation.metrics` has, without signs; None: all of the table's.

    Returns:
      A traceable `Evaluator`. Fitness and metrics are in the units of the table; cost is simulated
      seconds.

    Raises:
      ValueError: for an unknown name or option, or a number out of range.

    Example:
      >>> import jax
      >>> import jaxnas as nas
      >>> from jaxnas.tables import from_arrays
      >>> space = nas.testing.tiny_space()
      >>> table = from_arrays(space, {"valid_accuracy": jnp.linspace(0.0, 0.9, 24)})
      >>> strategy = nas.strategies.random_search(space, batch_size=1)
      >>> def one(table, key):
      ...     return nas.search(key, strategy, tabular(table, time_limit=9.0), 12)[1].evaluation
      >>> keys = jax.random.split(jax.random.key(0), 512)
      >>> found = jax.jit(lambda table, keys: jax.vmap(lambda k: one(table, k))(keys))(table, keys)
      >>> found.fitness.shape, int(jnp.isfinite(found.fitness[0]).sum())
      ((512, 12, 1), 9)
    """
    check_option("seed", seed, SEEDS)
    check_option("stop", stop, STOPS)
    check_number("max_fidelity", max_fidelity, 0.0, 1.0)
    check_number("time_limit", time_limit)
    score, *columns = [_signed(table, "metric", metric)] + [
        _signed(table, "objectives", name) for name in objectives
    ]
    reported = table.names if report is None else tuple(report)
    for name in reported:
        check_name(table, "report", name)
    needed = {score[1], *(name for _, name in columns), *reported}
    runs = {name: table.metrics[name] for name in needed & set(table.metrics)}
    if seed == "mean":  # once, ahead of all queries
        runs = {name: jnp.nanmean(values, axis=-1) for name, values in runs.items()}
    guide = table.metrics.get(score[1], next(iter(table.metrics.values())))

    def init(key):
        del key
        return Clock(jnp.zeros(()), jnp.zeros((), bool))

    def evaluate(key, state: Clock, proposal: Proposal):
        row = table.row(proposal.arch)
        level = table.level(proposal.budget * max_fidelity)
        there = jnp.maximum(row, 0)
        seconds = jnp.where(row >= 0, table.seconds[there, level], 0.0)
        made, clock = _charge(state, seconds, time_limit, stop)
        found = {name: values[there, level] for name, values in runs.items()}
        if seed == "random":
            pick = _pick_run(key, guide[there, level])
            found = {name: pick(values) for name, values in found.items()}
        found |= {name: table.columns[name][there] for name in needed & set(table.columns)}
        valid = made & (row >= 0)
        values = {name: jnp.where(valid, value, jnp.nan) for name, value in found.items()}
        fitness = score[0] * values[score[1]]
        chosen = [sign * values[name] for sign, name in columns] or [fitness]
        metrics = {name: values[name] for name in reported}
        cost = jnp.where(made, seconds, 0.0)
        return Evaluation(fitness, jnp.stack(chosen, axis=-1), metrics, cost), clock

    return Evaluator(init, evaluate, traceable=True)


def _signed(table: Table, argument: str, text: str) -> tuple[float, str]:
    """The sign and the name in "name" or "-name"."""
    name = text.removeprefix("-")
    check_name(table, argument, name)
    return (1.0 if name == text else -1.0), name


def _pick_run(key: Array, guide: Array) -> Callable[[Array], Array]:
    """A function from a metric of every seed f32[B, S] to f32[B], one of those that `guide` has."""
    exists = ~jnp.isnan(guide)
    # The largest of independent uniform numbers is at every place with equal probability.
    drawn = jnp.argmax(
        jnp.where(exists, counter.uniform(counter.seed_from_key(key), exists.shape), -1.0), axis=-1
    )
    return lambda runs: jnp.take_along_axis(runs, drawn[:, None], axis=-1)[:, 0]


def _charge(
    clock: Clock, seconds: Array, time_limit: float | Array | None, stop: str
) -> tuple[Array, Clock]:
    """Which evaluations of `seconds` f32[B] are made, bool[B], and the clock after them."""
    ends = clock.elapsed + jnp.cumsum(seconds)
    if time_limit is None:
        return jnp.ones(seconds.shape, bool), Clock(ends[-1], clock.stopped)
    if stop == "before":
        made = ends <= time_limit
    else:
        made = jnp.concatenate([clock.elapsed[None], ends[:-1]]) < time_limit
    made &= ~clock.stopped
    elapsed = jnp.max(jnp.where(made, ends, clock.elapsed))
    stopped = clock.stopped | ~made[-1]
    return made, Clock(elapsed, stopped)
