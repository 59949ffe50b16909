"""The one-shot methods that train sampled paths do what their papers say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxnas as nas
from jaxnas import oneshot
from jaxnas.oneshot._shared import Record, next_record
from jaxnas.oneshot.fair_nas import fair_paths
from jaxnas.oneshot.sandwich import distillation
from jaxnas.training.data import Split
from jaxnas.types import split_like
from tests.unit import path_problems

KEY = jax.random.key(0)
PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": None, "learning_rate": 0.1}
UNIFORM = {"random_weight_sharing", "single_path", "fair_nas"}
METHODS = (*sorted(UNIFORM), "enas", "sandwich")


@pytest.fixture(scope="module")
def data():
    return path_problems.blobs()


@pytest.fixture(scope="module")
def problem(data):
    return oneshot.from_space(path_problems.tiny_space(), data)


def run(method, data, num_steps, key=KEY):
    fn = partial(oneshot.search, method=method, num_steps=num_steps, batch_size=8)
    return jax.jit(lambda key: fn(key, train=data, valid=data))(key)


def assert_close(got, want, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance), got, want)


def summed_by_hand(problem, key, weights, rest, paths, batch):
    def total(weights):
        losses = [problem.loss(key, weights, rest, path, batch, True)[0] for path in paths]
        return sum(losses[1:], losses[0])

    return jax.jit(jax.grad(total))(weights)


# --- what is trained ---


def test_fair_nas_makes_one_update_with_the_sum_over_a_fair_set_of_paths(problem, data):
    method = oneshot.fair_nas(problem, num_steps=10, **PLAIN)
    state, batch = method.init(KEY), data.train
    key = jax.random.key(3)
    after, _ = jax.jit(method.update)(key, state, batch, batch)
    k_paths, k_train, _ = split_like(key, 3)
    paths = fair_paths(k_paths, problem.rows)
    gradients = summed_by_hand(problem, k_train, state.weights, state.rest, paths, batch)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, state.weights, gradients)
    assert_close(after.weights, expected)


def test_fair_paths_take_every_operation_once_in_every_order():
    keys = jax.random.split(KEY, 3000)
    paths = np.asarray(jax.vmap(lambda key: fair_paths(key, (3, 3)))(keys))
    assert (np.sort(paths, axis=1) == np.arange(3)[:, None]).all()
    code = paths[:, 0] @ [1, 3] + paths[:, 1] @ [9, 27]  # the first two paths say everything
    counts = np.unique(code, return_counts=True)[1]
    assert len(counts) == 36
    assert stats.chisquare(counts).pvalue > 1e-3


def test_fair_paths_of_unequal_rows_differ_by_at_most_one():
    paths = np.asarray(fair_paths(KEY, (5, 2, 1)))
    assert sorted(paths[:, 0]) == [0, 1, 2, 3, 4]
    assert sorted(np.bincount(paths[:, 1])) == [2, 3]
    assert (paths[:, 2] == 0).all()


@pytest.mark.parametrize("name", sorted(UNIFORM))
def test_operations_are_trained_equally_often(name):
    problem = path_problems.counting_problem(lambda key, arch: jnp.float32(0.0))
    method = oneshot.ALL[name](problem, num_steps=900)
    state, _ = run(method, path_problems.no_data(), 900)
    per_step = 3 if name == "fair_nas" else 1
    assert (np.asarray(state.rest).sum(axis=1) == 900 * per_step).all()
    if name == "fair_nas":
        assert (np.asarray(state.rest) == 900).all()
    else:
        assert (stats.chisquare(np.asarray(state.rest), axis=1).pvalue > 1e-3).all()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_operations_off_the_path_keep_their_weights_but_for_the_decay(problem, data, weight_decay):
    method = oneshot.random_weight_sharing(problem, num_steps=10, weight_decay=weight_decay)
    state, batch = method.init(KEY), data.train
    arch = jnp.array([2, 0, 1])  # the dense operation on the first row alone
    fixed = oneshot.random_weight_sharing(
        problem._replace(sample=lambda key: arch), num_steps=10, weight_decay=weight_decay
    )
    after, _ = jax.jit(fixed.update)(KEY, state, batch, batch)
    before, now = state.weights, after.weights
    kernel = lambda tree, row: np.asarray(tree[f"row_{row}"]["dense"]["dense"]["kernel"])  # noqa: E731
    assert not np.allclose(kernel(now, 0), kernel(before, 0))
    shrunk = 1.0 - 0.025 * weight_decay
    for row in (1, 2):
        np.testing.assert_allclose(kernel(now, row), shrunk * kernel(before, row), rtol=1e-6)
        bias = now[f"row_{row}"]["dense"]["dense"]["bias"]
        np.testing.assert_array_equal(bias, before[f"row_{row}"]["dense"]["dense"]["bias"])
    assert_close(after.rest["batch_stats"]["row_1"], state.rest["batch_stats"]["row_1"], 0)


# --- the optimiser's recipe ---


def test_learning_rates_follow_their_schedules(problem, data):
    """With gradients of a quadratic, the weights say what the rates were."""

    def rates(name, **options):
        plain = path_problems.counting_problem(lambda key, arch: jnp.float32(0.0))
        linear = plain._replace(
            loss=lambda key, w, rest, *_: (w.sum(), (rest, jnp.float32(0.0))),
        )
        method = oneshot.ALL[name](linear, num_steps=4, **(PLAIN | options))
        state, found = method.init(KEY), []
        for step in range(4):
            after, _ = method.update(jax.random.key(step), state, None, None)
            found.append(float((state.weights - after.weights)[0]))
            state = after
        return found

    done = np.arange(4) / 4
    cosine = 0.5 * (1 + np.cos(np.pi * done))
    assert_close(rates("single_path"), (0.1 * (1 - done)).tolist(), 1e-6)
    found = rates("random_weight_sharing", min_learning_rate=0.02)
    assert_close(found, (0.02 + 0.08 * cosine).tolist(), 1e-6)
    assert_close(rates("fair_nas"), (3 * 0.1 * cosine).tolist(), 1e-6)  # three paths a step


def test_the_clipped_gradient_and_the_decay_enter_the_momentum():
    plain = path_problems.counting_problem(lambda key, arch: jnp.float32(0.0))
    method = oneshot.single_path(
        plain, num_steps=100, learning_rate=0.1, momentum=0.5, weight_decay=0.2, clip_norm=1.0
    )
    state, data = method.init(KEY), path_problems.no_data()
    w, buffer = np.ones(2), np.zeros(2)
    for step in range(3):
        state, _ = method.update(jax.random.key(step), state, data, data)
        gradient = 2 * w
        gradient /= max(1.0, np.linalg.norm(gradient))
        buffer = 0.5 * buffer + gradient + 0.2 * w
        w = w - 0.1 * (1 - step / 100) * buffer
        np.testing.assert_allclose(state.weights, w, rtol=1e-5)


# --- what is derived ---


def test_the_record_keeps_the_best_of_a_block_and_ignores_failures():
    record = Record(jnp.zeros(1, jnp.int32), jnp.float32(-jnp.inf))
    scores = [0.9, 0.2, jnp.nan, 0.5, 0.4, jnp.nan, 0.1]
    kept = []
    for step, score in enumerate(scores):  # blocks of 3 that end at 7: 1, 3, 3 updates
        found = Record(jnp.array([step]), jnp.float32(score))
        record = next_record(record, jnp.int32(step), (7, 3), found)
        kept.append(int(record.arch[0]))
    assert kept == [0, 1, 1, 3, 4, 4, 4]


@pytest.mark.parametrize("name", ["random_weight_sharing", "fair_nas"])
def test_derives_the_best_of_the_last_paths(name):
    target = jnp.array([2, 0, 1])
    problem = path_problems.counting_problem(lambda key, arch: jnp.mean(arch == target))
    method = oneshot.ALL[name](problem, num_steps=200, num_candidates=200)
    state, history = run(method, path_problems.no_data(), 200)
    assert method.derive(state).tolist() == target.tolist()
    assert float(state.record.score) == 1.0
    assert history["valid_score"].shape == (200,)


@pytest.mark.parametrize(("policy", "rate"), [("factorised", 0.1), ("recurrent", 0.02)])
def test_the_controller_of_enas_learns_a_bandit(policy, rate):
    target = jnp.array([2, 0, 1])

    def noisy(key, arch):
        return jnp.mean(arch == target) + 0.1 * jax.random.normal(key)

    problem = path_problems.counting_problem(noisy)
    method = oneshot.enas(
        problem,
        num_steps=400,
        policy=policy,
        controller_interval=2,
        controller_learning_rate=rate,
        baseline_decay=0.9,
        hidden_size=16,
    )
    state, history = run(method, path_problems.no_data(), 400)
    rewards = np.asarray(history["valid_score"]).reshape(-1, 2)
    assert np.isnan(rewards[:, 0]).all()  # no lesson in every other update
    assert rewards[:5, 1].mean() < 0.5
    assert rewards[-20:, 1].mean() > 0.85
    assert method.derive(state).tolist() == target.tolist()
    # The weights are trained on what the controller likes.
    trained = np.asarray(state.rest)
    assert (trained.argmax(axis=1) == np.asarray(target)).all()
    assert (trained.sum(axis=1) == 400).all()


# --- the sandwich ---


def mlp_space():
    return nas.spaces.mlp(
        2,
        depths=(1, 2),
        widths=(4, 8, 16),
        activations=("relu",),
        dropouts=(0.0,),
        learning_rates=(),
        optimizers=(),
    )


@pytest.mark.parametrize("distils", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_sandwich_sums_largest_smallest_and_random(data, distils):
    space = mlp_space()
    problem = oneshot.from_space(space, data)
    distil = distillation(space, data.task) if distils else None
    method = oneshot.sandwich(
        problem, num_steps=10, distil=distil, **PLAIN, nesterov=False, min_learning_rate=0.0
    )
    state, batch = method.init(KEY), data.train
    key = jax.random.key(5)
    after, info = jax.jit(method.update)(key, state, batch, batch)

    k_paths, k_train, _ = split_like(key, 3)
    drawn = jax.vmap(problem.sample)(split_like(k_paths, 2))
    largest, smallest = space.arch({"depth": 2, "width": 16}), space.arch({"depth": 1, "width": 4})
    others = [smallest, *drawn]
    module = space.supernet(space.full_bucket)

    def logits(weights, arch):
        return module.apply({"params": weights}, batch.x, arch, train=False)

    teacher = jax.nn.softmax(logits(state.weights, largest))

    def student_loss(weights, arch):
        if not distils:
            return problem.loss(k_train, weights, state.rest, arch, batch, True)[0]
        return -jnp.mean(jnp.sum(teacher * jax.nn.log_softmax(logits(weights, arch)), axis=1))

    def total(weights):
        first = problem.loss(k_train, weights, state.rest, largest, batch, True)[0]
        return first + sum(student_loss(weights, arch) for arch in others)

    loss, gradients = jax.value_and_grad(total)(state.weights)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, state.weights, gradients)
    assert_close(after.weights, expected)
    assert float(info["train_loss"]) == pytest.approx(float(loss) / 4, rel=1e-5)


def test_the_sandwich_trains_the_smallest_and_the_largest(data):
    space = mlp_space()
    problem = oneshot.from_space(space, data)
    method = oneshot.sandwich(
        problem, num_steps=150, distil=distillation(space, data.task), learning_rate=0.1
    )
    state, _ = run(method, data.train, 150)
    first = method.init(KEY)
    for values in ({"depth": 1, "width": 4}, {"depth": 2, "width": 16}):
        arch = space.arch(values)
        loss = lambda weights, arch=arch: float(  # noqa: E731
            problem.loss(KEY, weights, {}, arch, data.valid, False)[0]
        )
        assert loss(state.weights) < 0.75 * loss(first.weights)
    assert nas.space.is_valid(space, method.derive(state))


# --- all of them ---


@pytest.mark.parametrize("name", METHODS)
def test_resumed_halves_equal_a_whole_search(name):
    problem = path_problems.counting_problem(lambda key, arch: jax.random.uniform(key))
    method, data = oneshot.ALL[name](problem, num_steps=20), path_problems.no_data()

    def whole(key):
        return oneshot.search(key, method, data, data, num_steps=20, batch_size=4)[0]

    def halves(key):
        options = {"num_steps": 10, "batch_size": 4}
        state, _ = oneshot.search(key, method, data, data, **options)
        return oneshot.resume(key, method, state, data, data, **options)[0]

    whole = jax.jit(whole)
    first, second = whole(KEY), jax.jit(halves)(KEY)
    assert_close(first, second, 1e-6)
    assert int(first.step) == 20
    assert_close(first, whole(KEY), 0.0)
    other = whole(jax.random.key(1))
    assert float(other.record.score) != float(first.record.score)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_nans_is_not_derived(name):
    problem = path_problems.counting_problem(lambda key, arch: jnp.float32(1.0))
    method, data = oneshot.ALL[name](problem, num_steps=1), path_problems.no_data()
    if name == "enas":
        method = oneshot.enas(problem, num_steps=1, controller_interval=1)
    bad = Split(jnp.full_like(data.x, jnp.nan), data.y)
    update, state = jax.jit(method.update), method.init(KEY)
    after, info = update(KEY, state, bad, bad)
    assert np.isnan(info["train_loss"])
    assert float(after.record.score) == -np.inf
    assert method.derive(after).tolist() == method.derive(state).tolist()
    assert float(update(KEY, state, data, data)[0].record.score) == 1.0


def test_methods_reject_what_they_cannot_do(problem):
    with pytest.raises(ValueError, match="num_candidates must be an integer of at least 1, got 0"):
        oneshot.random_weight_sharing(problem, num_steps=5, num_candidates=0)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1, got 0"):
        oneshot.single_path(problem, num_steps=0)
    with pytest.raises(ValueError, match="num_candidates must be an integer of at least 10, got 5"):
        oneshot.enas(problem, num_steps=5, num_candidates=5)
    with pytest.raises(ValueError, match="num_random must be an integer of at least 1, got 0"):
        oneshot.sandwich(problem, num_steps=5, num_random=0)
    odd = problem._replace(sample=lambda key: jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match="one decision per row"):
        oneshot.fair_nas(odd, num_steps=5)
    with pytest.raises(ValueError, match="space must be given where decisions are not rows"):
        oneshot.enas(odd, num_steps=5)
