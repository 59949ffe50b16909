"""Evolution and policy gradients against loops as the papers write them, in plain Python."""

import jax
import numpy as np

import jaxnas as nas
from jaxnas.search import start, step, step_key

BATCH, SIZE = 3, 8


def larger_space():
    decisions = tuple(nas.Decision(f"d{i}", (0, 1, 2)) for i in range(6))
    return nas.SearchSpace("larger", decisions, nas.testing.tiny_space().network)


def noisy_evaluator():
    """Every fitness is different, so that no rank is a tie."""
    return nas.evaluators.from_function(lambda key, arch: arch.sum() + jax.random.uniform(key))


def histories(strategy, num_steps):
    """Yields each step's proposed (arch, fitness) pairs and the strategy's state after it."""
    evaluator = noisy_evaluator()
    k_steps, state = start(jax.random.key(0), strategy, evaluator)
    advance = jax.jit(lambda key, state: step(key, state, strategy, evaluator))
    for index in range(num_steps):
        state, record = advance(step_key(k_steps, index), state)
        fitness = np.asarray(record.evaluation.fitness).tolist()
        rows = [tuple(row) for row in np.asarray(record.arch).tolist()]
        yield list(zip(rows, fitness, strict=True)), state.strategy


def members(state):
    occupied = int(state.num_members)
    arch = np.asarray(state.arch)[SIZE - occupied :].tolist()
    fitness = np.asarray(state.fitness)[SIZE - occupied :].tolist()
    return [(tuple(a), f) for a, f in zip(arch, fitness, strict=True)]


def distance(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True))


def test_regularized_evolution_is_algorithm_1():
    # With so many draws the tournament holds the whole population: its winner is known.
    strategy = nas.strategies.regularized_evolution(
        larger_space(), batch_size=BATCH, population_size=SIZE, tournament_size=400
    )
    queue, proposed = [], 0
    for children, state in histories(strategy, 15):
        for arch, _ in children:
            if proposed >= SIZE:
                winner = max(queue, key=lambda member: member[1])
                assert distance(arch, winner[0]) == 1
            proposed += 1
        queue = (queue + children)[-SIZE:]  # the oldest die, however good they are
        assert sorted(members(state.members)) == sorted(queue)


def test_genetic_survival_is_the_documented_loop():
    elites = 2
    strategy = nas.strategies.genetic(
        larger_space(), batch_size=BATCH, population_size=SIZE, num_elites=elites
    )
    queue = []
    for children, state in histories(strategy, 15):
        best = sorted(queue, key=lambda member: -member[1])[:elites]
        mortal = [member for member in queue if member not in best]
        for _ in range(len(queue) + BATCH - SIZE):
            queue.remove(mortal.pop(0))  # the oldest of those that are not among the best
        queue = queue + children
        assert members(state) == queue


def test_genetic_children_come_from_the_best_under_truncation():
    strategy = nas.strategies.genetic(
        larger_space(),
        batch_size=BATCH,
        population_size=SIZE,
        num_elites=2,
        selection="truncation",
        truncation_rate=1 / SIZE,
        mutation_rate=0.0,
    )
    queue, proposed = [], 0
    for children, state in histories(strategy, 12):
        for arch, _ in children:
            if proposed >= SIZE:
                winner = max(queue, key=lambda member: member[1])
                # Both parents are the winner and a copy would be a waste: one decision changes.
                assert distance(arch, winner[0]) == 1
            proposed += 1
        queue = members(state)


def test_reinforce_first_step_is_the_score_function_gradient_through_adam():
    space, rate = larger_space(), 0.1
    strategy = nas.strategies.reinforce(
        space, batch_size=5, policy="factorised", learning_rate=rate, entropy_weight=0.0
    )
    evaluator = noisy_evaluator()
    state = strategy.init(jax.random.key(0))
    proposal = strategy.ask(jax.random.key(1), state)
    evaluation, _ = evaluator.evaluate(jax.random.key(2), (), proposal)
    after = strategy.tell(jax.random.key(3), state, proposal, evaluation)

    logits = np.asarray(state.params["logits"], np.float64)
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    one_hot = np.eye(3)[np.asarray(proposal.arch)]
    advantage = np.asarray(evaluation.fitness) - np.asarray(evaluation.fitness).mean()
    gradient = np.mean(advantage[:, None, None] * (one_hot - chance), axis=0)
    moved = np.asarray(after.params["logits"]) - logits
    clear = np.abs(gradient) > 1e-4
    assert clear.sum() > 8
    np.testing.assert_allclose(moved[clear], rate * np.sign(gradient[clear]), rtol=1e-2)
