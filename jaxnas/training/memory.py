"""How much memory training takes, and what to do where there is too little.

Before compilation the peak is predicted from the traced program (`jaxnas.training.liveness`); after
it, the compiler says it. A call takes what its neediest bucket takes, plus a little per slot. If
that is more than there is, the call gets fewer slots; if one group of candidates is too much, the
group gets smaller; if one candidate is too much, its bucket is refused and the others are trained.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnas.parallel import device_mesh
from jaxnas.space import Bucket, SearchSpace
from jaxnas.training import legs
from jaxnas.training.costs import ProgramSize
from jaxnas.training.data import Data
from jaxnas.training.program import Program, batch_shapes, make_program, make_trainee, split_shapes
from jaxnas.training.recipe import Recipe

# A bucket predicted to take more than this multiple of the limit is not even compiled.
HOPELESS = 1.25

MIB = 2**20


@dataclass(frozen=True, eq=False)
class Job:
    """What is trained how, apart from the buckets.

    Attributes:
      space: the space.
      recipe: how to train.
      data: what on.
      num_devices: devices in all.
      batch_devices: devices per candidate.
      remat: see `Plan`.
      keep: whether variables are returned.
      resumable: whether candidates are trained leg by leg, see `jaxnas.training.legs`.
    """

    space: SearchSpace
    recipe: Recipe
    data: Data
    num_devices: int = 1
    batch_devices: int = 1
    remat: bool = False
    keep: bool = False
    resumable: bool = False

    @property
    def num_shards(self) -> int:
        """Shares that candidates are dealt to."""
        return self.num_devices // self.batch_devices

    def program(self, buckets: tuple[Bucket, ...], group_size: int) -> Program:
        """The program that trains these buckets."""
        return self._program(buckets, group_size, self.recipe, self.num_devices, self.batch_devices)

    def stand_in(self, buckets: tuple[Bucket, ...], group_size: int) -> Program:
        """The same as one device sees it; only for tracing where mini-batches are split."""
        if self.batch_devices == 1:
            return self.program(buckets, group_size)
        recipe = self.recipe
        if recipe.batch_size is not None:
            share = recipe.batch_size // self.batch_devices
            recipe = dataclasses.replace(recipe, batch_size=share)
        return self._program(buckets, group_size, recipe, self.num_shards, 1)

    def shapes(self, num_buckets: int, num_slots: int) -> tuple[Any, ...]:
        """Shapes of the inputs of a program that is not resumable."""
        batch = batch_shapes(self.num_shards, num_slots, self.space.num_decisions, num_buckets)
        return batch, *split_shapes(self.data)

    def inputs(self, program: Program, num_slots: int) -> tuple[Any, ...]:
        """Shapes of all inputs of one of this job's programs."""
        batch, train, valid = self.shapes(len(program.trainees), num_slots)
        if not self.resumable:
            return batch, train, valid
        return legs.leg_shapes(batch), self.loops(program, num_slots), train, valid

    def loops(self, program: Program, num_slots: int) -> list[Any]:
        """Shapes of the loops of a resumable program."""
        layout, train = (self.num_shards, num_slots), split_shapes(self.data)[0]
        return legs.stacked_shapes(program.trainees, self.space.num_decisions, train, layout)

    def _program(self, buckets, group_size, recipe, num_devices, batch_devices) -> Program:
        task = self.data.task
        trainees = [
            make_trainee(self.space, b, task, recipe, self.remat, vmapped=group_size > 1)
            for b in buckets
        ]
        mesh = device_mesh(num_devices, batch_devices)
        if self.resumable:
            return legs.make_leg_program(tuple(trainees), group_size, mesh)
        return make_program(tuple(trainees), group_size, self.keep, mesh)


