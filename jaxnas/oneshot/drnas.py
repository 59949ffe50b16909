"""DrNAS: weights drawn from Dirichlet distributions.

Chen, Wang, Cheng, Tang & Hsieh, "DrNAS: Dirichlet Neural Architecture Search", ICLR 2021,
https://arxiv.org/abs/2006.10355: weights of an edge from Dirichlet(ELU(alpha) + 1) with pathwise
gradients (section 3.1), held near the uniform one, and progressive pruning to the best operations
half-way (section 3.3). Hyperparameters are those of the authors' code,
https://github.com/xiangning-chen/DrNAS: alpha by Adam, 6e-4, betas (0.5, 0.999), with weight decay
1e-3 as the regulariser; for NAS-Bench-201 3e-4, without pruning or partial channels. In the DARTS
space they do without `none` (`exclude`), keep 4 of 7 operations (`num_kept`), start alpha at 10 of
25 epochs of each half, and use partial channels, an attribute of the supernet, of which one sixth
and then one quarter is used.

Deviation: one `begin` for the whole search rather than one for each half, and weights and alpha go
on after the pruning instead of starting anew.
"""

from typing import Any

from jax import Array

from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.optimizers import Adam
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.pruning import keep_strongest
from jaxnas.oneshot.regularisers import dirichlet_divergence
from jaxnas.oneshot.relaxations import dirichlet
from jaxnas.types import OneShot


def drnas(
    problem: Problem,
    *,
    num_steps: int,
    num_kept: int | None = None,
    divergence_weight: float | Array | None = None,
    **options: Any,
) -> OneShot:
    """Search by Dirichlet mixtures.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      num_kept: operations of each row that are kept half-way; None: all. Static.
      divergence_weight: of the divergence from the uniform distribution, 1e-3 in the paper, where
        it takes the place of weight decay; None: without.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = drnas(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    regulariser = None if divergence_weight is None else dirichlet_divergence(divergence_weight)
    pruning = None if num_kept is None else keep_strongest((num_steps // 2,), (num_kept,))
    parts = Parts(dirichlet(), regulariser=regulariser, pruning=pruning)
    recipe: dict[str, Any] = {"alpha_optimizer": Adam(learning_rate=6e-4)}
    return bilevel(problem, parts, num_steps=num_steps, **(recipe | options))
