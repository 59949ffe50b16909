"""What the tests of multi-fidelity strategies share: a search, and a scheduler in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxnas as nas


def space():
    """Six decisions of three choices: hardly ever two equal draws in a test."""
    decisions = tuple(nas.Decision(f"d{i}", (0, 1, 2)) for i in range(6))
    return nas.SearchSpace("six", decisions, nas.testing.tiny_space().network)


def evaluator(failures=0.0):
    """Every fitness is different, so that no rank is a tie; a share of candidates fails."""

    def fitness(key, arch):
        value = jax.random.uniform(key)
        return jnp.where(value < failures, jnp.nan, arch.sum() / 12 + value)

    return nas.evaluators.from_function(fitness)


def batches(strategy, num_steps, *, failures=0.0):
    """Per step the (arch, budget, fitness) of every place, failed ones with minus infinity."""
    run = jax.jit(lambda key: nas.search(key, strategy, evaluator(failures), num_steps)[1])
    record = run(jax.random.key(0))
    fitness = np.asarray(record.evaluation.fitness)
    assert np.isnan(fitness).any() == (failures > 0)
    columns = (
        [[tuple(arch) for arch in step] for step in np.asarray(record.arch).tolist()],
        np.asarray(record.budget).tolist(),
        np.where(np.isnan(fitness), -np.inf, fitness).tolist(),
    )
    return [list(zip(*step, strict=True)) for step in zip(*columns, strict=True)]


def check_one_after_the_other(results, brackets):
    """Replays brackets as papers write them, each rung a loop; returns how many rungs ended."""
    queue, num_rungs = list(results), 0
    while True:
        for sizes, budgets in brackets:
            promoted = None
            for size, budget in zip(sizes, budgets, strict=True):
                rung, queue = queue[:size], queue[size:]
                for place, (arch, spent, _) in enumerate(rung):
                    np.testing.assert_allclose(spent, budget, rtol=1e-6)
                    if promoted is not None and promoted[place][2] > -np.inf:
                        assert arch == promoted[place][0]
                if len(rung) < size:
                    return num_rungs
                num_rungs += 1
                promoted = sorted(rung, key=lambda result: -result[2])
