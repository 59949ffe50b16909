"""Scores over all local devices, from the host."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import ArrayLike

from jaxnas._checks import check_count
from jaxnas.proxies.candidate import Proxy
from jaxnas.proxies.frame import Proxies, finish, measure, resolve
from jaxnas.space import SearchSpace
from jaxnas.training.data import Split


class Scores(NamedTuple):
    """Scores of P architectures, greater is better, and what they took.

    Attributes:
      values: name to score; NaN where a network has none.
      compile_seconds: spent tracing and compiling.
      run_seconds: spent scoring.
    """

    values: dict[str, np.ndarray]  # f32[P]
    compile_seconds: float
    run_seconds: float


def score_population(
    key: Array,
    space: SearchSpace,
    arch: ArrayLike,
    batch: Split,
    proxies: Proxies | None = None,
    *,
    candidates_per_call: int | None = None,
) -> Scores:
    """`jaxnas.proxies.score` over all local devices, compiled once.

    Args:
      key: see `score`.
      space: likewise.
      arch: i32[P, D], P >= 1.
      batch: see `score`.
      proxies: likewise.
      candidates_per_call: architectures that each device scores in one call; None: all in one.

    Returns:
      The scores, equal to those of `score`.

    Raises:
      ValueError: as `score`, and for no architectures.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnas.spaces import mlp
      >>> space = mlp(3, depths=(1, 2), widths=(4,))
      >>> batch = Split(jnp.eye(6), jnp.arange(6) % 3)
      >>> arch = np.zeros((5, space.num_decisions), np.int32)
      >>> score_population(jax.random.key(0), space, arch, batch, ["snip"]).values["snip"].shape
      (5,)
    """
    arch = np.asarray(arch, np.int32)
    if arch.ndim != 2 or not len(arch):
        raise ValueError(f"arch must be i32[P, D] with P >= 1, got shape {arch.shape}")
    found = resolve(proxies)
    devices = jax.local_devices()
    each = -(-len(arch) // len(devices))
    if candidates_per_call is not None:
        check_count("candidates_per_call", candidates_per_call)
        each = min(each, candidates_per_call)
    size = each * len(devices)
    # The last call repeats architectures from the front, so that one program serves all calls.
    calls = _repeated(arch, size).reshape(-1, size, *arch.shape[1:])
    started = time.perf_counter()
    program = _program(space, found).lower(key, calls[0], batch).compile()
    compiled = time.perf_counter()
    parts = [jax.tree.map(np.asarray, program(key, call, batch)) for call in calls]
    measured = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(arch)], *parts)
    # On one device, see `Proxy`.
    values = jax.jit(lambda measured: finish(found, measured))(measured)
    values = {name: np.asarray(values[name]) for name in found}
    return Scores(values, compiled - started, time.perf_counter() - compiled)


def scorer(
    key: Array, space: SearchSpace, batch: Split, proxies: Proxies | None = None
) -> Callable[[ArrayLike], dict[str, np.ndarray]]:
    """Scores over all local devices, for many calls: one program per number of architectures.

    Args:
      key: see `jaxnas.proxies.score`, as the others.
      space: likewise.
      batch: likewise.
      proxies: likewise.

    Returns:
      `(arch i32[P, D]) -> name to f32[P]`, the scores of `score_population`.

    Raises:
      ValueError: as `score`, when called.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnas.spaces import mlp
      >>> space = mlp(3, depths=(1, 2), widths=(4,))
      >>> run = scorer(jax.random.key(0), space, Split(jnp.eye(6), jnp.arange(6) % 3), ["snip"])
      >>> run(np.zeros((5, space.num_decisions), np.int32))["snip"].shape
      (5,)
    """
    found = resolve(proxies)
    program, num_devices = _program(space, found), jax.local_device_count()
    finished = jax.jit(lambda measured: finish(found, measured))

    def run(arch: ArrayLike) -> dict[str, np.ndarray]:
        arch = np.asarray(arch, np.int32)
        measured = program(key, _repeated(arch, num_devices), batch)
        values = finished(jax.tree.map(lambda leaf: np.asarray(leaf)[: len(arch)], measured))
        return {name: np.asarray(values[name]) for name in found}

    return run


def _program(space: SearchSpace, proxies: Mapping[str, Proxy]) -> Any:
    """`measure`, jitted, with the architectures dealt to all local devices."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("candidate",))
    mapped = jax.shard_map(
        lambda key, arch, batch: measure(key, space, arch, batch, proxies),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("candidate"), PartitionSpec()),
        out_specs=PartitionSpec("candidate"),
        check_vma=False,
    )
    return jax.jit(mapped)


def _repeated(arch: np.ndarray, size: int) -> np.ndarray:
    """The architectures, and as many again from the front as make a multiple of `size`."""
    return np.resize(arch, (-(-len(arch) // size) * size, arch.shape[1]))
