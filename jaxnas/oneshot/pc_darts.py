"""PC-DARTS: operations on a part of the channels, and weights of edges besides those of operations.

Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search", ICLR
2020, https://arxiv.org/abs/1907.05737. The partial connection (equation 2) is the supernet's, for
example `spaces.nasbench201(partial=4)`; edge normalisation (equation 3) is here. Hyperparameters
are those of the authors' code, https://github.com/yuhuixu1993/PC-DARTS: weights by SGD from 0.1 to
0 along a cosine, alpha by Adam, 6e-4, betas (0.5, 0.999), weight decay 1e-3, from 15 of 50 epochs
on.

An edge's strength times its operations' decides what is derived. In a problem that does not say to
which nodes its rows lead, every row has weight 1.
"""

from typing import Any

from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.optimizers import Adam, Sgd
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.relaxations import softmax, with_edge_weights
from jaxnas.types import OneShot


def pc_darts(problem: Problem, *, num_steps: int, **options: Any) -> OneShot:
    """Search with normalised edges, on a supernet with partial channels.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K] for operations and f32[R] for edges.

    Raises:
      ValueError: as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = pc_darts(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    relaxation = with_edge_weights(softmax(), problem.nodes or tuple(range(len(problem.rows))))
    recipe: dict[str, Any] = {
        "weight_optimizer": Sgd(learning_rate=0.1, final_learning_rate=0.0),
        "alpha_optimizer": Adam(learning_rate=6e-4),
        "begin": 0.3,
    }
    return bilevel(problem, Parts(relaxation), num_steps=num_steps, **(recipe | options))
