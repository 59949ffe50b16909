"""A binary tree of linear models that parts a space, and the choice of a region by UCB.

Wang et al., LaNAS, https://arxiv.org/abs/1906.06832: the parts of `jaxnas.strategies.lanas`.
The tree has L levels of inner nodes and 2^L leaves. The nodes of a level are numbered from the best
region to the worst.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Partition(NamedTuple):
    """The linear models of a tree of L inner levels; level l uses the first 2^l of W rows."""

    weight: Array  # f32[L, W, F]
    threshold: Array  # f32[L, W], what is below it is bad


def learn(
    encoding: Array, value: Array, counts: Array, num_levels: int, ridge: float | Array
) -> Partition:
    """The learning phase: regressions and splits from the root down.

    Args:
      encoding: f32[C, F], the samples.
      value: f32[C], what to predict.
      counts: bool[C], which samples count.
      num_levels: levels L >= 1 of inner nodes. Static.
      ridge: penalty on the squared weights, above 0; the intercept is free.

    Returns:
      The models. A node with less than two different samples has no bad side.
    """
    width = 2 ** (num_levels - 1)
    penalty = ridge * jnp.eye(encoding.shape[1])

    def level(node, _):
        member = ((node == jnp.arange(width)[:, None]) & counts).astype(jnp.float32)
        share = member / jnp.maximum(member.sum(axis=1, keepdims=True), 1.0)
        middle = share @ encoding
        centred = encoding - middle[node]
        gap = value - (share @ value)[node]
        weighted = member[:, :, None] * centred
        gram = jnp.einsum("wcf,cg->wfg", weighted, centred) + penalty
        moment = jnp.einsum("wcf,c->wf", weighted, gap)
        weight = _solve(gram, moment)
        # The mean prediction is the prediction at the mean, and the intercept is on both sides.
        threshold = jnp.sum(weight * middle, axis=1)
        here = Partition(weight, threshold)
        return _descend(here, encoding @ weight.T, node), here

    root = jnp.zeros(value.shape, jnp.int32)
    return jax.lax.scan(level, root, None, length=num_levels)[1]


def _solve(matrix: Array, right: Array) -> Array:
    """Solutions f32[W, F] of positive definite systems f32[W, F, F] by Gauss and Jordan.

    Written out, for with `jnp.linalg.solve` searches on two CPU devices at a time have hung.
    """
    rows = jnp.concatenate([matrix, right[:, :, None]], axis=2)

    def eliminate(k, rows):
        pivot = rows[:, k] / rows[:, k, k, None]
        return (rows - rows[:, :, k, None] * pivot[:, None]).at[:, k].set(pivot)

    return jax.lax.fori_loop(0, right.shape[1], eliminate, rows)[:, :, -1]


def _descend(level: Partition, prediction: Array, node: Array) -> Array:
    """Nodes i32[N] of the next level, from predictions f32[N, W] and nodes of this one."""
    mine = jnp.take_along_axis(prediction, node[:, None], axis=1)[:, 0]
    return 2 * node + (mine < level.threshold[node])


def leaves(partition: Partition, encoding: Array) -> Array:
    """The leaf of each encoded architecture f32[N, F]: i32[N], the best region is 0."""

    def level(node, here):
        return _descend(here, encoding @ here.weight.T, node), None

    root = jnp.zeros(encoding.shape[0], jnp.int32)
    return jax.lax.scan(level, root, partition)[0]


def _all_nodes(leaf: Array) -> Array:
    """Sums over the leaves below every node, the root first, level by level: [2^(L+1) - 1]."""
    num_levels = leaf.shape[0].bit_length() - 1
    return jnp.concatenate([leaf.reshape(2**i, -1).sum(axis=1) for i in range(num_levels + 1)])


def select(
    key: Array, total: Array, num: Array, pending: Array, room: Array, exploration: float | Array
) -> Array:
    """The search phase: a leaf by UCB, among those with room.

    Args:
      key: PRNG key, to break ties.
      total: f32[2^L], sum of the values of each leaf's samples.
      num: f32[2^L], samples of each leaf.
      pending: f32[2^L], selections of each leaf that have no value yet.
      room: f32[2^L], architectures of each leaf's region to choose from; at least one leaf has any.
      exploration: weight of the exploration term.

    Returns:
      i32[].

    Example:
      >>> total, num, room = jnp.array([1.6, 0.2]), jnp.array([2.0, 1.0]), jnp.ones(2)
      >>> int(select(jax.random.key(0), total, num, jnp.zeros(2), room, 0.1))
      0
    """
    num_levels = total.shape[0].bit_length() - 1
    total, num, pending, room = map(_all_nodes, (total, num, pending, room))
    visits = num + pending
    chance = jax.random.uniform(key, (num_levels, 2))

    def level(node, chance):
        child = 2 * node + jnp.array([1, 2])
        mean = total[child] / jnp.maximum(num[child], 1.0)
        around = jnp.log(jnp.maximum(visits[node], 1.0))
        bound = mean + 2.0 * exploration * jnp.sqrt(2.0 * around / jnp.maximum(visits[child], 1.0))
        bound = jnp.where(visits[child] > 0, bound, jnp.inf)
        bound = jnp.where(room[child] > 0, bound, -jnp.inf)
        best = jnp.where(bound == bound.max(), chance, -1.0)
        return child[jnp.argmax(best)], None

    node = jax.lax.scan(level, jnp.zeros((), jnp.int32), chance)[0]
    return node - (total.shape[0] - 1) // 2
