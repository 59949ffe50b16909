"""An ensemble of multilayer perceptrons, trained on few rows inside a compiled search.

Lakshminarayanan, Pritzel & Blundell, "Simple and Scalable Predictive Uncertainty Estimation using
Deep Ensembles", NeurIPS 2017, https://arxiv.org/abs/1612.01474, section 2.4: one network trained
several times, from other initial weights and with the rows in another order; where the members
disagree the ensemble is uncertain. White, Neiswanger & Savani (BANANAS),
https://arxiv.org/abs/1910.11858, predict the accuracy of architectures with five of them.

Rows come in arrays of fixed capacity with a mask, so a search that gathers rows compiles one
training. Targets are standardised over the rows that count; predictions are in the units of the
targets.

Deviations: a number of updates rather than of epochs, so that the duration does not depend on the
data, and mini-batches drawn with replacement; no adversarial examples; members predict a value
alone, without a variance of their own.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxnas._checks import check_count, check_number, check_option
from jaxnas.types import PyTree

Weights = dict[str, Array]

LOSSES = ("mae", "mse")

_UNROLLED = 4  # so many hidden layers run faster without a loop, and compile as fast


class EnsembleParams(NamedTuple):
    """A trained ensemble of E members."""

    weights: Weights  # f32[E, ...], see `_initial_weights`
    shift: Array  # f32[], mean of the targets
    scale: Array  # f32[], their standard deviation


class MLPEnsemble(NamedTuple):
    """Functions of an ensemble of E members over rows of F features.

    Attributes:
      init: `(key) -> params`, untrained.
      fit: `(key, x f32[N, F], y f32[N], mask bool[N]) -> params`, trained from new initial weights
        on the rows where `mask` is true; what the others hold has no influence.
      predict: `(params, x f32[M, F]) -> f32[E, M]`, the prediction of each member.
    """

    init: Callable[[Array], EnsembleParams]
    fit: Callable[[Array, Array, Array, Array], EnsembleParams]
    predict: Callable[[EnsembleParams, Array], Array]


def _initial_weights(
    key: Array, num_members: int, num_features: int, hidden_size: int, num_layers: int
) -> Weights:
    """Normal weights that keep the scale of activations through rectifiers, out of one draw."""
    shapes = {
        "first": (num_features, hidden_size),
        "hidden": (num_layers - 1, hidden_size, hidden_size),
        "last": (hidden_size, 1),
    }
    sizes = [num_members * math.prod(shape) for shape in shapes.values()]
    parts = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    weights = {
        name: math.sqrt(2.0 / shape[-2]) * part.reshape(num_members, *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    return weights | {
        "first_bias": jnp.zeros((num_members, hidden_size)),
        "hidden_bias": jnp.zeros((num_members, num_layers - 1, hidden_size)),
        "last_bias": jnp.zeros((num_members, 1)),
    }


def _forward(weights: Weights, x: Array) -> Array:
    """What one member makes of rows f32[N, F]: f32[N], in standard units."""

    def layer(h, parameters):
        kernel, bias = parameters
        return jax.nn.relu(h @ kernel + bias), None

    h = jax.nn.relu(x @ weights["first"] + weights["first_bias"])
    hidden = weights["hidden"], weights["hidden_bias"]
    h, _ = jax.lax.scan(layer, h, hidden, unroll=len(hidden[0]) <= _UNROLLED)
    return (h @ weights["last"] + weights["last_bias"])[:, 0]


def _standardise(y: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Masked targets with mean 0 and deviation 1, 0 elsewhere; their mean and deviation."""
    count = jnp.maximum(mask.sum(), 1)
    mean = jnp.sum(y, where=mask) / count
    centred = jnp.where(mask, y - mean, 0.0)
    deviation = jnp.sqrt(jnp.sum(centred**2) / count)
    scale = jnp.where(deviation > 0.0, deviation, 1.0)
    return centred / scale, mean, scale


