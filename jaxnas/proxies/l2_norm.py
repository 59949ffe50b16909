"""L2 norm: how large the initial weights are, which says how many layers there are and how wide.

A baseline of the code of Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021,
https://arxiv.org/abs/2101.08134 (https://github.com/SamsungLabs/zero-cost-nas): the sum over layers
of ||w||_2, w the kernels of convolutions and dense layers, those of edges that lead nowhere
included.
"""

from jaxnas.proxies.candidate import Proxy


def l2_norm() -> Proxy:
    """The sum over layers of the Euclidean norm of the kernel.

    Example:
      >>> isinstance(l2_norm(), Proxy)
      True
    """
    return Proxy(lambda candidate: candidate.costs[2])
