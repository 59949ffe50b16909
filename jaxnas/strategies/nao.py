"""NAO: architectures move uphill in a continuous space that a network learns for them.

Luo et al., "Neural Architecture Optimization", NeurIPS 2018, https://arxiv.org/abs/1808.07233,
section 3 and Algorithm 1; details from the authors' code, https://github.com/renqianluo/NAO_pytorch.
An encoder maps an architecture to one vector per decision, a predictor maps these to fitness, a
decoder with attention maps them back. All three are trained together on

    score_weight * squared error of the prediction - (1 - score_weight) * log-likelihood of the arch

The loop:

1. evaluate `num_initial` uniform draws;
2. train the network on everything evaluated;
3. move the codes of the `num_parents` best architectures along the gradient of the prediction, by
   steps of `step_size`, twice that, and so on, `num_steps` in all; decode what is reached;
4. evaluate `batch_size` unseen ones of these, the shortest steps first; go on at 3, or, when
   `refit_every` candidates were added, at 2.

Uniform draws take the places for which all steps give too few unseen architectures. Failed
candidates are no training rows and are not proposed again.

Scaled down: the paper starts from 600 architectures, adds 300 per round from the best 100, and
trains 1,000 epochs for each of three rounds with learning rate 0.001; the defaults are for some 150
evaluations: 40 at first, 10 per round from the best 10, 200 updates with learning rate 0.003, which
go on from the weights of the round before. The LSTM has 24 units (paper: 96), the predictor one
hidden layer of as many (3 of 200), a choice 16 numbers (48).

Further deviations: step sizes are multiples of 10, as in the authors' first code, and all are
decoded, in place of one after the other until there are enough; the attention has no weights of its
own; no doubling of architectures by symmetry, which a general space does not know.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxnas._checks import check_count, check_number, check_option
from jaxnas.space import SearchSpace, is_valid
from jaxnas.strategies._nao_model import CELLS, CodeModel, Params, code_model, unit
from jaxnas.strategies._population import Population
from jaxnas.strategies._rounds import Model, best_members, best_unseen, draws, search_in_rounds
from jaxnas.surrogates.mlp_ensemble import draw_rows
from jaxnas.types import Strategy


def nao(
    space: SearchSpace,
    *,
    batch_size: int = 10,
    num_initial: int = 40,
    refit_every: int = 10,
    num_parents: int = 10,
    step_size: float | Array = 10.0,
    num_steps: int = 10,
    cell: str = "lstm",
    hidden_size: int = 24,
    embedding_size: int = 16,
    learning_rate: float | Array = 0.003,
    num_updates: int = 200,
    replay_size: int = 32,
    score_weight: float | Array = 0.8,
    capacity: int = 512,
) -> Strategy:
    """Gradient ascent on a learned score in a learned continuous space.

    One training costs `num_updates` updates of the encoder, predictor and decoder on `replay_size`
    architectures, and happens once per `refit_every` candidates, whatever `batch_size`. An `ask`
    encodes `num_parents` architectures and decodes `num_parents * num_steps`.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_initial: uniform draws at first, rounded up to whole batches. Static.
      refit_every: candidates between two trainings, rounded up to whole batches. Static.
      num_parents: architectures whose codes are moved, the best so far. Static.
      step_size: eta, of the shortest step, at least 0; the others are multiples. May be traced.
      num_steps: lengths of step that are tried. Static.
      cell: of encoder and decoder, "lstm", or "rnn", with one gate. Static.
      hidden_size: units H of encoder, predictor and decoder. Static.
      embedding_size: length of the vector that stands for a choice. Static.
      learning_rate: of Adam, at least 0. May be traced.
      num_updates: steps of Adam per training. Static.
      replay_size: architectures per step of Adam, drawn with replacement. Static.
      score_weight: lambda, in [0, 1]; the share of the prediction in the loss. May be traced.
      capacity: candidates C that are remembered and trained on, the last ones. Static.

    Returns:
      A `Strategy` whose state is the last C candidates and the network.

    Raises:
      ValueError: for a size below 1, an unknown cell or a number out of range.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = nao(tiny_space(), batch_size=4)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_count("num_parents", num_parents)
    check_number("step_size", step_size)
    check_count("num_steps", num_steps)
    check_option("cell", cell, CELLS)
    check_count("hidden_size", hidden_size)
    check_count("embedding_size", embedding_size)
    check_number("learning_rate", learning_rate)
    check_count("num_updates", num_updates)
    check_count("replay_size", replay_size)
    check_number("score_weight", score_weight, high=1.0)
    net = code_model(space, cell=cell, hidden_size=hidden_size, embedding_size=embedding_size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(5.0), optax.add_decayed_weights(1e-4), optax.scale_by_adam()
    )

    def fit(key, params: Params, arch, fitness, mask):
        target = scaled(fitness, mask)
        # One vector in place of a dozen arrays: one small kernel per operation of the optimiser.
        start, unravel = ravel_pytree(params)
        rate = jnp.where(mask.any(), learning_rate, 0.0)  # nothing to learn while all failed

        def update(carry, rows):
            vector, moments = carry

            def loss(vector):
                return joint_loss(net, unravel(vector), arch[rows], target[rows], score_weight)

            steps, moments = optimizer.update(jax.grad(loss)(vector), moments, vector)
            vector = jax.tree.map(lambda v, s: v - rate * s, vector, steps)
            return (vector, moments), None

        rows = draw_rows(key, mask, (num_updates, replay_size))
        return unravel(jax.lax.scan(update, (start, optimizer.init(start)), rows)[0][0])

    def propose(key, params: Params, memory: Population) -> Array:
        parents = best_members(memory, num_parents)
        moved = ascend(net, params, parents, step_size * (1.0 + jnp.arange(num_steps)))
        made = jax.vmap(jax.vmap(lambda code: net.decode(params, code)))(moved)
        made = made.reshape(-1, space.num_decisions)  # short steps first, then better parents
        valid = jax.vmap(lambda arch: is_valid(space, arch))(made)
        made = jnp.where(valid[:, None], made, parents[0])
        rest = draws(key, space, 16 + 4 * batch_size)
        pool = jnp.concatenate([made, rest])
        return best_unseen(memory, pool, -jnp.arange(len(pool), dtype=jnp.float32), batch_size)

    return search_in_rounds(
        space,
        Model(net.init, fit, propose),
        batch_size=batch_size,
        num_initial=num_initial,
        refit_every=refit_every,
        capacity=capacity,
    )


