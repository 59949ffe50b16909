"""The programs that train a plan's buckets, and how much memory they take.

One program serves all buckets of a plan: it trains a device's share of the candidates bucket after
bucket. It is traced when its memory is predicted, compiled when it is first run, and kept for the
life of the process, for every shape of its inputs.
"""

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnas.space import Bucket, SearchSpace
from jaxnas.training import liveness
from jaxnas.training.candidate import Trainee, train_candidate
from jaxnas.training.costs import CONVOLUTIONS, ProgramSize
from jaxnas.training.data import Data, Split, Task
from jaxnas.training.recipe import Recipe

PyTree = Any


class _Fixed:
    """A stand-alone network in the shape of a supernet, for spaces that have none."""

    def __init__(self, space: SearchSpace, bucket: Bucket):
        arch = np.asarray([choices[0] for choices in bucket])
        module = space.network(arch)
        self.init = lambda key, x, choice, train: module.init(key, x, train=train)
        self.apply = lambda variables, x, choice, **options: module.apply(variables, x, **options)
        self.extract = lambda variables, arch: variables
        self.__call__ = module.__call__  # says which optional arguments there are


@lru_cache(maxsize=256)
def make_trainee(
    space: SearchSpace,
    bucket: Bucket,
    task: Task,
    recipe: Recipe,
    remat: bool = False,
    vmapped: bool = False,
) -> Trainee:
    """What trains the candidates of a bucket; the same object for the same arguments.

    Args:
      space: the space.
      bucket: the choices to serve.
      task: the task.
      recipe: how to train.
      remat: whether operations compute again in the backward pass what they could have kept;
        see `can_remat`.
      vmapped: whether several candidates are trained at once by `jax.vmap`, which a supernet is
        told if it has the attribute, see `jaxnas.nn.mixed.Cell`.
    """
    module: Any = _Fixed(space, bucket) if space.supernet is None else space.supernet(bucket)
    if remat:
        module = module.clone(residuals="recompute")
    if vmapped and hasattr(module, "vmapped"):
        module = module.clone(vmapped=True)
    names = [d.name for d in space.decisions]
    optimizers = (recipe.optimizer,)
    if "optimizer" in names:
        optimizers = tuple(map(str, space.decisions[names.index("optimizer")].choices))
    return Trainee(module, task, recipe, optimizers, space.hyperparameters)


def can_remat(space: SearchSpace) -> bool:
    """Whether the space's supernet has the attribute `residuals`, see `jaxnas.nn.routing.route`."""
    return space.supernet is not None and hasattr(space.supernet(space.full_bucket), "residuals")


class Batch(NamedTuple):
    """Candidates laid out for one call: G devices, C slots each, b buckets in consecutive runs."""

    arch: Any  # i32[G, C, D]
    budget: Any  # f32[G, C]
    seed: Any  # u32[G, C, 2]
    bounds: Any  # i32[G, b + 1], first slot of each bucket's run, in multiples of group_size


def batch_shapes(num_shards: int, num_slots: int, num_decisions: int, num_buckets: int) -> Batch:
    """Shapes and dtypes of a `Batch`."""
    slots = (num_shards, num_slots)
    shapes = [(*slots, num_decisions), slots, (*slots, 2), (num_shards, num_buckets + 1)]
    dtypes = [jnp.int32, jnp.float32, jnp.uint32, jnp.int32]
    return Batch(*map(jax.ShapeDtypeStruct, shapes, dtypes))


def _train_buckets(
    trainees: tuple[Trainee, ...], group_size: int, keep: bool, batch: Batch, train, valid
):
    """Trains one device's share, bucket after bucket: leading axis G = 1 on every device."""
    arch, budget, seed, bounds = (field[0] for field in batch)
    # Under `jit` each candidate function is traced once, for its shapes and for the loop.
    trains = [jax.jit(partial(train_candidate, t, train, valid)) for t in trainees]
    shapes = [jax.eval_shape(one, arch[0], budget[0], seed[0]) for one in trains]
    slots = arch.shape[0]

    def buffers(shape):
        return jax.tree.map(lambda s: jnp.zeros((slots, *s.shape), s.dtype), shape)

    outcomes = buffers(shapes[0][0])
    kept = []
    for b, one in enumerate(trains):

        def body(i, carry, one=one):
            rows = jax.lax.dynamic_slice_in_dim
            inputs = [rows(field, i * group_size, group_size) for field in (arch, budget, seed)]
            if group_size == 1:
                found = jax.tree.map(lambda a: a[None], one(*(field[0] for field in inputs)))
            else:
                found = jax.vmap(one)(*inputs)
            found = found if keep else (found[0], ())
            return jax.tree.map(
                lambda buffer, value: jax.lax.dynamic_update_slice_in_dim(
                    buffer, value, i * group_size, 0
                ),
                carry,
                found,
            )

        variables = buffers(shapes[b][1]) if keep else ()
        carry = (outcomes, variables)
        outcomes, variables = jax.lax.fori_loop(bounds[b], bounds[b + 1], body, carry)
        kept.append(variables)
    return jax.tree.map(lambda a: a[None], (outcomes, kept))


