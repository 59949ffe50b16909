"""Evaluators with several objectives, limits on them, and cheap ones looked at first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas.space import SearchSpace
from jaxnas.types import Evaluation, Evaluator, Proposal

Metrics = Mapping[str, Array]


@dataclass(frozen=True)
class Objective:
    """One thing to be good at.

    Attributes:
      metric: a key of `Evaluation.metrics`.
      minimise: whether less is better.
      limit: in the metric's unit; a candidate that is worse than this is infeasible. None: none.
    """

    metric: str
    minimise: bool = False
    limit: float | None = None

    def value(self, metrics: Metrics) -> Array:
        """What is maximised: the metric f32[B], negated if less is better.

        Raises:
          ValueError: if there is no such metric.
        """
        if self.metric not in metrics:
            raise ValueError(
                f"objective {self.metric!r} is not a metric of the evaluator; it has "
                f"{sorted(metrics)}"
            )
        return -metrics[self.metric] if self.minimise else metrics[self.metric]

    def is_met(self, metrics: Metrics) -> Array:
        """Whether the limit holds: bool[B]; not where the metric is NaN."""
        value = self.value(metrics)
        if self.limit is None:
            return jnp.ones(value.shape, bool)
        return value >= (-self.limit if self.minimise else self.limit)


def with_objectives(
    evaluator: Evaluator,
    objectives: Sequence[Objective],
    *,
    scalarise: Callable[[Metrics], Array] | None = None,
    metrics_fn: Callable[[Array], Metrics] | None = None,
) -> Evaluator:
    """An evaluator with these objectives, one number of them, and their limits.

    Every strategy maximises the fitness, `nsga2` the objectives. An infeasible candidate is a
    failed one, NaN in both, so any strategy turns away from it; its metrics stay.

    Args:
      evaluator: measures the candidates.
      objectives: at least one; the columns of `Evaluation.objectives`, in this order.
      scalarise: `(metrics) -> f32[B]`, the fitness, of metrics in their natural units; see
        `jaxnas.objectives.mnasnet` and others. None: the first objective.
      metrics_fn: `(arch i32[D]) -> {name: scalar}`, traceable, metrics to add to the evaluator's:
        costs that follow from the architecture, such as `costs.AdditiveCost`. None: nothing.

    Returns:
      An `Evaluator`, traceable if the given one is. Its metrics have `feasible`, 0 or 1, besides.

    Raises:
      ValueError: for no objectives, or one twice; when called, for one that is no metric.

    Example:
      >>> from jaxnas.evaluators import from_function
      >>> inner = from_function(lambda key, arch: arch[0] / 4)
      >>> objectives = [Objective("fitness"), Objective("size", minimise=True, limit=5.0)]
      >>> size = lambda arch: {"size": 2.0 * arch.sum()}
      >>> evaluator = with_objectives(inner, objectives, metrics_fn=size)
      >>> proposal = Proposal(jnp.array([[1, 1], [2, 3]]), jnp.ones(2))
      >>> evaluator.evaluate(jax.random.key(0), (), proposal)[0].objectives.tolist()
      [[0.25, -4.0], [nan, nan]]
    """
    chosen = tuple(objectives)
    names = [objective.metric for objective in chosen]
    if not chosen or len(set(names)) < len(names):
        raise ValueError(f"objectives must be at least one metric, none twice, got {names}")

    def evaluate(key, state, proposal: Proposal):
        found, state = evaluator.evaluate(key, state, proposal)
        metrics = dict(found.metrics)
        if metrics_fn is not None:
            metrics |= jax.vmap(metrics_fn)(jnp.asarray(proposal.arch))
        columns = jnp.stack([each.value(metrics) for each in chosen], axis=1)
        feasible = jnp.all(jnp.stack([each.is_met(metrics) for each in chosen]), axis=0)
        fitness = columns[:, 0] if scalarise is None else scalarise(metrics)
        sound = feasible & ~jnp.isnan(found.fitness)
        metrics["feasible"] = feasible.astype(jnp.float32)
        evaluation = Evaluation(
            jnp.where(sound, fitness, jnp.nan).astype(jnp.float32),
            jnp.where(sound[:, None], columns, jnp.nan).astype(jnp.float32),
            metrics,
            found.cost,
        )
        return evaluation, state

    return Evaluator(evaluator.init, evaluate, evaluator.traceable)


def constrain(space: SearchSpace, feasible_fn: Callable[[Array], Array]) -> SearchSpace:
    """The space without the architectures that a cheap function rules out.

    No strategy proposes them, so nothing is paid for them; this is the way to limit what follows
    from the architecture alone. Where few architectures are feasible, draws take many tries: see
    `jaxnas.space.MAX_TRIES`.

    Args:
      space: the space.
      feasible_fn: `(arch i32[D]) -> bool[]`, traceable.

    Returns:
      A `SearchSpace` whose `is_valid` holds where both hold.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> from jaxnas.space import is_valid
      >>> small = constrain(tiny_space(), lambda arch: arch.sum() <= 2)
      >>> [bool(is_valid(small, jnp.array(arch))) for arch in ([1, 1, 0], [2, 1, 0])]
      [True, False]
    """
    known = space.is_valid

    def is_valid(arch):
        own = jnp.asarray(feasible_fn(arch))
        return own if known is None else own & known(arch)

    return replace(space, is_valid=is_valid)


def screened(evaluator: Evaluator, feasible_fn: Callable[[Array], Array]) -> Evaluator:
    """An evaluator that pays only for candidates that a cheap function lets through.

    For rules that must not shape the proposals, or that change during a search; otherwise
    `constrain` wastes no proposals. The others have NaN fitness, objectives and metrics, and cost
    nothing. An evaluator that is not traceable is called with those let through alone, so their
    places in the batch, and with them their random numbers, depend on who else was.

    Args:
      evaluator: the expensive one.
      feasible_fn: `(arch i32[D]) -> bool[]`, traceable.

    Returns:
      An `Evaluator`, traceable if the given one is.

    Example:
      >>> from jaxnas.evaluators import from_function
      >>> evaluator = screened(from_function(lambda key, arch: arch[0]), lambda arch: arch[0] < 2)
      >>> proposal = Proposal(jnp.array([[1], [2]]), jnp.ones(2))
      >>> evaluator.evaluate(jax.random.key(0), (), proposal)[0].fitness.tolist()
      [1.0, nan]
    """

    def evaluate(key, state, proposal: Proposal):
        let = jax.vmap(feasible_fn)(jnp.asarray(proposal.arch))
        if evaluator.traceable:
            found, state = evaluator.evaluate(key, state, proposal)
            return _mask(found, let), state
        rows = np.flatnonzero(np.asarray(let))
        # One candidate is always evaluated, for the names of the metrics.
        part = rows if len(rows) else np.zeros(1, int)
        few = Proposal(proposal.arch[part], proposal.budget[part])
        found, state = evaluator.evaluate(key, state, few)
        place = np.zeros(len(let), int)
        place[part] = np.arange(len(part))
        return _mask(jax.tree.map(lambda values: values[place], found), let), state

    return Evaluator(evaluator.init, evaluate, evaluator.traceable)


def _mask(found: Evaluation, let: Array) -> Evaluation:
    def hide(values):
        return jnp.where(let.reshape(-1, *[1] * (values.ndim - 1)), values, jnp.nan)

    return Evaluation(
        hide(found.fitness),
        hide(found.objectives),
        {name: hide(values) for name, values in found.metrics.items()},
        jnp.where(let, found.cost, 0.0),
    )
