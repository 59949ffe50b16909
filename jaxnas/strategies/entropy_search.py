"""Entropy search: a distribution over architectures is pulled towards its best samples.

One independent categorical distribution per decision; the loop:

1. draw B architectures from it;
2. weigh the last P candidates by their fitness;
3. fit the distribution to the weighted candidates, the fit of least cross-entropy, and move it a
   part of the way there.

Two ways to weigh:

- "elites": the cross-entropy method of Rubinstein & Kroese, "The Cross-Entropy Method", Springer
  2004; de Boer, Kroese, Mannor & Rubinstein, "A Tutorial on the Cross-Entropy Method", Annals of
  Operations Research 2005, https://doi.org/10.1007/s10479-005-5724-z: the best `elite_rate` of the
  candidates weigh the same, the others nothing; the step is the tutorial's smoothed updating.
- "relative_entropy": Peters, Muelling & Altun, "Relative Entropy Policy Search", AAAI 2010,
  https://doi.org/10.1609/aaai.v24i1.7727, without states: weights proportional to
  exp(fitness / temperature), at the temperature at which the weighted candidates carry exactly
  `information_gain` nats more than the unweighted ones (the bound of the paper's problem; where it
  binds, that temperature minimises the paper's dual function). The step is as greedy as the bound
  allows, whatever the unit of the fitness.

It is not the "entropy search" of Bayesian optimisation, which models the place of the optimum.

Deviations: the tutorial draws P candidates, updates and forgets them; here each batch of B updates,
and the P candidates are a sliding window, as in Szita & Lorincz, "Online Variants of the
Cross-Entropy Method", 2008, https://arxiv.org/abs/0801.1988 (P = B is the tutorial's loop). A
decision learns from the candidates in which it is active. The draws are from a mixture of the
distribution with the uniform one, so that no choice is lost for ever. `unseen_tries` more draws are
made to avoid a candidate of the window, since a fitness that is known teaches nothing.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number, check_option
from jaxnas.space import SearchSpace, canonical, first_valid, is_active, is_valid, sample
from jaxnas.strategies._memory import is_known, remember
from jaxnas.strategies._population import Population, empty
from jaxnas.strategies._q_values import choice_mask
from jaxnas.types import Proposal, Strategy, split_like

UPDATES = ("elites", "relative_entropy")
_HALVINGS = 40  # of an interval of 60 in log temperature: far below rounding


class EntropyState(NamedTuple):
    """The distribution and the candidates that it learns from."""

    probability: Array  # f32[D, K], rows sum to 1, 0 in places that are not choices
    window: Population  # the last P candidates


def elite_weights(fitness: Array, elite_rate: float | Array) -> Array:
    """Equal weights for the best share of the candidates.

    Args:
      fitness: f32[P], minus infinity for failed candidates, which are never elites.
      elite_rate: share of the successful candidates, rounded up; equals of the last one count too.

    Returns:
      f32[P] that sums to 1, or zeros where every candidate failed.

    Example:
      >>> elite_weights(jnp.array([0.1, 0.9, -jnp.inf, 0.7, 0.2]), 0.5).tolist()
      [0.0, 0.5, 0.0, 0.5, 0.0]
    """
    success = jnp.isfinite(fitness)
    num_elites = jnp.ceil(elite_rate * success.sum() - 1e-4).astype(jnp.int32)
    last = jnp.sort(fitness, descending=True)[jnp.maximum(num_elites, 1) - 1]
    elite = success & (fitness >= last)
    return elite / jnp.maximum(elite.sum(), 1)


def relative_entropy_weights(fitness: Array, information_gain: float | Array) -> Array:
    """Exponential weights that differ from equal ones by a given relative entropy.

    Args:
      fitness: f32[P], minus infinity for failed candidates, which weigh nothing.
      information_gain: KL(weights || equal weights of the successful candidates), nats. One that no
        temperature reaches gives all the weight to the best.

    Returns:
      f32[P] that sums to 1, or zeros where every candidate failed.

    Example:
      >>> weights = relative_entropy_weights(jnp.array([0.0, 1.0, -jnp.inf]), 0.2)
      >>> bool(weights[1] > 0.7), float(weights[2])
      (True, 0.0)
    """
    success = jnp.isfinite(fitness)
    best = jnp.max(fitness, where=success, initial=-jnp.inf)
    behind = jnp.where(success, best - fitness, 0.0)
    behind = behind / jnp.maximum(behind.max(), jnp.finfo(jnp.float32).tiny)

    def weigh(log_temperature):
        weight = jnp.where(success, jnp.exp(-behind * jnp.exp(-log_temperature)), 0.0)
        return weight / jnp.maximum(weight.sum(), 1.0)

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        weight = weigh(middle)
        log_weight = jnp.log(jnp.where(weight > 0, weight, 1.0))
        gain = jnp.sum(weight * log_weight) + jnp.log(jnp.maximum(success.sum(), 1))
        greedy = gain > information_gain  # so the temperature has to rise
        return jnp.where(greedy, middle, low), jnp.where(greedy, high, middle)

    limits = jnp.asarray(-30.0), jnp.asarray(30.0)
    return weigh(jax.lax.fori_loop(0, _HALVINGS, halve, limits)[1])


def fit(
    space: SearchSpace,
    probability: Array,
    arch: Array,
    weight: Array,
    smoothing: float | Array,
) -> Array:
    """Moves the distribution towards weighted architectures.

    Args:
      space: the space.
      probability: f32[D, K].
      arch: i32[P, D], canonical.
      weight: f32[P], not negative.
      smoothing: how far to go, from 0, nowhere, to 1, to the weighted frequencies.

    Returns:
      f32[D, K]. Decisions that are active in no architecture of positive weight keep their row.
    """
    active = jax.vmap(lambda row: is_active(space, row))(arch)
    share = active * weight[:, None]
    chosen = arch[:, :, None] == jnp.arange(probability.shape[1])
    total = share.sum(axis=0)[:, None]
    frequency = jnp.einsum("pd,pdk->dk", share, chosen.astype(share.dtype))
    frequency = frequency / jnp.where(total > 0, total, 1.0)
    moved = probability + smoothing * (frequency - probability)
    return jnp.where(total > 0, moved, probability)


def _propose(
    space: SearchSpace, probability: Array, window: Population, num_tries: int, key: Array
) -> Array:
    """The first of some draws that is not in the window, or else the first.

    Args:
      space: the space.
      probability: f32[D, K].
      window: the candidates to avoid.
      num_tries: draws, each repeated until it is valid. Static.
      key: PRNG key.

    Returns:
      i32[D], a uniform draw where the distribution has no valid one.
    """
    log_p = jnp.log(probability)

    def draw(k):
        # The maximum of log-probabilities plus Gumbel noise is a draw from the distribution.
        choice = jnp.argmax(log_p + jax.random.gumbel(k, log_p.shape), axis=-1)
        return canonical(space, choice)

    k_tries, k_sample = jax.random.split(key)
    drawn = jax.vmap(lambda k: first_valid(space, k, draw))(split_like(k_tries, num_tries))
    arch = drawn[jnp.argmin(is_known(window, drawn))]
    return jnp.where(is_valid(space, arch), arch, sample(k_sample, space))


def entropy_search(
    space: SearchSpace,
    *,
    batch_size: int = 16,
    population_size: int = 64,
    update: str = "elites",
    elite_rate: float | Array = 0.1,
    information_gain: float | Array = 1.5,
    smoothing: float | Array = 0.6,
    exploration_rate: float | Array = 0.1,
    unseen_tries: int = 8,
) -> Strategy:
    """Cross-entropy method, or relative entropy policy search, over the decisions.

    Failed candidates teach nothing. The tutorial's own loop is `population_size=batch_size` with
    `smoothing` 0.7, `exploration_rate=0` and `unseen_tries=0`; it wants thousands of candidates.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      population_size: the last P >= B candidates, from which each update learns. Static.
      update: "elites" or "relative_entropy". Static.
      elite_rate: share of the candidates that are elites, in [0, 1]; at least one is. May be
        traced.
      information_gain: nats by which the weights of "relative_entropy" may differ from equal ones;
        -log(elite_rate) compares with "elites". May be traced.
      smoothing: share of the way to the weighted candidates that one batch goes, in [0, 1]. May be
        traced.
      exploration_rate: share of the uniform distribution in what is drawn from, in [0, 1]. May be
        traced.
      unseen_tries: further draws to replace one that is in the window. Static.

    Returns:
      A `Strategy` whose state is the distribution f32[D, K] and the last P candidates.

    Raises:
      ValueError: for a size or a number out of range, an unknown update, or a population smaller
        than a batch.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = entropy_search(tiny_space(), batch_size=4)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_count("population_size", population_size)
    check_option("update", update, UPDATES)
    check_number("elite_rate", elite_rate, high=1.0)
    check_number("information_gain", information_gain)
    check_number("smoothing", smoothing, high=1.0)
    check_number("exploration_rate", exploration_rate, high=1.0)
    check_count("unseen_tries", unseen_tries, minimum=0)
    if population_size < batch_size:
        raise ValueError(
            f"population_size must be at least batch_size = {batch_size}, got {population_size}"
        )

    mask = choice_mask(space)
    uniform = (mask / mask.sum(axis=1, keepdims=True)).astype(jnp.float32)

    def init(key):
        del key
        return EntropyState(uniform, empty(space, population_size))

    def ask(key, state: EntropyState):
        mixture = state.probability + exploration_rate * (uniform - state.probability)
        propose = functools.partial(_propose, space, mixture, state.window, unseen_tries + 1)
        return Proposal(jax.vmap(propose)(split_like(key, batch_size)), jnp.ones(batch_size))

    def tell(key, state: EntropyState, proposal, evaluation):
        del key
        window = remember(state.window, proposal.arch, evaluation.fitness)
        if update == "elites":
            weight = elite_weights(window.fitness, elite_rate)
        else:
            weight = relative_entropy_weights(window.fitness, information_gain)
        moved = fit(space, state.probability, window.arch, weight, smoothing)
        return EntropyState(moved, window)

    return Strategy(init, ask, tell)
