import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnas.training import data as data_module
from jaxnas.training.data import Task, from_arrays, from_splits, hold_out

KEY = jax.random.key(0)


def rows_with_ids(num_rows, num_features=3):
    """Features of which the first is the row's own index."""
    x = np.random.default_rng(1).normal(size=(num_rows, num_features))
    x[:, 0] = np.arange(num_rows)
    return x


def ids(split):
    return np.asarray(split.x[:, 0]).astype(int)


def split_ids(data):
    return [ids(data.train), ids(data.valid), ids(data.test)]


@st.composite
def labels_and_fractions(draw):
    num_rows = draw(st.sampled_from([9, 24, 61]))  # few sizes: each compiles a permutation
    num_classes = draw(st.integers(2, num_rows // 3))
    extra = st.integers(0, num_classes - 1)
    rest = draw(st.lists(extra, min_size=num_rows, max_size=num_rows))
    y = np.concatenate([np.repeat(np.arange(num_classes), 3), rest])[:num_rows]
    y = np.random.default_rng(draw(st.integers(0, 99))).permutation(y)
    fractions = draw(st.tuples(*[st.floats(0.01, 0.49)] * 2))
    return y, *fractions, draw(st.integers(0, 2**32 - 1))


@settings(deadline=None, max_examples=40)
@given(labels_and_fractions())
def test_a_stratified_split_is_a_partition_with_every_class_everywhere(case):
    y, valid_fraction, test_fraction, seed = case
    data = from_arrays(
        jax.random.key(seed),
        rows_with_ids(len(y)),
        y,
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        standardise=False,
    )
    assert sorted(np.concatenate(split_ids(data))) == list(range(len(y)))
    for split in (data.train, data.valid, data.test):
        np.testing.assert_array_equal(split.y, y[ids(split)])  # labels travel with their rows
        assert set(np.unique(split.y)) == set(y)
    counts = np.bincount(y)
    for split, fraction in ((data.valid, valid_fraction), (data.test, test_fraction)):
        size = np.bincount(split.y)
        # A class too small for its shares of a row or more is the only one to be further off.
        forced = (fraction * counts < 1) | ((1 - valid_fraction - test_fraction) * counts < 1)
        assert np.all((np.abs(size - fraction * counts) <= 1) | forced)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([9, 24, 61]), st.floats(0.06, 0.45), st.floats(0.06, 0.45))
def test_a_regression_split_is_a_partition_of_the_requested_sizes(n, valid, test):
    data = from_arrays(
        KEY,
        rows_with_ids(n),
        np.arange(float(n)),
        valid_fraction=valid,
        test_fraction=test,
        standardise=False,
    )
    assert sorted(np.concatenate(split_ids(data))) == list(range(n))
    assert (len(data.valid.x), len(data.test.x)) == (round(valid * n), round(test * n))
    np.testing.assert_array_equal(data.train.y[:, 0], ids(data.train))


def test_rounding_per_class_does_not_add_up_over_many_classes():
    y = np.repeat(np.arange(100), 7)  # a fifth of 7 rows is 1.4, of all rows 140
    data = from_arrays(KEY, rows_with_ids(700), y)
    assert [len(s.x) for s in (data.train, data.valid, data.test)] == [420, 140, 140]


def test_every_part_keeps_a_row_of_each_class_whatever_the_fractions():
    y = np.repeat([0, 1], 4)
    data = from_arrays(KEY, rows_with_ids(8), y, valid_fraction=0.95, test_fraction=0.01)
    assert [len(s.x) for s in (data.train, data.valid, data.test)] == [2, 4, 2]
    assert all(set(np.unique(s.y)) == {0, 1} for s in (data.train, data.valid, data.test))


@pytest.mark.parametrize("y", [np.arange(60) % 3, np.linspace(0, 1, 60)], ids=["labels", "targets"])
def test_the_key_alone_decides_the_split(y):
    x = rows_with_ids(60)
    first, again = from_arrays(KEY, x, y), from_arrays(KEY, x, y)
    jax.tree.map(np.testing.assert_array_equal, first.train, again.train)
    jax.tree.map(np.testing.assert_array_equal, first.valid, again.valid)
    jax.tree.map(np.testing.assert_array_equal, first.test, again.test)
    other = from_arrays(jax.random.key(1), x, y, standardise=False)
    plain = from_arrays(KEY, x, y, standardise=False)
    assert set(ids(other.test)) != set(ids(plain.test))


def test_rows_of_a_part_are_in_random_order():
    data = from_arrays(KEY, rows_with_ids(60), np.repeat([0, 1], 30), standardise=False)
    assert not np.all(np.diff(ids(data.train)) > 0)
    assert np.any(np.diff(np.asarray(data.train.y)) < 0)  # classes are mixed


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_statistics_come_from_the_training_rows_alone(task):
    x, y = rows_with_ids(60), np.arange(60) % 3
    plain = from_arrays(KEY, x, y, task=task, standardise=False)
    held = np.concatenate([ids(plain.valid), ids(plain.test)])
    before = from_arrays(KEY, x, y, task=task)
    x_changed, y_changed = x.copy(), y.copy()
    x_changed[held] = 50.0 - 3.0 * x[held]
    if task == "regression":  # other labels would be another split
        y_changed[held] = 7
    after = from_arrays(KEY, x_changed, y_changed, task=task)
    np.testing.assert_array_equal(before.x_mean, after.x_mean)
    np.testing.assert_array_equal(before.x_scale, after.x_scale)
    np.testing.assert_array_equal(before.y_mean, after.y_mean)
    np.testing.assert_array_equal(before.y_scale, after.y_scale)
    jax.tree.map(np.testing.assert_array_equal, before.train, after.train)
    assert not np.allclose(before.test.x, after.test.x)


def test_flat_rows_are_standardised_per_feature():
    x = rows_with_ids(50) * [1.0, 1e-3, 1e4] + [0.0, 5.0, -1e6]
    data = from_arrays(KEY, x, np.arange(50) % 2)
    assert data.train.x.dtype == jnp.float32 and data.train.y.dtype == jnp.int32
    np.testing.assert_allclose(np.mean(data.train.x, axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.std(data.train.x, axis=0), 1.0, rtol=1e-6)
    assert data.x_mean.dtype == np.float64
    plain = from_arrays(KEY, x, np.arange(50) % 2, standardise=False)
    assert plain.x_mean is None and plain.x_scale is None
    np.testing.assert_allclose(data.test.x * data.x_scale + data.x_mean, plain.test.x, rtol=1e-5)


def test_statistics_are_taken_before_rounding_to_float32():
    x = 1e9 + np.random.default_rng(0).normal(size=(100, 1))  # float32 steps are 64 here
    data = from_arrays(KEY, x, np.arange(100) % 2)
    np.testing.assert_allclose(np.std(data.train.x), 1.0, rtol=1e-5)
    assert len(np.unique(data.train.x)) == len(data.train.x)


def test_images_are_standardised_per_channel():
    images = np.random.default_rng(0).uniform(size=(30, 4, 5, 3)) * [1, 10, 100] + [0, 1, 2]
    data = from_arrays(KEY, images, np.arange(30) % 3)
    assert data.x_mean.shape == data.x_scale.shape == (3,)
    assert data.train.x.shape[1:] == (4, 5, 3)
    np.testing.assert_allclose(np.mean(data.train.x, axis=(0, 1, 2)), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.std(data.train.x, axis=(0, 1, 2)), 1.0, rtol=1e-6)


def test_blocks_of_rows_change_nothing(monkeypatch):
    x, y = rows_with_ids(50), np.linspace(0.0, 1.0, 50)
    whole = from_arrays(KEY, x, y)
    monkeypatch.setattr(data_module, "_BLOCK_SIZE", 7)  # two rows at a time
    blocks = from_arrays(KEY, x, y)
    for one, other in ((whole.train, blocks.train), (whole.test, blocks.test)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


@pytest.mark.parametrize("constant", [0.1, 0.0, -3e30, 1e-200])
def test_a_constant_feature_is_centred_and_unscaled(constant):
    x = rows_with_ids(50)
    x[:, 1] = constant
    data = from_arrays(KEY, x, np.arange(50) % 2)
    assert data.x_mean[1] == constant and data.x_scale[1] == 1.0
    np.testing.assert_array_equal(data.train.x[:, 1], 0.0)
    np.testing.assert_array_equal(data.test.x[:, 1], 0.0)


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 2)])
def test_regression_targets_are_standardised_and_map_back(shape):
    y = np.random.default_rng(0).normal(loc=100.0, scale=9.0, size=shape)
    data = from_arrays(KEY, rows_with_ids(50), y)
    plain = from_arrays(KEY, rows_with_ids(50), y, standardise=False)
    assert data.task == Task("regression", int(np.prod(shape[1:])))
    np.testing.assert_allclose(np.mean(data.train.y, axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.std(data.train.y, axis=0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(data.test.y * data.y_scale + data.y_mean, plain.test.y, rtol=1e-5)
    assert plain.y_mean is None and data.classes is None


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["dog", "cat"], ("cat", "dog")),
        (np.array(["dog", "cat"], object), ("cat", "dog")),
        ([7, -3], (-3, 7)),
        ([True, False], (0, 1)),
        (np.array([200, 7], np.uint8), (7, 200)),
    ],
)
def test_any_labels_become_class_indices(labels, classes):
    y = np.tile(np.asarray(labels), 10)
    data = from_arrays(KEY, rows_with_ids(20), y, standardise=False)
    assert data.task == Task("classification", 2)
    assert data.classes == classes
    for split in (data.train, data.valid, data.test):
        assert [data.classes[i] for i in split.y] == [y[i] for i in ids(split)]


