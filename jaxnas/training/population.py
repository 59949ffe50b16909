"""Trains a population of different networks in one compiled program per plan."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas import counter
from jaxnas.parallel import collect, device_mesh, spread
from jaxnas.space import Bucket, SearchSpace, canonical
from jaxnas.training import plan as planning
from jaxnas.training import prediction
from jaxnas.training.costs import CostModel, cost_of
from jaxnas.training.data import Data
from jaxnas.training.dealing import Layout, Slots, deal
from jaxnas.training.memory import Fitted, Job, fit
from jaxnas.training.metrics import score_name
from jaxnas.training.plan import Plan
from jaxnas.training.program import Batch
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
      reasons: why a candidate was not trained, None for those that were. Its scores are NaN.
    """

    metrics: dict[str, np.ndarray]  # f32[P]
    train_curve: np.ndarray  # f32[P, E]
    valid_curve: np.ndarray  # f32[P, E]
    variables: list[Any] | None
    compile_seconds: float
    run_seconds: float
    report: str
    reasons: list[str | None]


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
    prepared = prepare(space, arch, data, recipe, key, plan, budget)
    plan, job = prepared.plan, dataclasses.replace(prepared.job, keep=keep_variables)
    fitted = fit(job, prepared.buckets, plan.group_size, plan.chunk, plan.memory_limit)
    collected = Collected(job, prepared.candidates.arch)
    collected.refuse(fitted.reasons, prepared.candidates.bucket_ids)
    _run(collected, fitted, prepared.candidates)
    return collected.finish(plan.report, fitted.compile_seconds)


class Candidates(NamedTuple):
    """What is known of the candidates on the host."""

    arch: np.ndarray  # i32[P, D]
    budget: np.ndarray  # f32[P]
    seeds: np.ndarray  # u32[P, 2]
    bucket_ids: np.ndarray  # i[P]
    seconds: np.ndarray  # f[P], predicted


class Prepared(NamedTuple):
    """A checked request to train a population."""

    plan: Plan
    job: Job
    buckets: tuple[Bucket, ...]  # those of a plan that was given, or those that are needed
    candidates: Candidates


def prepare(
    space: SearchSpace, arch, data: Data, recipe: Recipe, key: Array, plan: Plan | None, budget
) -> Prepared:
    """Checks the arguments of `train`, chooses a plan where there is none, finds the buckets."""
    arch = _checked_arch(space, arch)
    budget = _checked_budget(budget, len(arch))
    kept = [] if plan is None else plan.buckets(space)
    if plan is None:
        plan = planning.choose(space, recipe, data, len(arch), arch=arch)
    rows, kinds = np.unique(arch, axis=0, return_inverse=True)
    buckets = [plan.bucket_of(space, row) for row in rows]
    distinct = tuple(kept or sorted(set(buckets)))
    position = {bucket: index for index, bucket in enumerate(distinct)}
    kinds = kinds.reshape(-1)
    bucket_ids = np.asarray([position[bucket] for bucket in buckets])[kinds]
    seconds = _predicted_seconds(space, plan, rows, data, recipe)[kinds] * budget
    seeds = np.asarray(jax.vmap(counter.seed_from_key)(split_like(key, len(arch))))
    job = Job(space, recipe, data, plan.num_devices, plan.batch_devices, plan.remat)
    return Prepared(plan, job, distinct, Candidates(arch, budget, seeds, bucket_ids, seconds))


def fitted_ids(fitted: Fitted, bucket_ids: np.ndarray) -> np.ndarray:
    """Positions among the buckets that fit: i64[P], -1 for candidates of the others."""
    place = np.full(int(bucket_ids.max()) + 1, -1)
    for index, bucket in enumerate(fitted.kept):
        if bucket < len(place):
            place[bucket] = index
    return place[bucket_ids]


def _run(collected: "Collected", fitted: Fitted, candidates: Candidates) -> None:
    """Trains the candidates whose buckets fit, call after call."""
    if fitted.program is None:
        return
    job = collected.job
    bucket_ids = fitted_ids(fitted, candidates.bucket_ids)
    mesh = device_mesh(job.num_devices, job.batch_devices)
    splits = spread(mesh, (job.data.train, job.data.valid))
    layout = Layout(job.num_shards, fitted.num_slots, fitted.group_size, len(fitted.kept))
    for slots in deal(bucket_ids, candidates.seconds, layout):
        index = np.maximum(slots.rows, 0)
        fields = (candidates.arch[index], candidates.budget[index], candidates.seeds[index])
        batch = spread(mesh, Batch(*fields, slots.bounds), "candidate")
        outputs, seconds = fitted.program(batch, *splits)
        collected.add(slots, outputs[0], candidates.seconds, seconds)
        if job.keep:
            modules = [trainee.module for trainee in fitted.program.trainees]
            collected.keep(slots, outputs[1], bucket_ids, modules)


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