class Footprint(NamedTuple):
    """Predicted memory of a program, and its size.

    Attributes:
      fixed: bytes per device, however many slots a call has.
      slot: bytes per slot.
      size: how much there is to compile.
    """

    fixed: int
    slot: int
    size: ProgramSize

    def total(self, num_slots: int) -> int:
        """Bytes per device of a call with so many slots."""
        return self.fixed + num_slots * self.slot

    def fitting(self, limit: int) -> int:
        """Slots that fit into `limit` bytes, perhaps none."""
        return max(0, (limit - self.fixed) // max(1, self.slot))


def footprint(job: Job, buckets: tuple[Bucket, ...], group_size: int, num_slots: int) -> Footprint:
    """Predicts what a program takes; traces it, for `num_slots`, which a run may then use."""
    program = job.stand_in(buckets, group_size)
    shapes = job.inputs(program, num_slots)
    total, slot = program.predicted_bytes(*shapes), program.slot_bytes(*shapes)
    return Footprint(total - num_slots * slot, slot, program.size(*shapes))


class Fitted(NamedTuple):
    """What was found to fit.

    Attributes:
      program: compiled; None if nothing fits.
      kept: positions of the buckets that it trains.
      group_size: candidates per step.
      num_slots: slots per call and device.
      reasons: why the other buckets are not trained, by position.
      compile_seconds: spent tracing and compiling.
    """

    program: Program | None
    kept: tuple[int, ...]
    group_size: int
    num_slots: int
    reasons: dict[int, str]
    compile_seconds: float


def fit(
    job: Job, buckets: tuple[Bucket, ...], group_size: int, chunk: int, limit: int | None
) -> Fitted:
    """Compiles the program for as many of the buckets, groups and slots as memory allows.

    Args:
      job: what is trained.
      buckets: all that are wanted.
      group_size: candidates per step, at most.
      chunk: candidates per call and device, at most.
      limit: bytes per device; None: no limit.

    Returns:
      A `Fitted`; the same for the same arguments, in every process.
    """
    kept, reasons, seconds = tuple(range(len(buckets))), dict[int, str](), 0.0
    while kept:
        chosen = tuple(buckets[b] for b in kept)
        program = job.program(chosen, group_size)
        slots, spent = _fit_slots(job, program, chosen, group_size, chunk, limit)
        seconds += spent
        if slots is not None:
            return Fitted(program, kept, group_size, slots, reasons, seconds)
        assert limit is not None
        if group_size > 1:
            group_size //= 2
            continue
        needed = {b: footprint(job, (buckets[b],), 1, 1).total(1) for b in kept}
        most = max(needed.values())
        for b, size in needed.items():
            if size == most or size > HOPELESS * limit:
                reasons[b] = (
                    f"training it alone takes about {size / MIB:,.1f} MiB on a device, "
                    f"of which {limit / MIB:,.1f} MiB may be used"
                )
        kept = tuple(b for b in kept if b not in reasons)
    return Fitted(None, (), group_size, 0, reasons, seconds)


def num_slots_of(chunk: int, num_buckets: int, group_size: int) -> int:
    """Slots for `chunk` candidates of which every bucket's share is rounded up to whole groups."""
    slots = chunk + num_buckets * (group_size - 1)
    return -(-slots // group_size) * group_size


def _fit_slots(
    job: Job, program: Program, buckets, group_size: int, chunk: int, limit: int | None
) -> tuple[int | None, float]:
    """Slots of a call that fits, compiled, or None; and the seconds that compilation took."""
    least = num_slots_of(1, len(buckets), group_size)
    slots = max(least, num_slots_of(chunk, len(buckets), group_size))
    if limit is None:
        return slots, program.compile(*job.inputs(program, slots))
    predicted = footprint(job, buckets, group_size, slots)
    if predicted.total(least) > HOPELESS * limit:
        return None, 0.0
    slots = _rounded(min(slots, max(least, predicted.fitting(limit))), least, group_size)
    seconds = 0.0
    while True:
        shapes = job.inputs(program, slots)
        seconds += program.compile(*shapes)
        excess = program.compiled_bytes(*shapes) - limit
        if excess <= 0:
            return slots, seconds
        fewer = slots - -(-excess // max(1, predicted.slot))
        if fewer < least:
            return None, seconds
        slots = _rounded(fewer, least, group_size)


def _rounded(slots: int, least: int, group_size: int) -> int:
    return max(least, slots // group_size * group_size)


def device_limit(num_devices: int) -> int:
    """Bytes that one of so many devices may use; the least of all processes.

    What the device reports, or on CPU half of the host's memory shared by its devices.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        limit = int(stats["bytes_limit"])
    else:
        local = max(1, min(num_devices, jax.local_device_count()))
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // local
    if jax.process_count() > 1:
        limits = multihost_utils.process_allgather(np.asarray(limit / MIB, np.float32))
        limit = int(limits.min()) * MIB
    return limit
