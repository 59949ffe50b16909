"""What to compile: which candidates share a program, how they are batched and placed.

Every choice of a reshaping decision could have a program of its own (exact work, one compilation
each) or share one that is padded by masks or skips layers (wasted work, one compilation). `choose`
weighs the two with a cost model. It reads no clock, so the same inputs give the same plan on every
machine of a kind, and a resumed search repeats the arithmetic of an uninterrupted one to the bit.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from jaxnas.space import Bucket, SearchSpace
from jaxnas.training.costs import CostModel, cost_of
from jaxnas.training.data import Data
from jaxnas.training.memory import MIB, Footprint, Job, device_limit, footprint
from jaxnas.training.prediction import Workload, predict, size_groups, workload
from jaxnas.training.program import can_remat
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
      num_devices: devices in all.
      chunk: candidates per call and device.
      batch_devices: devices that share the mini-batches of a candidate; candidates are dealt to
        the num_devices / batch_devices groups of them.
      remat: whether operations compute again in the backward pass what they could have kept, which
        saves memory and costs time.
      memory_limit: bytes per device that a call may take; None: no limit. `population.train` fits
        its calls into it, and returns NaN for candidates that do not fit alone.
      report: what was chosen and why, for people.
    """

    cells: tuple[tuple[tuple[int, ...], Cells], ...]
    group_size: int = 1
    num_devices: int = 1
    chunk: int = CHUNK
    batch_devices: int = 1
    remat: bool = False
    memory_limit: int | None = None
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
    batch_devices: int = 1,
    chunk: int | None = None,
    remat: bool | None = None,
    memory_limit: int | None = None,
    model: CostModel | None = None,
) -> Plan:
    """Makes the plan with the least predicted compile plus run time; any part can be forced.

    Memory comes first: of plans that fit different numbers of candidates, the one that fits most.

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
      batch_devices: devices that share every mini-batch, a divisor of `num_devices` and of the
        batch size; pays where there are fewer candidates than devices.
      chunk: candidates per call and device; None: `CHUNK`, or what memory allows.
      remat: forces computing again in the backward pass, which only spaces of cells can; None: if
        the largest candidate does not fit without.
      memory_limit: bytes per device; None: what the device reports, or half the host's memory
        shared by its devices.
      model: None: the default; `calibration.calibrated()` for that of this device. A search that
        is resumed needs the model it was started with, or it may get another plan.

    Returns:
      A `Plan` with its report.

    Raises:
      ValueError: for a forced value out of range or an unknown decision.
    """
    _check_at_least_one(
        num_candidates=num_candidates,
        group_size=group_size,
        num_devices=num_devices,
        batch_devices=batch_devices,
        chunk=chunk,
        memory_limit=memory_limit,
    )
    num_devices = _checked_devices(num_devices)
    if remat and not can_remat(space):
        raise ValueError(f"remat is for spaces of cells, {space.name!r} is not one")
    work = workload(space, recipe, data, num_candidates, arch)
    _check_batch(work.rows, num_devices, batch_devices)
    limit = device_limit(num_devices) if memory_limit is None else memory_limit
    job = Job(space, recipe, data, num_devices, batch_devices, remat=bool(remat))
    job, largest = _footprint(job, work, CHUNK if chunk is None else chunk, limit, remat)
    sizes = _sizes(largest, -(-num_candidates // job.num_shards), group_size, chunk, limit)

    base = Plan((), sizes[0], num_devices, sizes[1], batch_devices, job.remat, limit)
    model = CostModel() if model is None else model
    options = []
    for combination in _cell_options(space, cells or {}):
        plan = dataclasses.replace(base, cells=combination)
        options.append(Option(plan, *predict(model, space, plan, work, largest.size)))
    options.sort(key=lambda option: option.seconds)
    if largest.total(1) > limit:
        options = _fitting_most(options, job, work, limit)
    report = _describe(space, options, num_candidates, largest)
    return dataclasses.replace(options[0].plan, report=report)


def _sizes(
    largest: Footprint, share: int, group_size: int | None, chunk: int | None, limit: int
) -> tuple[int, int]:
    """Candidates per group and per call; `share` of them fall to a device in all."""
    chunk = CHUNK if chunk is None else chunk
    fits = largest.total(1) <= limit
    if group_size is None:
        on_cpu = jax.default_backend() == "cpu"
        group_size = 1 if on_cpu or not fits else min(share, limit // largest.total(1))
    if fits:  # else only smaller buckets are trained, of which less is known here
        chunk = min(chunk, largest.fitting(limit - (group_size - 1) * largest.fixed))
    return group_size, -(-max(chunk, group_size) // group_size) * group_size


class Option(NamedTuple):
    """A plan with its predicted seconds."""

    plan: Plan
    compiling: float
    running: float
    num_buckets: int

    @property
    def seconds(self) -> float:
        """Compiling and running."""
        return self.compiling + self.running


def _checked_devices(num_devices: int | None) -> int:
    available = jax.device_count()
    if num_devices is None:
        return available
    if num_devices > available:
        raise ValueError(f"num_devices = {num_devices}, but there are {available} devices")
    return num_devices


def _check_batch(rows: int, num_devices: int, batch_devices: int) -> None:
    if num_devices % batch_devices or rows % batch_devices:
        raise ValueError(
            f"batch_devices must divide the {num_devices} devices and the {rows} rows of a step, "
            f"got {batch_devices}"
        )


def _footprint(
    job: Job, work: Workload, chunk: int, limit: int, remat: bool | None
) -> tuple[Job, Footprint]:
    """The memory of the largest bucket, and the job with `remat` as it is to be."""
    bucket = job.space.full_bucket
    if job.space.supernet is None:
        costs = [cost_of(job.space, arch, work.feature_shape) for arch in work.types]
        heaviest = max(range(len(costs)), key=lambda i: costs[i].flops)
        bucket = tuple((int(c),) for c in work.types[heaviest])
    found = footprint(job, (bucket,), 1, chunk)
    if remat is None and found.total(1) > limit and can_remat(job.space):
        again = dataclasses.replace(job, remat=True)
        saving = footprint(again, (bucket,), 1, chunk)
        if saving.total(1) < found.total(1):
            return again, saving
    return job, found


def _fitting_most(options: list[Option], job: Job, work: Workload, limit: int) -> list[Option]:
    """Options in their order, those first that leave out the fewest candidates."""
    known: dict[Bucket, bool] = {}

    def lost(option):
        total = 0.0
        for arch, count in zip(work.types, work.counts, strict=True):
            bucket = option.plan.bucket_of(job.space, arch)
            if bucket not in known:
                known[bucket] = footprint(job, (bucket,), 1, 1).total(1) <= limit
            total += 0.0 if known[bucket] else float(count)
        return total

    return sorted(options, key=lost)


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


def _describe(space, options: list[Option], num_candidates: int, largest: Footprint) -> str:
    best = options[0]
    plan = best.plan
    memory = largest.total(1) * plan.group_size + (plan.chunk - plan.group_size) * largest.slot
    limit = plan.memory_limit or 0
    batching = "map" if plan.group_size == 1 else f"vmap over {plan.group_size}"
    devices = f"{plan.num_devices} {jax.default_backend()} device(s)"
    if plan.batch_devices > 1:
        devices += f", {plan.batch_devices} per candidate"
    again = ", computing again in the backward pass" if plan.remat else ""
    lines = [
        f"{num_candidates} candidates on {devices}, "
        f"{batching}, {plan.chunk} per call and device{again}",
        f"predicted memory {memory / MIB:,.1f} MiB of {limit / MIB:,.0f} MiB per device",
        f"{best.num_buckets} buckets: {_seconds(best)}",
    ]
    for positions, cells in plan.cells:
        names = ", ".join(space.decisions[p].name for p in positions)
        values = space.decisions[positions[0]].choices
        text = " | ".join(" ".join(str(values[c]) for c in cell) for cell in cells)
        lines.append(f"  {names}: {text}")
    exact = max(options, key=lambda option: option.num_buckets)
    single = min(options, key=lambda option: option.num_buckets)
    for name, option in (("a bucket per size", exact), ("fewest buckets", single)):
        if option.num_buckets != best.num_buckets:
            lines.append(f"instead, {name} ({option.num_buckets}): {_seconds(option)}")
    return "\n".join(lines)


def _seconds(option: Option) -> str:
    return (
        f"predicted compile {option.compiling:.1f} s + run {option.running:.1f} s "
        f"= {option.seconds:.1f} s"
    )
