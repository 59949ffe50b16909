"""GraSP: how much the gradient's norm would change if weights were removed.

Wang, Zhang & Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR
2020, https://arxiv.org/abs/2002.07376, equation 8: -w * (H g) with the loss's gradient g and
Hessian H; summed over all weights by Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS",
ICLR 2021, https://arxiv.org/abs/2101.08134, equation 1. Deviations: the loss has temperature 1, as
in the second paper; NaN rather than 0 for a network without a gradient.
"""

import jax

from jaxnas.proxies.candidate import Candidate, Proxy, defined, total


def grasp() -> Proxy:
    """Minus the sum over weights of the weight times the Hessian's product with the gradient.

    The product is a forward derivative of the reverse pass, without the Hessian.

    Example:
      >>> isinstance(grasp(), Proxy)
      True
    """

    def measure(candidate: Candidate):
        weights, gradients = candidate.weights, candidate.gradients
        _, products = jax.jvp(jax.grad(candidate.loss), (weights,), (gradients,))
        terms = [w * p for w, p in zip(weights, products, strict=True)]
        return defined(-total(terms), gradients)

    return Proxy(measure)
