"""FairNAS: every step trains each operation of every row exactly once.

Chu, Zhang & Xu, "FairNAS: Rethinking Evaluation Fairness of Weight Sharing Neural Architecture
Search", ICCV 2021, https://arxiv.org/abs/1907.01845, Section 3.3 and Algorithm 1 (strict fairness):
a step draws a permutation of the operations per row; the m single-path models that take their i-th
elements are run one after the other on the same batch, their gradients are summed, and the weights
are updated once. Afterwards the paper searches with NSGA-II, that is
`jaxnas.strategies.nsga2` on `jaxnas.evaluators.shared_weights`. The recipe is the paper's: momentum
0.9, weight decay 4e-5, a cosine from 0.045 to 0.

Deviation: rows may have different numbers of operations. Those with fewer than the most go through
theirs again within a step, so that counts in a row differ by at most one.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnas import counter
from jaxnas.oneshot._shared import path_sampling
from jaxnas.oneshot.optimizers import Sgd
from jaxnas.oneshot.problem import Problem
from jaxnas.types import OneShot


def fair_nas(
    problem: Problem,
    *,
    num_steps: int,
    num_candidates: int = 100,
    learning_rate: float | Array = 0.045,
    min_learning_rate: float | Array = 0.0,
    momentum: float | Array = 0.9,
    nesterov: bool = False,
    weight_decay: float | Array = 4e-5,
    clip_norm: float | None = None,
) -> OneShot:
    """Strictly fair paths: as many per update as a row has operations.

    Args:
      problem: what to train; decisions must be the rows, all combinations of them allowed.
      num_steps: updates in a search, over which the learning rate falls. Static.
      num_candidates: updates of which `derive` takes the best path. Static.
      learning_rate: at first. May be traced, as the next ones.
      min_learning_rate: at the end of half a cosine wave.
      momentum: of gradient descent.
      nesterov: whether the momentum is Nesterov's. Static.
      weight_decay: of what `problem.decayed` names. May be traced.
      clip_norm: global gradient norm is cut to this; None: no clipping. Static.

    Returns:
      A `OneShot` with a `PathState`.

    Raises:
      ValueError: for a count below 1, or where decisions are not rows.
    """
    num_decisions = jax.eval_shape(problem.sample, jax.random.key(0)).shape[0]
    if num_decisions != len(problem.rows):
        raise ValueError(
            "problem must have one decision per row for paths to be fair, "
            f"got {num_decisions} decisions and {len(problem.rows)} rows"
        )
    sgd = Sgd(learning_rate, min_learning_rate, momentum, nesterov, weight_decay, clip_norm)
    optimizer = optax.chain(*sgd.make(num_steps, problem.decayed))
    return path_sampling(
        problem,
        optimizer,
        lambda key: fair_paths(key, problem.rows),
        num_steps=num_steps,
        num_candidates=num_candidates,
    )


def fair_paths(key: Array, rows: tuple[int, ...]) -> Array:
    """Paths that together take every operation of every row equally often.

    Args:
      key: PRNG key.
      rows: operations of each row. Static.

    Returns:
      i32[K, R], where K is the most operations of any row.

    Example:
      >>> paths = fair_paths(jax.random.key(0), (3, 3))
      >>> jnp.sort(paths, axis=0).tolist()
      [[0, 0], [1, 1], [2, 2]]
    """
    counts, most = jnp.asarray(rows)[:, None], max(rows)
    place = jnp.arange(most)
    drawn = counter.draw(key, len(rows) * most).reshape(len(rows), most)
    shuffled = jnp.argsort(jnp.where(place < counts, drawn, jnp.inf), axis=1)
    return jnp.take_along_axis(shuffled, place % counts, axis=1).T.astype(jnp.int32)
