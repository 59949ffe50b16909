"""Learning curves: what the first epochs say about the last one.

Two ways, both free of any training of their own:

* sums of training losses, which rank candidates of equal age: Ru, Lyle, Schut, Fil, van der Wilk &
  Gal, "Speedy Performance Estimation for Neural Architecture Search", NeurIPS 2021,
  https://arxiv.org/abs/2006.04492, equation 1 (SoTL), with a decay for older epochs, and with the
  last epoch alone (SoTL-E);
* parametric curves, weighed by how well each explains what was seen: after Domhan, Springenberg &
  Hutter, "Speeding Up Automatic Hyperparameter Optimization of Deep Neural Networks by
  Extrapolation of Learning Curves", IJCAI 2015, https://www.ijcai.org/Proceedings/15/Papers/487.pdf,
  sections 3.1 and 4.

Deviations from the latter: of its eleven families those that are linear but for one parameter,
`a + b t^-c`, `a + b exp(-c t)` and `a + b log(t + 1)^-c`, with that parameter on a grid. Then
everything else is conjugate: a normal-inverse-gamma prior over a, b and the noise makes evidence
and prediction exact, where the paper samples by Markov chains.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import betainc, gammaln

_RATES = np.geomspace(0.1, 8.0, 16)
_SHAPE, _SCALE = 1.0, 1e-5  # of the prior of the noise's variance, for scores in [0, 1]
_PRECISION = 1e-4  # of the prior of a and b, in units of the noise's
_NUM_QUANTILES = 16  # that stand for a Student t distribution


class Extrapolation(NamedTuple):
    """A mixture of Student t distributions of the last value; K curves.

    Attributes:
      weights: f32[K], evidence of each curve, summing to 1.
      means: f32[K].
      scales: f32[K].
      degrees: f32[], of freedom.
    """

    weights: Array
    means: Array
    scales: Array
    degrees: Array

    @property
    def mean(self) -> Array:
        """The expected last value: f32[]."""
        return jnp.sum(self.weights * self.means)

    def chance_above(self, value: float | Array) -> Array:
        """Probability f32[] that the last value exceeds `value`."""
        z = (self.means - value) / self.scales
        tail = betainc(0.5 * self.degrees, 0.5, self.degrees / (self.degrees + z * z))
        return jnp.sum(self.weights * jnp.where(z > 0, 1.0 - 0.5 * tail, 0.5 * tail))


def extrapolate(curve: Array, num_seen: int | Array) -> Extrapolation:
    """Predicts the last value of a curve from its first ones.

    Args:
      curve: f32[E], a score in about [0, 1] after each epoch; values from `num_seen` on are not
        read and may be NaN.
      num_seen: how many are known, at least 1. May be traced.

    Returns:
      An `Extrapolation` of `curve[E - 1]`.

    Example:
      >>> epochs = jnp.arange(1.0, 51.0)
      >>> found = extrapolate(0.9 - 0.6 / epochs, 10)
      >>> bool(abs(found.mean - 0.888) < 0.01), bool(found.chance_above(0.95) < 0.01)
      (True, True)
    """
    curve = jnp.asarray(curve, jnp.float32)
    seen = jnp.arange(len(curve)) < num_seen
    y = jnp.where(seen, curve, 0.0)
    fits = jax.vmap(lambda shape: _fit(shape, seen, y))(jnp.asarray(_shapes(len(curve))))
    evidence, means, scales, degrees = fits
    return Extrapolation(jax.nn.softmax(evidence), means, scales, degrees[0])


def may_stop(
    curve: Array, num_seen: int | Array, best: float | Array, *, level: float | Array = 0.05
) -> Array:
    """Whether a candidate's chance to end above the incumbent is below a level.

    Args:
      curve: f32[E], see `extrapolate`.
      num_seen: likewise.
      best: final score of the incumbent; minus infinity or NaN: there is none, nothing stops.
      level: a candidate whose chance is at or above it goes on.

    Returns:
      bool[].

    Example:
      >>> epochs = jnp.arange(1.0, 51.0)
      >>> curve = 0.9 - 0.6 / epochs
      >>> bool(may_stop(curve, 10, 0.95)), bool(may_stop(curve, 10, 0.85))
      (True, False)
    """
    chance = extrapolate(curve, num_seen).chance_above(jnp.nan_to_num(best, neginf=0.0))
    return jnp.isfinite(best) & (chance < level)


def chances_to_win(curves: Array, num_seen: int | Array) -> Array:
    """Chance of each candidate to end above the one that is expected to end highest.

    To win it takes to end above everyone, so this bounds the chance to win from above. Candidates
    are taken as independent given what was seen.

    Args:
      curves: f32[P, E], see `extrapolate`; a row with NaN among the first `num_seen` has failed.
      num_seen: how many values of each are known, at least 1. May be traced.

    Returns:
      f32[P], about a half for the leader itself, 0 for failed candidates.

    Example:
      >>> curve = 0.9 - 0.6 / jnp.arange(1.0, 51.0)
      >>> chances = chances_to_win(jnp.stack([curve, curve - 0.1, jnp.nan * curve]), 10)
      >>> [round(float(chance), 1) for chance in chances]
      [0.5, 0.0, 0.0]
    """
    curves = jnp.asarray(curves, jnp.float32)
    seen = jnp.arange(curves.shape[1]) < num_seen
    failed = jnp.any(seen & jnp.isnan(curves), axis=1)
    found = jax.vmap(lambda curve: extrapolate(curve, num_seen))(
        jnp.where(failed[:, None], 0.0, curves)
    )
    expected = jnp.sum(found.weights * found.means, axis=1)
    leader = jnp.argmax(jnp.where(failed, -jnp.inf, expected))
    values, weights = _quantiles(jax.tree.map(lambda leaf: leaf[leader], found))

    def chance(one):
        return jnp.sum(weights * jax.vmap(one.chance_above)(values))

    return jnp.where(failed, 0.0, jax.lax.map(chance, found))


def sum_of_losses(curve: Array, num_seen: int | Array, *, decay: float | Array = 1.0) -> Array:
    """Minus the sum of training losses so far, so that more is better.

    Args:
      curve: f32[E], training loss of each epoch; values from `num_seen` on are not read.
      num_seen: how many are known. May be traced.
      decay: weight of an epoch relative to the next; 1 is SoTL, 0 the last epoch alone.

    Returns:
      f32[]; NaN if a loss that counts is.

    Example:
      >>> float(sum_of_losses(jnp.array([4.0, 2.0, 1.0, jnp.nan]), 3))
      -7.0
      >>> float(sum_of_losses(jnp.array([4.0, 2.0, 1.0]), 3, decay=0.5))
      -3.0
    """
    age = num_seen - 1 - jnp.arange(len(curve))
    weight = jnp.where(age == 0, 1.0, jnp.asarray(decay) ** jnp.maximum(age, 1))
    return -jnp.sum(jnp.where((age >= 0) & (weight > 0), weight * curve, 0.0))


def _quantiles(found: Extrapolation) -> tuple[Array, Array]:
    """The mixture as points with weights: f32[K * Q] each, Q of equal weight per curve."""
    grid = jnp.sinh(jnp.linspace(0.0, 6.0, 257))  # standard deviations above the middle
    above = 0.5 * betainc(0.5 * found.degrees, 0.5, found.degrees / (found.degrees + grid * grid))
    middles = (jnp.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    upper = jnp.interp(jnp.minimum(middles, 1.0 - middles), above[::-1], grid[::-1])
    points = jnp.where(middles > 0.5, upper, -upper)
    values = found.means[:, None] + found.scales[:, None] * points
    weights = jnp.repeat(found.weights / _NUM_QUANTILES, _NUM_QUANTILES)
    return values.reshape(-1), weights


def _shapes(num_epochs: int) -> np.ndarray:
    """The curves without offset and factor: f64[K, E], all falling from 1 at the first epoch."""
    epoch = np.arange(1.0, num_epochs + 1)
    power = epoch ** -_RATES[:, None]
    exponential = np.exp(-_RATES[:, None] * 4.0 * (epoch - 1.0) / num_epochs)
    logarithm = (np.log(epoch + 1.0) / np.log(2.0)) ** -_RATES[:, None]
    return np.concatenate([power, exponential, logarithm])


def _fit(shape: Array, seen: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """Evidence, and the predictive distribution at the last epoch, of `a + b * shape`."""
    features = jnp.stack([jnp.ones_like(shape), shape], axis=1)
    known = jnp.where(seen[:, None], features, 0.0)
    prior = jnp.array([0.5, 0.0])  # of a and b
    precision = known.T @ known + _PRECISION * jnp.eye(2)
    right = known.T @ y + _PRECISION * prior
    determinant = precision[0, 0] * precision[1, 1] - precision[0, 1] ** 2
    inverse = (
        jnp.array([[precision[1, 1], -precision[0, 1]], [-precision[0, 1], precision[0, 0]]])
        / determinant
    )
    posterior = inverse @ right
    count = jnp.sum(seen)
    # Residuals rather than differences of squares, which would cancel.
    residual = jnp.sum(jnp.where(seen, (y - known @ posterior) ** 2, 0.0))
    pulled = _PRECISION * jnp.sum((posterior - prior) ** 2)
    degrees = 2.0 * _SHAPE + count
    scale = _SCALE + 0.5 * (residual + pulled)
    evidence = -0.5 * jnp.log(determinant) - 0.5 * degrees * jnp.log(scale) + gammaln(0.5 * degrees)
    last = features[-1]
    spread = jnp.sqrt(2.0 * scale / degrees * (1.0 + last @ inverse @ last))
    return evidence, last @ posterior, spread, degrees
