"""Monte Carlo tree search: decisions are moves, UCT picks the promising ones.

Wistuba, "Finding Competitive Network Architectures Within a Day Using UCT", 2017,
https://arxiv.org/abs/1712.07420; Wang et al., "Neural Architecture Search Using Deep Neural
Networks and Monte Carlo Tree Search" (AlphaX), AAAI 2020, https://arxiv.org/abs/1903.11059; UCT is
Kocsis & Szepesvari, "Bandit Based Monte-Carlo Planning", ECML 2006.

A node is a prefix of decisions, in the order of the space; decisions that the prefix switches off
are passed over. The loop:

1. selection: from the root, take the choice whose child has the largest

       mean value + 2 exploration sqrt(2 ln(visits of the node) / visits of the child),

   unvisited children first, chance breaks ties;
2. expansion: where there is no such child yet, make one; at most `num_expansions` per walk;
3. rollout: make the decisions that are left uniformly at random, and evaluate;
4. backpropagation: every node on the way counts one visit and adds the fitness.

Values are fitnesses scaled to [0, 1] by the worst and the best seen, so `exploration` has no unit;
a failed candidate is worth 0.

A node all of whose architectures were proposed is closed and never entered again, so nothing that
became a leaf of the tree is proposed twice. With `num_expansions=None` a whole walk becomes nodes,
down to its leaf, so no architecture is proposed twice. `num_expansions=1` is classic UCT, whose
rollouts may meet an architecture again. When all `capacity` nodes are in use, a node that misses
children is left by a uniform choice, and from where the tree ends a walk goes on as a rollout. Once
the whole space was proposed, uniform draws follow.

Deviations: a batch of B walks is made before any of it is evaluated; a walk under way counts as a
visit in the exploration term but not in the mean (Liu et al., "Watch the Unobserved: A Simple
Approach to Parallelizing Monte Carlo Tree Search", ICLR 2020, https://arxiv.org/abs/1810.11755), so
the next one goes elsewhere. A walk to an invalid architecture is a visit of value 0, costs nothing,
and is walked again. The information that Wistuba shares between branches and the network that
predicts rollouts in AlphaX are left out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.space import MAX_TRIES, SearchSpace, is_active, is_valid, sample
from jaxnas.strategies._q_values import choice_mask
from jaxnas.types import Proposal, Strategy, split_like


class Tree(NamedTuple):
    """Nodes in the order of their making; the root is node 0 and N stands for "no node"."""

    children: Array  # i32[N, K], N where there is none
    visits: Array  # i32[N], including those under way
    finished: Array  # i32[N], visits whose value is known, including failed and invalid ones
    successes: Array  # i32[N], visits with a fitness
    total: Array  # f32[N], sum of these fitnesses
    closed: Array  # bool[N], nothing new is left below
    count: Array  # i32[], nodes in use
    worst: Array  # f32[], fitness seen so far; infinity before the first
    best: Array  # f32[], likewise, minus infinity


class Walk(NamedTuple):
    """One way from the root to an architecture."""

    arch: Array  # i32[D]
    path: Array  # i32[D + 1], the root and the node after each decision; N outside the tree
    active: Array  # bool[D], decisions that were made


class _Pending(NamedTuple):
    """What `tell` needs: the tree in which the walks are visits already, and where they went."""

    tree: Tree
    path: Array  # i32[B, D + 1], the nodes to reward, each once; N elsewhere


def empty_tree(capacity: int, num_choices: int) -> Tree:
    """A tree that has a root, and room for `capacity` nodes of `num_choices` children."""
    zeros = jnp.zeros(capacity, jnp.int32)
    return Tree(
        children=jnp.full((capacity, num_choices), capacity, jnp.int32),
        visits=zeros,
        finished=zeros,
        successes=zeros,
        total=jnp.zeros(capacity, jnp.float32),
        closed=jnp.zeros(capacity, bool),
        count=jnp.ones((), jnp.int32),
        worst=jnp.asarray(jnp.inf, jnp.float32),
        best=jnp.asarray(-jnp.inf, jnp.float32),
    )


def _at(column: Array, index: Array, default) -> Array:
    """`column[index]`, and `default` where there is no such node."""
    return column.at[index].get(mode="fill", fill_value=default)


def uct(tree: Tree, node: Array, exploration: float | Array) -> Array:
    """The value that selection maximises, per choice at a node.

    Args:
      tree: the tree.
      node: i32[], a node, or N for a place outside of the tree.
      exploration: weight of the exploration term.

    Returns:
      f32[K], infinity for choices without a visit.

    Example:
      >>> tree = empty_tree(4, 2)
      >>> tree = tree._replace(
      ...     children=tree.children.at[0].set(jnp.array([1, 2])),
      ...     visits=jnp.array([3, 2, 1, 0]), finished=jnp.array([3, 2, 1, 0]),
      ...     successes=jnp.array([3, 2, 1, 0]), total=jnp.array([1.8, 1.6, 0.2, 0.0]),
      ...     worst=jnp.array(0.2), best=jnp.array(1.0))
      >>> uct(tree, jnp.array(0), 0.0).tolist()
      [0.75, 0.0]
    """
    child = _at(tree.children, node, tree.visits.shape[0])
    visits, finished = _at(tree.visits, child, 0), _at(tree.finished, child, 0)
    # Before the first success there are no values, and the worst is infinite.
    worst = jnp.where(tree.best > tree.worst, tree.worst, 0.0)
    span = jnp.where(tree.best > tree.worst, tree.best - tree.worst, jnp.inf)
    gain = (_at(tree.total, child, 0.0) - worst * _at(tree.successes, child, 0)) / span
    around = jnp.log(jnp.maximum(_at(tree.visits, node, 0), 1))
    width = jnp.sqrt(2.0 * around / jnp.maximum(visits, 1))
    bound = gain / jnp.maximum(finished, 1) + 2.0 * exploration * width
    return jnp.where(visits > 0, bound, jnp.inf)


def walk(key: Array, space: SearchSpace, tree: Tree, exploration: float | Array) -> Walk:
    """Selection while there are nodes, then a rollout; reads the tree only."""
    mask = choice_mask(space)
    nowhere = tree.visits.shape[0]
    noise = jax.random.uniform(key, mask.shape)

    def decide(carry, step):
        arch, node = carry
        index, chance = step
        active = is_active(space, arch)[index]  # looks at earlier decisions only
        child = _at(tree.children, node, nowhere)
        is_open = mask[index] & ~_at(tree.closed, child, False)
        is_open = jnp.where(is_open.any(), is_open, mask[index])
        value = jnp.where(is_open, uct(tree, node, exploration), -jnp.inf)
        # A full tree cannot make these children, which would stay the unvisited ones for ever.
        misses = (tree.count >= nowhere) & jnp.any(is_open & (child == nowhere))
        candidates = is_open & ((value == value.max()) | misses)
        choice = jnp.argmax(jnp.where(candidates, chance, -1.0))
        choice = jnp.where(active, choice, 0).astype(jnp.int32)
        node = jnp.where(active, child[choice], node)
        return (arch.at[index].set(choice), node), (node, active)

    start = jnp.zeros(space.num_decisions, jnp.int32), jnp.zeros((), jnp.int32)
    steps = jnp.arange(space.num_decisions), noise
    (arch, _), (path, active) = jax.lax.scan(decide, start, steps)
    return Walk(arch, jnp.concatenate([start[1][None], path]), active)


def _expand(tree: Tree, way: Walk, num_expansions: int) -> tuple[Tree, Walk]:
    """Makes the nodes that a walk misses, the first ones, as long as there is room."""
    nowhere = tree.visits.shape[0]
    number = jnp.cumsum(way.active & (way.path[1:] == nowhere))  # of the missing nodes: 1, 2, ...
    # A decision that is passed over stays at the node of the decision before it.
    node = tree.count + number - 1
    made = (way.path[1:] == nowhere) & (number <= num_expansions) & (node < nowhere) & (number > 0)
    path = way.path.at[1:].set(jnp.where(made, node, way.path[1:]))
    parent = jnp.where(made & way.active, path[:-1], nowhere)
    children = tree.children.at[parent, way.arch].set(path[1:], mode="drop")
    count = tree.count + (made & way.active).sum(dtype=jnp.int32)
    return tree._replace(children=children, count=count), way._replace(path=path)


def _close(space: SearchSpace, tree: Tree, way: Walk) -> Array:
    """Which nodes are closed once a walk was proposed: bool[N]."""
    mask = choice_mask(space)

    def up(below, step):
        node, choice, active, legal = step
        kids = _at(tree.children, node, tree.visits.shape[0])
        done = _at(tree.closed, kids, False) | (jnp.arange(kids.size) == choice) & below
        above = jnp.where(active, jnp.all(done | ~legal), below)
        return above, below

    is_leaf = way.path[-1] < tree.visits.shape[0]
    steps = way.path[:-1], way.arch, way.active, mask
    root, below = jax.lax.scan(up, is_leaf, steps, reverse=True)
    closed = jnp.concatenate([root[None], below])
    return tree.closed.at[way.path].max(closed, mode="drop")


def visit(space: SearchSpace, tree: Tree, way: Walk, num_expansions: int) -> tuple[Tree, Array]:
    """Expansion, and a visit without a value yet for every node on the way.

    Args:
      space: the space.
      tree: the tree that the walk saw.
      way: the walk.
      num_expansions: nodes to make at most. Static.

    Returns:
      The tree, and the nodes to reward: i32[D + 1], each once, N elsewhere.
    """
    tree, way = _expand(tree, way, num_expansions)
    once = jnp.concatenate([jnp.ones(1, bool), way.active])
    path = jnp.where(once, way.path, tree.visits.shape[0])
    visits = tree.visits.at[path].add(1, mode="drop")
    return tree._replace(visits=visits, closed=_close(space, tree, way)), path


def reward(tree: Tree, path: Array, fitness: Array) -> Tree:
    """Adds fitnesses f32[B] to the nodes i32[B, D + 1] of walks that are visits already."""
    success = jnp.isfinite(fitness)
    add = jnp.where(success, fitness, 0.0)
    return tree._replace(
        finished=tree.finished.at[path].add(1, mode="drop"),
        successes=tree.successes.at[path].add(success[:, None].astype(jnp.int32), mode="drop"),
        total=tree.total.at[path].add(add[:, None], mode="drop"),
        worst=jnp.minimum(tree.worst, jnp.min(fitness, where=success, initial=jnp.inf)),
        best=jnp.maximum(tree.best, jnp.max(fitness, where=success, initial=-jnp.inf)),
    )


def _propose(
    key: Array,
    space: SearchSpace,
    tree: Tree,
    exploration: float | Array,
    num_expansions: int,
) -> tuple[Tree, tuple[Array, Array]]:
    """Walks until an architecture is valid: the tree with the visits, arch and path to reward."""
    nowhere = tree.visits.shape[0]
    k_walk, k_sample = jax.random.split(key)

    def once(carry):
        tree, tries, _, _ = carry
        way = walk(jax.random.fold_in(k_walk, tries), space, tree, exploration)
        tree, path = visit(space, tree, way, num_expansions)
        invalid = ~is_valid(space, way.arch)
        finished = tree.finished.at[path].add(invalid.astype(jnp.int32), mode="drop")
        return tree._replace(finished=finished), tries + 1, way.arch, path

    def again(carry):
        tree, tries, arch, _ = carry
        return ~is_valid(space, arch) & (tries < MAX_TRIES) & ~tree.closed[0]

    after = once((tree, 0, None, None))
    if space.is_valid is not None:
        after = jax.lax.while_loop(again, once, after)
    after, _, arch, path = after
    found = is_valid(space, arch) & ~tree.closed[0]
    arch = jnp.where(found, arch, sample(k_sample, space))
    return after, (arch, jnp.where(found, path, nowhere))


def monte_carlo_tree_search(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    exploration: float | Array = 0.02,
    num_expansions: int | None = None,
    capacity: int = 8192,
) -> Strategy:
    """UCT over the sequence of decisions.

    The order of the space's decisions matters: those that say most belong at the front.

    Args:
      space: the search space.
      batch_size: walks B per `ask`. Static.
      exploration: weight of the exploration term, at least 0. Small budgets want little: on
        NAS-Bench-201, 150 candidates under 0.5 and more are no better than uniform draws. May be
        traced.
      num_expansions: nodes a walk may add; None: all the way to its leaf, after which nothing is
        proposed twice; 1: classic UCT. Static.
      capacity: nodes N of the tree, the root included; a candidate needs up to one per decision, or
        per expansion. Static.

    Returns:
      A `Strategy` whose state is the tree: i32[N, K] and columns of N. `info` of its proposals is
      the tree with the walks under way in it.

    Raises:
      ValueError: for a size below 1 or a negative exploration.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = monte_carlo_tree_search(tiny_space(), batch_size=4, capacity=100)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_number("exploration", exploration)
    limit = space.num_decisions if num_expansions is None else num_expansions
    check_count("num_expansions", limit)
    check_count("capacity", capacity)

    def init(key):
        del key
        return empty_tree(capacity, max(space.num_choices))

    def ask(key, state: Tree):
        def one(tree, k):
            return _propose(k, space, tree, exploration, limit)

        tree, (arch, path) = jax.lax.scan(one, state, split_like(key, batch_size))
        return Proposal(arch, jnp.ones(batch_size), _Pending(tree, path))

    def tell(key, state: Tree, proposal, evaluation):
        del key, state  # the proposal has the tree that `ask` made of it
        return reward(proposal.info.tree, proposal.info.path, evaluation.fitness)

    return Strategy(init, ask, tell)