def test_the_task_is_inferred_from_the_dtype_unless_given():
    x, whole, integers = rows_with_ids(20), np.tile([0.0, 1.0], 10), np.tile([0, 1], 10)
    assert from_arrays(KEY, x, whole).task == Task("regression", 1)
    assert from_arrays(KEY, x, whole, task="classification").task == Task("classification", 2)
    assert from_arrays(KEY, x, whole, num_classes=3).task == Task("classification", 3)
    assert from_arrays(KEY, x, integers).task == Task("classification", 2)
    assert from_arrays(KEY, x, integers, task="regression").task == Task("regression", 1)


def test_given_classes_need_not_all_occur_and_keep_their_index():
    data = from_arrays(KEY, rows_with_ids(20), np.tile([1, 4], 10), num_classes=6)
    assert data.task.num_outputs == 6
    assert data.classes == (0, 1, 2, 3, 4, 5)
    assert set(np.unique(data.train.y)) == {1, 4}


def test_jax_arrays_and_small_dtypes_are_fine():
    x = jnp.asarray(rows_with_ids(20), jnp.float16)
    data = from_arrays(KEY, x, jnp.arange(20) % 2)
    assert data.train.x.dtype == jnp.float32
    image = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2, 1)
    assert from_arrays(KEY, image, np.arange(20) % 2, standardise=False).train.x.max() > 70


