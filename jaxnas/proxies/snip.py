"""SNIP: how much the loss would change if weights were removed one by one, to first order.

Lee, Ajanthan & Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR
2019, https://arxiv.org/abs/1810.02340, equation 3; summed over all weights by Abdelfattah et al.,
"Zero-Cost Proxies for Lightweight NAS", ICLR 2021, https://arxiv.org/abs/2101.08134, equation 1:
sum |w dL/dw|. Deviations: the sensitivities are not divided by their sum, as in the second paper;
NaN rather than 0 for a network without a gradient.
"""

import jax.numpy as jnp

from jaxnas.proxies.candidate import Candidate, Proxy, defined, total


def snip() -> Proxy:
    """The sum over weights of |weight times its gradient|.

    Example:
      >>> isinstance(snip(), Proxy)
      True
    """

    def measure(candidate: Candidate):
        gradients = candidate.gradients
        pairs = zip(candidate.weights, gradients, strict=True)
        return defined(total([jnp.abs(w * g) for w, g in pairs]), gradients)

    return Proxy(measure)
