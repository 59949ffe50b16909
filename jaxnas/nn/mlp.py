"""Multilayer perceptrons: the stand-alone network, and the supernet that holds many of them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnas.nn import counter
from jaxnas.nn.activations import ACTIVATIONS, activate
from jaxnas.space import Bucket


def _affine(h: Array, group: Array) -> Array:
    """H f32[n, rows] through weights and bias in one array f32[rows + 1, columns]."""
    return jnp.concatenate([h, jnp.ones((h.shape[0], 1), h.dtype)], axis=1) @ group


def _fan_in_uniform(fan_in: int):
    """An initialiser: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), for kernels and biases."""
    bound = 1.0 / np.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class MLP(nn.Module):
    """A perceptron with dropout after every activation.

    Attributes:
      widths: units of each hidden layer.
      num_outputs: outputs.
      activation: a name in `ACTIVATIONS`.
      dropout: rate in [0, 1).
    """

    widths: tuple[int, ...]
    num_outputs: int
    activation: str = "relu"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x f32[batch, ...features] to logits f32[batch, num_outputs]."""
        h = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.widths):
            h = self._dense(width, f"hidden_{layer}", h)
            h = ACTIVATIONS[self.activation].fn(h)
            if train and self.dropout > 0.0:
                seed = counter.fold(counter.module_seed(self, "dropout"), layer)
                h = counter.dropout(seed, self.dropout, h, 1.0 / (1.0 - self.dropout))
        return self._dense(self.num_outputs, "output", h)

    def _dense(self, features: int, name: str, h: Array) -> Array:
        init = _fan_in_uniform(h.shape[-1])
        return nn.Dense(features, kernel_init=init, bias_init=init, name=name)(h)


