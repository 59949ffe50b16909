"""Incumbents and curves against plain loops, correlations and ranks against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxnas import analysis
from jaxnas.search import Record
from jaxnas.types import Evaluation


def make_history(fitness, budget=None, cost=None):
    """A history [T, B] from nested lists."""
    fitness = jnp.asarray(fitness, jnp.float32)
    budget = jnp.ones_like(fitness) if budget is None else jnp.asarray(budget, jnp.float32)
    cost = jnp.ones_like(fitness) if cost is None else jnp.asarray(cost, jnp.float32)
    arch = jnp.arange(fitness.size, dtype=jnp.int32).reshape(*fitness.shape, 1)
    return Record(arch, budget, Evaluation(fitness, fitness[..., None], {}, cost))


NAN = np.nan


def test_incumbent_is_the_fittest_and_the_first_on_ties():
    history = make_history([[NAN, 0.2], [0.2, 0.5], [0.1, NAN], [0.5, 0.6]])
    assert analysis.incumbents(history).tolist() == [-1, 1, 1, 3, 3, 3, 3, 7]


def test_incumbent_prefers_longer_training():
    history = make_history(
        [[0.9, 0.3], [NAN, 0.4], [0.95, 0.2]], [[0.1, 0.5], [1.0, 0.5], [0.1, 1.0]]
    )
    # A failed candidate at full budget is no incumbent; a poor finished one is.
    assert analysis.incumbents(history).tolist() == [0, 1, 1, 3, 3, 5]


def test_incumbent_values_are_those_of_the_incumbent():
    history = make_history([[NAN, 0.2], [0.1, 0.5]])
    test = jnp.array([[0.7, 0.6], [0.9, 0.4]])
    np.testing.assert_allclose(analysis.incumbent_values(history, test), [NAN, 0.6, 0.6, 0.4])


def test_curve_over_seconds_counts_what_has_ended():
    history = make_history([[0.1, 0.2], [0.3, 0.4]], cost=[[2.0, 0.0], [3.0, 1.0]])
    values = jnp.array([1.0, 2.0, 3.0, 4.0])
    found = analysis.at_times(history, values, jnp.array([0.0, 2.0, 4.9, 5.0, 6.0, 99.0]))
    np.testing.assert_allclose(found, [NAN, 2.0, 2.0, 3.0, 4.0, 4.0])


@pytest.mark.parametrize("num_values", [5, 1000])  # with few values there are many ties
def test_rank_correlations_equal_scipy(num_values):
    rng = np.random.default_rng(num_values)
    a = rng.integers(0, num_values, 200).astype(np.float32)
    b = np.floor(a / 3 + rng.normal(size=200) * num_values / 4).astype(np.float32)
    np.testing.assert_allclose(analysis.spearman(a, b), scipy.stats.spearmanr(a, b)[0], rtol=1e-5)
    np.testing.assert_allclose(analysis.kendall(a, b), scipy.stats.kendalltau(a, b)[0], rtol=1e-5)


def test_correlations_without_variation_are_nan():
    same, varied = jnp.ones(4), jnp.arange(4.0)
    assert np.isnan(analysis.spearman(same, varied)) and np.isnan(analysis.kendall(varied, same))


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    samples = jax.random.exponential(jax.random.key(0), (40, 300))  # 300 experiments of 40 seeds
    low, high = jax.jit(analysis.bootstrap_interval)(jax.random.key(1), samples)
    covered = np.mean((low < 1.0) & (high > 1.0))
    # The percentile interval of a skewed mean is a little short of 95%.
    assert 0.88 < covered < 0.98
    width = np.asarray(high - low).mean()
    np.testing.assert_allclose(width, 2 * 1.96 / np.sqrt(40), rtol=0.1)


@pytest.mark.parametrize(("name", "value"), [("level", 1.0), ("num_resamples", 0)])
def test_bootstrap_checks_its_arguments(name, value):
    with pytest.raises(ValueError, match=name):
        analysis.bootstrap_interval(jax.random.key(0), jnp.ones(3), **{name: value})


def test_average_ranks_put_failures_last():
    scores = jnp.array([[0.3, NAN], [0.2, 0.1], [0.2, 0.9]])
    np.testing.assert_allclose(analysis.average_ranks(scores), [2.0, 2.25, 1.75])
