"""SynFlow: how much signal the weights let through, whatever the data.

Tanaka, Kunin, Yamins & Ganguli, "Pruning neural networks without any data by iteratively conserving
synaptic flow", NeurIPS 2020, https://arxiv.org/abs/2006.05467, equation 4: R is the sum of the
outputs for an input of ones, with |w| for the weights; the score of a weight is |w dR/dw|. Summed
over all weights by Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021,
https://arxiv.org/abs/2101.08134, whose code leaves out batch normalisation.

Deviations: the logarithm of the sum, which overflows in float32 and orders networks alike. R is
linear in the input and biases together, so both are scaled by 1e-15, as is the gradient that comes
back; with that, sums up to about 1e50 are exact. NaN where the sum is 0 or overflows for all that.
"""

import math

import jax
import jax.numpy as jnp

from jaxnas.nn import probes
from jaxnas.proxies.candidate import Candidate, Proxy, total

SCALE = 1e-15  # of the input and of the gradient


def synflow() -> Proxy:
    """The logarithm of the sum over weights of |w| dR/d|w|.

    Example:
      >>> isinstance(synflow(), Proxy)
      True
    """

    def measure(candidate: Candidate):
        x = jnp.full_like(candidate.batch.x[:1], SCALE)
        weights = [jnp.abs(w) for w in candidate.weights]

        def flow(weights):
            with probes.without_norm():
                outputs, _ = candidate.run(x, weights, others=lambda leaf: SCALE * jnp.abs(leaf))
            return SCALE * jnp.sum(outputs)

        gradients = jax.grad(flow)(weights)
        flows = total([w * g for w, g in zip(weights, gradients, strict=True)])
        return jnp.log(flows) - 2.0 * math.log(SCALE)

    return Proxy(measure)
