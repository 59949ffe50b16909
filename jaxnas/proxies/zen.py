"""Zen-score: how expressive a network with Gaussian weights is, whatever the data.

Lin et al., "Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition", ICCV 2021,
https://arxiv.org/abs/2102.01063, Algorithm 1: with all weights and an input x from N(0, 1), the
logarithm of the change of the last feature map, E ||f(x) - f(x + 0.01 e)||_1 for e from N(0, 1),
which normalisation would hide, plus the sum over batch normalisations of the logarithm of the
deviation that they divide by.

As in the authors' code (https://github.com/idstcv/ZenNAS) the variance of a layer is its running
average over channels, one step from 1 with momentum 0.1, so that a layer without signal has a
finite share. Deviations: one such step instead of two; a single draw of the weights, where the
paper takes 32. NaN where the feature map does not depend on the input.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnas._checks import check_count
from jaxnas.proxies.candidate import Candidate, Proxy


def zen(num_draws: int = 1, shift: float = 0.01) -> Proxy:
    """The logarithm of the feature map's sensitivity, normalisation undone.

    Args:
      num_draws: of weights and inputs, whose scores are averaged. Static.
      shift: how far the second input is from the first.

    Raises:
      ValueError: if `num_draws` is below 1; when measured, for networks that do not keep their last
        feature map (see `jaxnas.nn.probes`).

    Example:
      >>> isinstance(zen(), Proxy)
      True
    """
    check_count("num_draws", num_draws)

    def measure(candidate: Candidate):
        keys = jax.random.split(candidate.key, num_draws)
        return lax.map(lambda key: _score(candidate, key, shift), keys).mean()

    return Proxy(measure)


def _score(candidate: Candidate, key: Array, shift: float) -> Array:
    k_weights, k_x, k_shift = jax.random.split(key, 3)
    weights = _normal_like(k_weights, candidate.weights)
    x = jax.random.normal(k_x, candidate.batch.x.shape)
    moved = x + shift * jax.random.normal(k_shift, x.shape)
    first, stats = _features(candidate, weights, x)
    second, _ = _features(candidate, weights, moved)
    change = jnp.sum(jnp.abs(first - second)) / len(x)
    deviations = [0.5 * jnp.log(var.mean(axis=-1)).sum() for var in _variances(stats)]
    return jnp.log(change) + sum(deviations)


def _features(candidate: Candidate, weights: list[Array], x: Array):
    """The last feature map f32[N, H, W, C], and the batch statistics after the pass."""
    _, after = candidate.run(x, weights, mutable=["batch_stats", "intermediates"])
    if "features" not in after.get("intermediates", {}):
        raise ValueError(
            f"zen needs the feature map before pooling, which {type(candidate.module).__name__} "
            "does not sow as `features`; see jaxnas.nn.probes"
        )
    return after["intermediates"]["features"][0], after["batch_stats"]


def _variances(stats) -> list[Array]:
    """Those that no operation has moved are ones, and their logarithm is 0."""
    leaves = jax.tree_util.tree_leaves_with_path(stats)
    return [leaf for path, leaf in leaves if path[-1].key == "var"]


def _normal_like(key: Array, weights: list[Array]) -> list[Array]:
    """Standard normal numbers of the same shapes; one draw, for each more is slow to compile."""
    ends = [0]
    for weight in weights:
        ends.append(ends[-1] + weight.size)
    flat = jax.random.normal(key, (ends[-1],))
    spans = zip(ends[:-1], ends[1:], weights, strict=True)
    return [flat[low:high].reshape(weight.shape) for low, high, weight in spans]
