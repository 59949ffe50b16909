"""Fitness without training: zero-cost proxies of untrained networks.

Abdelfattah, Mehrotra, Dudziak & Lane, "Zero-Cost Proxies for Lightweight NAS", ICLR 2021,
https://arxiv.org/abs/2101.08134; see `jaxnas.proxies` for each score. Deviation: votes are taken
against a fixed sample of the space rather than among the candidates at hand, so that a fitness is
comparable from one step of a search to the next.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number, check_option
from jaxnas.proxies.frame import Proxies, resolve, score
from jaxnas.proxies.vote import PUBLISHED, shares_beaten
from jaxnas.space import SearchSpace, sample
from jaxnas.training.data import Split
from jaxnas.types import Evaluation, Evaluator, Proposal, split_like

VOTE = "vote"


class Reference(NamedTuple):
    """The state: what all evaluations of one search have in common; F proxies, R references."""

    seed: Array  # u32[...], of the initial weights: the data of a PRNG key
    scores: Array  # f32[F, R], of uniformly drawn architectures; R = 0 without a vote


def zero_cost(
    space: SearchSpace,
    batch: Split,
    *,
    proxies: Proxies = PUBLISHED,
    fitness: str = VOTE,
    num_references: int = 64,
    seconds: float | Array = 0.0,
) -> Evaluator:
    """Scores each proposed candidate without training it.

    Initial weights come from the key of `init` and are the same in all steps, so a candidate has
    one fitness in all of a search. Budgets have no meaning here.

    Args:
      space: with a supernet.
      batch: N rows, 64 in the papers; see `jaxnas.proxies.score`.
      proxies: names in `jaxnas.proxies.ALL`, or name to proxy.
      fitness: one of the proxies; or "vote", the mean over them of the share of `num_references`
        uniformly drawn architectures that a candidate beats: a sum of ranks.
      num_references: R, are scored once, by `init`. Static.
      seconds: what one candidate costs, in the clock of the search.

    Returns:
      A traceable `Evaluator`; metrics are the proxies' scores. NaN fitness marks a network that has
      not the score asked for, or none of those that vote, such as one without a path from input to
      output; a single missing score beats no reference.

    Raises:
      ValueError: for unknown names or numbers out of range.

    Example:
      >>> from jaxnas.spaces import mlp
      >>> space, batch = mlp(3, depths=(1, 2), widths=(4,)), Split(jnp.eye(6), jnp.arange(6) % 3)
      >>> evaluator = zero_cost(space, batch, proxies=["snip"], fitness="snip")
      >>> proposal = Proposal(jnp.zeros((2, space.num_decisions), jnp.int32), jnp.ones(2))
      >>> key = jax.random.key(0)
      >>> evaluation, _ = evaluator.evaluate(key, evaluator.init(key), proposal)
      >>> bool((evaluation.fitness == evaluation.metrics["snip"]).all())
      True
    """
    found = resolve(proxies)
    check_option("fitness", fitness, (VOTE, *found))
    check_count("num_references", num_references)
    check_number("seconds", seconds)

    def scores(seed: Array, arch: Array) -> dict[str, Array]:
        return score(jax.random.wrap_key_data(seed, impl="threefry2x32"), space, arch, batch, found)

    def init(key):
        k_draw, k_score = split_like(key, 2)
        seed = jax.random.key_data(k_score)[-2:]
        if fitness != VOTE:
            return Reference(seed, jnp.zeros((len(found), 0)))
        arch = jax.vmap(lambda k: sample(k, space))(split_like(k_draw, num_references))
        return Reference(seed, jnp.stack(list(scores(seed, arch).values())))

    def evaluate(key, state: Reference, proposal: Proposal):
        del key
        metrics = scores(state.seed, proposal.arch)
        value = _votes(state, metrics) if fitness == VOTE else metrics[fitness]
        cost = jnp.broadcast_to(jnp.asarray(seconds, jnp.float32), value.shape)
        return Evaluation(value, value[:, None], metrics, cost), state

    return Evaluator(init, evaluate, traceable=True)


def _votes(state: Reference, metrics: dict[str, Array]) -> Array:
    """The mean share of references beaten f32[B]; NaN where all scores are missing."""
    columns = jnp.stack(list(metrics.values()))
    each = jax.vmap(jax.vmap(shares_beaten, (0, None)))(columns, state.scores)
    return jnp.where(jnp.all(jnp.isnan(columns), axis=0), jnp.nan, jnp.mean(each, axis=0))
