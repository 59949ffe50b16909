"""How fast are the engine's convolutions, poolings and norms inside a loop, against XLA's own?

`python -m benchmarks.convolutions` prints GFLOP/s of convolutions and nanoseconds per element of
the rest, forward and backward, in a loop on one CPU core, for ours, for the plain XLA operation
under autodiff, and for PyTorch with one thread where it is installed; the sides take turns. Each
turn of the loop moves the operands by a millionth of their gradients: nothing can be hoisted out of
the loop, and an operation reads arrays as it finds them in a network. PyTorch is not charged for
that. `--only conv3x3` selects rows by a part of their name, `--out FOLDER` stores the result.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness

BATCH = 64
TURN_SECONDS = 0.1  # of one timed run, roughly: long against a call's overhead


class Case(NamedTuple):
    """One operation at one size."""

    kind: str  # "conv", "avg_pool", "max_pool" or "batch_norm"
    image: int
    channels: int
    outputs: int = 0
    window: int = 3
    stride: int = 1
    groups: int = 1

    @property
    def name(self) -> str:
        """For example `conv3x3 8x8 16-32 stride 2`."""
        text = self.kind if self.kind == "batch_norm" else f"{self.kind}{self.window}x{self.window}"
        text += f" {self.image}x{self.image} {self.channels}"
        text += f"-{self.outputs}" if self.kind == "conv" else ""
        text += f" stride {self.stride}" if self.stride > 1 else ""
        return text + (f" groups {self.groups}" if self.groups > 1 else "")

    @property
    def dense(self) -> bool:
        """Whether GFLOP/s say more than nanoseconds per element."""
        return self.kind == "conv" and self.groups in range(1, max(2, self.channels))

    @property
    def work(self) -> float:
        """Floating-point operations, or elements of the input, of one pass over a batch."""
        if not self.dense:
            return BATCH * self.image**2 * self.channels
        pixels = BATCH * math.ceil(self.image / self.stride) ** 2
        return 6 * pixels * self.window**2 * self.channels * self.outputs / self.groups


CASES = (
    Case("conv", 8, 16, 16),
    Case("conv", 16, 8, 8),
    Case("conv", 16, 16, 16),
    Case("conv", 8, 64, 64),
    Case("conv", 8, 32, 32),
    Case("conv", 4, 32, 32),
    Case("conv", 4, 64, 64),
    Case("conv", 2, 64, 64),
    Case("conv", 32, 16, 16),
    Case("conv", 32, 3, 16),
    Case("conv", 16, 3, 16),
    Case("conv", 8, 1, 16),
    Case("conv", 8, 16, 32, stride=2),
    Case("conv", 8, 32, 64, stride=2),
    Case("conv", 16, 16, 32, stride=2),
    Case("conv", 4, 32, 64, stride=2),
    Case("conv", 16, 16, 16, window=5),
    Case("conv", 8, 64, 64, window=1),
    Case("conv", 16, 8, 8, window=1),
    Case("conv", 16, 16, 32, window=1, stride=2),
    Case("conv", 16, 32, 32, groups=4),
    Case("conv", 8, 16, 16, groups=16),
    Case("conv", 16, 8, 8, groups=8),
    Case("conv", 16, 8, 8, groups=8, window=5),
    Case("conv", 16, 8, 8, groups=8, stride=2),
    Case("avg_pool", 8, 16),
    Case("avg_pool", 16, 8),
    Case("avg_pool", 16, 8, stride=2),
    Case("max_pool", 8, 16),
    Case("max_pool", 16, 8),
    Case("max_pool", 16, 8, stride=2),
    Case("batch_norm", 8, 16),
    Case("batch_norm", 16, 8),
)


# --- the sides ---


def _ours(case: Case) -> Callable:
    from jaxnas.nn import conv, norm, pooling

    if case.kind == "conv":
        return lambda x, k: conv.conv(x, k, stride=case.stride, groups=case.groups)
    if case.kind == "batch_norm":
        return lambda x, scale: norm.batch_norm(x, scale, scale)[0]
    pool = getattr(pooling, case.kind)
    return lambda x: pool(x, case.window, stride=case.stride, padding=case.window // 2)


def _native(case: Case) -> Callable:
    import jax.numpy as jnp
    from jax import lax

    strides, pads = (case.stride,) * 2, [(case.window // 2,) * 2] * 2
    if case.kind == "conv":
        layout = ("NHWC", "HWIO", "NHWC")
        return lambda x, k: lax.conv_general_dilated(
            x, k, strides, pads, dimension_numbers=layout, feature_group_count=case.groups
        )
    if case.kind == "batch_norm":

        def batch_norm(x, scale):
            mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
            return (x - mean) * lax.rsqrt(var + 1e-5) * scale + scale

        return batch_norm
    window, strides, pads = (
        (1, case.window, case.window, 1),
        (1, *strides, 1),
        [(0, 0), *pads, (0, 0)],
    )
    if case.kind == "max_pool":
        return lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads)

    def average(x):
        total, counts = (
            lax.reduce_window(a, 0.0, lax.add, window, strides, pads) for a in (x, jnp.ones_like(x))
        )
        return total / counts

    return average


def _operands(case: Case) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(BATCH, case.image, case.image, case.channels)]
    if case.kind == "conv":
        window = (case.window, case.window)
        shapes.append((*window, case.channels // case.groups, case.outputs))
    if case.kind == "batch_norm":
        shapes.append((case.channels,))
    return shapes


def _loop(fun: Callable, case: Case, turns: int) -> tuple[Callable[[], None], float]:
    """A function that runs the compiled loop of `turns` turns, and the seconds to compile it."""
    import jax

    keys = jax.random.split(jax.random.key(0), 3)
    start = [0.1 * jax.random.normal(k, s) for k, s in zip(keys, _operands(case), strict=False)]
    dy = jax.random.normal(keys[2], jax.eval_shape(fun, *start).shape)

    def turn(carry, _):
        operands, dy = carry
        y, pull = jax.vjp(fun, *operands)
        moved = [a - 1e-6 * da for a, da in zip(operands, pull(dy), strict=True)]
        return (moved, dy - 1e-6 * y), None

    loop = jax.jit(lambda carry: jax.lax.scan(turn, carry, None, length=turns)[0])
    begin = time.perf_counter()
    compiled = loop.lower((start, dy)).compile()
    seconds = time.perf_counter() - begin
    return lambda: jax.block_until_ready(compiled((start, dy))), seconds


def _torch_loop(case: Case, turns: int) -> Callable[[], None]:
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    x = torch.randn(BATCH, case.channels, case.image, case.image, requires_grad=True)
    options = {"stride": case.stride, "padding": case.window // 2}
    if case.kind == "conv":
        shape = (case.outputs, case.channels // case.groups, case.window, case.window)
        kernel = torch.randn(shape, requires_grad=True)
        operands = (x, kernel)
        fun = lambda: functional.conv2d(x, kernel, groups=case.groups, **options)  # noqa: E731
    elif case.kind == "batch_norm":
        scale = torch.ones(case.channels, requires_grad=True)
        operands = (x, scale)
        fun = lambda: functional.batch_norm(x, None, None, scale, scale, training=True)  # noqa: E731
    else:
        operands = (x,)
        pool = functional.max_pool2d if case.kind == "max_pool" else functional.avg_pool2d
        fun = lambda: pool(x, case.window, **options)  # noqa: E731
    dy = torch.randn_like(fun())

    def run() -> None:
        for _ in range(turns):
            torch.autograd.grad(fun(), operands, dy)

    return run


# --- measuring ---


def measure(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entry point of a fresh process: one row per case, all on one core."""
    if hasattr(os, "sched_setaffinity"):
        # Before jax is imported, for its thread pools are made for the cores it finds.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return [_row(CASES[index], request["rounds"]) for index in request["cases"]]


