"""Predictor-guided search: regress fitness on architectures, evaluate what is predicted best.

Wen et al., "Neural Predictor for Neural Architecture Search", ECCV 2020,
https://arxiv.org/abs/1912.00848, section 3: train a regression network on N random architectures,
predict many others, evaluate the K best. That is `refit_every=None`. With a number, the default,
the predictor is trained again whenever so many candidates were added, which makes more of few
evaluations.

The loop:

1. evaluate `num_initial` uniform draws;
2. train the predictor on everything evaluated, from new initial weights;
3. predict the whole space, if it has at most `num_candidates` architectures, or else that many
   uniform draws;
4. evaluate the `batch_size` unseen ones predicted best; go on at 3, or, when it is time, at 2.

Failed candidates are no training rows and are not proposed again.

Deviations: the mean of an ensemble of perceptrons on an encoding, which every space has, in place
of a graph network; no classifier in front that sorts out bad architectures; rounds after the first
training.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas._checks import check_count
from jaxnas.encodings import EncodeFn, encoder, num_features
from jaxnas.enumeration import all_architectures, num_architectures
from jaxnas.space import SearchSpace
from jaxnas.strategies._population import Population
from jaxnas.strategies._rounds import Model, best_unseen, draws, search_in_rounds
from jaxnas.surrogates.mlp_ensemble import EnsembleParams, mlp_ensemble
from jaxnas.types import Strategy


def predictor(
    space: SearchSpace,
    *,
    batch_size: int = 10,
    num_initial: int = 20,
    refit_every: int | None = 10,
    encoding: str | EncodeFn = "one_hot",
    num_candidates: int = 16_384,
    num_members: int = 5,
    num_layers: int = 3,
    hidden_size: int = 32,
    learning_rate: float | Array = 0.01,
    num_updates: int = 200,
    loss: str = "mae",
    capacity: int = 512,
) -> Strategy:
    """Greedy search on the predictions of an ensemble of perceptrons.

    One training costs `num_members * num_updates` updates of a small network and happens once per
    `refit_every` candidates, whatever `batch_size`; an `ask` predicts `num_candidates` rows.

    Args:
      space: the search space.
      batch_size: candidates B per `ask`. Static.
      num_initial: uniform draws N at first, rounded up to whole batches. Static.
      refit_every: candidates between two trainings, rounded up to whole batches; None: one training
        only, as in the paper. Static.
      encoding: what the networks see: "one_hot", "path" where the space has paths, or a traceable
        function `(arch i32[D]) -> f32[F]`; see `jaxnas.encodings`.
      num_candidates: architectures to predict per `ask`. Static.
      num_members: networks E of the ensemble, whose mean is the prediction. Static.
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
      >>> strategy = predictor(tiny_space(), batch_size=4)
      >>> state = strategy.init(jax.random.key(0))
      >>> strategy.ask(jax.random.key(1), state).arch.shape
      (4, 3)
    """
    check_count("batch_size", batch_size)
    check_count("num_candidates", num_candidates)
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
    whole = None
    if num_architectures(space) <= num_candidates:
        with jax.ensure_compile_time_eval():  # the strategy may be made inside a traced function
            whole = all_architectures(space)

    def fit(key, params: EnsembleParams, arch, fitness, mask):
        del params
        return ensemble.fit(key, jax.vmap(encode)(arch), fitness, mask)

    def propose(key, params: EnsembleParams, memory: Population) -> Array:
        k_pool, k_rest = jax.random.split(key)
        pool = draws(k_pool, space, num_candidates) if whole is None else jnp.asarray(whole)
        predicted = ensemble.predict(params, jax.vmap(encode)(pool)).mean(axis=0)
        # Comparing all with all is slow. So many of the best hold enough unseen ones even if
        # everything in the memory is among them.
        best = jnp.argsort(-predicted)[: capacity + 2 * batch_size]
        rest = draws(k_rest, space, batch_size)  # for spaces smaller than a batch
        score = jnp.concatenate([predicted[best], jnp.full(batch_size, -jnp.inf)])
        return best_unseen(memory, jnp.concatenate([pool[best], rest]), score, batch_size)

    return search_in_rounds(
        space,
        Model(ensemble.init, fit, propose),
        batch_size=batch_size,
        num_initial=num_initial,
        refit_every=refit_every,
        capacity=capacity,
    )
