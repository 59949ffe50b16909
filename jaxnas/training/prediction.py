"""What a plan costs in seconds, before anything is compiled."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jaxnas.space import Bucket, SearchSpace, sample
from jaxnas.training.costs import CostModel, ProgramSize, conv_share, cost_of
from jaxnas.training.data import Data
from jaxnas.training.recipe import Recipe

if TYPE_CHECKING:
    from jaxnas.training.plan import Plan

SAMPLES = 512  # of a space, where the candidates are not known


def size_groups(space: SearchSpace) -> tuple[tuple[int, ...], ...]:
    """Positions of the reshaping decisions, those with equal choices together."""
    groups: dict[tuple, list[int]] = {}
    for position, decision in enumerate(space.decisions):
        if decision.reshapes:
            groups.setdefault(decision.choices, []).append(position)
    return tuple(tuple(positions) for positions in groups.values())


class Workload(NamedTuple):
    """What `choose` weighs: kinds of candidates, how many of each, and the steps they take."""

    types: list[np.ndarray]  # one i32[D] representative per kind
    counts: np.ndarray  # candidates of each kind
    steps: float  # training steps of one candidate
    rows: int  # rows per step
    feature_shape: tuple[int, ...]
    known: bool  # whether the candidates are; otherwise all buckets of a plan are compiled


def step_seconds(
    model: CostModel, space: SearchSpace, plan: "Plan", arch: np.ndarray, rows: int, shape
) -> float:
    """Predicted seconds of one training step of `arch` in its bucket of `plan`."""
    bucket = plan.bucket_of(space, arch)
    largest = _largest(space, bucket)
    held = cost_of(space, largest, shape)
    used = held
    if plan.group_size == 1:
        used = cost_of(space, _charged(space, bucket, arch), shape)
    share = conv_share(space, shape)
    flop = share * model.conv_flop + (1.0 - share) * model.flop
    return (
        model.step
        + model.layer * used.products
        + (flop * 3.0 * used.flops + model.activation * used.activations) * rows
        + model.parameter * (used.parameters + 0.15 * (held.parameters - used.parameters))
    )


def _largest(space: SearchSpace, bucket: Bucket) -> np.ndarray:
    return np.asarray([max(choices) for choices in bucket])


def _charged(space: SearchSpace, bucket: Bucket, arch: np.ndarray) -> np.ndarray:
    """The architecture whose exact network costs what `arch` costs inside `bucket`."""
    if space.supernet is None:
        return arch
    module = space.supernet(bucket)
    return module.charged(arch) if hasattr(module, "charged") else _largest(space, bucket)


def compile_seconds(
    model: CostModel, space: SearchSpace, bucket: Bucket, largest: ProgramSize, shape
) -> float:
    """Predicted seconds of compiling a bucket, given the size of the largest one's program."""
    whole, own = (
        cost_of(space, _largest(space, b), shape).products for b in (space.full_bucket, bucket)
    )
    traced = (
        model.compile_operation * largest.operations
        + model.compile_convolution * largest.convolutions
    )
    return model.compile_program + traced * min(1.0, own / max(1, whole))


def predict(
    model: CostModel, space: SearchSpace, plan: "Plan", work: Workload, largest: ProgramSize
) -> tuple[float, float, int]:
    """Predicted compile seconds, run seconds and number of buckets."""
    buckets = {plan.bucket_of(space, arch) for arch in work.types}
    if not work.known:
        buckets |= set(plan.buckets(space))
    compiling = sum(
        compile_seconds(model, space, bucket, largest, work.feature_shape) for bucket in buckets
    )
    rows = -(-work.rows // plan.batch_devices)
    seconds = [
        step_seconds(model, space, plan, arch, rows, work.feature_shape) for arch in work.types
    ]
    shards = plan.num_devices // plan.batch_devices
    running = float(np.dot(seconds, work.counts)) * work.steps / shards
    return compiling, running, len(buckets)


def workload(
    space: SearchSpace,
    recipe: Recipe,
    data: Data,
    num_candidates: int,
    arch: np.ndarray | None = None,
) -> Workload:
    """What `num_candidates` are like: those of `arch` i32[P, D], or ones sampled from the space."""
    known = arch is not None
    if arch is None:
        keys = jax.random.split(jax.random.key(0), min(num_candidates, SAMPLES))
        arch = np.asarray(jax.jit(jax.vmap(lambda k: sample(k, space)))(keys))
    kinds: dict[tuple, list] = {}
    groups = size_groups(space)
    for row in np.asarray(arch):
        active = space.active_mask(row)
        kind = tuple(max((int(row[p]) for p in g if active[p]), default=0) for g in groups)
        if not groups and space.cost is not None:  # what an operation costs, without a trace
            kind = tuple(int(choice) for choice in row)
        kinds.setdefault(kind, []).append(row)
    counts = np.asarray([len(rows) for rows in kinds.values()]) * num_candidates / len(arch)
    num_rows = data.train.y.shape[0]
    steps = float(recipe.epochs * recipe.steps_per_epoch(num_rows))
    rows = recipe.batch_size or num_rows
    shape = tuple(data.train.x.shape[1:])
    types = [found[0] for found in kinds.values()]
    return Workload(types, counts, steps, rows, shape, known)
