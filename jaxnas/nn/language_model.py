"""What language models share whatever recurs in them, and the model with an LSTM.

Symbols are embedded, a recurrent cell runs over them by `lax.scan`, and the embedding, transposed,
scores the next symbol (Press & Wolf 2017, https://arxiv.org/abs/1608.05859; Inan et al. 2017,
https://arxiv.org/abs/1611.01462). This is the frame that DARTS puts around its recurrent cells
(Liu et al., 2019, https://arxiv.org/abs/1806.09055, Appendix A.2 and A.3, and `rnn/model.py` in
https://github.com/quark0/darts), with the dropout of Merity et al. 2018
(https://arxiv.org/abs/1708.02182): masks are drawn once per call and kept over time.

Deviations: weights start from U(-1 / sqrt(units), 1 / sqrt(units)) instead of U(-0.04, 0.04): close
to it at the published 300 to 850 units, and usable at a tenth of that. DARTS has two dropouts in a
row on a cell's input; they are one here. Penalties on activations (Merity's AR and TAR) are left
out.

In the shape descriptions, `B` denotes sequences, `T` symbols of each, `U` units and `V` different
symbols.
"""

import zlib
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnas import counter

HIDDEN = "hidden"  # the collection of states that go from one window to the next

# Up to so many symbols, a product with one-hot rows is faster than a gather and its scatter.
_ONE_HOT_SYMBOLS = 512


class Dropout(NamedTuple):
    """Chances in [0, 1) with which training leaves things out.

    Attributes:
      words: a symbol's whole embedding, wherever it occurs.
      inputs: a unit of the cell's input, in all steps of a sequence.
      hidden: a unit of the states that go into products within the cell, likewise.
      outputs: a unit of the cell's output, likewise.
    """

    words: float = 0.0
    inputs: float = 0.0
    hidden: float = 0.0
    outputs: float = 0.0


# `(inputs f32[T, B, U], states f32[S, B, U], mask)` to outputs f32[T, B, U] and the last states;
# the mask f32[B, U], or 1 where there is none, is for states that enter products.
RecurFn = Callable[[Array, Array, Array | float], tuple[Array, Array]]


class LanguageModel(nn.Module):
    """Embedding, dropout, recurrent state and decoder; subclasses say what recurs.

    The state starts from zeros. Where the collection "hidden" is mutable, a call goes on from the
    state that it finds there, zeros if there is none, and leaves its own; where the collection is
    given but not mutable it is read only. `init` does not make it: batches may have any size.

    Attributes:
      num_symbols: V.
      num_units: U, of the embedding and of the recurrent states.
      dropout: see `Dropout`.
    """

    num_symbols: int
    num_units: int
    dropout: Dropout = Dropout()

    num_states: ClassVar[int] = 1

    def start(self, batch_size: int) -> dict[str, Array]:
        """The collection "hidden" before the first symbol: zeros."""
        return {"state": jnp.zeros((self.num_states, batch_size, self.num_units))}

    def weights(self, params: dict[str, Array]) -> dict:
        """Which parameters are weights rather than biases."""
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "bias", params)

    def _run(self, x: Array, recur_fn: RecurFn, *, train: bool) -> Array:
        """Maps symbols x i32[B, T] to logits f32[B, T, V] of the symbols that follow."""
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"x must be symbols, integers of shape [batch, time], got {x.dtype}{list(x.shape)}"
            )
        table = self._uniform("embedding", (self.num_symbols, self.num_units))
        bias = self.param("bias", lambda _: jnp.zeros(self.num_symbols))
        rates = self.dropout if train else Dropout()
        used = table * self._mask("words", rates.words, (self.num_symbols, 1))
        inputs = _embed(used, x) * self._mask("inputs", rates.inputs, (len(x), self.num_units))
        mask = self._mask("hidden", rates.hidden, (len(x), self.num_units))
        outputs, states = recur_fn(inputs, self._load(len(x)), mask)
        self._store(states)
        outputs = outputs * self._mask("outputs", rates.outputs, (len(x), self.num_units))
        return jnp.swapaxes(outputs @ table.T + bias, 0, 1)

    def _uniform(self, name: str, shape: tuple[int, ...]) -> Array:
        """The parameter `name`, at first U(-1 / sqrt(units), 1 / sqrt(units))."""
        return self.param(name, uniform_init(self.num_units), shape)

    def _mask(self, name: str, rate: float, shape: tuple[int, int]) -> Array | float:
        """Zeros with probability `rate`, and what keeps the mean elsewhere: f32[shape]."""
        if not rate:
            return 1.0
        seed = counter.fold(counter.module_seed(self, "dropout"), zlib.crc32(name.encode()))
        return counter.dropout(seed, rate, jnp.ones(shape), 1.0 / (1.0 - rate))

    def _load(self, batch_size: int) -> Array:
        if not self.has_variable(HIDDEN, "state"):
            return self.start(batch_size)["state"]
        states = self.get_variable(HIDDEN, "state")
        expected = (self.num_states, batch_size, self.num_units)
        if states.shape != expected:
            raise ValueError(
                f"the collection {HIDDEN!r} must have the shape of x's batch, {expected}, "
                f"got {states.shape}; start({batch_size}) makes a new one"
            )
        return states

    def _store(self, states: Array) -> None:
        if self.is_mutable_collection(HIDDEN) and not self.is_initializing():
            self.put_variable(HIDDEN, "state", states)


class LSTM(LanguageModel):
    """A language model with one layer of long short-term memory.

    The cell is Flax's, after Hochreiter & Schmidhuber 1997
    (https://doi.org/10.1162/neco.1997.9.8.1735) with Gers's forget gate.
    """

    num_states: ClassVar[int] = 2

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps symbols x i32[B, T] to logits f32[B, T, V] of the symbols that follow."""
        init = uniform_init(self.num_units)
        cell = nn.OptimizedLSTMCell(
            self.num_units, kernel_init=init, recurrent_kernel_init=init, name="cell"
        )

        def recur(inputs, states, mask):
            def step(cell, carry, row):
                memory, hidden = carry
                return cell((memory, hidden * mask), row)

            scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
            (memory, hidden), outputs = scan(cell, tuple(states), inputs)
            return outputs, jnp.stack([memory, hidden])

        return self._run(x, recur, train=train)

    @staticmethod
    def count(num_symbols: int, num_units: int) -> int:
        """Parameters of a model of these sizes.

        Example:
          >>> LSTM.count(num_symbols=65, num_units=128)
          139969
        """
        return num_symbols * (num_units + 1) + 4 * num_units * (2 * num_units + 1)


def uniform_init(fan_in: int) -> Callable[..., Array]:
    """An initialiser: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).

    Example:
      >>> drawn = uniform_init(4)(jax.random.key(0), (2, 100))
      >>> bool((abs(drawn) <= 0.5).all()), bool(abs(drawn).max() > 0.45)
      (True, True)
    """
    bound = np.float32(1.0 / np.sqrt(fan_in))

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        drawn = counter.uniform(counter.seed_from_key(key), shape)
        return ((2.0 * drawn - 1.0) * bound).astype(dtype)

    return init


def _embed(table: Array, x: Array) -> Array:
    """Rows of `table` f32[V, U], time first: f32[T, B, U]."""
    if len(table) <= _ONE_HOT_SYMBOLS:
        return jax.nn.one_hot(x.T, len(table)) @ table
    return table[x.T]
