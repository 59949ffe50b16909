"""Measuring: fresh processes, alternating runs, spreads, the machine's peak, tables and results.

This module must not import jax at its top: processes of the peers import it.
"""

import importlib
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
PACKAGES = ("jaxnas", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn", "torch")

PEAK_SIZES = (256, 512, 1024)  # of the square matrices; which one is fastest differs by machine
PEAK_FLOPS = 2e10  # per timed call: long against its overhead, short against patience
PEAK_ROUNDS = 10


# --- running ---


def in_fresh_process(
    entry: str, request: Any, *, environment: Mapping[str, str] | None = None
) -> Any:
    """Calls a function in a new Python process, so that nothing is warm and nobody disturbs it.

    Args:
      entry: "package.module:function"; the function takes the request.
      request: any picklable value.
      environment: variables to add.

    Returns:
      What the function returned.

    Raises:
      RuntimeError: if the process failed; its own message is on standard error.

    Example:
      >>> in_fresh_process("operator:neg", 3)
      -3
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "request"), Path(folder, "response")
        source.write_bytes(pickle.dumps(request))
        command = [sys.executable, "-m", "benchmarks.harness", entry, str(source), str(target)]
        finished = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **(environment or {})}, check=False
        )
        if finished.returncode != 0 or not target.exists():
            raise RuntimeError(f"{entry} failed in its process (exit {finished.returncode})")
        return pickle.loads(target.read_bytes())


def _serve(entry: str, source: str, target: str) -> None:
    module, _, function = entry.partition(":")
    request = pickle.loads(Path(source).read_bytes())
    response = getattr(importlib.import_module(module), function)(request)
    Path(target).write_bytes(pickle.dumps(response))


def alternate(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """Runs the sides in turn, `repeats` times each, so that slow phases of the machine hit all.

    Args:
      sides: name to a function that measures that side once.
      repeats: rounds, at least 1.

    Returns:
      Name to the results in order; results of equal index ran next to each other.

    Raises:
      ValueError: if `repeats` is below 1.

    Example:
      >>> alternate({"ours": lambda: 1, "peer": lambda: 2}, repeats=2)
      {'ours': [1, 1], 'peer': [2, 2]}
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            results[name].append(run())
            took = time.perf_counter() - start
            print(f"  {name} {repeat + 1} of {repeats}: {took:.0f} s", file=sys.stderr, flush=True)
    return results


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range.

    Example:
      >>> spread([3.0, 1.0, 2.0])
      {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    values = [float(value) for value in values]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def format_spread(values: Mapping[str, float], digits: int = 2) -> str:
    """`median [min to max]` of what `spread` returns."""
    middle, low, high = (f"{values[name]:.{digits}f}" for name in ("median", "min", "max"))
    return middle if low == high else f"{middle} [{low} to {high}]"


# --- the machine ---


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Versions and hardware, without anything that names this very machine."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": num_cores(),
        "memory_gib": _memory_gib(),
        "versions": versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def peak_gflops() -> dict[str, Any]:
    """The measured float32 matrix-multiply peak of JAX's default devices, in GFLOP/s.

    Returns:
      `device` (kind), `num_devices`, `one_core` (one CPU device pinned to one core; None on an
      accelerator) and `all_devices` (on a CPU one device per core, all at once).
    """
    everything = in_fresh_process("benchmarks.harness:measure_peak", {"num_cores": num_cores()})
    one = None
    if everything["platform"] == "cpu":
        one = in_fresh_process("benchmarks.harness:measure_peak", {"num_cores": 1})["gflops"]
    return {
        "device": everything["device"],
        "num_devices": everything["num_devices"],
        "one_core": one,
        "all_devices": everything["gflops"],
    }


def measure_peak(request: Mapping[str, int]) -> dict[str, Any]:
    """Entry point of a fresh process: the peak with `num_cores` cores and as many CPU devices."""
    if request["num_cores"] == 1 and hasattr(os, "sched_setaffinity"):
        # Before jax is imported, for its thread pools are made for the cores it finds.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax

    from jaxnas import parallel

    parallel.cpu_devices(request["num_cores"])
    devices = jax.devices()
    fastest = max(_matmul_gflops(jax, devices, size) for size in PEAK_SIZES)
    return {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "gflops": round(fastest, 1),
    }


def _matmul_gflops(jax, devices, size: int) -> float:
    flops = 2 * size**3
    # An accelerator gets more work per call, or the launch would be what is measured.
    length = max(1, int(PEAK_FLOPS * (1 if devices[0].platform == "cpu" else 100) / flops))
    chain = jax.jit(lambda h, w: jax.lax.fori_loop(0, length, lambda _, h: h @ w, h))
    # Variance 1 / size keeps the products at the scale of the factors.
    matrix = np.random.default_rng(0).normal(size=(size, size)) / np.sqrt(size)
    matrices = [jax.device_put(matrix.astype(np.float32), device) for device in devices]
    jax.block_until_ready([chain(w, w) for w in matrices])
    seconds = float("inf")
    for _ in range(PEAK_ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready([chain(w, w) for w in matrices])
        seconds = min(seconds, time.perf_counter() - start)
    return flops * length * len(devices) / seconds / 1e9


# --- showing and keeping ---


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as an aligned table; numbers to four significant digits.

    Example:
      >>> print(format_table([{"plan": "map", "s": 1.5}, {"plan": "vmap", "s": 20}]))
      plan |   s
      ---- | ---
      map  | 1.5
      vmap |  20
    """
    if not rows:
        return "(no rows)"
    names = list(rows[0])
    cells = [names] + [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(line[c]) for line in cells) for c in range(len(names))]
    numeric = [isinstance(rows[0][name], (int, float)) for name in names]

    def render(line: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        return " | ".join(padded).rstrip()

    rule = " | ".join("-" * width for width in widths)
    return "\n".join([render(cells[0]), rule, *map(render, cells[1:])])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def store(name: str, document: Mapping[str, Any], *, folder: Path = RESULTS) -> Path:
    """Writes `folder/<name>.json`, whole or not at all; not-a-number becomes null."""
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / f"{name}.json", folder / f"{name}.json.part"
    part.write_text(json.dumps(_plain(document), indent=1, allow_nan=False) + "\n")
    part.replace(path)
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


if __name__ == "__main__":
    _serve(*sys.argv[1:])
