"""Pareto ranks, crowding, hypervolume, epsilon dominance and knee, against loops and moocore."""

import jax
import jax.numpy as jnp
import moocore
import numpy as np
import pytest

from jaxnas.objectives import pareto
from jaxnas.objectives.hypervolume import hypervolume, sampled_hypervolume
from tests.unit.pareto_loops import crowding_distance_assignment, fast_non_dominated_sort


def points(kind, num_objectives, size=40):
    rng = np.random.default_rng(num_objectives)
    if kind == "ties":  # many equal values and equal points
        return rng.integers(0, 4, (size, num_objectives)).astype(np.float32)
    values = rng.uniform(size=(size, num_objectives)).astype(np.float32)
    if kind == "failures":
        values[::5] = -np.inf
    return values


CASES = [(kind, m) for kind in ("spread", "ties", "failures") for m in (1, 2, 3)]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("kind", "num_objectives"), CASES)
def test_ranks_and_crowding_are_the_papers(kind, num_objectives):
    values = points(kind, num_objectives)
    ranks = np.asarray(jax.jit(pareto.front_ranks)(values))
    assert ranks.tolist() == fast_non_dominated_sort(values)
    got = jax.jit(pareto.crowding_distance)(values, ranks)
    np.testing.assert_allclose(got, crowding_distance_assignment(values, ranks), rtol=1e-5)


def test_hypervolume_counts_unit_squares():
    rng = np.random.default_rng(0)
    for size in (1, 5, 30):
        values = rng.integers(-3, 12, (size, 2)).astype(np.float32)
        corners = np.stack(np.meshgrid(np.arange(1, 12), np.arange(1, 12)), -1).reshape(-1, 1, 2)
        area = np.sum(np.any(np.all(corners <= values, axis=-1), axis=1))
        assert float(hypervolume(jnp.asarray(values), jnp.zeros(2))) == area
        failed = jnp.asarray(np.concatenate([values, [[np.nan, 50.0], [-np.inf, 50.0]]]))
        assert float(hypervolume(failed, jnp.zeros(2))) == area


NUM_RANDOM = 1000  # cases, half with ties


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_ranks_and_hypervolume_equal_those_of_moocore(num_objectives):
    rng = np.random.default_rng(num_objectives)
    uniform = rng.uniform(size=(NUM_RANDOM // 2, 24, num_objectives))
    ties = rng.integers(0, 5, uniform.shape)
    cases = np.concatenate([uniform, ties]).astype(np.float32)
    reference = np.full(num_objectives, 0.2, np.float32)
    ranks = np.asarray(jax.jit(jax.vmap(pareto.front_ranks))(cases))
    efficient = np.asarray(jax.jit(jax.vmap(pareto.is_efficient))(cases))
    volume = jax.jit(jax.vmap(lambda points: hypervolume(points, jnp.asarray(reference))))
    volumes = np.asarray(volume(cases))
    for case, rank, front, found in zip(cases, ranks, efficient, volumes, strict=True):
        np.testing.assert_array_equal(rank, moocore.pareto_rank(case, maximise=True))
        np.testing.assert_array_equal(front, rank == 0)
        exact = moocore.hypervolume(case, ref=reference, maximise=True)
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


def test_hypervolume_of_failures_and_of_one_objective():
    points = jnp.array([[3.0], [jnp.nan], [-jnp.inf], [2.0]])
    assert float(hypervolume(points, jnp.ones(1))) == 2.0
    cube = jnp.array([[2.0, 2.0, 2.0], [jnp.nan, 9.0, 9.0], [9.0, 9.0, 0.0]])
    assert float(hypervolume(cube, jnp.zeros(3))) == 8.0
    assert float(hypervolume(jnp.zeros((0, 3)), jnp.zeros(3))) == 0.0


def test_sampled_hypervolume_is_within_its_own_error():
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(20, 4)).astype(np.float32)
    exact = moocore.hypervolume(points, ref=np.zeros(4), maximise=True)
    box = points.max(axis=0).prod()
    share = exact / box
    error = box * np.sqrt(share * (1 - share) / 4000)
    estimate = jax.jit(lambda key: sampled_hypervolume(key, points, jnp.zeros(4), num_samples=4000))
    found = [float(estimate(jax.random.key(seed))) for seed in range(5)]
    assert np.abs(np.mean(found) - exact) < 4 * error / np.sqrt(5)
    assert np.std(found) > 0


@pytest.mark.parametrize("shapes", [((3, 4), 4), ((3, 2), 3), ((3,), 3)])
def test_hypervolume_refuses(shapes):
    with pytest.raises(ValueError, match="objectives must have"):
        hypervolume(jnp.zeros(shapes[0]), jnp.zeros(shapes[1]))


def test_epsilon_indicator_equals_that_of_moocore():
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = rng.uniform(size=(2, 12, 3)).astype(np.float32)
        exact = moocore.epsilon_additive(a, ref=b, maximise=True)
        found = pareto.epsilon_indicator(jnp.asarray(a), jnp.asarray(b))
        np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_epsilon_front_covers_the_rest_with_few(epsilon):
    rng = np.random.default_rng(2)
    points = jnp.asarray(rng.uniform(size=(300, 2)), jnp.float32)
    kept = np.asarray(jax.jit(pareto.epsilon_front)(points, epsilon))
    assert float(pareto.epsilon_indicator(points[kept], points)) <= epsilon + 1e-6
    assert kept.sum() <= 1 / epsilon + 1
    boxes = np.floor(np.asarray(points)[kept] / epsilon)
    assert len(np.unique(boxes, axis=0)) == kept.sum()


def test_knee_point_is_farthest_from_the_line_between_the_ends():
    rng = np.random.default_rng(3)
    angle = np.sort(rng.uniform(0, np.pi / 2, 30))
    front = np.stack([100 * np.cos(angle), 0.01 * np.sin(angle) ** 2], axis=1)
    points = np.concatenate([front, [[np.nan, 1.0], [-np.inf, -np.inf]], 0.2 * front])
    low, high = front.min(axis=0), front.max(axis=0)
    scaled = (front - low) / (high - low)
    first, last = scaled[0], scaled[-1]
    across = np.array([-(last - first)[1], (last - first)[0]])
    distance = np.abs((scaled - first) @ across)
    assert int(pareto.knee_point(jnp.asarray(points, jnp.float32))) == np.argmax(distance)