def _row(case: Case, rounds: int) -> dict[str, Any]:
    print(f"  {case.name}", file=sys.stderr, flush=True)
    sides, compile_seconds = {}, {}
    for name, fun in (("ours", _ours(case)), ("XLA", _native(case))):
        once, _ = _loop(fun, case, 1)
        turns = max(1, min(200, round(TURN_SECONDS / _seconds(once))))
        run, compile_seconds[name] = _loop(fun, case, turns)
        sides[name] = (run, turns)
    try:
        once = _torch_loop(case, 1)
        turns = max(1, min(200, round(TURN_SECONDS / _seconds(once))))
        sides["torch"] = (_torch_loop(case, turns), turns)
    except ModuleNotFoundError:
        pass
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (run, turns) in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) / turns)
    scale = (lambda s: case.work / s / 1e9) if case.dense else (lambda s: s / case.work * 1e9)
    row: dict[str, Any] = {
        "operation": case.name,
        "unit": "GFLOP/s" if case.dense else "ns/element",
    }
    for name, values in seconds.items():
        row[name] = harness.format_spread(harness.spread([scale(s) for s in values]), 1)
    medians = {name: harness.spread(values)["median"] for name, values in seconds.items()}
    row["XLA / ours"] = medians["XLA"] / medians["ours"]
    row["compile s"] = f"{compile_seconds['ours']:.2f} (XLA {compile_seconds['XLA']:.2f})"
    return row


def _seconds(run: Callable[[], None]) -> float:
    """Of a short run, once warm; the least of three."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains this")
    parser.add_argument("--out", type=Path, help="folder to store the result in")
    options = parser.parse_args()
    chosen = [index for index, case in enumerate(CASES) if options.only in case.name]
    machine = {**harness.machine(), "peak": harness.peak_gflops()}
    request = {"cases": chosen, "rounds": options.rounds}
    rows = harness.in_fresh_process("benchmarks.convolutions:measure", request)
    print(f"batch {BATCH}, one core of {machine['processor']}, forward and backward in a loop")
    print(f"float32 matrix-multiply peak of one core: {machine['peak']['one_core']} GFLOP/s")
    print(harness.format_table(rows))
    if options.out is not None:
        harness.store("convolutions", {"machine": machine, "rows": rows}, folder=options.out)


if __name__ == "__main__":
    main()
