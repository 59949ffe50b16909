"""Fisher: how much the loss would change if output channels were removed, to second order.

Theis, Korshunova, Tejani & Huszar, "Faster gaze prediction with dense networks and Fisher pruning",
2018, https://arxiv.org/abs/1801.05787, equation 7, per channel as in Turner et al., "BlockSwap",
ICLR 2020, https://arxiv.org/abs/1906.04113, equation 3: half the mean over rows of (sum over pixels
of a dL/da)^2 for a channel a of a layer's output. Abdelfattah et al., "Zero-Cost Proxies for
Lightweight NAS", ICLR 2021, https://arxiv.org/abs/2101.08134, sum it over all weights (their code
gives every weight the value of its output channel), L being the mean loss of the batch. A network
without a path from input to output has the little that its last layer's bias gives.
"""

import math

import jax
import jax.numpy as jnp

from jaxnas.nn.probes import GATES
from jaxnas.proxies.candidate import Candidate, Proxy, total


def fisher() -> Proxy:
    """The sum over weights of their output channel's Fisher information.

    Outputs are multiplied by gates of ones per row and channel; a gate's gradient is the sum over
    pixels of a dL/da.

    Example:
      >>> isinstance(fisher(), Proxy)
      True
    """

    def measure(candidate: Candidate):
        def loss(gates):
            with GATES.open():
                return candidate.loss(extra={GATES.name: gates})

        gradients = jax.grad(loss)(candidate.blank(GATES, candidate.batch.x))
        sizes = _weights_per_channel(candidate, gradients)
        leaves = jax.tree.leaves(gradients)
        terms = [
            0.5 * size * jnp.mean(jnp.square(g), axis=-2)
            for size, g in zip(sizes, leaves, strict=True)
        ]
        return total(terms)

    return Proxy(measure)


def _weights_per_channel(candidate: Candidate, gates) -> list[int]:
    """Of each leaf of `gates`, whose kernel has the same place among the parameters."""

    def size(path, gate):
        kernel = candidate.params
        for step in path[:-1]:
            kernel = kernel[step.key]
        stacked = gate.ndim - 2
        return math.prod(kernel["kernel"].shape[stacked:-1])

    return jax.tree.leaves(jax.tree_util.tree_map_with_path(size, gates))
