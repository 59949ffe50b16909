"""Fitness inside a trained supernet: every architecture is scored with the shared weights.

Any strategy can so search what a one-shot method has trained: Guo et al., "Single Path One-Shot
Neural Architecture Search with Uniform Sampling", 2020, https://arxiv.org/abs/1904.00420, Section
3.3 (evolution); Li & Talwalkar, "Random Search and Reproducibility for Neural Architecture Search",
2019, https://arxiv.org/abs/1902.07638 (random search); Cai et al., "Once-for-All", 2020,
https://arxiv.org/abs/1908.09791 (evolution under costs).

Running statistics of a supernet are those of all architectures it was trained on, so those of each
candidate are computed anew from some training batches (Guo et al., Section 3.3; there 20,000
images). Deviation: these rows are not augmented, and they are the same for all candidates, so that
a fitness depends on nothing but the architecture.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from jaxnas import counter
from jaxnas._checks import check_count, check_number
from jaxnas.parallel import device_mesh
from jaxnas.space import SearchSpace
from jaxnas.training.data import Data, Split, Task
from jaxnas.training.metrics import evaluate as scores_on
from jaxnas.training.metrics import score_name
from jaxnas.types import Evaluation, Evaluator, Proposal, PyTree

STATISTICS = "batch_stats"  # the collection that is computed anew

Measure = Callable[[Array], Array]


def shared_weights(
    space: SearchSpace,
    variables: PyTree,
    data: Data,
    *,
    num_recalibration_batches: int = 8,
    batch_size: int = 64,
    measures: Mapping[str, Measure] | None = None,
    objectives: Sequence[str] = (),
    cost: float | Array = 1.0,
    num_devices: int = 1,
) -> Evaluator:
    """Scores architectures with the weights of a trained supernet, one after the other.

    Traceable: make it inside the function that is jitted and hand `variables` to that function, as
    in the example, and one program serves every supernet. A proposal's budget is ignored.

    Shapes: B = candidates of a proposal, M = objectives.

    Args:
      space: a space with a supernet.
      variables: of its supernet of all choices; of a one-shot method's state they are
        `{"params": state.weights, **state.rest}`. May be traced.
      data: scores on `data.valid`; recomputes batch statistics on rows of `data.train`.
      num_recalibration_batches: training batches whose statistics are averaged for each candidate;
        0 uses the statistics in `variables`. Without effect where the supernet has none. Static.
      batch_size: rows of each of these batches. Static.
      measures: name to a traceable function `(arch i32[D]) -> f32[]`, which become metrics: FLOPs,
        parameters, latency.
      objectives: names of metrics that are the columns of `Evaluation.objectives`, with a leading
        "-" where less is better; empty: the fitness alone.
      cost: simulated seconds that a candidate is charged, at least 0. May be traced.
      num_devices: devices that the candidates are dealt to. Static.

    Returns:
      A traceable `Evaluator` without state. Fitness is validation accuracy, or R2 for regression,
      NaN where the loss is not finite. Metrics: `loss`, `accuracy` or `r2`, and those of
      `measures`.

    Raises:
      ValueError: for a space without a supernet, variables without `params`, a count out of range,
        more rows to recalibrate on than there are, or an unknown objective.

    Example:
      >>> import jaxnas as nas
      >>> data = nas.datasets.wine(jax.random.key(0))
      >>> space = nas.spaces.mlp(3, depths=(1, 2), widths=(8,), dropouts=(0.0,))
      >>> supernet = space.supernet(space.full_bucket)
      >>> arch = jnp.zeros(space.num_decisions, jnp.int32)
      >>> variables = supernet.init(jax.random.key(1), data.train.x, arch, train=False)
      >>> strategy = nas.strategies.random_search(space, batch_size=2)
      >>> def found(variables, key):
      ...     return nas.search(key, strategy, shared_weights(space, variables, data), 3)[1]
      >>> jax.jit(found)(variables, jax.random.key(2)).evaluation.fitness.shape
      (3, 2)
    """
    if space.supernet is None:
        raise ValueError(f"space {space.name!r} has no supernet, so there are no shared weights")
    if "params" not in variables:
        raise ValueError(f"variables must have the collection 'params', got {sorted(variables)}")
    check_count("num_recalibration_batches", num_recalibration_batches, 0)
    check_count("batch_size", batch_size)
    check_count("num_devices", num_devices)
    check_number("cost", cost)
    measures = dict(measures or {})
    columns = [_signed(name, ("loss", score_name(data.task), *measures)) for name in objectives]
    module = space.supernet(space.full_bucket)
    num_batches = num_recalibration_batches if STATISTICS in variables else 0
    batches = _batches(data.train, num_batches, batch_size)

    def init(key):
        del key
        return ()

    def evaluate(key, state, proposal: Proposal):
        del key

        def scored(operands, archs):
            variables, valid, batches = operands
            score_fn = partial(_scores, module, data.task, variables, valid, batches)
            return jax.lax.map(score_fn, archs)

        scores = _dealt(scored, num_devices, (variables, data.valid, batches), proposal.arch)
        # Accuracy alone would not tell: NaN logits have a largest one, too.
        sound = jnp.isfinite(scores["loss"])
        metrics = {name: jnp.where(sound, value, jnp.nan) for name, value in scores.items()}
        fitness = metrics[score_name(data.task)]
        for name, measure in measures.items():
            metrics[name] = jax.vmap(measure)(proposal.arch).astype(jnp.float32)
        chosen = [sign * metrics[name] for sign, name in columns] or [fitness]
        seconds = jnp.broadcast_to(jnp.asarray(cost, jnp.float32), fitness.shape)
        return Evaluation(fitness, jnp.stack(chosen, axis=-1), metrics, seconds), state

    return Evaluator(init, evaluate, traceable=True)


def recalibrate(
    moved_fn: Callable[[PyTree, Array], PyTree], statistics: PyTree, batches: Array
) -> PyTree:
    """Running averages replaced by the mean of what batches would have them be.

    A step moves an average `s` to `m s + (1 - m) b`, where `b` is the batch's own value. Steps from
    0 and from 1 tell `m` and `b` apart, so that any layer's momentum will do. Nothing is computed
    twice: in training mode, what a network does with a batch does not depend on its averages.

    Args:
      moved_fn: `(statistics, x) -> statistics`, one forward pass in training mode.
      statistics: pytree of f32 arrays. Values that no step moves stay.
      batches: f32[T, n, ...], inputs of T >= 1 steps.

    Returns:
      Like `statistics`.

    Example:
      >>> moved = lambda mean, x: 0.9 * mean + 0.1 * x.mean()
      >>> fresh = recalibrate(moved, jnp.float32(7.0), jnp.array([[1.0, 2.0], [5.0, 6.0]]))
      >>> round(fresh.item(), 3)
      3.5
    """
    zero_and_one = lambda s: jnp.stack([jnp.zeros_like(s), jnp.ones_like(s)])  # noqa: E731
    starts = jax.tree.map(zero_and_one, statistics)

    def step(total, x):
        moved = jax.vmap(lambda start: moved_fn(start, x))(starts)
        return jax.tree.map(jnp.add, total, moved), None

    total, _ = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, starts), batches)

    def solve(old, sums):
        share = len(batches) - (sums[1] - sums[0])  # T (1 - m)
        return jnp.where(share > 1e-4, sums[0] / jnp.maximum(share, 1e-4), old)

    return jax.tree.map(solve, statistics, total)


def _scores(module: Any, task: Task, variables, valid: Split, batches: Array, arch: Array):
    """Loss and score f32[] of one architecture on the validation rows."""
    if len(batches):
        others = {name: tree for name, tree in variables.items() if name != STATISTICS}
        # Dropout, where there is any, must have a seed; any will do.
        options = {"train": True, "mutable": [STATISTICS], "rngs": {"dropout": jax.random.key(0)}}

        def moved(statistics, x):
            own = {**others, STATISTICS: statistics}
            return module.apply(own, x, arch, **options)[1][STATISTICS]

        fresh = recalibrate(moved, variables[STATISTICS], batches)
        variables = {**others, STATISTICS: fresh}
    apply_fn = lambda x: module.apply(variables, x, arch, train=False)  # noqa: E731
    return scores_on(apply_fn, [valid], task)[0]


def _batches(train: Split, num_batches: int, batch_size: int) -> Array:
    """Inputs f32[T, batch_size, ...], random rows but always the same."""
    num_rows = train.y.shape[0]
    if num_batches * batch_size > num_rows:
        raise ValueError(
            f"num_recalibration_batches = {num_batches} of {batch_size} rows are more than the "
            f"{num_rows} training rows"
        )
    order = counter.permutation(jnp.zeros(2, jnp.uint32), num_rows)[: num_batches * batch_size]
    return train.x[order].reshape(num_batches, batch_size, *train.x.shape[1:])


def _dealt(scored: Callable, num_devices: int, operands: PyTree, archs: Array) -> PyTree:
    """`scored(operands, archs)` with the rows of `archs` dealt to devices."""
    if num_devices == 1:
        return scored(operands, archs)
    whole, dealt = PartitionSpec(), PartitionSpec("candidate")
    mapped = jax.shard_map(
        scored,
        mesh=device_mesh(num_devices),
        in_specs=(whole, dealt),
        out_specs=dealt,
        check_vma=False,
    )
    num_rows = -(-len(archs) // num_devices) * num_devices
    padded = archs[jnp.minimum(jnp.arange(num_rows), len(archs) - 1)]
    return jax.tree.map(lambda leaf: leaf[: len(archs)], mapped(operands, padded))


def _signed(text: str, known: Sequence[str]) -> tuple[float, str]:
    """The sign and the name in "name" or "-name"."""
    name = text.removeprefix("-")
    if name not in known:
        raise ValueError(f"objectives has {text!r}; names must be in {sorted(known)}")
    return (1.0 if name == text else -1.0), name
