"""BOHB: its split, bandwidths and kernels against NumPy, its proposals, and its schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import enumeration
from jaxnas.strategies import _brackets
from jaxnas.strategies.bohb import bohb, densities, log_density, most_promising
from tests.unit.halving_problem import batches, check_one_after_the_other, space

LEAST = 1e-3


def filled(search_space, per_level, capacity=64, seed=0):
    """A state with so many random results at each level, in random order, some failed."""
    rng = np.random.default_rng(seed)
    every = enumeration.all_architectures(search_space)
    levels = rng.permutation(np.repeat(np.arange(len(per_level)), per_level))
    archs = every[rng.integers(len(every), size=levels.size)]
    fitness = rng.permutation(levels.size).astype(np.float32)
    fitness[rng.random(levels.size) < 0.1] = -np.inf
    state = bohb(search_space, batch_size=1, capacity=capacity).init(jax.random.key(0))
    pad = capacity - levels.size
    memory = state.memory._replace(
        arch=jnp.asarray(np.pad(archs, ((pad, 0), (0, 0)))),
        fitness=jnp.asarray(np.pad(fitness, (pad, 0), constant_values=-np.inf)),
        count=jnp.int32(levels.size),
    )
    level = jnp.asarray(np.pad(levels, (pad, 0), constant_values=-1), jnp.int32)
    return state._replace(memory=memory, level=level), archs, fitness, levels


def numpy_density(search_space, data, active, at, at_active):
    """The mean of products of Aitchison-Aitken kernels, relative to the uniform density."""
    num_choices = search_space.num_choices
    h = np.zeros(len(num_choices))
    for d, count in enumerate(num_choices):
        seen = data[active[:, d], d]
        deviation = seen.std() if seen.size else 0.0
        thumb = 1.06 * deviation * len(data) ** (-1 / (4 + len(num_choices)))
        h[d] = np.clip(thumb, LEAST, (count - 1) / count)
    total = 0.0
    for row, on in zip(data, active, strict=True):
        product = 1.0
        for d, count in enumerate(num_choices):
            if on[d] and at_active[d]:
                product *= count * (1 - h[d] if row[d] == at[d] else h[d] / (count - 1))
        total += product
    return total / len(data)


@pytest.mark.parametrize("make", [nas.testing.tiny_space, nas.testing.conditional_space])
def test_densities_are_those_of_numpy(make):
    search_space = make()
    least = search_space.num_decisions + 1
    state, archs, fitness, levels = filled(search_space, (40, 2 * least, 2 * least - 1))
    good, bad = jax.jit(lambda s: densities(search_space, s, 3, 0.15, LEAST))(state)
    mine = np.flatnonzero(levels == 1)  # level 2 has one result too few
    ranked = archs[mine[np.argsort(-fitness[mine], kind="stable")]]
    active = np.array([search_space.active_mask(row) for row in ranked])
    assert int(good.member.sum()) == int(bad.member.sum()) == least
    points = enumeration.all_architectures(search_space)[::3]
    for density, part in ((good, slice(0, least)), (bad, slice(least, None))):
        found = jax.vmap(lambda row, d=density: log_density(search_space, d, row))(points)
        for at, value in zip(points, np.asarray(found), strict=True):
            on = search_space.active_mask(at)
            expected = numpy_density(search_space, ranked[part], active[part], at, on)
            np.testing.assert_allclose(np.exp(value), expected, rtol=1e-4)


def test_the_best_share_is_good():
    search_space = nas.testing.tiny_space()
    state, archs, fitness, levels = filled(search_space, (10, 40))
    good, bad = densities(search_space, state, 2, 0.15, LEAST)
    assert int(good.member.sum()) == 6 and int(bad.member.sum()) == 34
    best = np.argsort(-np.where(levels == 1, fitness, -np.inf))[:6]
    assert sorted(good.arch[np.asarray(good.member)].tolist()) == sorted(archs[best].tolist())
    none, _ = densities(search_space, filled(search_space, (7, 5))[0], 2, 0.15, LEAST)
    assert not none.member.any()


def test_proposals_maximise_the_ratio():
    search_space = nas.testing.conditional_space()
    state, *_ = filled(search_space, (50,))
    good, bad = densities(search_space, state, 1, 0.15, LEAST)

    @jax.jit
    @jax.vmap
    def ratio(row):
        return log_density(search_space, good, row) - log_density(search_space, bad, row)

    pick = jax.jit(most_promising, static_argnums=(1, 4))
    arch, score = pick(jax.random.key(0), search_space, good, bad, 4000)
    every = ratio(enumeration.all_architectures(search_space))
    np.testing.assert_allclose(score, every.max(), rtol=1e-5)
    np.testing.assert_allclose(ratio(arch[None])[0], score, rtol=1e-5)


def test_samples_come_from_the_good_density():
    search_space = nas.testing.tiny_space()
    state, *_ = filled(search_space, (50,))
    good, bad = densities(search_space, state, 1, 0.15, LEAST)
    keys = jax.random.split(jax.random.key(0), 20_000)
    one = jax.jit(jax.vmap(lambda k: most_promising(k, search_space, good, bad, 1)[0]))
    every = enumeration.all_architectures(search_space)
    drawn = np.ravel_multi_index(np.asarray(one(keys)).T, search_space.num_choices)
    shares = np.bincount(drawn, minlength=len(every)) / len(keys)
    # A decision drawn anew may take its old choice again, so the samples are a little closer to
    # the centres than the density itself.
    h = np.asarray(good.bandwidth)
    same = 1 - h + h / np.asarray(search_space.num_choices)
    other = h / np.asarray(search_space.num_choices)
    centres = np.asarray(good.arch)[np.asarray(good.member)]
    kernel = np.where(every[:, None] == centres, same, other).prod(axis=-1)
    np.testing.assert_allclose(shares, kernel.mean(axis=1), atol=0.012)


def test_one_at_a_time_the_schedule_is_hyperbands():
    strategy = bohb(space(), batch_size=1, min_budget=1 / 9, num_samples=4, capacity=40)
    results = [place for (place,) in batches(strategy, 80)]
    brackets = _brackets.balanced_brackets(3, 1 / 9)
    assert check_one_after_the_other(results, brackets) >= 22


def test_random_rate_may_be_traced_and_the_model_finds_better_candidates():
    search_space = space()
    fitness = nas.evaluators.from_function(lambda key, arch: arch.mean())

    @jax.jit
    @jax.vmap
    @jax.vmap
    def late(key, random_rate):
        strategy = bohb(search_space, batch_size=4, random_rate=random_rate, capacity=128)
        _, history = nas.search(key, strategy, fitness, 40)
        fresh = history.budget[20:] < 0.04  # new ones, at the smallest budget
        return jnp.where(fresh, history.evaluation.fitness[20:], 0.0).sum() / fresh.sum()

    keys = jnp.broadcast_to(jax.random.split(jax.random.key(0), 16), (3, 16))
    rates = jnp.broadcast_to(jnp.array([0.0, 0.5, 1.0])[:, None], (3, 16))
    never, half, always = np.asarray(late(keys, rates)).mean(axis=1)
    assert abs(always - 1.0) < 0.1
    assert never > half + 0.1 > always + 0.2


@pytest.mark.slow
def test_contract_with_a_memory_that_overflows():
    conditional = nas.testing.conditional_space()
    strategy = bohb(conditional, batch_size=4, min_budget=1 / 3, num_samples=4, capacity=20)
    nas.testing.check_strategy(strategy, conditional, eager=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"good_rate": 1.5}, "good_rate must be"),
        ({"random_rate": -0.5}, "random_rate must be"),
        ({"min_bandwidth": 2.0}, "min_bandwidth must be"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"batch_size": 8, "capacity": 7}, "capacity must be at least batch_size = 8"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        bohb(space(), **options)
