"""What does each hypergradient cost, in seconds, memory and compilation, and how near is it?

One gradient of the architecture parameters of a NAS-Bench-201 supernet, by every method of
`jaxnas.oneshot.hypergradients`, on one device: seconds, what the compiler sets aside for the
program, seconds of compilation, and how far the gradient is from the exact one through one step of
the weights, relative to it. The latter is a matter of definition for the methods that approximate
something else: the derivative at unmoved weights, or at the weights' optimum.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxnas import spaces
from jaxnas.oneshot import from_space
from jaxnas.oneshot import hypergradients as hg
from jaxnas.oneshot.problem import Problem as OneShotProblem
from jaxnas.oneshot.relaxations import masked_softmax
from jaxnas.training.data import Split, from_arrays
from jaxnas.training.memory import MIB

NUM_CLASSES = 10
RATE = 0.025  # of the step that unrolled methods look through


@dataclass(frozen=True)
class Setting:
    """The supernet and its batch.

    Attributes:
      num_channels: of the first stage.
      num_cells: per stage.
      image_size: height and width.
      batch_size: rows of both batches.
      num_unrolled: steps of the deeper unrolling.
      num_iterations: of conjugate gradients.
      num_terms: of the Neumann series.
    """

    num_channels: int
    num_cells: int
    image_size: int
    batch_size: int
    num_unrolled: int = 3
    num_iterations: int = 5
    num_terms: int = 2


SETTINGS = MappingProxyType(
    {"small": Setting(4, 1, 8, 16), "nasbench201-16": Setting(8, 1, 16, 32)}
)


class Problem(NamedTuple):
    """What is measured."""

    setting: Setting
    problem: OneShotProblem
    train: Split
    valid: Split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=5, help="timed calls each (default 5)")


def load(setting: Setting) -> Problem:
    """Noise for data: costs do not depend on the values."""
    rng = np.random.default_rng(0)
    num_rows, size = 5 * setting.batch_size, setting.image_size
    x = rng.normal(size=(num_rows, size, size, 3))
    labels = np.arange(num_rows) % NUM_CLASSES
    data = from_arrays(jax.random.key(0), x, labels, valid_fraction=0.4)
    space = spaces.nasbench201(
        NUM_CLASSES,
        num_channels=setting.num_channels,
        num_cells=setting.num_cells,
        image_size=size,
        affine=False,
    )
    rows = slice(setting.batch_size)
    train, valid = (Split(s.x[rows], s.y[rows]) for s in (data.train, data.valid))
    return Problem(setting, from_space(space, data), train, valid)


def methods(setting: Setting) -> dict[str, hg.Hypergradient]:
    """Every method under the name of its row."""
    steps, iterations, terms = setting.num_unrolled, setting.num_iterations, setting.num_terms
    return {
        "first order": hg.first_order(),
        "finite difference": hg.finite_difference(),
        "unrolled, 1 step": hg.unrolled(),
        f"unrolled, {steps} steps": hg.unrolled(num_unrolled=steps),
        "T1-T2": hg.t1_t2(step_size=RATE),
        f"Neumann, {terms} terms": hg.neumann(step_size=RATE, num_terms=terms),
        f"conjugate gradient, {iterations}": hg.conjugate_gradient(
            num_iterations=iterations, damping=1.0
        ),
    }


def program(problem: Problem, method: hg.Hypergradient) -> Callable[..., Any]:
    """`(weights, rest, alpha) -> gradient f32[R, K]`, to be compiled."""
    shared, key = problem.problem, jax.random.key(1)

    def run(weights, rest, alpha):
        def loss(batch, weights, alpha):
            choice = masked_softmax(alpha, jnp.asarray(shared.mask))
            return shared.loss(key, weights, rest, choice, batch, True)[0]

        def advance(gradient, memory, weights):
            return jax.tree.map(lambda w, g: w - RATE * g, weights, gradient), memory

        lower = hg.Lower(lambda w, a: loss(problem.train, w, a), advance, ())
        return method(lambda w, a: (loss(problem.valid, w, a), ()), lower, weights, alpha)[1]

    return run


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Compiles every method, then runs them in turn."""
    shared = problem.problem
    weights, rest = jax.jit(shared.init)(jax.random.key(0))
    alpha = 0.5 * jax.random.normal(jax.random.key(2), shared.mask.shape)
    arguments = (weights, rest, alpha)
    found, compiled = {}, {}
    for name, method in methods(problem.setting).items():
        lowered = jax.jit(program(problem, method)).lower(*arguments)
        start = time.perf_counter()
        compiled[name] = lowered.compile()
        seconds = time.perf_counter() - start
        stats = compiled[name].memory_analysis()
        found[name] = {"compile_seconds": seconds, "bytes": stats.temp_size_in_bytes}
        found[name]["gradient"] = np.asarray(compiled[name](*arguments))

    def timed(run):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        return time.perf_counter() - start

    sides = {name: (lambda run=run: timed(run)) for name, run in compiled.items()}
    seconds = harness.alternate(sides, options.repeats)
    return {name: {**row, "seconds": seconds[name]} for name, row in found.items()}


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """One row per method.

    Args:
      problem: not used.
      raw: from `measure`.
      machine: not used.

    Returns:
      "hypergradients": milliseconds, ratios to the first order, MiB, compile seconds, and the
      distance from the gradient through one step, relative to it.
    """
    del problem, machine
    base = raw["first order"]
    exact = np.asarray(raw["unrolled, 1 step"]["gradient"])
    rows = []
    for name, row in raw.items():
        ratios = [b / a for a, b in zip(base["seconds"], row["seconds"], strict=True)]
        error = np.linalg.norm(np.asarray(row["gradient"]) - exact) / np.linalg.norm(exact)
        milliseconds = harness.spread([1e3 * s for s in row["seconds"]])
        rows.append(
            {
                "method": name,
                "ms": harness.format_spread(milliseconds, 1),
                "x first order": harness.format_spread(harness.spread(ratios), 1),
                "MiB": row["bytes"] / MIB,
                "compile s": row["compile_seconds"],
                "from one step": float(error),
            }
        )
    return {"hypergradients": rows}
