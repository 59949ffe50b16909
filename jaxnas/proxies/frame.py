"""Scores of many untrained networks in one program.

All networks live in the supernet of the space, routed by their architecture, with initial weights
from one key: what two networks have in common starts equal, so scores differ by architecture rather
than by luck, and a score depends on key, batch and architecture alone, not on its company.

Candidates run one after the other (`lax.map`); several scores of one candidate share their passes.
"""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
from jax import Array, lax

from jaxnas.proxies.candidate import Candidate, Proxy
from jaxnas.space import SearchSpace
from jaxnas.training.data import Split
from jaxnas.types import split_like

Proxies = Sequence[str] | Mapping[str, Proxy]


def resolve(proxies: Proxies | None) -> dict[str, Proxy]:
    """Name to proxy.

    Args:
      proxies: names in `jaxnas.proxies.ALL`, or name to proxy; None: all with their defaults.

    Raises:
      ValueError: for no proxies, a name twice or an unknown one.

    Example:
      >>> list(resolve(["snip", "flops"]))
      ['snip', 'flops']
    """
    from jaxnas.proxies import ALL  # whose modules import this one

    if isinstance(proxies, Mapping):
        found = dict(proxies)
    else:
        names = list(ALL) if proxies is None else list(proxies)
        unknown = [name for name in names if name not in ALL]
        if isinstance(proxies, str) or unknown or len(set(names)) < len(names):
            raise ValueError(f"proxies must be different names in {sorted(ALL)}, got {proxies!r}")
        found = {name: ALL[name]() for name in names}
    if not found:
        raise ValueError("proxies is empty; give at least one")
    return found


def score(
    key: Array, space: SearchSpace, arch: Array, batch: Split, proxies: Proxies | None = None
) -> dict[str, Array]:
    """Scores architectures without training them. Pure; the caller jits.

    Args:
      key: of the initial weights, the same for all architectures.
      space: with a supernet. Static.
      arch: i32[P, D].
      batch: N rows, 64 in the papers; classes i32[N], or regression targets f32[N, T].
      proxies: names in `jaxnas.proxies.ALL`, or name to proxy; None: all. Static.

    Returns:
      Name to f32[P]; greater is better, NaN where a network has no such score.

    Raises:
      ValueError: for a space without a supernet, an unknown name, or a score that the supernet
        cannot have: `fisher`, `naswot`, `l2_norm`, `parameters` and `flops` look at its layers and
        `zen` at its last feature map, see `jaxnas.nn.probes`.

    Example:
      >>> import jax
      >>> from jaxnas.spaces import mlp
      >>> space = mlp(3, depths=(1, 2), widths=(4,))
      >>> batch = Split(jnp.eye(6), jnp.arange(6) % 3)
      >>> arch = jnp.zeros((5, space.num_decisions), jnp.int32)
      >>> score(jax.random.key(0), space, arch, batch, ["snip"])["snip"].shape
      (5,)
    """
    found = resolve(proxies)
    return finish(found, measure(key, space, arch, batch, found))


def features(
    key: Array, space: SearchSpace, arch: Array, batch: Split, proxies: Proxies | None = None
) -> Array:
    """Scores as columns for a predictor: ranks among the given architectures.

    Ranks are free of units, and a missing score ranks last.

    Args:
      key: see `score`, as the others.
      space: likewise.
      arch: likewise, P >= 2.
      batch: likewise.
      proxies: likewise.

    Returns:
      f32[P, F] in [0, 1], ties with their mean rank; columns in the order of `proxies`.

    Example:
      >>> import jax
      >>> from jaxnas.spaces import mlp
      >>> space = mlp(3, depths=(1, 2), widths=(4,))
      >>> batch = Split(jnp.eye(6), jnp.arange(6) % 3)
      >>> arch = jnp.zeros((5, space.num_decisions), jnp.int32)
      >>> features(jax.random.key(0), space, arch, batch, ["snip"])[:, 0].tolist()
      [0.5, 0.5, 0.5, 0.5, 0.5]
    """
    from jaxnas.proxies.vote import ranks

    columns = list(score(key, space, arch, batch, proxies).values())
    return jnp.stack([ranks(column) for column in columns], axis=1)


def measure(
    key: Array, space: SearchSpace, arch: Array, batch: Split, proxies: Mapping[str, Proxy]
) -> dict[str, Array]:
    """What the proxies measure on each network: name to f32[P, ...]."""
    if space.supernet is None:
        raise ValueError(f"space {space.name!r} has no supernet, in which networks are scored")
    module = space.supernet(space.full_bucket)
    k_init, k_run = split_like(key, 2)
    init_fn = _initialiser(k_init, space, module, arch[0], batch)

    def one(own: Array) -> dict[str, Array]:
        candidate = Candidate(module, init_fn(own), own, batch, k_run)
        return {name: proxy.measure(candidate) for name, proxy in proxies.items()}

    return lax.map(one, arch)


def _initialiser(key, space, module, first, batch) -> Callable:
    """`(arch) -> variables`; computed once where they are the same for all."""

    def init(arch):
        return module.init(key, batch.x[:1], arch, train=False)

    if any(decision.reshapes for decision in space.decisions):
        return init
    shared = init(first)
    return lambda arch: shared


def finish(proxies: Mapping[str, Proxy], measured: Mapping[str, Array]) -> dict[str, Array]:
    """The scores f32[P] out of what was measured; infinite ones are NaN.

    One candidate after the other: LAPACK shares a batch of matrices out over the threads that run
    the program, and with several batches at once on few threads all wait for one another.
    """
    found = {name: lax.map(proxy.finish, measured[name]) for name, proxy in proxies.items()}
    return {name: jnp.where(jnp.isfinite(v), v, jnp.nan) for name, v in found.items()}
