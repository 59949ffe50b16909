"""What a score looks at: one untrained network and a batch; each pass over it is made once.

Networks are in training mode: batch normalisation uses the statistics of the batch at hand. Weights
are the kernels of convolutions and dense layers, in the supernet's own layout: those of operations
that the architecture does not choose are there too, with zero gradients.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas.nn import probes
from jaxnas.nn.probes import Probe
from jaxnas.training.data import Split, Task
from jaxnas.training.metrics import row_losses
from jaxnas.types import PyTree

Weights = list[Array]


class Proxy(NamedTuple):
    """A score of an untrained network; greater is better, NaN is no score.

    In two steps, because LAPACK inside a program of several devices can wait for itself for ever.

    Attributes:
      measure: `(candidate) -> Array`, on the network; one candidate after the other.
      finish: `(array) -> f32[]`, the score out of what was measured.
    """

    measure: Callable[["Candidate"], Array]
    finish: Callable[[Array], Array] = lambda measured: measured


class Candidate:
    """An architecture with initial variables and a batch.

    Cached passes hold tracers: read them in the trace that the candidate was made in, not for the
    first time inside a nested `scan` or `cond`.

    Args:
      module: the supernet, `__call__(x, choice, *, train)`.
      variables: Flax variables of the supernet.
      arch: i32[D].
      batch: rows; classes i32[N] or regression targets f32[N, T].
      key: PRNG key, for scores that draw numbers, and for dropout.
    """

    def __init__(self, module: Any, variables: PyTree, arch: Array, batch: Split, key: Array):
        # The published scores count the layers of edges that lead nowhere.
        whole = hasattr(module, "run_all_edges")
        self.module = module.clone(run_all_edges=True) if whole else module
        self.arch = arch
        self.batch = batch
        self.key = key
        self.rest = {name: tree for name, tree in variables.items() if name != "params"}
        self.params = params = variables["params"]
        self._leaves, self._tree = jax.tree.flatten(params)
        self._is_weight = [leaf.ndim > 1 for leaf in self._leaves]
        if hasattr(module, "weights"):
            self._is_weight = jax.tree.leaves(module.weights(params))

    @property
    def weights(self) -> Weights:
        """The initial kernels; those of layers of one shape may be stacked."""
        return [leaf for leaf, on in zip(self._leaves, self._is_weight, strict=True) if on]

    def run(
        self,
        x: Array,
        weights: Weights | None = None,
        *,
        others: Callable[[Array], Array] = lambda leaf: leaf,
        extra: PyTree | None = None,
        mutable: Sequence[str] = (),
    ) -> tuple[Array, PyTree]:
        """Runs the network.

        Args:
          x: f32[N, ...].
          weights: in place of the initial ones.
          others: what becomes of the parameters that are not weights.
          extra: collections beside the usual ones.
          mutable: collections that may change. Static.

        Returns:
          Logits or predictions f32[N, outputs], and the collections in `mutable` after the call.
        """
        own = iter(self.weights if weights is None else weights)
        pairs = zip(self._leaves, self._is_weight, strict=True)
        leaves = [next(own) if on else others(leaf) for leaf, on in pairs]
        variables = {"params": jax.tree.unflatten(self._tree, leaves), **self.rest, **(extra or {})}
        rngs = {"dropout": self.key}
        return self.module.apply(
            variables, x, self.arch, train=True, rngs=rngs, mutable=list(mutable)
        )

    def loss(self, weights: Weights | None = None, extra: PyTree | None = None) -> Array:
        """Mean cross-entropy, or mean squared error of a regression: f32[]."""
        outputs, _ = self.run(self.batch.x, weights, extra=extra)
        classes = jnp.issubdtype(self.batch.y.dtype, jnp.integer)
        task = Task("classification" if classes else "regression", outputs.shape[-1])
        return jnp.mean(row_losses(task, outputs, self.batch.y))

    def blank(self, probe: Probe, x: Array) -> PyTree:
        """The probe's collection for `x`, zeros; see `jaxnas.nn.probes`."""
        return probes.collection(probe, self.module, x, self.arch)

    def observe(self, probe: Probe, x: Array) -> PyTree:
        """What the probe finds in a forward pass of `x`."""
        blank = self.blank(probe, x)
        with probe.open():
            _, found = self.run(x, extra={probe.name: blank}, mutable=[probe.name])
        return found[probe.name]

    @property
    def num_outputs(self) -> int:
        """Logits or predictions per row."""
        return jax.eval_shape(lambda: self.run(self.batch.x)[0]).shape[-1]

    @cached_property
    def gradients(self) -> Weights:
        """Of the loss with respect to the weights."""
        return jax.grad(self.loss)(self.weights)

    @cached_property
    def correlations(self) -> Array:
        """Between rows, of the gradient of the sum of their outputs by their input: f32[N, N].

        NaN where a row's gradient does not vary, as where there is no path from input to output.
        """
        x = self.batch.x
        gradients = jax.grad(lambda x: jnp.sum(self.run(x)[0]))(x).reshape(len(x), -1)
        centred = gradients - gradients.mean(axis=1, keepdims=True)
        unit = centred / jnp.linalg.norm(centred, axis=1, keepdims=True)
        return unit @ unit.T

    @cached_property
    def costs(self) -> Array:
        """Parameters, FLOPs per row and the sum of the layers' kernel norms: f32[3]."""
        return summed(self.observe(probes.COSTS, self.batch.x[:1]), (3,))


def total(terms: Weights) -> Array:
    """The sum over all elements of all arrays: f32[]."""
    return sum((jnp.sum(term) for term in terms), jnp.zeros(()))


def summed(found: PyTree, shape: tuple[int, ...]) -> Array:
    """The sum f32[shape] over the layers of a probe's collection, stacked ones included."""
    layers = [leaf.reshape(-1, *shape) for leaf in jax.tree.leaves(found)]
    return jnp.sum(jnp.concatenate(layers), axis=0)


def product_axes(kernel: Array) -> tuple[int, ...]:
    """The axes of one layer's kernel in an array that may hold a stack of them.

    A convolution's kernel has four axes and a dense layer's two, so three axes are a stack of dense
    kernels and more than four a stack of convolutions'.
    """
    return tuple(range(-4, 0)) if kernel.ndim >= 4 else (-2, -1)


def defined(score: Array, gradients: Weights) -> Array:
    """The score, or NaN if all gradients are zero, as without a path from input to output."""
    alive = jnp.any(jnp.stack([jnp.any(g != 0.0) for g in gradients]))
    return jnp.where(alive, score, jnp.nan)
