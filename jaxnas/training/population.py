"""Trains a population of different networks in one compiled program per plan."""

import time
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from jaxnas.nn import counter
from jaxnas.parallel import candidate_mesh, collect, spread
from jaxnas.space import Bucket, SearchSpace, canonical
from jaxnas.training import plan as planning
from jaxnas.training.candidate import Trainee, train_candidate
from jaxnas.training.costs import CostModel, cost_of
from jaxnas.training.data import Data
from jaxnas.training.dealing import deal
from jaxnas.training.plan import Plan
from jaxnas.training.recipe import Recipe
from jaxnas.types import split_like


class Training(NamedTuple):
    """A trained population; P candidates, E = recipe.epochs.

    Attributes:
      metrics: `loss` and `accuracy` or `r2` on the validation split, `train_loss`, `epochs`,
        `parameters`, `train_seconds` (measured seconds of the call, shared out by predicted work)
        and `compile_seconds` (shared out evenly); scores are NaN where a candidate diverged.
      train_curve: mean training loss per epoch, NaN where there was none.
      valid_curve: validation score per epoch with `recipe.curves`, else NaN.
      variables: with `keep_variables`, the stand-alone network's variables of each candidate.
      compile_seconds: spent tracing and compiling.
      run_seconds: spent training.
      report: the plan's report with what was measured.
    """

    metrics: dict[str, np.ndarray]  # f32[P]
    train_curve: np.ndarray  # f32[P, E]
    valid_curve: np.ndarray  # f32[P, E]
    variables: list[Any] | None
    compile_seconds: float
    run_seconds: float
    report: str


class _Fixed:
    """A stand-alone network in the shape of a supernet, for spaces that have none."""

    def __init__(self, space: SearchSpace, bucket: Bucket):
        arch = np.asarray([choices[0] for choices in bucket])
        module = space.network(arch)
        self.init = lambda key, x, choice, train: module.init(key, x, train=train)
        self.apply = lambda variables, x, choice, **options: module.apply(variables, x, **options)
        self.extract = lambda variables, arch: variables


@lru_cache(maxsize=256)
def _trainee(space: SearchSpace, bucket: Bucket, task, recipe: Recipe) -> Trainee:
    module = _Fixed(space, bucket) if space.supernet is None else space.supernet(bucket)
    names = [d.name for d in space.decisions]
    optimizers = (recipe.optimizer,)
    if "optimizer" in names:
        optimizers = tuple(map(str, space.decisions[names.index("optimizer")].choices))
    return Trainee(module, task, recipe, optimizers, space.hyperparameters)


class _Batch(NamedTuple):
    """Candidates laid out for one call: G devices, C slots each, b buckets in consecutive runs."""

    arch: np.ndarray  # i32[G, C, D]
    budget: np.ndarray  # f32[G, C]
    seed: np.ndarray  # u32[G, C, 2]
    bounds: np.ndarray  # i32[G, b + 1], first slot of each bucket's run, in multiples of group_size


def _train_buckets(
    trainees: tuple[Trainee, ...], group_size: int, keep: bool, batch: _Batch, train, valid
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


class _Program:
    """A jitted function that is compiled ahead of time, so that both halves can be timed."""

    def __init__(self, function):
        self._function = function
        self._compiled: dict[Any, Any] = {}

    def __call__(self, *arguments):
        """Returns the outputs, the compile seconds (0 when it was compiled before), run seconds."""
        started = time.perf_counter()
        shapes = tuple((a.shape, a.dtype) for a in jax.tree.leaves(arguments))
        fresh = shapes not in self._compiled
        if fresh:
            self._compiled[shapes] = self._function.lower(*arguments).compile()
        compiled = time.perf_counter()
        outputs = jax.block_until_ready(self._compiled[shapes](*arguments))
        ended = time.perf_counter()
        return outputs, compiled - started if fresh else 0.0, ended - compiled


@lru_cache(maxsize=64)
def _program(trainees: tuple[Trainee, ...], group_size: int, keep: bool, mesh: Mesh) -> _Program:
    candidates, whole = PartitionSpec("candidate"), PartitionSpec()
    local = partial(_train_buckets, trainees, group_size, keep)
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(candidates, whole, whole),
        out_specs=candidates,
        check_vma=False,
    )
    return _Program(jax.jit(mapped))


