"""TPE: the two densities, drawing from one, and the search they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxnas as nas
from jaxnas.space import sample
from jaxnas.strategies._memory import remember
from jaxnas.strategies._population import empty
from jaxnas.strategies.tpe import densities, log_density, tpe
from tests.unit import smooth_problem


def drawn(space, num, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    return jax.jit(jax.vmap(lambda k: sample(k, space)))(keys)


def by_hand(space, arch, fitness, good_rate, weight):
    """Both densities as lists of arrays, counted in plain Python."""
    order = np.argsort(-np.where(np.isnan(fitness), -np.inf, fitness), kind="stable")
    good = set(order[: max(1, int(np.ceil(good_rate * len(arch))))].tolist())
    groups = ([i for i in good if not np.isnan(fitness[i])], [])
    groups[1].extend(set(range(len(arch))) - set(groups[0]))
    made = []
    for members in groups:
        counts = [np.full(n, weight) for n in space.num_choices]
        for i in members:
            for d, on in enumerate(space.active_mask(arch[i])):
                if on:
                    counts[d][arch[i][d]] += 1
        made.append([count / count.sum() for count in counts])
    return made


def test_densities_are_smoothed_counts_of_active_decisions():
    space = nas.testing.conditional_space()
    arch = np.asarray(drawn(space, 20))
    fitness = np.random.default_rng(0).normal(size=20).astype(np.float32)
    fitness[[3, 11]] = np.nan
    memory = remember(empty(space, 32), jnp.asarray(arch), jnp.asarray(fitness))
    got = densities(space, memory, 0.3, 2.0)
    for group, wanted in zip(got, by_hand(space, arch, fitness, 0.3, 2.0), strict=True):
        for row, share in zip(np.exp(group), wanted, strict=True):
            np.testing.assert_allclose(row[: share.size], share, rtol=1e-5)
            assert (row[share.size :] == 0).all()


def test_density_of_an_architecture_is_the_product_over_its_active_decisions():
    space = nas.testing.conditional_space()
    arch = drawn(space, 12)
    density = jnp.log(jnp.full((5, 3), 0.5))
    active = [sum(space.active_mask(row)) for row in np.asarray(arch)]
    np.testing.assert_allclose(log_density(space, density, arch), np.log(0.5) * np.array(active))


def test_without_successes_one_failure_is_not_good():
    space = nas.testing.tiny_space()
    memory = remember(empty(space, 8), drawn(space, 3), jnp.full(3, jnp.nan))
    good, bad = densities(space, memory, 0.15, 1.0)
    np.testing.assert_allclose(np.exp(good[1]), 0.25)
    assert not np.allclose(np.exp(bad[1]), 0.25)


def test_proposals_have_the_good_choices():
    # Choice 4 of the first decision is good, and nothing else matters.
    space = smooth_problem.space()
    arch = drawn(space, 60)
    strategy = tpe(space, batch_size=8, num_initial=10, capacity=64)
    state = remember(strategy.init(jax.random.key(0)), arch, (arch[:, 0] == 4) * 1.0)
    asked = jax.jit(jax.vmap(strategy.ask, in_axes=(0, None)))(
        jax.random.split(jax.random.key(1), 40), state
    ).arch
    hits = int((asked[:, :, 0] == 4).sum())
    assert stats.binomtest(hits, 320, 0.2, alternative="greater").pvalue < smooth_problem.ACCIDENT


def test_the_whole_space_is_seen_once_before_anything_twice():
    space = nas.testing.tiny_space()
    strategy = tpe(space, batch_size=2, num_initial=4, capacity=64)
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))

    def run(key):
        return nas.search(key, strategy, evaluator, 9)[1].arch.reshape(-1, 3)

    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 16))
    for arch in np.asarray(found):
        assert len(np.unique(arch, axis=0)) == len(arch)


@pytest.mark.slow
def test_beats_random_search():
    assert smooth_problem.p_value(tpe(smooth_problem.space(), batch_size=8)) < (
        smooth_problem.ACCIDENT
    )


@pytest.mark.slow
def test_contract_with_conditions_and_small_capacity():
    space = nas.testing.conditional_space()
    strategy = tpe(space, batch_size=2, num_initial=4, num_candidates=8, capacity=8)
    nas.testing.check_strategy(strategy, space, eager=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_initial": 0}, "num_initial"),
        ({"good_rate": 1.5}, "good_rate"),
        ({"num_candidates": 0}, "num_candidates"),
        ({"prior_weight": 0.0}, "prior_weight"),
        ({"batch_size": 8, "capacity": 4}, "capacity"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tpe(nas.testing.tiny_space(), **options)
