"""Devices: how many the CPU pretends to be, the mesh that candidates are dealt to, caches."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


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


def join(coordinator: str, num_processes: int, process_id: int) -> None:
    """Makes this process one of several that train together; call before JAX is first used.

    All processes then run the same program with the same arguments, on the same or on different
    machines. Each holds a share of the devices, and each gets all results.

    Args:
      coordinator: `host:port` where process 0 can be reached.
      num_processes: how many there are, at least 1.
      process_id: which one this is, from 0.

    Raises:
      ValueError: if `process_id` is not one of them.
    """
    if not 0 <= process_id < num_processes:
        raise ValueError(f"process_id must be in 0 to {num_processes - 1}, got {process_id}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def cache_folder() -> Path:
    """Where this user's caches are: compiled programs and measurements of devices."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "jaxnas"


@lru_cache(maxsize=8)
def device_mesh(num_devices: int, batch_devices: int = 1) -> Mesh:
    """The mesh over the first devices of all processes.

    Args:
      num_devices: how many devices.
      batch_devices: how many of them share the mini-batches of a candidate.

    Returns:
      A mesh with the axes `candidate` [num_devices / batch_devices], over which candidates are
      dealt, and `batch` [batch_devices].

    Raises:
      ValueError: if `batch_devices` does not divide `num_devices`.
    """
    if batch_devices < 1 or num_devices % batch_devices:
        raise ValueError(f"batch_devices = {batch_devices} does not divide {num_devices} devices")
    devices = np.asarray(jax.devices()[:num_devices])
    return Mesh(devices.reshape(-1, batch_devices), ("candidate", "batch"))


def split_rows(tree: Any) -> Any:
    """Splits the leading axes of arrays over the mesh axis `batch`, where a program has one.

    For use inside a program; the compiler then splits what is computed from the arrays, too, and
    adds what sums over all rows need. Results are those of one device, up to rounding.

    Args:
      tree: a pytree of arrays whose leading axes are multiples of the devices.

    Returns:
      The same values.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "batch" not in mesh.auto_axes:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, sharding), tree)


def spread(mesh: Mesh, tree: Any, axis: str | None = None) -> Any:
    """Arrays that every process holds whole, on the devices of a mesh.

    Args:
      mesh: the mesh.
      tree: a pytree of arrays, equal in all processes.
      axis: the mesh axis that the leading axis is dealt over; None: a copy on every device.

    Returns:
      A pytree of global arrays; those that are there already are not moved.
    """
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(array):
        if isinstance(array, jax.Array) and array.sharding == sharding:
            return array
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

    return jax.tree.map(place, tree)


def collect(tree: Any) -> Any:
    """Global arrays as NumPy arrays that every process holds whole; the inverse of `spread`."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(np.asarray, tree)
