"""ProxylessNAS: weights are trained on one drawn path, alpha on two, with latency in the loss.

Cai, Zhu & Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR
2019, https://arxiv.org/abs/1812.00332: binary gates (equations 2 and 3) whose gradient stands for
that of the probabilities (equation 4), two paths per update of alpha, after which the other paths'
probabilities are what they were (section 3.2.1), and the expected latency (equations 5 and 6).
Details are those of the authors' code, https://github.com/mit-han-lab/proxylessnas: alpha by Adam,
1e-3, betas (0, 0.999), every fifth update, from 40 of 120 epochs on; the latency term
`weight * (expected - reference) / reference`.

Deviation: in an update of alpha, paths that are not drawn are multiplied by 0 rather than left out,
so those updates, one in five, need the memory of all paths.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxnas.nn.mixed import Gated
from jaxnas.oneshot.bilevel import bilevel
from jaxnas.oneshot.optimizers import Adam, Sgd
from jaxnas.oneshot.parts import Parts
from jaxnas.oneshot.problem import Problem
from jaxnas.oneshot.regularisers import checked_costs, relative_cost
from jaxnas.oneshot.relaxations import Context, Relaxation, init_logits, masked_softmax
from jaxnas.types import OneShot, split_like


def proxyless(
    problem: Problem,
    *,
    num_steps: int,
    costs: ArrayLike | None = None,
    cost_weight: float | Array = 0.1,
    reference_cost: float | Array = 1.0,
    **options: Any,
) -> OneShot:
    """Search by binary gates.

    Args:
      problem: what is trained.
      num_steps: updates of the whole search. Static.
      costs: f32[R, K], what each operation costs, 0 in empty places; None: costs do not matter.
      cost_weight: of the latency term, at least 0.
      reference_cost: the sum of costs aimed at, above 0.
      **options: of `jaxnas.oneshot.bilevel.bilevel`, in place of the above.

    Returns:
      A `OneShot`; alpha is f32[R, K].

    Raises:
      ValueError: for costs of another shape, and as `bilevel`.

    Example:
      >>> import jax
      >>> from jaxnas.testing import tiny_problem
      >>> method = proxyless(tiny_problem(), num_steps=10)
      >>> method.derive(method.init(jax.random.key(0))).shape
      (3,)
    """
    regulariser = None
    if costs is not None:
        table = checked_costs(problem, costs)
        regulariser = relative_cost(
            table, reference_cost, weight=cost_weight, strengths=masked_softmax
        )
    relaxation = Relaxation(init_logits, two_paths, masked_softmax)
    parts = Parts(relaxation, lower_choose=one_path, regulariser=regulariser, settle=keep_others)
    recipe: dict[str, Any] = {
        "weight_optimizer": Sgd(final_learning_rate=0.0),
        "alpha_optimizer": Adam(learning_rate=1e-3, b1=0.0, weight_decay=0.0),
        "begin": 1 / 3,
        "period": 5,
    }
    return bilevel(problem, parts, num_steps=num_steps, **(recipe | options))


def one_path(key: Array, alpha: Array, context: Context) -> Gated:
    """An operation per row, drawn from the softmax of logits f32[R, K]."""
    logits = jnp.where(context.mask, alpha, -jnp.inf)
    op = jax.random.categorical(key, logits).astype(jnp.int32)
    return Gated(op, jnp.ones(op.shape), jnp.zeros(op.shape))


def two_paths(key: Array, alpha: Array, context: Context) -> Array:
    """One-hot weights f32[R, K] with the gradient of a softmax over two drawn operations."""
    k_pair, k_one = split_like(key, 2)
    logits = jnp.where(context.mask, alpha, -jnp.inf)
    # The two largest of noisy logits are a draw without replacement.
    noisy = logits + jax.random.gumbel(k_pair, alpha.shape)
    rank = jnp.argsort(jnp.argsort(-noisy, axis=-1), axis=-1)
    pair = context.mask & (rank < 2)
    weights = masked_softmax(alpha, pair)
    active = jax.random.categorical(k_one, jnp.where(pair, alpha, -jnp.inf))
    gates = jax.nn.one_hot(active, alpha.shape[-1])
    return gates + weights - jax.lax.stop_gradient(weights)


def keep_others(alpha: Array, after: Array) -> Array:
    """Shifts the logits that moved so that the others' probabilities stay.

    Example:
      >>> old, new = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.5, -0.3, 1.0]])
      >>> probabilities = jax.nn.softmax(keep_others(old, new))[0]
      >>> bool(jnp.isclose(probabilities[2], jax.nn.softmax(old)[0, 2]))
      True
    """
    moved = after != alpha

    def total(logits):
        inside = jnp.where(moved, logits, -jnp.inf)
        return jax.nn.logsumexp(inside, axis=-1, keepdims=True)

    shift = jnp.where(moved.any(axis=-1, keepdims=True), total(after) - total(alpha), 0.0)
    return jnp.where(moved, after - shift, after)