def draw_rows(key: Array, mask: Array, shape: tuple[int, ...]) -> Array:
    """Positions of rows drawn from those that count, with replacement: i32[shape]."""
    counting_first = jnp.argsort(~mask)
    place = jax.random.uniform(key, shape) * mask.sum()
    return counting_first[place.astype(jnp.int32)]


def mlp_ensemble(
    num_features: int,
    *,
    num_members: int = 5,
    num_layers: int = 3,
    hidden_size: int = 32,
    learning_rate: float | Array = 0.01,
    num_updates: int = 200,
    batch_size: int | None = 32,
    loss: str = "mae",
) -> MLPEnsemble:
    """Perceptrons with rectifiers, trained by Adam.

    The hidden layers have one width and are scanned, so that twenty compile like one. The decay
    rates of Adam are those of BANANAS, 0.9 and 0.99.

    Args:
      num_features: F. Static.
      num_members: E. Static.
      num_layers: hidden layers, at least 1. Static.
      hidden_size: units of each hidden layer. Static.
      learning_rate: of Adam, at least 0. May be traced.
      num_updates: steps of Adam. Static.
      batch_size: rows per update, which each member draws for itself; None: all N rows, of which
        the masked ones count. Static.
      loss: "mae", mean absolute error, or "mse", mean squared error. Static.

    Returns:
      An `MLPEnsemble`.

    Raises:
      ValueError: for a size below 1, a negative learning rate or an unknown loss.

    Example:
      >>> ensemble = mlp_ensemble(2, num_members=3)
      >>> x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [9.0, 9.0]])
      >>> mask = jnp.array([True, True, True, False])
      >>> y = jnp.array([1.0, 2.0, 4.0, jnp.nan])
      >>> params = jax.jit(ensemble.fit)(jax.random.key(0), x, y, mask)
      >>> ensemble.predict(params, x).shape
      (3, 4)
    """
    check_count("num_features", num_features)
    check_count("num_members", num_members)
    check_count("num_layers", num_layers)
    check_count("hidden_size", hidden_size)
    check_number("learning_rate", learning_rate)
    check_count("num_updates", num_updates)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    check_option("loss", loss, LOSSES)
    optimizer = optax.scale_by_adam(b1=0.9, b2=0.99)
    cost_fn = jnp.abs if loss == "mae" else jnp.square

    def init(key):
        weights = _initial_weights(key, num_members, num_features, hidden_size, num_layers)
        return EnsembleParams(weights, jnp.zeros(()), jnp.ones(()))

    def step(carry: tuple[Weights, PyTree], gradient: Weights) -> tuple[Weights, PyTree]:
        weights, moments = carry
        steps, moments = optimizer.update(gradient, moments)
        return jax.tree.map(lambda w, s: w - learning_rate * s, weights, steps), moments

    def fit(key, x, y, mask):
        k_init, k_rows = jax.random.split(key)
        target, shift, scale = _standardise(y, mask)
        x = jnp.where(mask[:, None], x, 0.0)

        def error_of_all(weights):
            return (mask / jnp.maximum(mask.sum(), 1)) @ cost_fn(_forward(weights, x) - target)

        def error_of_some(weights, rows):
            return jnp.mean(cost_fn(_forward(weights, x[rows]) - target[rows]))

        def update(carry, rows):
            if rows is None:
                return step(carry, jax.vmap(jax.grad(error_of_all))(carry[0])), None
            return step(carry, jax.vmap(jax.grad(error_of_some))(carry[0], rows)), None

        rows = None
        if batch_size is not None:
            rows = draw_rows(k_rows, mask, (num_updates, num_members, batch_size))
        weights = init(k_init).weights
        start = weights, optimizer.init(weights)
        weights, _ = jax.lax.scan(update, start, rows, length=num_updates)[0]
        return EnsembleParams(weights, shift, scale)

    def predict(params: EnsembleParams, x):
        standard = jax.vmap(_forward, in_axes=(0, None))(params.weights, x)
        return params.shift + params.scale * standard

    return MLPEnsemble(init, fit, predict)
