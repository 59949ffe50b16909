"""Monte Carlo tree search against a tree of dictionaries, and its promise not to ask twice."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import enumeration
from jaxnas.strategies.monte_carlo_tree_search import (
    empty_tree,
    monte_carlo_tree_search,
    reward,
    uct,
)
from tests.unit import smooth_problem


def all_valid_space():
    """39 architectures, with chains of conditions."""
    return dataclasses.replace(nas.testing.conditional_space(), is_valid=None)


def rugged_evaluator():
    """Every architecture has its own random fitness, and some fail."""
    table = jax.random.uniform(jax.random.key(1), (3, 3, 2, 3, 3), minval=10.0, maxval=30.0)
    table = jnp.where(table < 11.5, jnp.nan, table)
    return nas.evaluators.from_function(lambda key, arch: table[tuple(arch)])


@partial(jax.jit, static_argnums=(0, 1, 2))
def search(strategy, evaluator, num_steps):
    return nas.search(jax.random.key(0), strategy, evaluator, num_steps)


def moves(space, arch):
    """The choices of the active decisions, in order."""
    active = space.active_mask(arch)
    return tuple((d, int(c)) for d, c in enumerate(arch) if active[d])


def reference(space, pairs, exploration, num_expansions):
    """Replays a search: every choice must maximise UCT over a tree of dictionaries.

    Returns the visits by prefix, and how many choices had only one best.
    """
    visits, total, closed, forced = {(): 0}, {(): 0.0}, set(), 0
    every = [moves(space, row) for row in enumeration.all_architectures(space)]
    seen = []

    def children(prefix):
        longer = {way[: len(prefix) + 1] for way in every if way[: len(prefix)] == prefix}
        return sorted(kid for kid in longer if len(kid) > len(prefix))

    def bound(parent, kid, low, high):
        if kid not in visits:
            return math.inf
        scaled = (total[kid] - low * sum(seen_ok[kid])) / (high - low) if high > low else 0.0
        explore = 2 * exploration * math.sqrt(2 * math.log(visits[parent]) / visits[kid])
        return scaled / visits[kid] + explore

    seen_ok = {(): []}
    for arch, fitness in pairs:
        way, prefix, added = moves(space, arch), (), 0
        good = [f for f in seen if not math.isnan(f)]
        low, high = (min(good), max(good)) if good else (0.0, 0.0)
        path = [()]
        while prefix != way:
            kids = [k for k in children(prefix) if k not in closed]
            step = way[: len(prefix) + 1]
            if prefix in visits and kids:
                bounds = {k: bound(prefix, k, low, high) for k in kids}
                best = max(bounds.values())
                top = [k for k in kids if bounds[k] >= best - 1e-4]
                assert step in top
                forced += len(top) == 1 < len(kids)
            prefix = step
            if prefix not in visits and added < num_expansions and path[-1] == prefix[:-1]:
                visits[prefix], total[prefix], seen_ok[prefix], added = 0, 0.0, [], added + 1
            if prefix in visits:
                path.append(prefix)
        seen.append(fitness)
        for node in path:
            visits[node] += 1
            seen_ok[node].append(not math.isnan(fitness))
            total[node] += 0.0 if math.isnan(fitness) else fitness
        if way in visits:
            closed.add(way)
        for node in reversed(path):
            if children(node) and all(k in closed for k in children(node)):
                closed.add(node)
        if () in closed:
            break
    return visits, forced


def tree_visits(space, tree):
    """Visits by prefix of the arrays."""
    capacity = tree.visits.shape[0]
    found, every = {}, [moves(space, row) for row in enumeration.all_architectures(space)]
    children, visits = np.asarray(tree.children), np.asarray(tree.visits)
    for way in every:
        node = 0
        for length in range(len(way) + 1):
            found[way[:length]] = int(visits[node])
            if length == len(way) or children[node, way[length][1]] == capacity:
                break
            node = children[node, way[length][1]]
    return found


@pytest.mark.parametrize("num_expansions", [1, None])
def test_one_at_a_time_it_is_the_loop(num_expansions):
    space, num_steps = all_valid_space(), 36
    strategy = monte_carlo_tree_search(
        space, batch_size=1, exploration=0.2, num_expansions=num_expansions, capacity=100
    )
    state, history = search(strategy, rugged_evaluator(), num_steps)
    arch, fitness = np.asarray(history.arch)[:, 0], history.evaluation.fitness[:, 0].tolist()
    pairs = list(zip(arch, fitness, strict=True))
    visits, forced = reference(space, pairs, 0.2, num_expansions or 5)
    assert tree_visits(space, state.strategy) == visits
    assert forced > 20
    assert int(state.strategy.count) == len(visits)
    if num_expansions is None:
        assert len(np.unique(arch, axis=0)) == num_steps


def test_batches_propose_every_valid_architecture_once():
    space = nas.testing.conditional_space()
    strategy = monte_carlo_tree_search(space, batch_size=3, capacity=200)
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))
    state, history = search(strategy, evaluator, 12)
    arch = np.asarray(history.arch).reshape(-1, 5)
    assert len(np.unique(arch[:29], axis=0)) == 29  # of 29 valid ones; uniform draws follow
    assert bool(state.strategy.closed[0])
    assert int(state.strategy.visits[0]) > 29  # walks to invalid ones are visits too


def test_uct_by_hand():
    tree = empty_tree(8, 3)._replace(
        children=jnp.full((8, 3), 8).at[0].set(jnp.array([3, 5, 8])),
        visits=jnp.array([7, 0, 0, 4, 0, 3, 0, 0]),
        finished=jnp.array([6, 0, 0, 4, 0, 2, 0, 0]),
        successes=jnp.array([5, 0, 0, 3, 0, 2, 0, 0]),
        total=jnp.array([30.0, 0, 0, 19.0, 0, 11.0, 0, 0]),
        worst=jnp.array(5.0),
        best=jnp.array(9.0),
    )
    # Three successes and a failure; two successes and a walk under way.
    first = (19 - 3 * 5) / 4 / 4 + 2 * 0.3 * math.sqrt(2 * math.log(7) / 4)
    second = (11 - 2 * 5) / 4 / 2 + 2 * 0.3 * math.sqrt(2 * math.log(7) / 3)
    got = uct(tree, jnp.array(0), 0.3)
    np.testing.assert_allclose(got, [first, second, np.inf], rtol=1e-6)
    assert np.isinf(uct(tree, jnp.array(8), 0.3)).all()  # outside of the tree


def test_rewards_reach_the_path_and_failures_are_worth_nothing():
    tree = empty_tree(4, 2)
    path = jnp.array([[0, 1, 4], [0, 2, 3]])
    tree = reward(tree, path, jnp.array([0.5, jnp.nan]))
    assert tree.finished.tolist() == [2, 1, 1, 1]
    assert tree.successes.tolist() == [1, 1, 0, 0]
    assert tree.total.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert (float(tree.worst), float(tree.best)) == (0.5, 0.5)


@pytest.mark.slow
def test_a_full_tree_goes_on_with_rollouts():
    space = nas.testing.conditional_space()
    strategy = monte_carlo_tree_search(space, batch_size=4, capacity=6)
    nas.testing.check_strategy(strategy, space, eager=False)
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))
    state, history = search(strategy, evaluator, 30)
    assert int(state.strategy.count) == 6
    assert len(np.unique(np.asarray(history.arch).reshape(-1, 5), axis=0)) > 15


@pytest.mark.slow
def test_beats_random_search():
    strategy = monte_carlo_tree_search(smooth_problem.space(), batch_size=8, capacity=2048)
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exploration": -0.1}, "exploration"),
        ({"num_expansions": 0}, "num_expansions"),
        ({"capacity": 0}, "capacity"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        monte_carlo_tree_search(nas.testing.tiny_space(), **options)