def scaled(fitness: Array, mask: Array) -> Array:
    """Fitness f32[N] mapped to [0, 1] over the rows of the mask, 0 elsewhere."""
    low = jnp.min(fitness, where=mask, initial=jnp.inf)
    high = jnp.max(fitness, where=mask, initial=-jnp.inf)
    span = jnp.where(high > low, high - low, 1.0)
    return jnp.where(mask, (fitness - low) / span, 0.0)


def joint_loss(
    net: CodeModel, params: Params, arch: Array, target: Array, score_weight: float | Array
) -> Array:
    """Eq. 1: squared error of the score against surprise at the architecture itself, f32[]."""

    def one(arch, target):
        code = net.encode(params, arch)
        return (net.score(params, code) - target) ** 2, net.log_likelihood(params, code, arch)

    squared, likelihood = jax.vmap(one)(arch, target)
    return score_weight * squared.mean() - (1.0 - score_weight) * likelihood.mean()


def ascend(net: CodeModel, params: Params, arch: Array, steps: Array) -> Array:
    """Eq. 2: codes of arch i32[P, D] moved along the gradient of the score by each of S steps.

    Returns:
      f32[S, P, D, H], vectors of length 1.
    """
    codes = jax.vmap(lambda row: net.encode(params, row))(arch)
    ascent = jax.vmap(lambda code: jax.grad(net.score, argnums=1)(params, code))(codes)
    return unit(codes + steps[:, None, None, None] * ascent)
