"""Gradient norm: how large the loss's gradient is at initialisation.

The baseline of Abdelfattah, Mehrotra, Dudziak & Lane, "Zero-Cost Proxies for Lightweight NAS", ICLR
2021, https://arxiv.org/abs/2101.08134, Section 3.1: the sum over layers of ||dL/dw||_2, w the
kernels of convolutions and dense layers. Deviation: NaN rather than 0 for a network without a
gradient.
"""

import jax.numpy as jnp

from jaxnas.proxies.candidate import Candidate, Proxy, defined, product_axes, total


def grad_norm() -> Proxy:
    """The sum over layers of the Euclidean norm of the loss's gradient.

    Example:
      >>> isinstance(grad_norm(), Proxy)
      True
    """

    def measure(candidate: Candidate):
        gradients = candidate.gradients
        norms = [jnp.sqrt(jnp.sum(jnp.square(g), axis=product_axes(g))) for g in gradients]
        return defined(total(norms), gradients)

    return Proxy(measure)