class MLPSupernet(nn.Module):
    """Every perceptron of a bucket in one set of weights.

    Layers that only some depths of the bucket have run under `lax.cond`; where the bucket holds
    several widths, layers have the widest one's shape and masks cut them. Initial weights and
    dropout come from counters, so they are those of the exact network.

    Attributes:
      depths: number of hidden layers per choice of the depth decision.
      widths: units per choice of a width decision.
      activations: names per choice.
      dropouts: rates per choice.
      num_outputs: outputs.
      positions: decision name to position in the architecture vector. Width decisions are called
        `width` (one for all layers) or `width_1` to `width_L`.
      bucket: the choices to serve.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    activations: tuple[str, ...]
    dropouts: tuple[float, ...]
    num_outputs: int
    positions: tuple[tuple[str, int], ...]
    bucket: Bucket

    def _chosen(self, name: str, values: tuple, choice: Array) -> Array | float | int:
        """The value of a decision: a Python number where the bucket leaves one, else traced."""
        position = dict(self.positions)[name]
        if len(self.bucket[position]) == 1:
            return values[self.bucket[position][0]]
        return jnp.asarray(values)[choice[position]]

    def _width_name(self, layer: int) -> str:
        return "width" if "width" in dict(self.positions) else f"width_{layer + 1}"

    def _capacity(self) -> int:
        positions = dict(self.positions)
        names = [name for name in positions if name.startswith("width")]
        return max(self.widths[c] for name in names for c in self.bucket[positions[name]])

    def _depth_range(self) -> tuple[int, int]:
        served = [self.depths[c] for c in self.bucket[dict(self.positions)["depth"]]]
        return min(served), max(served)

    def active_groups(self, choice: Array) -> dict[str, Array]:
        """Which parameter groups `choice` i32[D] uses; groups not named are always used."""
        shallowest, deepest = self._depth_range()
        depth = self._chosen("depth", self.depths, choice)
        layers = range(shallowest, deepest)
        return {f"hidden_{layer}": jnp.asarray(depth > layer) for layer in layers}

    def weights(self, params: dict[str, Array]) -> dict[str, Array]:
        """Which parameters are weights rather than biases: bool of broadcastable shape."""
        return {
            name: jnp.arange(len(group))[:, None] < len(group) - 1 for name, group in params.items()
        }

    def charged(self, arch: np.ndarray) -> np.ndarray:
        """The architecture whose exact network costs what `arch` costs here: widths are padded."""
        arch = np.array(arch)
        for name, position in self.positions:
            if name.startswith("width"):
                arch[position] = max(self.bucket[position])
        return arch

    @nn.compact
    def __call__(self, x: Array, choice: Array, *, train: bool) -> Array:
        """Runs architecture `choice` i32[D] on x f32[batch, ...features]: f32[batch, outputs]."""
        h = x.reshape(x.shape[0], -1)
        features, capacity = h.shape[-1], self._capacity()
        shallowest, deepest = self._depth_range()
        depth = self._chosen("depth", self.depths, choice)
        # One key for all groups (each folds its own tag), for every draw costs compile time.
        init_seed = counter.module_seed(self, "params") if self.is_initializing() else None
        hidden_fn = self._hidden_fn(choice, train)
        fan_in: Any = features
        for layer in range(deepest):
            rows = features if layer == 0 else capacity
            width = self._chosen(self._width_name(layer), self.widths, choice)
            group = self._dense(init_seed, f"hidden_{layer}", layer, (rows, capacity), fan_in)

            hidden = partial(hidden_fn, layer, width)
            if layer < shallowest:
                h = hidden(h, group)
                fan_in = width
            else:
                h = jax.lax.cond(depth > layer, hidden, lambda h, group: h, h, group)
                fan_in = jnp.where(depth > layer, width, fan_in)
        group = self._dense(init_seed, "output", -1, (capacity, self.num_outputs), fan_in)
        return _affine(h, group)

    def _dense(self, init_seed, name: str, tag: int, shape: tuple[int, int], fan_in) -> Array:
        """Kernel rows and a bias row, U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)): f32[rows + 1, n].

        One array per layer halves the kernels that have to be compiled for its update.
        """

        def init(_):
            seed = counter.fold(init_seed, tag + 2)
            kernel = counter.uniform(seed, shape)
            bias = counter.uniform(counter.fold(seed, 0), (1, shape[1]))
            bound = jax.lax.rsqrt(jnp.asarray(fan_in, jnp.float32))
            return (2.0 * jnp.concatenate([kernel, bias]) - 1.0) * bound

        # Reading directly skips the shape check of `param`, which would trace the draw again.
        return (
            self.param(name, init) if init_seed is not None else self.get_variable("params", name)
        )

    def _hidden_fn(self, choice: Array, train: bool):
        """`(layer, width, h, group) -> h`, with what all layers share computed once."""
        index = choice[dict(self.positions)["activation"]]
        drops = train and any(rate > 0.0 for rate in self.dropouts)
        if drops:
            seed = counter.module_seed(self, "dropout")
            rate = self._chosen("dropout", self.dropouts, choice)
            scale = 1.0 / (1.0 - rate)

        def hidden(layer, width, h, group):
            h = activate(self.activations, index, _affine(h, group))
            if drops:
                h = counter.dropout(counter.fold(seed, layer), rate, h, scale)
            if not (isinstance(width, int) and width == h.shape[-1]):
                h = jnp.where(jnp.arange(h.shape[-1]) < width, h, 0.0)
            return h

        return hidden

    def extract(self, variables: dict, arch: np.ndarray) -> dict:
        """The variables of the stand-alone `MLP` of a concrete `arch` i32[D]."""
        positions = dict(self.positions)
        rows = variables["params"]["hidden_0"].shape[0] - 1
        params = {}
        for layer in range(self.depths[arch[positions["depth"]]]):
            columns = self.widths[arch[positions[self._width_name(layer)]]]
            params[f"hidden_{layer}"] = self._cut(variables, f"hidden_{layer}", rows, columns)
            rows = columns
        params["output"] = self._cut(variables, "output", rows, self.num_outputs)
        return {"params": params}

    @staticmethod
    def _cut(variables: dict, name: str, rows: int, columns: int) -> dict:
        group = variables["params"][name]
        return {"kernel": group[:rows, :columns], "bias": group[-1, :columns]}
