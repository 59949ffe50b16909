"""A smooth problem on which a strategy that learns must beat one that does not."""

import jax
import numpy as np
from scipy import stats

import jaxnas as nas

ACCIDENT = 1e-6  # keys are fixed, and the bounds so wide that another key would do as well
BATCH, STEPS, SEEDS = 8, 24, 48


def space():
    """Eight decisions of five choices."""
    decisions = tuple(nas.Decision(f"d{i}", tuple(range(5))) for i in range(8))
    return nas.SearchSpace("sum", decisions, nas.testing.tiny_space().network)


def finals(strategy):
    """Best fitness after STEPS steps, in [0, 1], for each of SEEDS seeds: f32[SEEDS]."""
    evaluator = nas.evaluators.from_function(lambda key, arch: arch.mean() / 4)

    @jax.jit
    @jax.vmap
    def run(key):
        history = nas.search(key, strategy, evaluator, num_steps=STEPS)[1]
        return nas.incumbent_curve(history)[-1]

    return np.asarray(run(jax.random.split(jax.random.key(0), SEEDS)))


def p_value(strategy):
    """How easily `strategy` would do as well if it were no better than random search."""
    random = finals(nas.strategies.random_search(space(), batch_size=BATCH))
    return stats.mannwhitneyu(finals(strategy), random, alternative="greater").pvalue
