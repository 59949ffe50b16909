"""The number of operations of a forward pass: a baseline that a score has to beat.

Ning et al., "Evaluating Efficient Performance Estimators of Neural Architectures", NeurIPS 2021,
https://arxiv.org/abs/2008.03064, find that few scores do. Counted as in the tables of
NAS-Bench-201: multiply-adds of convolutions and dense layers, plus one addition per output with a
bias, per row.
"""

from jaxnas.proxies.candidate import Proxy


def flops() -> Proxy:
    """Multiply-adds, and additions of biases, of the layers that are run.

    Example:
      >>> isinstance(flops(), Proxy)
      True
    """
    return Proxy(lambda candidate: candidate.costs[1])