def _predicted_seconds(space, plan, archs, data, recipe) -> np.ndarray:
    """Relative cost of each candidate, to balance devices and to share out measured time."""
    rows = recipe.batch_size or data.train.y.shape[0]
    shape = tuple(data.train.x.shape[1:])
    model = CostModel()
    return np.asarray([prediction.step_seconds(model, space, plan, a, rows, shape) for a in archs])


class Collected:
    """Puts the results of several calls back into the order of the candidates."""

    def __init__(self, job: Job, arch: np.ndarray):
        self.job, self.arch = job, arch
        size, epochs = len(arch), job.recipe.epochs
        names = ("loss", score_name(job.data.task), "train_loss")
        self.metrics = {name: np.full(size, np.nan, np.float32) for name in names}
        self.metrics["epochs"] = np.zeros(size, np.float32)
        self.train_curve, self.valid_curve = np.full((2, size, epochs), np.nan, np.float32)
        self.seconds = np.zeros(size, np.float32)
        self.variables: list[Any] = [None] * size
        self.reasons: list[str | None] = [None] * size
        self.run_seconds = 0.0

    def refuse(self, reasons: dict[int, str], bucket_ids: np.ndarray) -> None:
        """Notes the reasons of the buckets' candidates, if there are any."""
        if reasons:
            self.reasons = [reasons.get(int(bucket)) for bucket in bucket_ids]

    def add(self, slots: Slots, outcomes, predicted: np.ndarray, seconds: float) -> None:
        """Puts the scores of one call into place; seconds add up."""
        outcome = collect(outcomes)
        filled = slots.rows >= 0
        rows = slots.rows[filled]
        for name, values in outcome.metrics.items():
            self.metrics[name][rows] = values[filled]
        self.train_curve[rows] = outcome.train_curve[filled]
        self.valid_curve[rows] = outcome.valid_curve[filled]
        # Devices work side by side: a candidate is charged its share of one device's time.
        share = predicted[rows] / max(predicted[rows].sum(), 1e-30)
        self.seconds[rows] += share * seconds * slots.rows.shape[0]
        self.run_seconds += seconds

    def charge(self, rows: np.ndarray, seconds: float) -> None:
        """Shares seconds of devices evenly out to candidates."""
        self.seconds[rows] += seconds / len(rows)
        self.run_seconds += seconds / self.job.num_shards

    def keep(self, slots: Slots, variables, bucket_ids: np.ndarray, modules: list[Any]) -> None:
        """Takes the stand-alone variables out of one call's outputs."""
        kept = collect(variables)
        for device, slot in np.argwhere(slots.rows >= 0):
            row = slots.rows[device, slot]
            bucket = bucket_ids[row]
            mine = jax.tree.map(lambda a, at=(device, slot): a[at], kept[bucket])
            self.variables[row] = modules[bucket].extract(mine, self.arch[row])

    def finish(self, report: str, compile_seconds: float) -> Training:
        """The whole population's results."""
        shape = tuple(self.job.data.train.x.shape[1:])
        rows, kinds = np.unique(self.arch, axis=0, return_inverse=True)
        costs = [cost_of(self.job.space, row, shape).parameters for row in rows]
        metrics = {
            **self.metrics,
            "parameters": np.asarray(costs, np.float32)[kinds.reshape(-1)],
            "train_seconds": self.seconds,
            "compile_seconds": np.full_like(self.seconds, compile_seconds / len(self.arch)),
        }
        lines = [
            report,
            f"measured: compile {compile_seconds:.1f} s, run {self.run_seconds:.1f} s "
            f"for {len(self.arch)} candidates",
        ]
        refused = [reason for reason in self.reasons if reason is not None]
        if refused:
            lines.append(f"{len(refused)} candidates not trained: {refused[0]}")
        variables = self.variables if self.job.keep else None
        return Training(
            metrics,
            self.train_curve,
            self.valid_curve,
            variables,
            compile_seconds,
            self.run_seconds,
            "\n".join(lines).strip(),
            self.reasons,
        )
