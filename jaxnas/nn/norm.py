"""Batch normalisation with a hand-written derivative.

The statistics are those of Ioffe and Szegedy 2015 (https://arxiv.org/abs/1502.03167, algorithm 1);
the derivative is the closed form of the chain rule through them: two sums and one elementwise
pass, where autodiff takes four of each. It keeps the input rather than the normalised input for the
backward pass, for the input is there anyway. The derivative is a linear operation of
`jaxnas.nn._linear`, so all orders exist in forward and reverse mode.

Deviation: the variance is a second pass over the input rather than E[x^2] - E[x]^2 in one, which
loses all digits where the mean is large against the deviation. XLA runs two sums as two passes
anyway.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnas.nn._linear import linear_op


def batch_norm(
    x: Array, scale: Array | None, bias: Array | None, *, epsilon: float | Array = 1e-5
) -> tuple[Array, Array, Array]:
    """Normalises every channel by the mean and variance of the batch.

    Args:
      x: f[..., C]; statistics are over all axes but the last, in float32 whatever its dtype.
      scale: f[C], multiplies the normalised input; None: ones.
      bias: f[C], is added; None: zeros.
      epsilon: is added to the variance; may be traced; not differentiated.

    Returns:
      y of x's shape and dtype; mean f32[C]; var f32[C], the biased variance. No gradient flows
      through the last two: they are for running averages.

    Raises:
      ValueError: if `x` has fewer than two axes, or `scale` or `bias` is not of shape [C].

    Example:
      >>> y, mean, var = batch_norm(jnp.array([[1.0], [3.0]]), None, None, epsilon=0.0)
      >>> y.ravel().tolist(), mean.tolist(), var.tolist()
      ([-1.0, 1.0], [2.0], [1.0])
    """
    _check(x, scale=scale, bias=bias)
    scale, bias = (v if v is None else v.astype(jnp.float32) for v in (scale, bias))
    y, mean, var = _batch_norm(x, scale, bias, jnp.asarray(epsilon, jnp.float32))
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


def normalise(
    x: Array,
    mean: Array,
    var: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    epsilon: float | Array = 1e-5,
) -> Array:
    """Normalises every channel by given statistics, as for inference.

    Args:
      x: f[..., C].
      mean: f32[C].
      var: f32[C].
      scale: f[C] or None: ones.
      bias: f[C] or None: zeros.
      epsilon: is added to the variance.

    Returns:
      Shape and dtype of `x`.

    Raises:
      ValueError: as `batch_norm`.

    Example:
      >>> one = jnp.ones(1)
      >>> normalise(jnp.array([[5.0]]), one, 4 * one, epsilon=0.0).item()
      2.0
    """
    _check(x, mean=mean, var=var, scale=scale, bias=bias)
    return _affine(x, mean, lax.rsqrt(var + epsilon), scale, bias)


def _check(x: Array, **channels: Array | None) -> None:
    if x.ndim < 2:
        raise ValueError(f"x must have at least two axes, got shape {x.shape}")
    for name, value in channels.items():
        if value is not None and value.shape != x.shape[-1:]:
            raise ValueError(f"{name} must have shape {x.shape[-1:]}, got {value.shape}")


def _affine(x: Array, mean: Array, rstd: Array, scale: Array | None, bias: Array | None) -> Array:
    factor = rstd if scale is None else rstd * scale
    # Subtracting first keeps the digits that a folded offset would lose for large means.
    y = (x.astype(jnp.float32) - mean) * factor
    return (y if bias is None else y + bias).astype(x.dtype)


def _channel_sum(x: Array) -> Array:
    return jnp.sum(x, tuple(range(x.ndim - 1)))


def _statistics(x: Array) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    count = x.size // x.shape[-1]
    # Counted from one of the values, a sum of many keeps its digits for large means.
    origin = lax.stop_gradient(x.reshape(-1, x.shape[-1])[0])
    mean = origin + _channel_sum(x - origin) / count
    return mean, _channel_sum(jnp.square(x - mean)) / count


@jax.custom_jvp
def _batch_norm(
    x: Array, scale: Array | None, bias: Array | None, epsilon: Array
) -> tuple[Array, Array, Array]:
    mean, var = _statistics(x)
    return _affine(x, mean, lax.rsqrt(var + epsilon), scale, bias), mean, var


@_batch_norm.defjvp
def _batch_norm_jvp(primals, tangents):
    x, scale, bias, epsilon = primals
    mean, var = _statistics(x)
    rstd = lax.rsqrt(var + epsilon)
    y = _affine(x, mean, rstd, scale, bias)
    residuals = (x, mean, rstd) if scale is None else (x, mean, rstd, scale)
    moving = [t for t in tangents[:3] if t is not None]
    (moved,) = _tangent(residuals, moving, scaled=scale is not None, shifted=bias is not None)
    # The statistics' own tangents are never asked for: `batch_norm` stops them.
    return (y, mean, var), (moved, jnp.zeros_like(mean), jnp.zeros_like(var))


def _unpack(
    residuals: tuple[Array, ...], moving: Array
) -> tuple[Array, Array, Array, Array, float]:
    """`moving` and the centred input in float32, 1 / deviation, its scaled self, 1 / pixels."""
    x, mean, rstd = residuals[:3]
    factor = rstd * residuals[3] if len(residuals) > 3 else rstd
    centred = x.astype(jnp.float32) - mean
    return moving.astype(jnp.float32), centred, rstd, factor, x.shape[-1] / x.size


def _tangent_apply(residuals, operands, *, scaled: bool, shifted: bool):
    moving, centred, rstd, factor, share = _unpack(residuals, operands[0])
    slope = _channel_sum(moving * centred) * (rstd * rstd * share)
    moved = factor * (moving - _channel_sum(moving) * share - centred * slope)
    if scaled:
        moved += centred * (rstd * operands[1])
    if shifted:
        moved += operands[-1]
    return (moved.astype(residuals[0].dtype),)


def _tangent_transpose(residuals, operands, *, scaled: bool, shifted: bool):
    dy, centred, rstd, factor, share = _unpack(residuals, operands[0])
    total, weighted = _channel_sum(dy), _channel_sum(dy * centred) * rstd
    dx = factor * (dy - total * share - centred * (rstd * weighted * share))
    dx = dx.astype(residuals[0].dtype)
    return (dx, *([weighted] if scaled else []), *([total] if shifted else []))


_tangent = linear_op("batch_norm_tangent", _tangent_apply, _tangent_transpose)
