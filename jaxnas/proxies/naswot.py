"""NASWOT: whether different rows switch different rectifiers on.

Mellor, Turner, Storkey & Crowley, "Neural Architecture Search without Training", ICML 2021,
https://arxiv.org/abs/2006.04647, equations 1 and 2: log |det K|, where K counts for two rows the
rectifiers that are on for both or for none, summed over all rectifiers of the network. NaN where K
is singular. Rectifiers on edges that lead nowhere count, as in the authors' code.
"""

import jax.numpy as jnp

from jaxnas.nn.probes import PATTERNS
from jaxnas.proxies.candidate import Candidate, Proxy, summed


def naswot() -> Proxy:
    """The logarithm of the determinant of the rows' agreement.

    Example:
      >>> round(float(naswot().finish(jnp.array([[4.0, 1.0], [1.0, 4.0]]))), 3)
      2.708
    """

    def measure(candidate: Candidate):
        x = candidate.batch.x
        return summed(candidate.observe(PATTERNS, x), (len(x), len(x)))

    return Proxy(measure, lambda kernel: jnp.linalg.slogdet(kernel)[1])
