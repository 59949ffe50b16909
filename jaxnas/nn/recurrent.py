"""The recurrent cell of DARTS and ENAS: one architecture's language model, and the supernet.

Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", 2019,
https://arxiv.org/abs/1806.09055, Section 3.1 and Appendix A; details from `rnn/model.py` and
`rnn/model_search.py` in https://github.com/quark0/darts. Pham et al., "Efficient Neural
Architecture Search via Parameter Sharing", 2018, https://arxiv.org/abs/1802.03268, Section 2.1,
for the cell with one input per node and the average of nodes that no other reads.

From the input x and the last output h, node 0 is `h + sigmoid(c) * (tanh(f) - h)`, where c and f
are the halves of `[x, h] @ W`. Each further node i has an earlier node j as its input and is
`s_j + sigmoid(c) * (a(f) - s_j)`, where c and f are the halves of `s_j @ W_i` and a is its
activation: a highway layer. W_i belongs to the node: all inputs and activations share it. The
cell's output is the mean of the nodes from 1 on.

In the supernet, every node is the weighted sum of what it would be for each earlier node and each
activation, `none` being 0. DARTS then normalises every node by its batch without learned scale and
bias, in the search alone; `normalise` says whether, for supernet and stand-alone network alike.

Deviations: DARTS shares one set of running statistics among all nodes and moves it once per node
and step. Here every node has its own and moves once per call, by the statistics averaged over the
steps: they are those of the node when it is evaluated.

Nodes from 1 on count from 0 in tuples and decisions: node i reads one of `i + 1` earlier ones. In
the shape descriptions, `N` denotes those nodes, `A` activations, and others are those of
`jaxnas.nn.language_model`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from jaxnas.nn.activations import ACTIVATIONS, activate
from jaxnas.nn.language_model import LanguageModel
from jaxnas.nn.norm import batch_norm, normalise

NONE = "none"
OUTPUTS = ("all", "loose")
_MOMENTUM = 0.9  # share of the running statistics that a call keeps

# `(i, nodes 0 to i, f32[B, U] each, product)` to node i + 1, f32[B, U]; `product(i, s)` is what the
# node's kernel makes of states f32[..., U], f32[..., 2U].
NodeFn = Callable[[int, Sequence[Array], Callable[[int, Array], Array]], Array]


class _Kernels(NamedTuple):
    inputs: Array  # f32[U, 2U]
    hidden: Array  # f32[U, 2U]
    nodes: Array  # f32[N, U, 2U]


class _Statistics(NamedTuple):
    """Of every node, node 0 included."""

    mean: Array  # f32[N + 1, U]
    var: Array  # f32[N + 1, U], of the biased estimate while a call gathers it


class _Recurrent(LanguageModel):
    """What the networks share.

    Attributes:
      normalise: whether every node is normalised, see the module.
    """

    normalise: bool = False

    def _recur(self, x: Array, node_fn: NodeFn, share: Array | np.ndarray, *, train: bool) -> Array:
        """Logits f32[B, T, V] of x i32[B, T]; `share` f32[N] weighs the nodes in the output."""
        num_nodes, units = len(share), self.num_units
        kernels = _Kernels(
            self._uniform("input_kernel", (units, 2 * units)),
            self._uniform("hidden_kernel", (units, 2 * units)),
            self._uniform("node_kernels", (num_nodes, units, 2 * units)),
        )
        running = self._running(num_nodes + 1) if self.normalise else None
        used = None if running is None or train else running

        def recur(inputs, states, mask):
            def product(i, s):
                return (s * mask) @ kernels.nodes[i]

            def step(h, projected):
                state = highway(h, projected + (h * mask) @ kernels.hidden, jnp.tanh)
                nodes, seen = [], []
                for i in range(num_nodes + 1):
                    if i > 0:
                        state = node_fn(i - 1, nodes, product)
                    if running is not None:
                        state, found = _normalised(state, i, used)
                        seen += found
                    nodes.append(state)
                h = jnp.tensordot(jnp.asarray(share), jnp.stack(nodes[1:]), 1)
                return h, (h, _stacked(seen))

            h, (outputs, seen) = lax.scan(step, states[0], inputs @ kernels.inputs)
            if seen is not None:
                self._update(seen, inputs.shape[1])
            return outputs, h[None]

        return self._run(x, recur, train=train)

    def _running(self, num_states: int) -> _Statistics:
        shape = (num_states, self.num_units)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        return _Statistics(mean.value, self.variable("batch_stats", "var", jnp.ones, shape).value)

    def _update(self, seen: _Statistics, batch_size: int) -> None:
        """Moves the running statistics by those seen, f32[T, N + 1, U]."""
        if not self.is_mutable_collection("batch_stats") or self.is_initializing():
            return
        unbiased = seen.var * (batch_size / max(batch_size - 1, 1))
        for name, found in (("mean", seen.mean), ("var", unbiased)):
            old = self.get_variable("batch_stats", name)
            new = _MOMENTUM * old + (1.0 - _MOMENTUM) * found.mean(axis=0)
            self.put_variable("batch_stats", name, new)


def highway(s: Array, product: Array, fn: Callable[[Array], Array]) -> Array:
    """A gated step away from `s` f32[..., U]: `s + sigmoid(c) * (fn(f) - s)`.

    Args:
      s: f32[..., U].
      product: f32[..., 2U], c and f.
      fn: the activation of f.

    Returns:
      f32[..., U].

    Example:
      >>> highway(jnp.ones(1), jnp.array([0.0, 3.0]), lambda f: f).tolist()
      [2.0]
    """
    c, f = jnp.split(product, 2, axis=-1)
    return s + jax.nn.sigmoid(c) * (fn(f) - s)


def _normalised(s: Array, i: int, running: _Statistics | None) -> tuple[Array, list[_Statistics]]:
    """`s` f32[B, U] of node i normalised, and the statistics it was normalised by if its own."""
    if running is not None:
        return normalise(s, running.mean[i], running.var[i]), []
    y, mean, var = batch_norm(s, None, None)
    return y, [_Statistics(mean, var)]


def _stacked(seen: list[_Statistics]) -> _Statistics | None:
    return jax.tree.map(lambda *rows: jnp.stack(rows), *seen) if seen else None


def loose_nodes(sources: Sequence[int] | np.ndarray) -> np.ndarray:
    """Which nodes from 1 on are the input of no other: bool[N].

    Example:
      >>> loose_nodes((0, 1, 1)).tolist()
      [False, True, True]
    """
    read = np.asarray(sources)
    return ~np.isin(np.arange(1, len(read) + 1), read)


class RecurrentNetwork(_Recurrent):
    """The stand-alone language model of one architecture; nothing is masked.

    Attributes:
      sources: the input of each node, `sources[i]` in 0 to i.
      activations: a name in `jaxnas.nn.activations.ACTIVATIONS` for each.
      output: "all" nodes' mean, or that of the "loose" ones, which no other node reads.
    """

    sources: tuple[int, ...] = ()
    activations: tuple[str, ...] = ()
    output: str = "all"

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps symbols x i32[B, T] to logits f32[B, T, V] of the symbols that follow."""

        def node(i, nodes, product):
            source = nodes[self.sources[i]]
            return highway(source, product(i, source), ACTIVATIONS[self.activations[i]].fn)

        averaged = np.ones(len(self.sources), bool)
        if self.output == "loose":
            averaged = loose_nodes(self.sources)
        return self._recur(x, node, averaged / np.float32(averaged.sum()), train=train)


