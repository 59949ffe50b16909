"""LaNAS: a tree of linear models parts the space into good and bad regions.

Wang, Xie, Li, Fonseca & Tian, "Sample-Efficient Neural Architecture Search by Learning Actions for
Monte Carlo Tree Search", IEEE TPAMI 2022, https://arxiv.org/abs/1906.06832; constants of the
authors' code for NAS-Bench-101, https://github.com/facebookresearch/LaMCTS (`LaNAS`). The loop:

1. draw `num_init` architectures uniformly;
2. learning phase: at each inner node of a full binary tree fit a linear regression from the one-hot
   encoding to the fitness, on the samples that reach the node; what is predicted at least the mean
   prediction goes to the good child, the rest to the bad one, architectures and samples alike;
3. search phase: from the root, go to the child with the largest

       mean value + 2 exploration sqrt(2 ln(samples in the node) / samples in the child),

   children without samples first, down to a leaf;
4. draw from the leaf's region uniformly, evaluate, go on at 2.

Values are fitnesses scaled to [0, 1] over what is remembered, by their range as in the papers on
UCT or by their rank; a failed candidate is worth 0.

A space of at most `enumeration_limit` architectures is listed when the strategy is made. Regions
are then exact, and no architecture is proposed twice while there is another. Of a larger space each
batch sees a pool of random architectures, half of them uniform draws and half of them remembered
ones with one decision changed, for a small region has few uniform draws (the paper: rejection
sampling); then only the last `capacity` candidates are not proposed again.

Deviations: the regressions are ridge regressions in closed form (paper: gradient descent), refitted
after every batch (paper: 20 evaluations); the samples of a node are those in its region (the
authors' code parts the samples by fitness and the architectures by prediction); selection passes by
regions that hold nothing new; within a batch a selection counts as a sample for the exploration
term but not for the mean (Liu et al., "Watch the Unobserved", ICLR 2020,
https://arxiv.org/abs/1810.11755).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas import enumeration
from jaxnas._checks import check_count, check_number, check_option
from jaxnas.space import SearchSpace, encode, mutate, sample
from jaxnas.strategies._memory import is_known, occupied, remember
from jaxnas.strategies._partition import Partition, learn, leaves, select
from jaxnas.strategies._population import Population, empty
from jaxnas.types import Proposal, Strategy, split_like

SCALES = ("range", "rank")


class LanasState(NamedTuple):
    """What was evaluated; the tree is made of it anew for each batch."""

    memory: Population  # capacity C
    seen: Array  # bool[N], proposed before, by place in the listed space; N = 0 if not listed


class _Pool(NamedTuple):
    """Architectures to choose from."""

    arch: Array  # i32[N, D]
    encoding: Array  # f32[N, F]
    is_open: Array  # bool[N], new to the search
    is_uniform: Array  # bool[N], from a uniform draw


def scaled(memory: Population, scale: str) -> Array:
    """Fitnesses of a memory scaled to [0, 1]: f32[C], 0 for failed candidates and empty places.

    Args:
      memory: of capacity C.
      scale: "range", or "rank": the share of the successful candidates that is worse, equals
        counted half. Static.

    Returns:
      f32[C].
    """
    fitness = memory.fitness
    success = jnp.isfinite(fitness)
    if scale == "rank":
        order = jnp.sort(jnp.where(success, fitness, jnp.inf))
        below = jnp.searchsorted(order, fitness, side="left")
        through = jnp.searchsorted(order, fitness, side="right")
        value = (below + through) / (2.0 * jnp.maximum(success.sum(), 1))
    else:
        worst = jnp.min(fitness, where=success, initial=jnp.inf)
        best = jnp.max(fitness, where=success, initial=-jnp.inf)
        value = (fitness - worst) / jnp.where(best > worst, best - worst, 1.0)
    return jnp.where(success, value, 0.0)


def _choose(
    key: Array,
    pool: _Pool,
    partition: Partition,
    memory: Population,
    samples: tuple[Array, Array],
    is_init: Array,
    exploration: float | Array,
) -> Array:
    """Selects a leaf and draws from it, once for each member of a batch.

    Args:
      key: PRNG key.
      pool: architectures to choose from.
      partition: the tree.
      memory: what was evaluated.
      samples: its encodings f32[C, F] and values f32[C].
      is_init: bool[B], draws from the whole space.
      exploration: weight of the exploration term.

    Returns:
      i32[B], places in the pool, different ones while any is open.
    """
    k_noise, k_select = jax.random.split(key)
    encoding, value = samples
    num_leaves = 2 ** partition.threshold.shape[0]
    home = jax.nn.one_hot(leaves(partition, encoding), num_leaves) * occupied(memory)[:, None]
    total, num = value @ home, home.sum(axis=0)
    region = leaves(partition, pool.encoding)
    in_region = jax.nn.one_hot(region, num_leaves)
    # The first of a random order is a uniform draw, so one draw of noise serves the whole batch.
    noise = jax.random.uniform(k_noise, region.shape)

    def one(carry, step):
        is_open, pending = carry
        k, initial = step
        choosable = jnp.where(is_open.any(), is_open, True)
        room = choosable.astype(jnp.float32) @ in_region
        leaf = select(k, total, num, pending, room, exploration)
        inside = choosable & jnp.where(initial, pool.is_uniform, region == leaf)
        row = jnp.argmax(jnp.where(inside, noise, jnp.where(choosable, -1.0, -2.0)))
        is_open &= jnp.any(pool.arch != pool.arch[row], axis=1)
        return (is_open, pending.at[region[row]].add(1.0)), row

    start = pool.is_open, jnp.zeros(num_leaves)
    return jax.lax.scan(one, start, (split_like(k_select, is_init.shape[0]), is_init))[1]


def lanas(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    num_init: int = 10,
    tree_height: int = 5,
    exploration: float | Array = 0.1,
    ridge: float | Array = 1.0,
    scale: str = "rank",
    capacity: int = 1024,
    enumeration_limit: int = 20_000,
    pool_size: int = 1024,
) -> Strategy:
    """Latent action search: sample where a tree of linear models expects good architectures.

    The module's docstring gives the exact loop.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_init: uniform draws before the first tree. Static.
      tree_height: levels of nodes, at least 2: 2^(height - 1) leaves. Static.
      exploration: weight of the exploration term, at least 0. May be traced.
      ridge: penalty on the squared weights of the regressions, above 0. May be traced.
      scale: "range" or "rank", how fitnesses become values. Static.
      capacity: candidates C >= B that are remembered. Static.
      enumeration_limit: architectures that are listed at most. Static.
      pool_size: architectures drawn per batch where the space is not listed, N >= 2 B. Static.

    Returns:
      A `Strategy` whose state is the last C candidates, and which of a listed space were proposed.

    Raises:
      ValueError: for a size too small, an unknown scale, or a negative number.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = lanas(tiny_space(), batch_size=4)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_count("num_init", num_init)
    check_count("tree_height", tree_height, minimum=2)
    check_number("exploration", exploration)
    check_number("ridge", ridge)
    check_option("scale", scale, SCALES)
    check_count("capacity", capacity)
    check_count("enumeration_limit", enumeration_limit, minimum=0)
    check_count("pool_size", pool_size, minimum=2 * batch_size)
    if capacity < batch_size:
        raise ValueError(f"capacity must be at least batch_size = {batch_size}, got {capacity}")

    encoded = jax.vmap(lambda row: encode(space, row))
    listed = None
    if enumeration.num_architectures(space) <= enumeration_limit:
        with jax.ensure_compile_time_eval():  # the factory may be called while tracing
            every = jnp.asarray(enumeration.all_architectures(space, enumeration_limit))
            listed = np.asarray(every), np.asarray(encoded(every))

    def init(key):
        del key
        seen = jnp.zeros(0 if listed is None else len(listed[0]), bool)
        return LanasState(empty(space, capacity), seen)

    def gather(key, state: LanasState) -> _Pool:
        if listed is not None:
            arch, encoding = map(jnp.asarray, listed)
            return _Pool(arch, encoding, ~state.seen, jnp.ones(state.seen.shape, bool))
        arch, is_uniform = _draw_pool(key, space, state.memory, pool_size)
        return _Pool(arch, encoded(arch), ~is_known(state.memory, arch), is_uniform)

    def ask(key, state: LanasState):
        k_pool, k_choose = jax.random.split(key)
        memory = state.memory
        samples = encoded(memory.arch), scaled(memory, scale)
        partition = learn(*samples, occupied(memory), tree_height - 1, ridge)
        pool = gather(k_pool, state)
        is_init = memory.count + jnp.arange(batch_size) < num_init
        row = _choose(k_choose, pool, partition, memory, samples, is_init, exploration)
        return Proposal(pool.arch[row], jnp.ones(batch_size), row)

    def tell(key, state: LanasState, proposal, evaluation):
        del key
        memory = remember(state.memory, proposal.arch, evaluation.fitness)
        seen = state.seen if listed is None else state.seen.at[proposal.info].set(True)
        return LanasState(memory, seen)

    return Strategy(init, ask, tell)


def _draw_pool(
    key: Array, space: SearchSpace, memory: Population, size: int
) -> tuple[Array, Array]:
    """Uniform draws, then changed members of the memory: i32[N, D], and which are which."""
    capacity = memory.fitness.shape[0]

    def draw(k):
        return sample(k, space)

    def change(k):
        k_member, k_mutate = jax.random.split(k)
        age = jax.random.randint(k_member, (), 0, jnp.maximum(memory.num_members, 1))
        return mutate(k_mutate, space, memory.arch[capacity - 1 - age])

    keys, half = split_like(key, size), size // 2
    uniform, changed = jax.vmap(draw)(keys[:half]), jax.vmap(change)(keys[half:])
    # Before the first sample there is nothing to change.
    spare = jnp.concatenate([uniform, uniform[: size - 2 * half]])
    changed = jnp.where(memory.num_members > 0, changed, spare)
    return jnp.concatenate([uniform, changed]), jnp.arange(size) < half
