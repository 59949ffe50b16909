"""Latency: measured on the present device, or predicted for another from few measurements.

A measurement is the median of repeated calls after a warm-up, with an interval that needs no
assumption about the noise: order statistics of the repeats (Conover, "Practical Nonparametric
Statistics", 1999, section 3.2). Host code; nothing here can be traced, except the predictor.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from scipy import stats

from jaxnas._checks import check_count
from jaxnas.space import SearchSpace, encode

RIDGES = tuple(10.0**power for power in range(-4, 4))


class Latency(NamedTuple):
    """How long a call takes, in milliseconds.

    Attributes:
      median: of the repeats.
      low: lower end of the median's interval with at least 95% coverage.
      high: upper end.
      rows_per_second: batch size over the median.
      compile_seconds: spent before the first call, apart from the above.
    """

    median: float
    low: float
    high: float
    rows_per_second: float
    compile_seconds: float


def measure(
    space: SearchSpace,
    arch: ArrayLike,
    feature_shape: tuple[int, ...],
    *,
    batch_size: int = 1,
    num_repeats: int = 50,
    num_warmups: int = 5,
) -> Latency:
    """Times the forward pass of a stand-alone network on the default device.

    Args:
      space: the space.
      arch: i32[D], concrete.
      feature_shape: shape of one row of the input.
      batch_size: 1 for latency; as many rows as will be served at once for throughput.
      num_repeats: timed calls, at least 1; with fewer than 6 the interval is their range.
      num_warmups: calls before those.

    Returns:
      A `Latency`.

    Raises:
      ValueError: for a count out of range.

    Example:
      >>> from jaxnas import spaces
      >>> space = spaces.mlp(3, depths=(1,), widths=(8,))
      >>> found = measure(space, space.arch({}), (4,), num_repeats=10)
      >>> 0.0 < found.low <= found.median <= found.high
      True
    """
    check_count("batch_size", batch_size)
    module = space.network(np.asarray(arch))
    x = jnp.zeros((batch_size, *feature_shape))
    variables = jax.jit(lambda x: module.init(jax.random.key(0), x, train=False))(x)
    start = time.perf_counter()
    run = jax.jit(lambda variables, x: module.apply(variables, x, train=False))
    program = run.lower(variables, x).compile()
    compiled = time.perf_counter() - start
    found = time_call(program, variables, x, num_repeats=num_repeats, num_warmups=num_warmups)
    return found._replace(rows_per_second=1e3 * batch_size / found.median, compile_seconds=compiled)


def time_call(
    call: Callable[..., Any], *arguments: Any, num_repeats: int = 50, num_warmups: int = 5
) -> Latency:
    """Times any function of arrays, waiting for its results each time.

    Args:
      call: the function, compiled by its warm-up at the latest.
      *arguments: what it is given.
      num_repeats: timed calls, at least 1.
      num_warmups: calls before those, at least 0.

    Returns:
      A `Latency`; `rows_per_second` counts calls, `compile_seconds` is 0.

    Raises:
      ValueError: for a count out of range.
    """
    check_count("num_repeats", num_repeats)
    check_count("num_warmups", num_warmups, minimum=0)
    for _ in range(num_warmups):
        jax.block_until_ready(call(*arguments))
    seconds = []
    for _ in range(num_repeats):
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        seconds.append(time.perf_counter() - start)
    ordered = 1e3 * np.sort(seconds)
    # The median lies between the k-th smallest and largest but for two binomial tails.
    rank = int(stats.binom.ppf(0.025, num_repeats, 0.5))
    rank = max(rank - 1, 0)
    median = float(np.median(ordered))
    return Latency(median, float(ordered[rank]), float(ordered[-1 - rank]), 1e3 / median, 0.0)


class LatencyPredictor(NamedTuple):
    """A linear model of latency; a pytree, so it can be an argument of jitted functions.

    Attributes:
      weights: f32[F].
      offset: f32[], milliseconds.
      noise: f32[], milliseconds, root mean square error on left-out measurements.
    """

    weights: Array
    offset: Array
    noise: Array

    def predict(self, features: Array) -> Array:
        """Milliseconds f32[...] of architectures with `features` f32[..., F]; traceable."""
        return self.offset + features @ self.weights


def fit(features: ArrayLike, latency: ArrayLike) -> LatencyPredictor:
    """Ridge regression of latency on features, its strength chosen by leaving one out.

    Features may be `encode`d architectures (see `one_hot`): then the model is a table of what each
    choice costs. Where the latency of every architecture on other devices is known, that is the
    better feature: devices agree on what is slow, and ten to twenty measurements on a new one do
    (Lee et al., "HELP: Hardware-Adaptive Efficient Latency Prediction for NAS", 2021,
    https://arxiv.org/abs/2106.08630, where this linear transfer is a baseline).

    Args:
      features: f32[N, F], of the measured architectures.
      latency: f32[N], milliseconds.

    Returns:
      A `LatencyPredictor`.

    Raises:
      ValueError: for fewer than two measurements, shapes that do not fit, or numbers not finite.

    Example:
      >>> found = fit([[0.0], [1.0], [2.0], [3.0]], [1.0, 3.0, 5.0, 7.0])
      >>> round(float(found.predict(jnp.array([4.0]))), 2)
      9.0
    """
    x, y = np.asarray(features, np.float64), np.asarray(latency, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or len(y) < 2:
        raise ValueError(
            "features and latency must have the shapes [N, F] and [N] with N of at least 2, "
            f"got {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features and latency must be finite")
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0.0] = 1.0
    z, offset = (x - centre) / scale, y.mean()
    left, values, right = np.linalg.svd(z, full_matrices=False)
    errors, models = [], []
    for ridge in RIDGES:
        shrink = values**2 / (values**2 + ridge * len(y))
        # Residuals on left-out rows by the hat matrix, the mean's share of it included.
        fitted = offset + left @ (shrink * (left.T @ (y - offset)))
        leverage = 1.0 / len(y) + np.sum(left**2 * shrink, axis=1)
        errors.append(np.mean(((y - fitted) / np.maximum(1.0 - leverage, 1e-9)) ** 2))
        models.append(right.T @ (shrink / np.maximum(values, 1e-300) * (left.T @ (y - offset))))
    best = int(np.argmin(errors))
    weights = models[best] / scale
    return LatencyPredictor(
        jnp.asarray(weights, jnp.float32),
        jnp.float32(offset - centre @ weights),
        jnp.float32(np.sqrt(errors[best])),
    )


def leave_one_out(features: ArrayLike, latency: ArrayLike) -> np.ndarray:
    """What `fit` predicts for each network from the measurements of all others.

    Args:
      features: f32[N, F].
      latency: f32[N], milliseconds.

    Returns:
      f64[N], milliseconds.

    Raises:
      ValueError: as `fit`, or for fewer than three measurements.

    Example:
      >>> found = leave_one_out([[0.0], [1.0], [2.0], [3.0]], [1.0, 3.0, 5.0, 7.0])
      >>> found.round(1).tolist()
      [1.0, 3.0, 5.0, 7.0]
    """
    x, y = np.asarray(features, np.float64), np.asarray(latency, np.float64)
    if len(y) < 3:
        raise ValueError(f"latency must have at least 3 measurements, got {len(y)}")
    found = []
    for left in range(len(y)):
        others = np.arange(len(y)) != left
        found.append(float(fit(x[others], y[others]).predict(jnp.asarray(x[left]))))
    return np.asarray(found)


def one_hot(space: SearchSpace, arch: Array) -> Array:
    """Features f32[N, F] of architectures i32[N, D] for `fit`."""
    return jax.vmap(lambda row: encode(space, row))(jnp.asarray(arch))
