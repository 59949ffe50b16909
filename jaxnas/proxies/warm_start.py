"""Warm start: any strategy begins with given architectures, the best by zero-cost proxies say.

Abdelfattah, Mehrotra, Dudziak & Lane, "Zero-Cost Proxies for Lightweight NAS", ICLR 2021,
https://arxiv.org/abs/2101.08134, Section 4.3.1 ("zero-cost warmup"): of many sampled architectures
those with the best scores are evaluated first, and the search goes on from there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnas._checks import check_count
from jaxnas.proxies.frame import Proxies, score
from jaxnas.proxies.vote import PUBLISHED, vote
from jaxnas.space import SearchSpace, sample
from jaxnas.training.data import Split
from jaxnas.types import Proposal, PyTree, Strategy, rank_value, split_like


class WarmState(NamedTuple):
    """The strategy's state, and how many of the given architectures were proposed."""

    strategy: PyTree
    position: Array  # i32[]


def warm_start(
    strategy: Strategy, arch: Array, *, foreign: Callable[[PyTree], PyTree] | None = None
) -> Strategy:
    """Wraps a strategy so that its first proposals are given architectures.

    The strategy learns from them as from its own. Where its proposals carry an `info` it cannot,
    for the `info` belongs to the architectures that it would have proposed: the given ones are then
    evaluated without its knowledge and it starts after them, unless `foreign` says what to put
    there. Budgets remain the strategy's.

    Args:
      strategy: any strategy.
      arch: i32[N, D], valid and canonical, the best first; the last batch is filled up with what
        the strategy proposes. N is static.
      foreign: `(info) -> info` for candidates that the strategy did not draw; `jnp.zeros_like` for
        `reinforce` and `ppo`. It holds for the whole of a batch.

    Returns:
      A `Strategy`.

    Raises:
      ValueError: if `arch` is not of rank 2 or empty.

    Example:
      >>> from jaxnas.strategies import random_search
      >>> from jaxnas.testing import tiny_space
      >>> best = jnp.array([[2, 3, 1], [2, 3, 0]])
      >>> strategy = warm_start(random_search(tiny_space(), batch_size=2), best)
      >>> strategy.ask(jax.random.key(1), strategy.init(jax.random.key(0))).arch.tolist()
      [[2, 3, 1], [2, 3, 0]]
    """
    arch = jnp.asarray(arch, jnp.int32)
    if arch.ndim != 2 or not arch.shape[0]:
        raise ValueError(f"arch must be i32[N, D] with N >= 1, got shape {arch.shape}")
    num = arch.shape[0]

    def init(key):
        return WarmState(strategy.init(key), jnp.zeros((), jnp.int32))

    def ask(key, state: WarmState):
        own = strategy.ask(key, state.strategy)
        place = state.position + jnp.arange(own.arch.shape[0])
        given = arch[jnp.minimum(place, num - 1)]
        info = own.info
        if foreign is not None:
            warm = state.position < num
            info = jax.tree.map(lambda a, b: jnp.where(warm, a, b), foreign(info), info)
        return Proposal(jnp.where((place < num)[:, None], given, own.arch), own.budget, info)

    def tell(key, state: WarmState, proposal, evaluation):
        def learn():
            return strategy.tell(key, state.strategy, proposal, evaluation)

        position = jnp.minimum(state.position + proposal.arch.shape[0], num)
        unknown = foreign is None and len(jax.tree.leaves(proposal.info)) > 0
        after = (
            lax.cond(state.position < num, lambda: state.strategy, learn) if unknown else learn()
        )
        return WarmState(after, position)

    return Strategy(init, ask, tell)


def best_drawn(
    key: Array,
    space: SearchSpace,
    batch: Split,
    *,
    num_draws: int,
    num_best: int,
    proxies: Proxies = PUBLISHED,
) -> Array:
    """The best of uniformly drawn architectures by the vote of proxies. Pure; the caller jits.

    Args:
      key: PRNG key.
      space: with a supernet. Static.
      batch: see `jaxnas.proxies.score`.
      num_draws: architectures that are drawn and scored. Static.
      num_best: how many to return, at most `num_draws`. Static.
      proxies: see `jaxnas.proxies.score`; by default the published three.

    Returns:
      i32[num_best, D], the best first. Draws may repeat; a draw that was there before comes last.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from jaxnas.spaces import mlp
      >>> space, batch = mlp(3, depths=(1, 2), widths=(4,)), Split(jnp.eye(6), jnp.arange(6) % 3)
      >>> found = best_drawn(
      ...     jax.random.key(0), space, batch, num_draws=4, num_best=2, proxies=["snip"]
      ... )
      >>> found.shape == (2, space.num_decisions)
      True
    """
    check_count("num_best", num_best)
    check_count("num_draws", num_draws, minimum=num_best)
    k_draw, k_score = split_like(key, 2)
    arch = jax.vmap(lambda k: sample(k, space))(split_like(k_draw, num_draws))
    value = rank_value(vote(score(k_score, space, arch, batch, proxies)))
    equal = jnp.all(arch[:, None] == arch, axis=-1)
    repeated = jnp.any(jnp.tril(equal, -1), axis=1)
    return arch[jnp.argsort(-jnp.where(repeated, -1.0, value))[:num_best]]
