"""A hidden layer that an architecture may leave out, with a hand-written derivative.

Autodiff of `lax.cond` makes every residual an output of the conditional, so the kernel and the
input are copied on the way through, and zero-filled where the layer is left out. Here the residuals
are the layer's own input and output, which exist anyway: slopes follow from the output, and the
dropout mask is drawn again from its counter.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas import counter
from jaxnas.nn.activations import activate, has_slopes, slope


class Control(NamedTuple):
    """What an architecture says about a layer; a field that is None is off for all of them."""

    index: Array  # i32[], the activation
    active: Array | None  # bool[], whether the layer is there; None: always
    columns: Array | None  # i32[], units in use; None: all
    rate: Array | None  # f32[], dropout in [0, 1)
    seed: Array | None  # u32[2], of the dropout

    def mask(self, shape: tuple[int, ...]) -> Array | None:
        """f32[shape], what the outputs are multiplied by: 0 for dropped and unused units."""
        scale = None
        if self.rate is not None and self.seed is not None:
            keep = counter.uniform(self.seed, shape) >= self.rate
            scale = jnp.where(keep, 1.0 / (1.0 - self.rate), 0.0)
        if self.columns is not None:
            inside = (jnp.arange(shape[1]) < self.columns).astype(jnp.float32)
            scale = inside if scale is None else scale * inside
        return scale


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def hidden(names: tuple[str, ...], control: Control, h: Array, kernel: Array, bias: Array) -> Array:
    """`mask * activation(h @ kernel + bias)`, or `h` where the layer is left out.

    Args:
      names: activations, keys of `ACTIVATIONS`. Static.
      control: the architecture's choices; not differentiated.
      h: f32[N, rows].
      kernel: f32[rows, columns]; square where the layer may be left out.
      bias: f32[columns].

    Returns:
      f32[N, columns].
    """
    return _hidden(names, control, h, kernel, bias)


def _hidden(names, control, h, kernel, bias):
    def run(h, kernel, bias):
        y = activate(names, control.index, h @ kernel + bias)
        mask = control.mask(y.shape)
        return y if mask is None else y * mask

    return _if_active(control, run, lambda h, kernel, bias: h, h, kernel, bias)


def _if_active(control: Control, run, skip, *operands):
    if control.active is None:
        return run(*operands)
    return jax.lax.cond(control.active, run, skip, *operands)


def _forward(names, control, h, kernel, bias):
    # Not `hidden`, so that gradients can be differentiated in forward mode.
    out = _hidden(names, control, h, kernel, bias)
    return out, (control, h, kernel, bias, out)


def _backward(names, residuals, cotangent):
    control, h, kernel, bias, out = residuals

    def run(cotangent, h, kernel, bias, out):
        mask = control.mask(out.shape)
        masked = cotangent if mask is None else cotangent * mask
        if has_slopes(names):
            # Where the mask is 0 so is the masked cotangent, whatever slope stands beside it.
            y = out if control.rate is None else out * (1.0 - control.rate)
            inner = masked * slope(names, control.index, y)
        else:
            pullback = jax.vjp(partial(activate, names, control.index), h @ kernel + bias)[1]
            (inner,) = pullback(masked)
        return inner @ kernel.T, h.T @ inner, inner.sum(axis=0)

    def skip(cotangent, h, kernel, bias, out):
        return cotangent, jnp.zeros_like(kernel), jnp.zeros_like(bias)

    return None, *_if_active(control, run, skip, cotangent, h, kernel, bias, out)


hidden.defvjp(_forward, _backward)
