"""Looking inside networks while they run, without changing them.

A probe is a context manager. While it is open, every layer of a kind does something besides its
work: it counts what it costs, lets its output be scaled, or says which rectifiers are on. What a
layer has to say lies in a collection of its own beside its parameters, so it is stacked, routed and
differentiated like them, inside cells as well. A supernet that does not keep a collection per layer
(one that runs functions instead of layers of `jaxnas.nn.layers`) has nothing to show: `collection`
refuses it.

Besides the probes there is the feature map before global pooling, which networks for images put
into Flax's collection `intermediates` under the name `features`.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxnas.nn.layers import BatchNorm, Conv, Dense, Relu

PyTree = Any

PRODUCTS = (Conv, Dense)  # layers with a kernel


class Probe(NamedTuple):
    """A kind of look inside.

    Attributes:
      name: of the collection.
      open: returns the context manager.
    """

    name: str
    open: Callable[[], AbstractContextManager]


def _at_calls(kinds: tuple[type[nn.Module], ...], act: Callable) -> AbstractContextManager:
    """Runs `act(module, run, *args)` in place of `run(*args)` for calls of modules of `kinds`."""

    def interceptor(call, args, kwargs, context):
        if context.method_name != "__call__" or not isinstance(context.module, kinds):
            return call(*args, **kwargs)
        return act(context.module, lambda *args: call(*args, **kwargs), *args)

    return nn.intercept_methods(interceptor)


def _gates() -> AbstractContextManager:
    def act(module, run, x):
        y = run(x)
        gate = module.variable("gates", "gate", jnp.zeros, (y.shape[0], y.shape[-1]))
        inner = (1,) * (y.ndim - 2)
        return y * (1.0 + gate.value.reshape(y.shape[0], *inner, y.shape[-1])).astype(y.dtype)

    return _at_calls(PRODUCTS, act)


def _patterns() -> AbstractContextManager:
    def act(module, run, x):
        num = x.shape[0]
        kernel = module.variable("patterns", "kernel", jnp.zeros, (num, num))
        if not module.is_initializing():
            signs = jnp.where(x > 0.0, 1.0, -1.0).reshape(num, -1)
            # Units that agree minus those that differ, and all of them: a single product.
            kernel.value = 0.5 * (signs @ signs.T + signs.shape[1])
        return run(x)

    return _at_calls((Relu,), act)


def _costs() -> AbstractContextManager:
    def act(module, run, *args):
        y = run(*args)
        cost = module.variable("costs", "cost", jnp.zeros, (3,))
        if not module.is_initializing():
            own = module.variables.get("params", {})
            size = sum(leaf.size for leaf in own.values())
            flops, norm = 0.0, jnp.zeros(())
            if isinstance(module, PRODUCTS):
                flops = math.prod(y.shape[1:-1]) * size
                norm = jnp.sqrt(jnp.sum(jnp.square(own["kernel"])))
            cost.value = jnp.stack([jnp.float32(size), jnp.float32(flops), norm])
        return y

    return _at_calls((*PRODUCTS, BatchNorm), act)


# Every product's output is multiplied by 1 plus `gate` f32[rows, channels], which is zeros.
GATES = Probe("gates", _gates)
# Every rectifier's `kernel` f32[rows, rows]: units that are on in both or in neither.
PATTERNS = Probe("patterns", _patterns)
# Every layer's `cost` f32[3]: parameters, multiply-adds and additions of biases per row of the
# batch, and the Euclidean norm of its kernel; zeros for layers that are not run.
COSTS = Probe("costs", _costs)


def without_norm() -> AbstractContextManager:
    """While it is open, batch normalisation returns its input."""
    return _at_calls((BatchNorm,), lambda module, run, x: x)


def collection(probe: Probe, module: Any, x: Array, choice: Array) -> PyTree:
    """The probe's collection for a batch, all zeros; nothing is compiled or run.

    Args:
      probe: one of `GATES`, `PATTERNS` and `COSTS`.
      module: a supernet, `__call__(x, choice, *, train)`.
      x: f32[rows, ...].
      choice: i32[D].

    Returns:
      A pytree of zeros, to be passed to `apply` among the variables while the probe is open.

    Raises:
      ValueError: if no layer of the module has the collection.

    Example:
      >>> from jaxnas.spaces import nasbench201
      >>> space = nasbench201(num_channels=2, num_cells=1, image_size=4)
      >>> module, arch = space.supernet(space.full_bucket), jnp.zeros(6, jnp.int32)
      >>> found = collection(GATES, module, jnp.zeros((5, 4, 4, 3)), arch)
      >>> found["head"]["gate"].shape
      (5, 10)
    """
    key = jax.random.key(0)
    with probe.open():
        shapes = jax.eval_shape(lambda x, c: module.init(key, x, c, train=False), x, choice)
    if probe.name not in shapes:
        raise ValueError(
            f"{type(module).__name__} runs none of the layers that the probe {probe.name!r} looks "
            "at; it must be made of layers of jaxnas.nn.layers"
        )
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[probe.name])
