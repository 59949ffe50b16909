"""Scores beside what an evaluator measures, so that a run shows how far they could be trusted."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxnas.proxies.frame import Proxies, resolve, score
from jaxnas.proxies.population import scorer
from jaxnas.space import SearchSpace
from jaxnas.training.data import Split
from jaxnas.types import Evaluator, Proposal

PREFIX = "proxy_"  # of the metrics' names


def recorded(
    key: Array,
    space: SearchSpace,
    evaluator: Evaluator,
    batch: Split,
    proxies: Proxies | None = None,
) -> Evaluator:
    """An evaluator that scores every candidate, too, and adds the scores to its metrics.

    Fitness, objectives and cost stay as they are, so the search does as well. The time that scores
    take is not charged to candidates.

    Args:
      key: of the initial weights in which all candidates are scored.
      space: with a supernet.
      evaluator: measures the candidates.
      batch: rows to score on; see `jaxnas.proxies.score`.
      proxies: names in `jaxnas.proxies.ALL`, or name to proxy; None: all.

    Returns:
      An `Evaluator`, traceable if the given one is. Its metrics have `proxy_NAME` besides, greater
      is better, NaN where a network has no such score.

    Raises:
      ValueError: as `jaxnas.proxies.score`: now, rather than after candidates were paid for.

    Example:
      >>> from jaxnas.evaluators import from_function
      >>> from jaxnas.spaces import mlp
      >>> space, batch = mlp(3, depths=(1, 2), widths=(4,)), Split(jnp.eye(6), jnp.arange(6) % 3)
      >>> inner = from_function(lambda key, arch: arch.sum())
      >>> evaluator = recorded(jax.random.key(0), space, inner, batch, ["snip"])
      >>> proposal = Proposal(jnp.zeros((2, space.num_decisions), jnp.int32), jnp.ones(2))
      >>> sorted(evaluator.evaluate(jax.random.key(1), (), proposal)[0].metrics)
      ['fitness', 'proxy_snip']
    """
    found = resolve(proxies)
    arch = jax.ShapeDtypeStruct((1, space.num_decisions), jnp.int32)
    jax.eval_shape(lambda arch: score(key, space, arch, batch, found), arch)
    run = scorer(key, space, batch, found)

    def scores(arch: Array) -> Mapping[str, ArrayLike]:
        return score(key, space, arch, batch, found) if evaluator.traceable else run(arch)

    def evaluate(key, state, proposal: Proposal):
        evaluation, state = evaluator.evaluate(key, state, proposal)
        named = {PREFIX + name: jnp.asarray(v) for name, v in scores(proposal.arch).items()}
        return evaluation._replace(metrics={**evaluation.metrics, **named}), state

    return Evaluator(evaluator.init, evaluate, evaluator.traceable)
