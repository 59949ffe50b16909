"""Scores over all local devices, from the host."""

import time
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import ArrayLike

from jaxnas._checks import check_count
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
    mesh = Mesh(np.asarray(devices), ("candidate",))
    mapped = jax.shard_map(
        lambda key, arch, batch: measure(key, space, arch, batch, found),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("candidate"), PartitionSpec()),
        out_specs=PartitionSpec("candidate"),
        check_vma=False,
    )
    size = each * len(devices)
    # The last call repeats architectures from the front, so that one program serves all calls.
    calls = np.resize(arch, (-(-len(arch) // size) * size, arch.shape[1])).reshape(
        -1, size, *arch.shape[1:]
    )
    started = time.perf_counter()
    program = jax.jit(mapped).lower(key, calls[0], batch).compile()
    compiled = time.perf_counter()
    parts = [jax.tree.map(np.asarray, program(key, call, batch)) for call in calls]
    measured = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(arch)], *parts)
    # On one device, see `Proxy`.
    values = jax.jit(lambda measured: finish(found, measured))(measured)
    values = {name: np.asarray(values[name]) for name in found}
    return Scores(values, compiled - started, time.perf_counter() - compiled)
