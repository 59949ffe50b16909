"""The sides of `supernet_step`: how each is run in a process of its own.

This module must not import jax or torch at its top: their thread pools are made for the cores that
the process has at that time.
"""

import os
import time
from typing import Any

import numpy as np

from benchmarks import harness

NUM_CLASSES = 10
FIRST, DIFFERENCE, EXACT = "first order", "finite difference", "exact"
RECOMPUTED, ROUTED = "exact, recomputed", "single path"
KINDS = (FIRST, DIFFERENCE, EXACT, RECOMPUTED, ROUTED)
PEER_KINDS = (FIRST, DIFFERENCE)


def make_arrays(image_size: int, batch_size: int) -> dict[str, np.ndarray]:
    """Noise for data: costs do not depend on the values."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "valid"):
        shape = (batch_size, image_size, image_size, 3)
        arrays[f"x_{part}"] = rng.normal(size=shape).astype(np.float32)
        arrays[f"y_{part}"] = np.arange(batch_size) % NUM_CLASSES
    return arrays


def run_ours(request: dict[str, Any], cache: str) -> dict[str, Any]:
    """Ours in a process of its own, which leaves its programs in the folder `cache`."""
    environment = {"JAX_COMPILATION_CACHE_DIR": cache}
    entry = "benchmarks._supernet_sides:measure_ours"
    return harness.in_fresh_process(entry, request, environment=environment)


def run_peer(request: dict[str, Any]) -> dict[str, Any]:
    """PyTorch in a process of its own."""
    return harness.in_fresh_process("benchmarks._supernet_sides:measure_peer", request)


def pin(num_cores: int) -> None:
    """Confines this process to that many of its cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cores])


def measure_peer(request: dict[str, Any]) -> dict[str, Any]:
    """Entry point of a fresh process: every kind of step of the peer."""
    pin(request["num_cores"])
    from benchmarks.peers import torch_supernet

    sizes = request["sizes"]
    shape = {name: sizes[name] for name in ("num_channels", "num_cells")}
    return torch_supernet.measure(
        {
            "shape": {**shape, "num_classes": NUM_CLASSES, "in_channels": 3},
            "arrays": make_arrays(sizes["image_size"], sizes["batch_size"]),
            "num_threads": request["num_cores"],
            "num_steps": request["num_steps"],
            "kinds": request["kinds"],
        }
    )


def measure_ours(request: dict[str, Any]) -> dict[str, Any]:
    """Entry point of a fresh process: every kind of step of ours.

    Args:
      request: `num_cores`, `sizes` (`num_channels`, `num_cells`, `image_size`, `batch_size`),
        `kinds` and `num_steps` to be timed.

    Returns:
      `parameters`, and per kind `trace_seconds`, `compile_seconds`, `seconds` of every step and
      `bytes`, what the compiler sets aside beside arguments and results.
    """
    pin(request["num_cores"])
    import jax

    key, found, parameters = jax.random.key(0), {}, 0
    for kind in request["kinds"]:
        method, batches = make_method(kind, request["sizes"])
        state = jax.jit(method.init)(key)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.weights))
        start = time.perf_counter()
        lowered = jax.jit(method.update, donate_argnums=1).lower(key, state, *batches)
        middle = time.perf_counter()
        step = lowered.compile()
        end = time.perf_counter()
        seconds = []
        for index in range(1 + request["num_steps"]):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(step(jax.random.fold_in(key, index), state, *batches))
            seconds.append(time.perf_counter() - began)
        found[kind] = {
            "trace_seconds": middle - start,
            "compile_seconds": end - middle,
            "seconds": seconds[1:],
            "bytes": step.memory_analysis().temp_size_in_bytes,
        }
    return {"parameters": parameters, "kinds": found}


def make_method(kind: str, sizes: dict[str, int]) -> tuple[Any, tuple[Any, Any]]:
    """The one-shot method of a kind of step, and the batches of one update."""
    import jax.numpy as jnp

    from jaxnas import oneshot
    from jaxnas.oneshot import hypergradients
    from jaxnas.training.data import Split

    arrays = make_arrays(sizes["image_size"], sizes["batch_size"])
    batches = tuple(
        Split(jnp.asarray(arrays[f"x_{part}"]), jnp.asarray(arrays[f"y_{part}"], jnp.int32))
        for part in ("train", "valid")
    )
    problem = make_problem(sizes, "recompute" if kind == RECOMPUTED else "auto")
    if kind == ROUTED:
        return oneshot.single_path(problem, num_steps=100), batches
    hypergradient = {
        FIRST: hypergradients.first_order,
        DIFFERENCE: hypergradients.finite_difference,
    }.get(kind, hypergradients.unrolled)
    return oneshot.darts(problem, num_steps=100, hypergradient=hypergradient()), batches


def make_problem(sizes: dict[str, int], residuals: str = "auto") -> Any:
    """The supernet that is trained; `residuals` is that of `spaces.darts`."""
    import jax

    from jaxnas import oneshot, spaces
    from jaxnas.training.data import from_arrays

    # Only says what is predicted, and from images of which shape.
    arrays = make_arrays(sizes["image_size"], 10 * NUM_CLASSES)
    data = from_arrays(jax.random.key(0), arrays["x_train"], arrays["y_train"])
    shape = {name: sizes[name] for name in ("num_channels", "num_cells", "image_size")}
    space = spaces.darts(NUM_CLASSES, **shape, search=True, residuals=residuals)
    return oneshot.from_space(space, data)
