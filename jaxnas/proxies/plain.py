"""Plain: SNIP with signs, the first-order change of the loss if all weights shrank alike.

A baseline of the code of Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021,
https://arxiv.org/abs/2101.08134 (https://github.com/SamsungLabs/zero-cost-nas): sum w dL/dw.
Deviation: NaN rather than 0 for a network without a gradient. Published correlations on
NAS-Bench-201 are weakly negative; the sign is the definition's.
"""

from jaxnas.proxies.candidate import Candidate, Proxy, defined, total


def plain() -> Proxy:
    """The sum over weights of the weight times its gradient.

    Example:
      >>> isinstance(plain(), Proxy)
      True
    """

    def measure(candidate: Candidate):
        gradients = candidate.gradients
        products = [w * g for w, g in zip(candidate.weights, gradients, strict=True)]
        return defined(total(products), gradients)

    return Proxy(measure)
