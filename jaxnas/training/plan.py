"""What to compile: which candidates share a program, how they are batched and placed.

Every choice of a reshaping decision could have a program of its own (exact work, one compilation
each) or share one that is padded by masks or skips layers (wasted work, one compilation). `choose`
weighs the two with a cost model. It reads no clock, so the same inputs give the same plan on every
machine of a kind, and a resumed search repeats the arithmetic of an uninterrupted one to the bit.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from jaxnas.space import Bucket, SearchSpace, sample
from jaxnas.training.costs import CostModel, cost_of, training_bytes
from jaxnas.training.data import Data
from jaxnas.training.recipe import Recipe

Cells = tuple[tuple[int, ...], ...]  # a partition of the choices of a size group

CHUNK = 128  # candidates per call and device: results are small, and a call should not take long


@dataclass(frozen=True)
class Plan:
    """How a population is trained.

    Attributes:
      cells: per size group (the positions of reshaping decisions with the same choices), the
        partition of those choices into cells; candidates whose largest choice lies in one cell
        share a bucket. Single-choice cells are exact.
      group_size: candidates stacked by `vmap` in one step of a program; 1 maps over candidates.
      num_devices: devices that the candidates are dealt to.
      chunk: candidates per call and device.
      report: what was chosen and why, for people.
    """

    cells: tuple[tuple[tuple[int, ...], Cells], ...]
    group_size: int = 1
    num_devices: int = 1
    chunk: int = CHUNK
    report: str = field(default="", compare=False)

    def bucket_of(self, space: SearchSpace, arch: np.ndarray) -> Bucket:
        """The bucket that trains a concrete canonical `arch` i32[D]."""
        if space.supernet is None:
            return tuple((int(c),) for c in arch)
        active = space.active_mask(arch)
        chosen = []
        for positions, cells in self.cells:
            largest = max((int(arch[p]) for p in positions if active[p]), default=0)
            chosen.append(next(cell for cell in cells if largest in cell))
        return self._bucket(space, chosen)

    def buckets(self, space: SearchSpace) -> list[Bucket]:
        """Every bucket of the plan, in the order of a program; empty without a supernet."""
        if space.supernet is None:
            return []
        chosen = itertools.product(*(cells for _, cells in self.cells))
        return sorted({self._bucket(space, each) for each in chosen})

    def _bucket(self, space: SearchSpace, chosen: Sequence[tuple[int, ...]]) -> Bucket:
        """The bucket with the cell `chosen[g]` of every size group g."""
        bucket = list(space.full_bucket)
        for (positions, _), cell in zip(self.cells, chosen, strict=True):
            for position in positions:
                bucket[position] = cell if len(positions) == 1 else tuple(range(max(cell) + 1))
        return tuple(bucket)


def size_groups(space: SearchSpace) -> tuple[tuple[int, ...], ...]:
    """Positions of the reshaping decisions, those with equal choices together."""
    groups: dict[tuple, list[int]] = {}
    for position, decision in enumerate(space.decisions):
        if decision.reshapes:
            groups.setdefault(decision.choices, []).append(position)
    return tuple(tuple(positions) for positions in groups.values())


def _partitions(num_choices: int) -> list[Cells]:
    """Partitions of 0 to n - 1 into runs: all of them for up to 8 choices, else the extremes."""
    if num_choices > 8:
        return [tuple((c,) for c in range(num_choices)), (tuple(range(num_choices)),)]
    found = []
    for cuts in itertools.product((False, True), repeat=num_choices - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut]
        bounds = [0, *ends, num_choices]
        found.append(tuple(tuple(range(a, b)) for a, b in itertools.pairwise(bounds)))
    return found


class Workload(NamedTuple):
    """What `choose` weighs: kinds of candidates, how many of each, and the steps they take."""

    types: list[np.ndarray]  # one i32[D] representative per kind
    counts: np.ndarray  # candidates of each kind
    steps: float  # training steps of one candidate
    rows: int  # rows per step
    feature_shape: tuple[int, ...]


def step_seconds(
    model: CostModel, space: SearchSpace, plan: Plan, arch: np.ndarray, rows: int, shape
) -> float:
    """Predicted seconds of one training step of `arch` in its bucket of `plan`."""
    bucket = plan.bucket_of(space, arch)
    largest = _largest(space, bucket)
    held = cost_of(space, largest, shape)
    used = held
    if plan.group_size == 1:
        used = cost_of(space, _charged(space, bucket, arch), shape)
    return (
        model.step
        + model.layer * used.products
        + model.flop * 3.0 * used.flops * rows
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


def predict(
    model: CostModel, space: SearchSpace, plan: Plan, work: Workload
) -> tuple[float, float, int]:
    """Predicted compile seconds, run seconds and number of buckets."""
    buckets = {plan.bucket_of(space, arch) for arch in work.types}
    compiling = sum(
        model.compile_program
        + model.compile_layer * cost_of(space, _largest(space, bucket), work.feature_shape).products
        for bucket in buckets
    )
    seconds = [
        step_seconds(model, space, plan, arch, work.rows, work.feature_shape) for arch in work.types
    ]
    running = float(np.dot(seconds, work.counts)) * work.steps / plan.num_devices
    return compiling, running, len(buckets)


def _workload(space, recipe, data, num_candidates, arch) -> Workload:
    if arch is None:
        keys = jax.random.split(jax.random.key(0), min(num_candidates, 512))
        arch = np.asarray(jax.jit(jax.vmap(lambda k: sample(k, space)))(keys))
    kinds: dict[tuple, list] = {}
    groups = size_groups(space)
    for row in np.asarray(arch):
        active = space.active_mask(row)
        kind = tuple(max((int(row[p]) for p in g if active[p]), default=0) for g in groups)
        kinds.setdefault(kind, []).append(row)
    counts = np.asarray([len(rows) for rows in kinds.values()]) * num_candidates / len(arch)
    num_rows = data.train.y.shape[0]
    steps = float(recipe.epochs * recipe.steps_per_epoch(num_rows))
    rows = recipe.batch_size or num_rows
    shape = tuple(data.train.x.shape[1:])
    return Workload([rows[0] for rows in kinds.values()], counts, steps, rows, shape)


def choose(
    space: SearchSpace,
    recipe: Recipe,
    data: Data,
    num_candidates: int,
    *,
    arch: np.ndarray | None = None,
    cells: dict[str, Cells] | None = None,
    group_size: int | None = None,
    num_devices: int | None = None,
    chunk: int | None = None,
    memory_limit: int | None = None,
    model: CostModel | None = None,
) -> Plan:
    """Makes the plan with the least predicted compile plus run time; any part can be forced.

    Args:
      space: the space.
      recipe: how candidates are trained.
      data: what they are trained on; only shapes are read.
      num_candidates: how many will be trained in all with this plan, at least 1.
      arch: i32[P, D], the candidates if known; None: typical ones are sampled from the space.
      cells: forces the partition of choices per decision, by decision name.
      group_size: forces candidates per `vmap`. None: 1 on CPU, where stacked candidates are slower
        for every network measured; as many as memory allows elsewhere (not measured on a GPU).
      num_devices: None: all devices of all processes.
      chunk: None: `CHUNK`, or what memory allows.
      memory_limit: bytes per device; None: what the device reports, or half the host's memory
        shared by its devices.
      model: None: the measured default.

    Returns:
      A `Plan` with its report.

    Raises:
      ValueError: for a forced value out of range or an unknown decision.
    """
    _check_at_least_one(
        num_candidates=num_candidates, group_size=group_size, num_devices=num_devices, chunk=chunk
    )
    available = jax.device_count()
    num_devices = available if num_devices is None else num_devices
    if num_devices > available:
        raise ValueError(f"num_devices = {num_devices}, but there are {available} devices")
    model = CostModel() if model is None else model
    work = _workload(space, recipe, data, num_candidates, arch)
    most = max(training_bytes(cost_of(space, a, work.feature_shape), work.rows) for a in work.types)
    limit = _memory_limit(num_devices) if memory_limit is None else memory_limit
    fitting = max(1, int(limit // most))
    if group_size is None:
        on_cpu = jax.default_backend() == "cpu"
        group_size = 1 if on_cpu else min(fitting, -(-num_candidates // num_devices))
    chunk = max(group_size, CHUNK if chunk is None else chunk)
    chunk = -(-chunk // group_size) * group_size

    options = []
    for combination in _cell_options(space, cells or {}):
        plan = Plan(combination, group_size, num_devices, chunk)
        compiling, running, programs = predict(model, space, plan, work)
        options.append((compiling + running, compiling, running, programs, plan))
    options.sort(key=lambda option: option[0])
    plan = options[0][-1]
    report = _describe(space, options, num_candidates, most * group_size, limit)
    return Plan(plan.cells, group_size, num_devices, chunk, report)


def _check_at_least_one(**values):
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _cell_options(space, forced: dict[str, Cells]):
    for name in forced:
        if not space.decisions[space.index(name)].reshapes:
            raise ValueError(f"cells names {name!r}, which does not reshape parameters")
    per_group = []
    for positions in size_groups(space):
        names = [space.decisions[p].name for p in positions]
        given = [forced[name] for name in names if name in forced]
        num_choices = space.num_choices[positions[0]]
        if given and sorted(c for cell in given[0] for c in cell) != list(range(num_choices)):
            raise ValueError(
                f"cells of {names[0]!r} must partition the choices 0 to {num_choices - 1}, "
                f"got {given[0]}"
            )
        options = given[:1] or _partitions(num_choices)
        per_group.append([(positions, option) for option in options])
    return itertools.product(*per_group)


def _memory_limit(num_devices: int) -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // num_devices


def _describe(space, options, num_candidates, memory, limit) -> str:
    total, compiling, running, programs, plan = options[0]
    batching = "map" if plan.group_size == 1 else f"vmap over {plan.group_size}"
    lines = [
        f"{num_candidates} candidates on {plan.num_devices} {jax.default_backend()} device(s), "
        f"{batching}, {plan.chunk} per call and device",
        f"predicted memory {memory / 2**20:,.0f} MiB of {limit / 2**20:,.0f} MiB per device",
        f"{programs} buckets: predicted compile {compiling:.1f} s + run {running:.1f} s "
        f"= {total:.1f} s",
    ]
    for positions, cells in plan.cells:
        names = ", ".join(space.decisions[p].name for p in positions)
        values = space.decisions[positions[0]].choices
        text = " | ".join(" ".join(str(values[c]) for c in cell) for cell in cells)
        lines.append(f"  {names}: {text}")
    exact = max(options, key=lambda option: option[3])
    single = min(options, key=lambda option: option[3])
    for name, option in (("a bucket per size", exact), ("fewest buckets", single)):
        lines.append(
            f"instead, {name} ({option[3]}): compile {option[1]:.1f} s + run {option[2]:.1f} s "
            f"= {option[0]:.1f} s"
        )
    return "\n".join(lines)
