"""The number of parameters: a baseline that a score has to beat to be of interest.

Ning et al., "Evaluating Efficient Performance Estimators of Neural Architectures", NeurIPS 2021,
https://arxiv.org/abs/2008.03064, find that few scores do. Counted as in the tables of
NAS-Bench-201, edges that lead nowhere included.
"""

from jaxnas.proxies.candidate import Proxy


def parameters() -> Proxy:
    """Trainable scalars of the layers that are run.

    Example:
      >>> isinstance(parameters(), Proxy)
      True
    """
    return Proxy(lambda candidate: candidate.costs[0])
