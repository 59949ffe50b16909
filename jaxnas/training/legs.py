"""Programs that train candidates leg by leg: up to an epoch, and later on from there.

A leg's program takes where its candidates stand (`jaxnas.training.candidate.Loop`) and returns it
in the same memory. A call with few candidates left is the same program with fewer slots filled:
an empty slot costs no training, but each call copies all states once (0.5 ms per slot of 1.3 MiB
on a core, where an epoch takes 100 ms and a program for fewer slots would take 10 s or more to
compile). Between legs the candidates that go on are moved together; nothing leaves the devices.
"""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnas.training.candidate import Trainee, begin, make_run, resume_candidate
from jaxnas.training.data import Split
from jaxnas.training.program import Batch, Program, dealt

PyTree = Any


class Leg(NamedTuple):
    """A `Batch` with how far to train: G devices, C slots each, b buckets."""

    arch: Any  # i32[G, C, D]
    budget: Any  # f32[G, C], of the whole training
    seed: Any  # u32[G, C, 2]
    bounds: Any  # i32[G, b + 1]
    until: Any  # i32[G, C], the epoch to stop after


def leg_shapes(batch: Batch) -> Leg:
    """Shapes and dtypes of the `Leg` of a batch's shapes."""
    return Leg(*batch, jax.ShapeDtypeStruct(batch.budget.shape, jnp.int32))


@lru_cache(maxsize=256)
def loop_shapes(trainee: Trainee, num_decisions: int, train: Split) -> PyTree:
    """Shapes and dtypes of one candidate's `Loop`, from the shapes of the training rows."""

    def first(x, y, arch, budget, seed):
        rows = Split(x, y)
        return begin(make_run(trainee, rows, rows, arch, budget, seed))

    shapes = [((num_decisions,), jnp.int32), ((), jnp.float32), ((2,), jnp.uint32)]
    return jax.eval_shape(first, *train, *(jax.ShapeDtypeStruct(*each) for each in shapes))


def stacked_shapes(
    trainees: tuple[Trainee, ...], num_decisions: int, train: Split, layout: tuple[int, int]
) -> list[PyTree]:
    """Shapes and dtypes of the loops [G, C, ...] of each bucket, for layout (G, C)."""

    def stacked(shape):
        return jax.ShapeDtypeStruct((*layout, *shape.shape), shape.dtype)

    return [jax.tree.map(stacked, loop_shapes(t, num_decisions, train)) for t in trainees]


def _resume_buckets(trainees: tuple[Trainee, ...], group_size: int, leg: Leg, loops, train, valid):
    """Trains one device's share on; see `program._train_buckets`."""
    arch, budget, seed, bounds, until = (field[0] for field in leg)
    loops = jax.tree.map(lambda a: a[0], loops)
    resumes = [jax.jit(partial(resume_candidate, t, train, valid)) for t in trainees]
    first = jax.tree.map(lambda a: a[0], (arch, budget, seed, until, loops[0]))
    shapes = jax.eval_shape(resumes[0], *first)[0]
    outcomes = jax.tree.map(lambda s: jnp.zeros((len(arch), *s.shape), s.dtype), shapes)
    advanced = []
    for b, one in enumerate(resumes):

        def body(i, carry, one=one):
            def rows(field):
                return jax.lax.dynamic_slice_in_dim(field, i * group_size, group_size)

            inputs = jax.tree.map(rows, (arch, budget, seed, until, carry[1]))
            if group_size == 1:
                found = one(*jax.tree.map(lambda a: a[0], inputs))
                found = jax.tree.map(lambda a: a[None], found)
            else:
                found = jax.vmap(one)(*inputs)
            return jax.tree.map(
                lambda buffer, value: jax.lax.dynamic_update_slice_in_dim(
                    buffer, value, i * group_size, 0
                ),
                carry,
                found,
            )

        carry = (outcomes, loops[b])
        outcomes, loop = jax.lax.fori_loop(bounds[b], bounds[b + 1], body, carry)
        advanced.append(loop)
    return jax.tree.map(lambda a: a[None], (outcomes, advanced))


@lru_cache(maxsize=64)
def make_leg_program(trainees: tuple[Trainee, ...], group_size: int, mesh: Mesh) -> Program:
    """`(leg, loops, train, valid) -> (outcomes, loops)`; consumes the loops it is given.

    Loops are a list of one `Loop` [G, C, ...] per bucket, zeros for candidates not yet begun.
    """
    placed = NamedSharding(mesh, PartitionSpec("candidate"))
    body = partial(_resume_buckets, trainees, group_size)
    return Program(trainees, dealt(body, mesh, 2, donate_argnums=1, out_shardings=placed))


@lru_cache(maxsize=64)
def make_zeros(
    trainees: tuple[Trainee, ...],
    num_decisions: int,
    train: Split,
    layout: tuple[int, int],
    mesh: Mesh,
) -> Program:
    """`() -> loops` of candidates not yet begun; arguments as in `stacked_shapes`."""
    placed = NamedSharding(mesh, PartitionSpec("candidate"))

    def zeros():
        shapes = stacked_shapes(trainees, num_decisions, train, layout)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    return Program(trainees, jax.jit(zeros, out_shardings=placed))


@lru_cache(maxsize=64)
def make_move(trainees: tuple[Trainee, ...], mesh: Mesh) -> Program:
    """`(target, source, index) -> target` with loops of `source`, wherever they are.

    `index` i32[G, C] is the place of each slot's loop in the flattened source, -1 for slots that
    stay as they are. The target is consumed.
    """
    placed = NamedSharding(mesh, PartitionSpec("candidate"))

    def move(target, source, index):
        def leaf(old, new):
            taken = new.reshape(-1, *new.shape[2:])[jnp.maximum(index, 0)]
            moves = index.reshape(*index.shape, *[1] * (old.ndim - 2)) >= 0
            return jnp.where(moves, taken, old)

        return jax.tree.map(leaf, target, source)

    return Program(trainees, jax.jit(move, donate_argnums=0, out_shardings=placed))