def train(
    space: SearchSpace,
    arch: Array | np.ndarray,
    data: Data,
    recipe: Recipe,
    key: Array,
    plan: Plan | None = None,
    *,
    budget: Array | np.ndarray | None = None,
    keep_variables: bool = False,
) -> Training:
    """Trains P architectures from scratch, each on its own, with as few programs as pay.

    Candidate `i` uses `fold_in(key, i)`; its result does not depend on the others or on the plan
    (up to rounding). Host code: it decides what to compile, so it does not run inside `jit`.
    Compiled programs are kept for the life of the process.

    Args:
      space: the space.
      arch: i32[P, D], concrete.
      data: what to train and validate on.
      recipe: how to train.
      key: PRNG key, consumed.
      plan: from `plan.choose`; all its buckets are compiled, so that the next call with other
        candidates compiles nothing. None: chosen for these candidates.
      budget: f32[P] in (0, 1], fraction of the recipe's epochs; None: all of them.
      keep_variables: whether to return every candidate's stand-alone variables.

    Returns:
      A `Training`.

    Raises:
      ValueError: if `arch` does not fit the space, `budget` is out of range, or a batch is larger
        than the data.
    """
    arch = _checked_arch(space, arch)
    budget = _checked_budget(budget, len(arch))
    kept = [] if plan is None else plan.buckets(space)
    if plan is None:
        plan = planning.choose(space, recipe, data, len(arch), arch=arch)
    buckets = [plan.bucket_of(space, row) for row in arch]
    distinct = kept or sorted(set(buckets))
    bucket_ids = np.asarray([distinct.index(bucket) for bucket in buckets])
    seconds = _predicted_seconds(space, plan, arch, budget, data, recipe)
    trainees = tuple(_trainee(space, bucket, data.task, recipe) for bucket in distinct)
    mesh = candidate_mesh(plan.num_devices)
    program = _program(trainees, plan.group_size, keep_variables, mesh)
    splits = spread(mesh, (data.train, data.valid))
    seeds = np.asarray(jax.vmap(counter.seed_from_key)(split_like(key, len(arch))))
    collected = _Collected(space, arch, distinct, trainees)
    for slots in deal(bucket_ids, seconds, len(distinct), plan):
        index = np.maximum(slots.rows, 0)
        batch = _Batch(arch[index], budget[index], seeds[index], slots.bounds)
        batch = spread(mesh, batch, "candidate")
        collected.add(slots, bucket_ids, seconds, *program(batch, *splits))
    return collected.finish(data, plan, keep_variables)


def _checked_arch(space, arch) -> np.ndarray:
    arch = np.asarray(arch, np.int32)
    if arch.ndim != 2 or arch.shape[1] != space.num_decisions or not len(arch):
        raise ValueError(
            f"arch must have shape [P, {space.num_decisions}] with P >= 1, got {arch.shape}"
        )
    if (arch < 0).any() or (arch >= np.asarray(space.num_choices)).any():
        raise ValueError(f"arch has choices outside 0 to {space.num_choices} (exclusive)")
    return np.asarray(jax.vmap(partial(canonical, space))(jnp.asarray(arch)))


def _checked_budget(budget, num_candidates) -> np.ndarray:
    budget = np.ones(num_candidates) if budget is None else np.asarray(budget)
    if budget.shape != (num_candidates,) or not ((budget > 0.0) & (budget <= 1.0)).all():
        raise ValueError(f"budget must be f32[{num_candidates}] in (0, 1], got {budget}")
    return budget.astype(np.float32)


def _predicted_seconds(space, plan, arch, budget, data, recipe) -> np.ndarray:
    """Relative cost of each candidate, to balance devices and to share out measured time."""
    rows = recipe.batch_size or data.train.y.shape[0]
    shape = tuple(data.train.x.shape[1:])
    model = CostModel()
    step = [planning.step_seconds(model, space, plan, a, rows, shape) for a in arch]
    return np.asarray(step) * budget


class _Collected:
    """Puts the results of several calls back into the order of the candidates."""

    def __init__(self, space, arch, distinct, trainees):
        self.space, self.arch, self.distinct, self.trainees = space, arch, distinct, trainees
        self.outcome: Any = None  # an Outcome of NumPy arrays, once there is one
        self.seconds = np.zeros(len(arch), np.float32)
        self.variables: list[Any] = [None] * len(arch)
        self.compile_seconds = self.run_seconds = 0.0

    def add(self, slots, bucket_ids, predicted, outputs, compile_seconds, run_seconds):
        outcome, kept = collect(outputs)
        filled = slots.rows >= 0
        rows = slots.rows[filled]
        if self.outcome is None:
            shape = (len(self.arch),)
            self.outcome = jax.tree.map(lambda a: np.zeros(shape + a.shape[2:], a.dtype), outcome)
        jax.tree.map(
            lambda whole, part: whole.__setitem__(rows, part[filled]), self.outcome, outcome
        )
        # Devices work side by side: a candidate is charged its share of one device's time.
        share = predicted[rows] / max(predicted[rows].sum(), 1e-30)
        self.seconds[rows] = share * run_seconds * slots.rows.shape[0]
        self.compile_seconds += compile_seconds
        self.run_seconds += run_seconds
        for device, slot in zip(*np.nonzero(filled), strict=True):
            row = slots.rows[device, slot]
            bucket = bucket_ids[row]
            if kept[bucket] != ():
                mine = jax.tree.map(lambda a, at=(device, slot): a[at], kept[bucket])
                module = self.trainees[bucket].module
                self.variables[row] = module.extract(mine, self.arch[row])

    def finish(self, data, plan, keep_variables) -> Training:
        shape = tuple(data.train.x.shape[1:])
        costs = [cost_of(self.space, row, shape).parameters for row in self.arch]
        metrics = {
            **self.outcome.metrics,
            "parameters": np.asarray(costs, np.float32),
            "train_seconds": self.seconds,
            "compile_seconds": np.full_like(self.seconds, self.compile_seconds / len(self.arch)),
        }
        report = (
            f"{plan.report}\nmeasured: compile {self.compile_seconds:.1f} s, "
            f"run {self.run_seconds:.1f} s for {len(self.arch)} candidates"
        )
        variables = self.variables if keep_variables else None
        return Training(
            metrics,
            self.outcome.train_curve,
            self.outcome.valid_curve,
            variables,
            self.compile_seconds,
            self.run_seconds,
            report.strip(),
        )