def test_data_can_be_hashed_and_compared():
    first, second = (from_arrays(KEY, rows_with_ids(20), np.arange(20) % 2) for _ in range(2))
    assert first == first and first != second
    assert len({first, first, second}) == 2


def changed(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


X, Y = rows_with_ids(20), np.arange(20) % 2


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (np.zeros((0, 3)), [], {}, r"x is empty: shape \(0, 3\)"),
        (np.zeros((20, 0)), Y, {}, r"x is empty: shape \(20, 0\)"),
        (X, [], {}, r"y is empty: shape \(0,\)"),
        (X, np.array([], int), {}, "y is empty"),
        (changed(X, (7, 1), np.nan), Y, {}, "NaN .*: 1 of 60, the first in row 7"),
        (changed(X, (slice(3, 5), 1), -np.inf), Y, {}, ": 2 of 60, the first in row 3"),
        (changed(X, (4, 0), 1e39), Y, {}, "infinite in float32: 1 of 60, the first in row 4"),
        (X, changed(X[:, 1], 9, np.nan), {}, "y has values .* 1 of 20, the first in row 9"),
        (X, Y[:-1], {}, "x has 20 rows but y has 19"),
        (X[:4], Y[:4], {}, "x has 4 rows; a data set needs at least 5"),
        (X.astype(str), Y, {}, "x must be real numbers, got dtype <U"),
        (X.astype(object), Y, {}, "x must be real numbers, got dtype object"),
        (X + 1j, Y, {}, "x must be real numbers, got dtype complex128"),
        (X[:, 0], Y, {}, r"x must be \[rows, features\] or images .* got shape \(20,\)"),
        (X[:, None], Y, {}, r"got shape \(20, 1, 3\)"),
        ([[1.0], [1.0, 2.0]], [0, 1], {}, "x is not an array"),
        (X, Y[:, None], {}, r"y must be labels of shape \[rows\], got shape \(20, 1\)"),
        (X, X[:, None], {}, r"y must be \[rows\] or \[rows, targets\], got shape \(20, 1, 3\)"),
        (X, np.array([None, "a"] * 10), {}, "y must be integers or strings, got dtype object"),
        (X, Y + 0.5, {"task": "classification"}, "y must be labels, got fractions such as 0.5"),
        (X, Y.astype(str), {"task": "regression"}, "y must be real numbers"),
        (X, Y, {"task": "ranking"}, "task must be one of .* got 'ranking'"),
        (X, Y, {"task": "regression", "num_classes": 2}, "num_classes must be None"),
        (X, Y, {"num_classes": 1}, "num_classes must be at least 2, got 1"),
        (X, np.zeros(20, int), {}, "y has the one class 0"),
        (
            X,
            changed(changed(Y, slice(4, 6), 12), 0, -1),
            {"num_classes": 10},
            r"y has labels outside the classes 0, 1, .*\(10 in all\): -1 in 1 row, 12 in 2 rows",
        ),
        (X, Y.astype(str), {"num_classes": 2}, "y has labels of dtype <U"),
        (
            X,
            ["rare"] * 2 + ["cat", "dog"] * 9,
            {},
            r"too few rows of some classes \('rare' in 2 rows\); a split in 3 needs 3 of each",
        ),
        (X, Y, {"valid_fraction": 0.0}, "valid_fraction must be above 0 and below 1, got 0.0"),
        (X, Y, {"test_fraction": 1.0}, "test_fraction must be above 0 and below 1, got 1.0"),
        (X, Y, {"test_fraction": float("nan")}, "test_fraction must be above 0"),
        (
            X,
            Y,
            {"valid_fraction": 0.5, "test_fraction": 0.5},
            r"valid_fraction \+ test_fraction must be below 1, got 1.0",
        ),
        (X, X, {"valid_fraction": 0.01}, r"a split would be empty: .* parts of \[0, 4, 16\] rows"),
        (
            X,
            X,
            {"valid_fraction": 0.49, "test_fraction": 0.5},
            r"a split would be empty: .* parts of \[10, 10, 0\] rows",
        ),
    ],
)
def test_bad_arrays_are_named(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(KEY, x, y, **options)


def test_values_out_of_reach_of_the_training_rows_are_an_error():
    train = np.array([[0.0], [1e-30]] * 3)
    with pytest.raises(ValueError, match="too far from the training rows' mean"):
        from_splits((train, [0, 1] * 3), (train + 1e20, [0, 1] * 3), (train, [0, 1] * 3))


def test_from_splits_keeps_the_rows_and_learns_from_train():
    parts = [(X[:10], Y[:10]), (X[10:14], Y[10:14]), (X[14:] * 9.0, Y[14:])]
    data = from_splits(*parts)
    np.testing.assert_allclose(data.x_mean, X[:10].mean(axis=0))
    np.testing.assert_allclose(data.x_scale, X[:10].std(axis=0))
    np.testing.assert_allclose(
        data.test.x, (X[14:] * 9.0 - data.x_mean) / data.x_scale, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(data.valid.y, Y[10:14])
    plain = from_splits(*parts, standardise=False)
    np.testing.assert_array_equal(plain.train.x, X[:10].astype(np.float32))


def test_from_splits_standardises_targets_with_those_of_train():
    data = from_splits((X[:10], X[:10, 1]), (X[10:14], X[10:14, 1]), (X[14:], X[14:, 1]))
    assert data.task == Task("regression", 1)
    np.testing.assert_allclose(data.y_mean, X[:10, 1].mean())
    np.testing.assert_allclose(
        data.valid.y[:, 0] * data.y_scale + data.y_mean, X[10:14, 1], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("part", "x", "y", "options", "message"),
    [
        (1, X[:, :2], Y, {}, r"x of valid has rows of shape \(2,\), those of train are \(3,\)"),
        (2, X[:0], Y[:0], {}, "x of test is empty"),
        (2, changed(X, (2, 0), np.nan), Y, {}, "x of test has values .* in row 2"),
        (0, X, Y[:-1], {}, "x of train has 20 rows but y of train has 19"),
        (1, X, changed(Y, 3, 5), {}, "y of valid has labels outside the classes 0, 1: 5 in 1 row"),
        (2, X, changed(Y, 3, 2), {"num_classes": 2}, "y of test has labels outside"),
        (2, X, Y.astype(str), {}, "y of test has labels of dtype"),
        (1, X, X, {"task": "regression"}, r"y of valid has rows of shape \(3,\)"),
    ],
)
def test_bad_parts_are_named(part, x, y, options, message):
    parts = [(X, Y)] * 3
    parts[part] = (x, y)
    with pytest.raises(ValueError, match=message):
        from_splits(*parts, **options)


def test_hold_out_takes_a_share_of_every_class():
    y = np.repeat(["a", "b"], [20, 40])
    x = rows_with_ids(60)
    rest, held = hold_out(KEY, x, y, 0.25)
    assert sorted(np.concatenate([rest[0][:, 0], held[0][:, 0]])) == list(range(60))
    labels, counts = np.unique(held[1], return_counts=True)
    assert labels.tolist() == ["a", "b"] and counts.tolist() == [5, 10]
    np.testing.assert_array_equal(held[1], y[held[0][:, 0].astype(int)])
    with pytest.raises(ValueError, match=r"'b' in 1 row\); a split in 2 needs 2 of each"):
        hold_out(KEY, x[:21], y[:21], 0.25)


@pytest.mark.parametrize(
    ("kind", "num_outputs", "message"),
    [("clustering", 3, "kind must be one of"), ("regression", 0, "num_outputs must be at least 1")],
)
def test_a_task_is_checked(kind, num_outputs, message):
    with pytest.raises(ValueError, match=message):
        Task(kind, num_outputs)
