"""The ensemble against backpropagation written out in NumPy; masks, units, what it learns."""

import functools

import jax
import numpy as np
import pytest

from jaxnas.surrogates.mlp_ensemble import mlp_ensemble

CAPACITY = 64


def rows(seed=0):
    """Points in a square, a function of them, and which rows count: the others hold rubbish."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=(CAPACITY, 2)).astype(np.float32)
    y = 3.0 + 10.0 * (x[:, 0] + x[:, 0] * x[:, 1])
    mask = np.arange(CAPACITY) % 8 < 5
    return x, y.astype(np.float32), mask


@functools.cache
def fitted(batch_size):
    return jax.jit(small(batch_size).fit)


def small(batch_size, **options):
    return mlp_ensemble(2, num_members=3, hidden_size=16, batch_size=batch_size, **options)


def in_numpy(weights, x, y, loss, num_updates, rate):
    """Full-batch training of one member of two hidden layers, in float64, by hand."""
    w = {name: value.copy() for name, value in weights.items()}
    first = {name: np.zeros_like(value) for name, value in w.items()}
    second = {name: np.zeros_like(value) for name, value in w.items()}
    for count in range(1, num_updates + 1):
        a = np.maximum(x @ w["first"] + w["first_bias"], 0.0)
        b = np.maximum(a @ w["hidden"][0] + w["hidden_bias"][0], 0.0)
        residual = (b @ w["last"] + w["last_bias"])[:, 0] - y
        d_out = (np.sign(residual) if loss == "mae" else 2 * residual)[:, None] / len(y)
        d_b = (d_out @ w["last"].T) * (b > 0)
        d_a = (d_b @ w["hidden"][0].T) * (a > 0)
        gradient = {
            "first": x.T @ d_a,
            "first_bias": d_a.sum(axis=0),
            "hidden": (a.T @ d_b)[None],
            "hidden_bias": d_b.sum(axis=0)[None],
            "last": b.T @ d_out,
            "last_bias": d_out.sum(axis=0),
        }
        for name, g in gradient.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.99 * second[name] + 0.01 * g**2
            unbiased = first[name] / (1 - 0.9**count), second[name] / (1 - 0.99**count)
            w[name] = w[name] - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return w


@pytest.mark.parametrize("loss", ["mae", "mse"])
def test_training_is_backpropagation_with_adam(loss):
    x, y, mask = rows()

    def fit(num_updates):
        ensemble = small(None, num_layers=2, num_updates=num_updates, loss=loss, learning_rate=0.02)
        return ensemble, jax.jit(ensemble.fit)(jax.random.key(3), x, y, mask)

    ensemble, params = fit(6)
    key_init = jax.random.split(jax.random.key(3))[0]
    start = jax.tree.map(lambda p: np.asarray(p, np.float64), ensemble.init(key_init).weights)
    target = (y[mask] - y[mask].mean()) / y[mask].std()
    np.testing.assert_allclose([params.shift, params.scale], [y[mask].mean(), y[mask].std()], 1e-5)
    for member in range(3):
        own = {name: value[member] for name, value in start.items()}
        wanted = in_numpy(own, x[mask].astype(np.float64), target, loss, 6, 0.02)
        for name, value in wanted.items():
            np.testing.assert_allclose(params.weights[name][member], value, atol=2e-4)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_learns_a_function(batch_size):
    x, y, mask = rows()
    params = fitted(batch_size)(jax.random.key(0), x, y, mask)
    predicted = np.asarray(small(batch_size).predict(params, x))
    assert predicted.shape == (3, CAPACITY)
    # Rows that were masked are new to the ensemble.
    assert np.abs(predicted.mean(axis=0) - y)[~mask].mean() < 0.25 * y.std()
    assert np.abs(predicted.mean(axis=0) - y)[mask].mean() < 0.1 * y.std()
    far = np.asarray(small(batch_size).predict(params, 20 * x))
    assert far.std(axis=0).mean() > 5 * predicted.std(axis=0).mean() > 0


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("rubbish", [np.nan, np.inf, 1e30])
def test_masked_rows_have_no_influence(batch_size, rubbish):
    x, y, mask = rows()
    fit = fitted(batch_size)
    params = fit(jax.random.key(0), x, y, mask)
    spoiled = np.where(mask[:, None], x, rubbish), np.where(mask, y, rubbish)
    again = fit(jax.random.key(0), *spoiled, mask)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    other = fit(jax.random.key(0), x, np.where(np.arange(CAPACITY) == 0, 0.0, y), mask)
    assert (other.weights["first"] != params.weights["first"]).any()


def test_no_rows_or_equal_targets_give_finite_predictions():
    x, y, mask = rows()
    for fit in (fitted(None), fitted(16)):
        for targets, counts in ((y, np.zeros_like(mask)), (np.full_like(y, 2.5), mask)):
            params = fit(jax.random.key(0), x, targets, counts)
            assert np.isfinite(small(None).predict(params, x)).all()
    np.testing.assert_allclose(params.shift, 2.5)


def test_predictions_are_in_the_units_of_the_targets():
    x, y, mask = rows()
    ensemble, fit = small(None), fitted(None)
    plain = ensemble.predict(fit(jax.random.key(0), x, y, mask), x)
    # A power of two and no shift, so that standardised targets are the same to the bit.
    np.testing.assert_allclose(
        ensemble.predict(fit(jax.random.key(0), x, 1024 * y, mask), x), 1024 * plain, rtol=1e-5
    )


def test_members_differ_and_the_key_decides():
    x, y, mask = rows()
    one, same, other = (fitted(16)(jax.random.key(seed), x, y, mask) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert (one.weights["first"] != other.weights["first"]).all()
    assert (one.weights["first"][0] != one.weights["first"][1]).all()


def test_layers_are_scanned():
    x, y, mask = rows()

    def size(num_layers):
        fit = small(16, num_layers=num_layers).fit
        return len(jax.make_jaxpr(fit)(jax.random.key(0), x, y, mask).pretty_print().splitlines())

    assert size(10) == size(20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 0}, "num_features"),
        ({"num_members": 0}, "num_members"),
        ({"num_layers": 0}, "num_layers"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"num_updates": 0}, "num_updates"),
        ({"batch_size": 0}, "batch_size"),
        ({"loss": "mape"}, "loss"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mlp_ensemble(**({"num_features": 2} | options))