class _Version:
    """The program for one set of input shapes."""

    def __init__(self, function: Any, arguments: Any):
        started = time.perf_counter()
        self.traced = function.trace(*arguments)
        self.seconds = time.perf_counter() - started
        self.predicted: int | None = None
        self.size: ProgramSize | None = None
        self.compiled: Any = None


class Program:
    """A function that is compiled ahead of time, of `(batch, train, valid)` for example.

    Compiling and running are timed apart, and memory is known before the first run.

    Args:
      trainees: of the buckets, in their order.
      function: jitted, `(*arguments) -> outputs`.
    """

    def __init__(self, trainees: tuple[Trainee, ...], function: Any) -> None:
        self.trainees = trainees
        self._function = function
        self._versions: dict[Any, _Version] = {}

    def __call__(self, *arguments: PyTree) -> tuple[PyTree, float]:
        """The outputs and the seconds it took to run, without compilation."""
        version = self._version(*arguments)
        self.compile(*arguments)
        started = time.perf_counter()
        outputs = jax.block_until_ready(version.compiled(*arguments))
        return outputs, time.perf_counter() - started

    def compile(self, *arguments: PyTree) -> float:
        """Compiles for these shapes; the seconds that and tracing took, 0 if done before."""
        version = self._version(*arguments)
        if version.compiled is not None:
            return 0.0
        started = time.perf_counter()
        version.compiled = version.traced.lower().compile()
        return version.seconds + time.perf_counter() - started

    def predicted_bytes(self, *arguments: PyTree) -> int:
        """Peak memory per device as predicted from the trace, inputs included."""
        version = self._version(*arguments)
        if version.predicted is None:
            body = liveness.inner_jaxpr(version.traced.jaxpr.jaxpr, "shard_map")
            inputs = sum(liveness.num_bytes(v.aval) for v in body.invars)
            version.predicted = inputs + liveness.peak_bytes(body)
        return version.predicted

    def compiled_bytes(self, *arguments: PyTree) -> int:
        """Peak memory per device in the compiler's account, inputs included; compiles first."""
        self.compile(*arguments)
        found = self._version(*arguments).compiled.memory_analysis()
        if found is None:  # a backend that does not say
            return self.predicted_bytes(*arguments)
        return (
            found.temp_size_in_bytes
            + found.argument_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
        )

    def size(self, *arguments: PyTree) -> ProgramSize:
        """How much there is to compile."""
        version = self._version(*arguments)
        if version.size is None:
            body = liveness.inner_jaxpr(version.traced.jaxpr.jaxpr, "shard_map")
            names = liveness.operation_names(body)
            convolutions = sum(name in CONVOLUTIONS for name in names)
            version.size = ProgramSize(len(names), convolutions)
        return version.size

    def text(self, *arguments: PyTree) -> str:
        """The compiled program as the compiler prints it; compiles first."""
        self.compile(*arguments)
        return self._version(*arguments).compiled.as_text()

    def slot_bytes(self, *arguments: PyTree) -> int:
        """Bytes that one more slot per device takes: what goes in and what comes out.

        For programs of a batch or a leg and its loops, followed by `(train, valid)`.
        """
        outputs = self._version(*arguments).traced.out_info
        batch, *loops = arguments[:-2]
        fields = jax.tree.leaves((batch._replace(bounds=()), loops, outputs))
        slots = batch.arch.shape[0] * batch.arch.shape[1]
        return sum(field.dtype.itemsize * int(np.prod(field.shape)) // slots for field in fields)

    def _version(self, *arguments) -> _Version:
        leaves, structure = jax.tree.flatten(arguments)
        shapes = (structure, *((a.shape, a.dtype) for a in leaves))
        if shapes not in self._versions:
            self._versions[shapes] = _Version(self._function, arguments)
        return self._versions[shapes]


def dealt(body: Callable, mesh: Mesh, num_dealt: int, **options: Any) -> Any:
    """Jitted `body(*dealt, train, valid)` over a mesh.

    Args:
      body: computes one device's share; leading axis 1 of the dealt arguments and the outputs.
      mesh: the devices.
      num_dealt: how many arguments are dealt over candidates; the splits are copied.
      **options: of `jax.jit`.
    """
    candidates, whole = PartitionSpec("candidate"), PartitionSpec()
    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(candidates,) * num_dealt + (whole, whole),
        out_specs=candidates,
        # The mini-batch axis, if it is split, is left to the compiler: see `parallel.split_rows`.
        axis_names={"candidate"} if mesh.shape["batch"] > 1 else set(mesh.axis_names),
        check_vma=False,
    )
    placed, copied = NamedSharding(mesh, candidates), NamedSharding(mesh, whole)
    return jax.jit(mapped, in_shardings=(placed,) * num_dealt + (copied, copied), **options)


@lru_cache(maxsize=64)
def make_program(trainees: tuple[Trainee, ...], group_size: int, keep: bool, mesh: Mesh) -> Program:
    """The program for these buckets; the same object for the same arguments."""
    return Program(trainees, dealt(partial(_train_buckets, trainees, group_size, keep), mesh, 1))


def split_shapes(data: Data) -> tuple[Split, Split]:
    """Shapes and dtypes of the training and the validation split."""

    def shape(array: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype)

    return jax.tree.map(shape, (data.train, data.valid))
