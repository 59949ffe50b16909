"""P-DARTS: fewer operations and deeper networks, stage by stage.

Chen, Xie, Wu & Tian, "Progressive Differentiable Architecture Search: Bridging the Depth Gap
between Search and Evaluation", ICCV 2019, https://arxiv.org/abs/1904.12760: three stages with 8, 5
and 3 operations per edge (section 3.2), dropout on skip connections and at most two of them in the
end (section 3.3). As in the authors' code, https://github.com/chenxin061/pdarts: skips are dropped
with rates 0, 0.4 and 0.7, which decay by exp(-0.2) per epoch from the tenth of a stage's 25 on,
before which alpha stays as it is. Optimisers are those of DARTS, alpha's learning rate is 6e-4.

The stages' supernets of 5, 11 and 17 cells are three problems with the same rows. Make the method
for each, run a stage with each, and hand the state on with `deepen`; run on one problem, it goes
through the stages at one depth.

Deviations: a skip is dropped for a whole batch, not pixel by pixel. At one depth, weights and alpha
go on from stage to stage. The limit on skips counts all rows, not those of one cell.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count
from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.optimizers import Adam
from jaxnas.oneshot.parts import Parts, State
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.pruning import keep_strongest
from jaxnas.oneshot.relaxations import softmax, with_dropout
from jaxnas.types import OneShot


def p_darts(
    problem: Problem,
    *,
    num_steps: int,
    num_kept: tuple[int, int] = (5, 3),
    skip_rates: tuple[float, float, float] = (0.0, 0.4, 0.7),
    max_skips: int | None = 2,
    **options: Any,
) -> OneShot:
    """Progressive search in three stages.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      num_kept: operations per row after the first and the second stage. Static.
      skip_rates: chance at first in each stage that a skip connection is dropped, in [0, 1).
      max_skips: skip connections of the derived architecture; None: any number. Static.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: for fewer than three steps, and as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = p_darts(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    check_count("num_steps", num_steps, minimum=3)
    bounds = (num_steps // 3, 2 * num_steps // 3)
    rates = jnp.asarray(skip_rates)
    skips = problem.where("skip_connect")

    def stage(progress: Array) -> tuple[Array, Array]:
        """Which stage it is, and the epoch of its 25."""
        index = jnp.minimum((3.0 * progress).astype(jnp.int32), 2)
        return index, 25.0 * (3.0 * progress - index)

    def skip_rate(progress: Array) -> Array:
        index, epoch = stage(progress)
        return rates[index] * jnp.exp(-0.2 * jnp.maximum(epoch - 10.0, 0.0))

    parts = Parts(
        with_dropout(softmax(), skips, skip_rate),
        is_turn=lambda step: stage(step / num_steps)[1] >= 10.0,
        pruning=keep_strongest(bounds, num_kept),
    )
    recipe: dict[str, Any] = {"alpha_optimizer": Adam(learning_rate=6e-4)}
    method = bilevel(problem, parts, num_steps=num_steps, **(recipe | options))
    if max_skips is None:
        return method

    def derive(state: State) -> Array:
        return problem.derive(limited(state.strengths, jnp.asarray(skips), max_skips))

    return method._replace(derive=derive)


def limited(strengths: Array, where: Array, count: int) -> Array:
    """Strengths with some operations left in `count` rows only, those where they are strongest.

    Args:
      strengths: f32[R, K].
      where: bool[R, K], the operations.
      count: rows. Static.

    Returns:
      f32[R, K]; an operation that is left out has strength -1.

    Example:
      >>> strengths = jnp.array([[0.6, 0.4], [0.9, 0.1]])
      >>> limited(strengths, jnp.array([[True, False]] * 2), 1).tolist()
      [[-1.0, 0.4000000059604645], [0.8999999761581421, 0.10000000149011612]]
    """
    winning = jnp.argmax(strengths, axis=-1)
    wins = jnp.take_along_axis(where, winning[:, None], axis=-1)[:, 0]
    strongest = jnp.where(wins, jnp.max(strengths, axis=-1), -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-strongest))
    return jnp.where(where & (wins & (rank >= count))[:, None], -1.0, strengths)


def deepen(key: Array, method: OneShot, state: State) -> State:
    """The state in which a method for a deeper problem takes over.

    Args:
      key: PRNG key of the new weights and alpha.
      method: of the deeper problem, with the same rows and `num_steps`.
      state: of the shallower one, at the end of a stage.

    Returns:
      A new state with the operations that remain and the updates done.
    """
    fresh = method.init(key)
    kept = jnp.where(state.mask, fresh.strengths, 0.0)
    strengths = kept / jnp.sum(kept, axis=-1, keepdims=True)
    return fresh._replace(step=state.step, mask=state.mask, strengths=strengths)
