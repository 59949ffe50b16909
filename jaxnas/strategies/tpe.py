"""TPE: candidates drawn like good architectures, of which the one least like bad ones is next.

Bergstra, Bardenet, Bengio & Kegl, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011,
https://papers.nips.cc/paper/4443-algorithms-for-hyper-parameter-optimization, section 4: a
tree-structured Parzen estimator.

The loop:

1. the first `num_initial` architectures are uniform draws;
2. of the n evaluated ones the best `good_rate * n`, rounded up, are good, the others and all that
   failed are bad;
3. either group gives a distribution per decision: over K choices, each gets `prior_weight` plus the
   number of the group's members that made it, where the decision is active (section 4.2);
4. `num_candidates` architectures are drawn from the good distribution, decision by decision down
   the tree of conditions; the one with the largest good(x) / bad(x), over its active decisions, is
   proposed: it maximises the expected improvement on the boundary between the groups (equation 3).

Deviations: architectures are not proposed twice as long as the drawn candidates, or then a few
uniform draws, hold unseen ones; a batch is the B best of B * `num_candidates` drawn ones; only the
last `capacity` candidates are remembered; draws that break a rule of the space are repeated.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count, check_number
from jaxnas.space import SearchSpace, canonical, first_valid, is_active, is_valid
from jaxnas.strategies._memory import occupied, remember
from jaxnas.strategies._population import Population, empty
from jaxnas.strategies._rounds import best_unseen, draw_unseen, draws
from jaxnas.types import Proposal, Strategy, split_like

NUM_SPARE = 16  # uniform draws per candidate of a batch, for when all others were seen


def tpe(
    space: SearchSpace,
    *,
    batch_size: int = 1,
    num_initial: int = 10,
    good_rate: float | Array = 0.15,
    num_candidates: int = 24,
    prior_weight: float | Array = 1.0,
    capacity: int = 1024,
) -> Strategy:
    """Tree-structured Parzen estimator: draws from a model of the good, ranks by good over bad.

    The module's docstring gives the exact loop.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_initial: uniform draws before the model decides, rounded up to whole batches. Static.
      good_rate: share of the evaluated architectures that are good, in [0, 1], one at least. May be
        traced.
      num_candidates: draws from the good distribution per proposed architecture. Static.
      prior_weight: what each choice counts before anything is seen, above 0. May be traced.
      capacity: candidates C >= B that are remembered. Static.

    Returns:
      A `Strategy` whose state holds the last C candidates.

    Raises:
      ValueError: for a size below 1, a rate outside [0, 1], a weight that is not positive or a
        capacity smaller than a batch.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = tpe(tiny_space(), batch_size=2, capacity=64)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (2, 3)
    """
    check_count("batch_size", batch_size)
    check_count("num_initial", num_initial)
    check_number("good_rate", good_rate, high=1.0)
    check_count("num_candidates", num_candidates)
    check_number("prior_weight", prior_weight, low=1e-3)
    check_count("capacity", capacity)
    if capacity < batch_size:
        raise ValueError(f"capacity must be at least batch_size = {batch_size}, got {capacity}")

    def init(key):
        del key
        return empty(space, capacity)

    def propose(key, state: Population) -> Array:
        k_draw, k_spare = jax.random.split(key)
        good, bad = densities(space, state, good_rate, prior_weight)
        keys = split_like(k_draw, batch_size * num_candidates)
        drawn = jax.vmap(lambda k: _draw(k, space, good))(keys)
        score = log_density(space, good, drawn) - log_density(space, bad, drawn)
        # Where all tries of a draw broke a rule of the space, its last one cannot be proposed.
        score = jnp.where(jax.vmap(lambda arch: is_valid(space, arch))(drawn), score, -jnp.inf)
        spare = draws(k_spare, space, NUM_SPARE * batch_size)
        pool = jnp.where(jnp.isfinite(score)[:, None], drawn, spare[0])
        scores = jnp.concatenate([score, jnp.full(len(spare), -jnp.inf)])
        return best_unseen(state, jnp.concatenate([pool, spare]), scores, batch_size)

    def ask(key, state: Population):
        arch = jax.lax.cond(
            state.count < num_initial,
            lambda: draw_unseen(key, space, state, batch_size),
            lambda: propose(key, state),
        )
        return Proposal(arch, jnp.ones(batch_size))

    def tell(key, state: Population, proposal, evaluation):
        del key
        return remember(state, proposal.arch, evaluation.fitness)

    return Strategy(init, ask, tell)


def densities(
    space: SearchSpace, memory: Population, good_rate: float | Array, prior_weight: float | Array
) -> tuple[Array, Array]:
    """Log-probabilities of the choices of every decision, among the good and among the bad.

    Args:
      space: the space.
      memory: what was evaluated.
      good_rate: share that is good.
      prior_weight: of each choice.

    Returns:
      Two f32[D, K] with K the largest number of choices; minus infinity where there is no choice.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> memory = empty(tiny_space(), 4)
      >>> memory = remember(memory, jnp.array([[2, 0, 0], [0, 0, 0]]), jnp.array([0.9, 0.1]))
      >>> good, bad = densities(tiny_space(), memory, good_rate=0.5, prior_weight=1.0)
      >>> print(jnp.exp(good[0]), jnp.exp(bad[0]))
      [0.25 0.25 0.5  0.  ] [0.5  0.25 0.25 0.  ]
    """
    there = occupied(memory)
    # The slack keeps products such as 0.15 * 20 from being rounded up to the next number.
    num_good = jnp.ceil(good_rate * memory.num_members - 1e-4)
    first_best = jnp.argsort(-memory.fitness)
    rank = jnp.zeros_like(first_best).at[first_best].set(jnp.arange(first_best.size))
    good = jnp.isfinite(memory.fitness) & (rank < jnp.maximum(num_good, 1))
    active = jax.vmap(lambda arch: is_active(space, arch))(memory.arch)
    made = jax.nn.one_hot(memory.arch, max(space.num_choices)) * active[..., None]
    exists = jnp.arange(max(space.num_choices)) < jnp.asarray(space.num_choices)[:, None]

    def density(group):
        count = jnp.einsum("c,cdk->dk", group.astype(jnp.float32), made)
        weight = jnp.where(exists, prior_weight + count, 0.0)
        return jnp.log(weight) - jnp.log(weight.sum(axis=1, keepdims=True))

    return density(good), density(there & ~good)


def log_density(space: SearchSpace, density: Array, arch: Array) -> Array:
    """Log-probability of the active decisions of architectures i32[N, D]: f32[N].

    Args:
      space: the space.
      density: f32[D, K], from `densities`.
      arch: i32[N, D].

    Returns:
      f32[N].
    """
    each = density[jnp.arange(space.num_decisions), arch]
    active = jax.vmap(lambda row: is_active(space, row))(arch)
    return jnp.sum(jnp.where(active, each, 0.0), axis=1)


def _draw(key: Array, space: SearchSpace, density: Array) -> Array:
    """One architecture i32[D] of a density f32[D, K], canonical."""

    def draw(k):
        gumbel = jax.random.gumbel(k, density.shape)
        return canonical(space, jnp.argmax(density + gumbel, axis=1))

    return first_valid(space, key, draw)
