"""Devices: how many the CPU pretends to be, the mesh that candidates are dealt to, caches."""

import os
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh


def cpu_devices(num_devices: int | None = None) -> int:
    """Makes every CPU core a device of its own; call before JAX is first used.

    Candidates are independent, so one XLA device per core keeps all cores busy, while one device
    that spreads each small operation over all cores does not.

    Args:
      num_devices: CPU devices; None: one per core that this process may use.

    Returns:
      The number of CPU devices.

    Raises:
      ValueError: if `num_devices` is below 1.
      RuntimeError: if JAX has already started with another number.
    """
    if num_devices is None:
        num_devices = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    num_devices = num_devices if num_devices is not None else os.cpu_count() or 1
    if num_devices < 1:
        raise ValueError(f"num_devices must be at least 1, got {num_devices}")
    if getattr(jax.config, "jax_num_cpu_devices") != num_devices:  # noqa: B009, unknown to checkers
        jax.config.update("jax_num_cpu_devices", num_devices)
    return num_devices


def compilation_cache(path: str | os.PathLike) -> None:
    """Keeps compiled programs in a folder, so that the next process need not compile them again."""
    Path(path).mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@lru_cache(maxsize=8)
def candidate_mesh(num_devices: int) -> Mesh:
    """The mesh over the first `num_devices` local devices, with the one axis `candidate`."""
    return Mesh(np.asarray(jax.local_devices()[:num_devices]), ("candidate",))
