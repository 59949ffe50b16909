"""Where a training step of `population_cells` spends its time, by timing its parts in loops.

Every part is timed alone, in seconds of one core's time, for the shapes of the three stages, and
multiplied by how often an average candidate's step runs it. What the parts do not explain of the
measured step is the rest: copies between operations, residuals, choosing, the loop itself.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks._cells import BATCH_SIZE, Setting, load, make_data

TURN_SECONDS = 0.05  # of one timed run
ROUNDS = 5  # the median counts


def measure(request: tuple[Setting, int]) -> dict[str, Any]:
    """Entry point of a fresh process: the step, and its parts with their counts per step."""
    setting, steps = request
    if hasattr(os, "sched_setaffinity"):
        # Before jax is used, for its thread pools are made for the cores it finds.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from jaxnas import parallel

    parallel.cpu_devices(1)
    problem = load(setting)
    parts = []
    for name, count, seconds in _parts(problem):
        parts.append({"part": name, "per step": count, "seconds": seconds})
    return {"step_seconds": _step_seconds(problem, steps), "parts": parts}


def _step_seconds(problem, steps: int) -> float:
    """Of an average candidate, by the difference between two lengths of training."""
    import jax

    from jaxnas.training import population

    data, recipe = make_data(problem.setting, steps)
    if recipe.epochs < 2:
        raise ValueError(f"--steps must be at least two epochs to be told apart, got {steps}")
    few = np.full(len(problem.arch), 1.0 / recipe.epochs)

    def run(budget):
        start = time.process_time()
        key = jax.random.key(0)
        population.train(problem.space, problem.arch, data, recipe, key, budget=budget)
        return time.process_time() - start

    run(None)
    differences = [run(None) - run(few) for _ in range(ROUNDS)]
    per_epoch = steps // recipe.epochs
    return float(np.median(differences)) / (len(problem.arch) * (steps - per_epoch))


def _parts(problem):
    """Name, times per step of an average candidate, and seconds of each part."""
    import jax.numpy as jnp

    from jaxnas.nn import conv, norm, pooling

    names = problem.space.decisions[0].choices
    share = {name: float((problem.arch == i).sum()) for i, name in enumerate(names)}
    share = {name: count / len(problem.arch) for name, count in share.items()}
    network = problem.space.network(problem.arch[0])
    cells = network.num_cells
    channels, image, source = network.num_channels, network.image_size, network.in_channels
    for stage in range(3):
        x = (BATCH_SIZE, image, image, channels)
        size = f"{image}x{image} {channels}"
        blocks = [(size, (3, 3), 1, x, cells * share["nor_conv_3x3"] + (stage > 0))]
        blocks.append((size, (1, 1), 1, x, cells * share["nor_conv_1x1"]))
        if stage == 0:
            stem = (BATCH_SIZE, image, image, source)
            blocks.append((f"{image}x{image} {source}-{channels}", (3, 3), 1, stem, 1.0))
        else:
            before = (BATCH_SIZE, 2 * image, 2 * image, channels // 2)
            label = f"{2 * image}x{2 * image} {channels // 2}-{channels}"
            blocks.append((f"{label} stride 2", (3, 3), 2, before, 1.0))
        for label, window, stride, shape, count in blocks:
            kernel = (*window, shape[-1], channels)
            fun = lambda x, k, s=stride: conv.conv(x, k, stride=s)  # noqa: E731
            yield from _timed(f"conv{window[0]}x{window[1]} {label}", fun, [shape, kernel], count)
        norms = cells * (share["nor_conv_3x3"] + share["nor_conv_1x1"]) + (1 + (stage > 0))
        affine = lambda x, s, b: norm.batch_norm(x, s, b)[0]  # noqa: E731
        yield from _timed(f"batch_norm {size}", affine, [x, x[-1:], x[-1:]], norms)
        pool = lambda x: pooling.avg_pool(x, 3, padding=1)  # noqa: E731
        yield from _timed(f"avg_pool {size}", pool, [x], cells * share["avg_pool_3x3"])
        relu = lambda x: jnp.maximum(x, 0.0)  # noqa: E731
        yield from _timed(f"rectifier {size}", relu, [x], norms - 1)
        channels, image = 2 * channels, image // 2
    yield "update of all parameters", 1.0, _update_seconds(problem)


def _timed(name: str, fun: Callable, shapes: list, count: float):
    """The forward pass, and what the backward pass adds to it."""
    import jax

    keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
    start = [0.1 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=False)]
    dy = jax.random.normal(keys[-1], jax.eval_shape(fun, *start).shape)

    def forward(carry):
        operands, _ = carry
        y = fun(*operands)
        # One number changes, so that nothing is hoisted out of the loop; y is kept whole.
        return [a.at[(0,) * a.ndim].add(1e-6 * y[(0,) * y.ndim]) for a in operands], y

    def both(carry):
        operands, dy, _ = carry
        y, pull = jax.vjp(fun, *operands)
        found = pull(dy)
        moved = [
            a.at[(0,) * a.ndim].add(1e-6 * d[(0,) * d.ndim])
            for a, d in zip(operands, found, strict=True)
        ]
        return moved, dy.at[(0,) * dy.ndim].add(1e-6), (y, found)

    once = forward((start, dy))
    seconds = _seconds(forward, (start, once[1]))
    whole = _seconds(both, (start, dy, both((start, dy, None))[2]))
    yield f"{name}, forward", count, seconds
    yield f"{name}, backward", count, max(0.0, whole - seconds)


def _update_seconds(problem) -> float:
    import jax
    import jax.numpy as jnp

    from jaxnas.training.optimizers import OPTIMIZERS, Step, init_any, step_any

    chosen = [OPTIMIZERS["nesterov"]]
    module = problem.space.supernet(problem.space.full_bucket)
    image = jnp.zeros((1, *module.image_shape))
    params = module.init(jax.random.key(0), image, jnp.asarray(problem.arch[0]), train=False)
    params = params["params"]
    step = Step(jnp.int32(0), jnp.float32(1.0), jnp.float32(1e-3))

    no = jax.tree.map(lambda _: False, params)
    update = lambda carry: step_any(chosen, step, None, carry[0], carry[1], carry[0], no)  # noqa: E731
    return _seconds(update, (params, init_any(chosen, params)))


def _seconds(turn: Callable, carry: Any) -> float:
    """Seconds of one turn of a compiled loop: the median of `ROUNDS`."""
    import jax

    loop = jax.jit(lambda carry, turns: jax.lax.fori_loop(0, turns, lambda _, c: turn(c), carry))

    def run(turns: int) -> float:
        start = time.process_time()
        jax.block_until_ready(loop(carry, turns))
        return time.process_time() - start

    run(1)
    turns = max(2, min(2000, round(TURN_SECONDS / min(run(1) for _ in range(3)))))
    return float(np.median([run(turns) for _ in range(ROUNDS)])) / turns


def score(raw: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds and share of a step, part by part."""
    whole = raw["step_seconds"]
    rows = []
    for part in raw["parts"]:
        seconds = part["per step"] * part["seconds"]
        rows.append((part["part"], part["per step"], 1e6 * part["seconds"], seconds))
    rows.append(("rest", 1.0, 0.0, whole - sum(row[-1] for row in rows)))
    return {
        f"a step of {1e3 * whole:.2f} ms": [
            {
                "part": name,
                "per step": count,
                "us each": each,
                "ms per step": 1e3 * seconds,
                "% of step": 100.0 * seconds / whole,
            }
            for name, count, each, seconds in rows
        ]
    }