class RecurrentSupernet(_Recurrent):
    """Every cell of the space in one set of weights.

    Its parameters are those of the stand-alone network, whatever the architecture.

    Attributes:
      num_nodes: N.
      activations: the choices of every node, names in `jaxnas.nn.activations.ACTIVATIONS`.
      output: see `RecurrentNetwork`; cells can only be mixed with "all".
    """

    num_nodes: int = 8
    activations: tuple[str, ...] = ("tanh", "relu", "sigmoid", "identity")
    output: str = "all"

    @property
    def rows(self) -> tuple[int, ...]:
        """Operations of each row: a row is an edge into a node, sorted by node, then by input."""
        return tuple(len(names) for names in self.row_operations)

    @property
    def row_operations(self) -> tuple[tuple[str, ...], ...]:
        """Names of each row's operations: `none`, then the activations."""
        return ((NONE, *self.activations),) * len(self.nodes)

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node that each row leads to, from 1 on."""
        return tuple(i for i in range(1, self.num_nodes + 1) for _ in range(i))

    @nn.compact
    def __call__(self, x: Array, choice: Array, *, train: bool) -> Array:
        """Maps symbols x i32[B, T] to logits f32[B, T, V] of the symbols that follow.

        Args:
          x: i32[B, T].
          choice: i32[2N], an architecture: for each node its input and its activation, of which
            those alone are computed, the activation by a selection within one elementwise loop; or
            f32[R, 1 + A], weights of every operation on every edge, see `rows`.
          train: static; whether there is dropout, and nodes are normalised by their batch.
        """
        if self._routes(choice):
            return self._recur(x, self._routed(choice), self._share(choice), train=train)
        if self.output != "all":
            raise ValueError(f"only cells with output 'all' can be mixed, not {self.output!r}")
        share = np.full(self.num_nodes, 1.0 / self.num_nodes, np.float32)
        return self._recur(x, self._mixed(choice), share, train=train)

    def _routes(self, choice: Array) -> bool:
        """Whether `choice` is an architecture."""
        routes = bool(jnp.issubdtype(choice.dtype, jnp.integer))
        arch_shape, mix_shape = (2 * self.num_nodes,), (len(self.nodes), 1 + len(self.activations))
        if choice.shape != (arch_shape if routes else mix_shape):
            raise ValueError(
                f"choice must be integers of shape {arch_shape} or floats of shape {mix_shape}, "
                f"got {choice.dtype}{list(choice.shape)}"
            )
        return routes

    def _routed(self, choice: Array):
        def node(i, nodes, product):
            source = lax.dynamic_index_in_dim(jnp.stack(nodes), choice[2 * i], keepdims=False)
            fn = lambda f: activate(self.activations, choice[2 * i + 1], f)  # noqa: E731
            return highway(source, product(i, source), fn)

        return node

    def _share(self, choice: Array) -> Array:
        """The weight of each node in the mean, f32[N]."""
        averaged = jnp.ones(self.num_nodes, bool)
        if self.output == "loose":
            averaged = ~jnp.isin(jnp.arange(1, self.num_nodes + 1), choice[::2])
        return averaged / averaged.sum()

    def _mixed(self, choice: Array):
        def node(i, nodes, product):
            sources = jnp.stack(nodes)
            first = i * (i + 1) // 2
            weights = choice[first : first + i + 1, 1:, None, None]
            c, f = jnp.split(product(i, sources), 2, axis=-1)
            # The sum of s + sigmoid(c) (a(f) - s) over activations a, with what they share once.
            terms = [weights[:, k] * ACTIVATIONS[a].fn(f) for k, a in enumerate(self.activations)]
            kept = weights.sum(axis=1) * sources
            return jnp.sum(kept + jax.nn.sigmoid(c) * (sum(terms) - kept), axis=0)

        return node

    def derive(self, strengths: Array) -> Array:
        """The architecture of the strongest operations, by the rule of DARTS.

        Every node takes the input whose strongest activation is the strongest, and that activation;
        `none` is left out.

        Args:
          strengths: f32[R, 1 + A], see `rows`; softmax of alpha, for example.

        Returns:
          i32[2N].
        """
        arch = []
        for i in range(self.num_nodes):
            first = i * (i + 1) // 2
            best = jnp.argmax(strengths[first : first + i + 1, 1:])
            arch += jnp.divmod(best, len(self.activations))
        return jnp.stack(arch).astype(jnp.int32)

    def charged(self, arch: np.ndarray) -> np.ndarray:
        """The architecture whose exact network costs what `arch` costs here: itself."""
        return np.asarray(arch)

    def extract(self, variables: dict, arch: np.ndarray) -> dict:
        """The variables of the stand-alone network of a concrete `arch` i32[2N]: the same ones."""
        del arch
        return variables
