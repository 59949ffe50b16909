"""BANANAS: Bayesian optimisation with an ensemble of neural networks.

White, Neiswanger & Savani, "BANANAS: Bayesian Optimization with Neural Architectures for Neural
Architecture Search", AAAI 2021, https://arxiv.org/abs/1910.11858, Algorithm 1 and sections 3 to 5;
details from the authors' code, https://github.com/naszilla/naszilla.

The loop:

1. evaluate `num_initial` uniform draws;
2. train an ensemble of networks on everything evaluated, from new initial weights;
3. make candidates: the `num_parents` best architectures with one decision changed, and uniform
   draws;
4. independent Thompson sampling: draw a number for each candidate, from the normal distribution
   with the mean and the standard deviation of the members' predictions for it;
5. evaluate the `batch_size` unseen candidates with the largest numbers; go on at 3, or, when
   `refit_every` candidates were added, at 2.

Failed candidates are no training rows and are not proposed again.

Deviations: members of 3 layers of 32 units with 200 updates on the one-hot encoding; the paper has
10 layers of 20 units, 150 epochs, and the path encoding. On NAS-Bench-201 (CIFAR-100, 48 seeds) the
cheaper form is the better one after 50 and 100 evaluations, in a fraction of the time. The other is
`encoding="path", num_layers=10, hidden_size=20`, with about 5 updates per evaluated candidate. The
loss is the absolute error of standardised fitness, without the paper's division by the distance
from the best possible one; and there are uniform draws among the candidates, so that some are
unseen where all neighbours of the best are known.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count
from jaxnas.encodings import EncodeFn, encoder, num_features
from jaxnas.space import SearchSpace, mutate
from jaxnas.strategies._population import Population
from jaxnas.strategies._rounds import Model, best_members, best_unseen, draws, search_in_rounds
from jaxnas.surrogates.mlp_ensemble import EnsembleParams, mlp_ensemble
from jaxnas.types import Strategy, split_like


def bananas(
    space: SearchSpace,
    *,
    batch_size: int = 10,
    num_initial: int = 10,
    refit_every: int = 10,
    encoding: str | EncodeFn = "one_hot",
    num_parents: int = 5,
    num_mutations: int = 100,
    num_draws: int = 100,
    num_members: int = 5,
    num_layers: int = 3,
    hidden_size: int = 32,
    learning_rate: float | Array = 0.01,
    num_updates: int = 200,
    loss: str = "mae",
    capacity: int = 512,
) -> Strategy:
    """Independent Thompson sampling from an ensemble of perceptrons.

    One training costs `num_members * num_updates` updates of a small network and happens once per
    `refit_every` candidates, whatever `batch_size`; in between, an `ask` costs predictions only.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_initial: uniform draws at first, rounded up to whole batches. Static.
      refit_every: candidates between two trainings, rounded up to whole batches. Static.
      encoding: what the networks see: "one_hot", "path" where the space has paths, or a traceable
        function `(arch i32[D]) -> f32[F]`; see `jaxnas.encodings`.
      num_parents: architectures that are mutated, the best so far. Static.
      num_mutations: candidates that are mutations. Static.
      num_draws: candidates that are uniform draws, at least B. Static.
      num_members: networks E of the ensemble. Static.
      num_layers: hidden layers of each. Static.
      hidden_size: units per hidden layer. Static.
      learning_rate: of Adam, at least 0. May be traced.
      num_updates: steps of Adam per training, each on 32 rows. Static.
      loss: "mae" or "mse". Static.
      capacity: candidates C that are remembered and trained on, the last ones. Static.

    Returns:
      A `Strategy` whose state is the last C candidates and the trained ensemble.

    Raises:
      ValueError: for a size out of range, a negative learning rate, an unknown loss or encoding, or
        "path" on a space without paths.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> strategy = bananas(tiny_space(), batch_size=4)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_count("num_parents", num_parents)
    check_count("num_mutations", num_mutations)
    check_count("num_draws", num_draws, minimum=batch_size)
    encode = encoder(space, encoding)
    ensemble = mlp_ensemble(
        num_features(space, encode),
        num_members=num_members,
        num_layers=num_layers,
        hidden_size=hidden_size,
        learning_rate=learning_rate,
        num_updates=num_updates,
        loss=loss,
    )

    def fit(key, params: EnsembleParams, arch, fitness, mask):
        del params
        return ensemble.fit(key, jax.vmap(encode)(arch), fitness, mask)

    def candidates(key, memory: Population) -> Array:
        k_mutate, k_draw = jax.random.split(key)
        parents = best_members(memory, num_parents)[jnp.arange(num_mutations) % num_parents]
        keys = split_like(k_mutate, num_mutations)
        children = jax.vmap(lambda k, arch: mutate(k, space, arch))(keys, parents)
        return jnp.concatenate([children, draws(k_draw, space, num_draws)])

    def propose(key, params: EnsembleParams, memory: Population) -> Array:
        k_pool, k_thompson = jax.random.split(key)
        pool = candidates(k_pool, memory)
        predicted = ensemble.predict(params, jax.vmap(encode)(pool))
        return best_unseen(memory, pool, thompson(k_thompson, predicted), batch_size)

    return search_in_rounds(
        space,
        Model(ensemble.init, fit, propose),
        batch_size=batch_size,
        num_initial=num_initial,
        refit_every=refit_every,
        capacity=capacity,
    )


def thompson(key: Array, predicted: Array) -> Array:
    """Independent Thompson samples of N candidates from predictions f32[E, N] of E members."""
    noise = jax.random.normal(key, predicted.shape[1:])
    return predicted.mean(axis=0) + predicted.std(axis=0) * noise
