"""Multilayer perceptrons: the stand-alone network, and the supernet that holds many of them."""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnas import counter
from jaxnas.nn.activations import ACTIVATIONS
from jaxnas.nn.hidden import Control, hidden
from jaxnas.space import Bucket


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

    def weights(self, params: dict[str, Array]) -> dict[str, bool]:
        """Which parameters are weights rather than biases."""
        return {name: "bias" not in name for name in params}

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
        widths = [self._chosen(self._width_name(i), self.widths, choice) for i in range(deepest)]
        fan_ins = [features, *widths[:-1]]
        control = self._control_fn(choice, train)
        # All biases are one parameter: each one more is kernels to compile for its update.
        biases = self._uniform("biases", (deepest, capacity), jnp.asarray(fan_ins)[:, None])
        for layer, (width, fan_in) in enumerate(zip(widths, fan_ins, strict=True)):
            rows = features if layer == 0 else capacity
            kernel = self._uniform(f"hidden_{layer}", (rows, capacity), fan_in)
            active = None if layer < shallowest else jnp.asarray(depth > layer)
            own = control(layer, active, width)
            h = hidden(self.activations, own, h, kernel, biases[layer])
        fan_in = jnp.asarray(widths)[depth - 1]
        kernel = self._uniform("output", (capacity, self.num_outputs), fan_in)
        return h @ kernel + self._uniform("output_bias", (1, self.num_outputs), fan_in)[0]

    def _uniform(self, name: str, shape: tuple[int, int], fan_in: Array | float) -> Array:
        """The parameter `name`, at first U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)) by position."""
        if not self.is_initializing():
            # Reading directly skips the shape check of `param`, which would trace the draw again.
            return self.get_variable("params", name)
        seed = counter.fold(counter.module_seed(self, "params"), zlib.crc32(name.encode()))
        bound = jax.lax.rsqrt(jnp.asarray(fan_in, jnp.float32))
        return self.param(name, lambda _: (2.0 * counter.uniform(seed, shape) - 1.0) * bound)

    def _control_fn(self, choice: Array, train: bool):
        """`(layer, active, width) -> Control`; what all layers share is computed once."""
        index = choice[dict(self.positions)["activation"]]
        rate = seeds = None
        if train and any(rate > 0.0 for rate in self.dropouts):
            rate = jnp.asarray(self._chosen("dropout", self.dropouts, choice))
            # All layers' seeds in one kernel.
            own = partial(counter.fold, counter.module_seed(self, "dropout"))
            seeds = jax.vmap(own)(jnp.arange(self._depth_range()[1]))

        def control(layer, active, width):
            exact = isinstance(width, int) and width == self._capacity()
            columns = None if exact else jnp.asarray(width)
            return Control(index, active, columns, rate, None if seeds is None else seeds[layer])

        return control

    def extract(self, variables: dict, arch: np.ndarray) -> dict:
        """The variables of the stand-alone `MLP` of a concrete `arch` i32[D]."""
        positions = dict(self.positions)
        found = variables["params"]
        rows = found["hidden_0"].shape[0]
        params = {}
        for layer in range(self.depths[arch[positions["depth"]]]):
            columns = self.widths[arch[positions[self._width_name(layer)]]]
            kernel, bias = found[f"hidden_{layer}"], found["biases"][layer]
            params[f"hidden_{layer}"] = {"kernel": kernel[:rows, :columns], "bias": bias[:columns]}
            rows = columns
        params["output"] = {"kernel": found["output"][:rows], "bias": found["output_bias"][0]}
        return {"params": params}
