"""Predictor-guided search against ranking the whole space by hand; that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import enumeration
from jaxnas.space import encode
from jaxnas.strategies.predictor import predictor
from jaxnas.surrogates.mlp_ensemble import mlp_ensemble
from jaxnas.types import Evaluation
from tests.unit import smooth_problem

NET = {"num_members": 2, "num_layers": 1, "hidden_size": 4, "num_updates": 4}
SMALL = {"num_initial": 8, "capacity": 48} | NET


def test_proposes_the_unseen_architectures_predicted_best():
    space = nas.testing.conditional_space()
    strategy = predictor(space, batch_size=4, **SMALL)
    ask, tell = jax.jit(strategy.ask), jax.jit(strategy.tell)
    ensemble = mlp_ensemble(sum(space.num_choices), **NET)
    every = enumeration.all_architectures(space)
    x = jax.vmap(lambda arch: encode(space, arch))(jnp.asarray(every))
    state, seen = strategy.init(jax.random.key(0)), set()
    for index in range(6):
        proposal = ask(jax.random.key(index), state)
        got = list(map(tuple, proposal.arch.tolist()))
        if index >= 2:
            predicted = np.asarray(ensemble.predict(state.params, x).mean(axis=0))
            ranked = [tuple(every[i].tolist()) for i in np.argsort(-predicted, kind="stable")]
            assert got == [arch for arch in ranked if arch not in seen][:4]
        seen |= set(got)
        fitness = proposal.arch.sum(axis=1).astype(jnp.float32)
        evaluation = Evaluation(fitness, fitness[:, None], {}, jnp.ones(4))
        state = tell(jax.random.key(index), state, proposal, evaluation)
    assert len(seen) == 24


@pytest.mark.slow
@pytest.mark.parametrize("refit_every", [None, 8])
def test_beats_random_search(refit_every):
    # 390,625 architectures: uniform draws are predicted.
    strategy = predictor(smooth_problem.space(), batch_size=8, num_initial=64,
                         refit_every=refit_every, num_candidates=512, num_updates=60,
                         capacity=192)  # fmt: skip
    assert smooth_problem.p_value(strategy) < smooth_problem.ACCIDENT


@pytest.mark.slow
def test_contract_where_the_space_is_predicted_as_a_whole():
    space = nas.testing.conditional_space()
    strategy = predictor(space, batch_size=4, **SMALL)
    nas.testing.check_strategy(strategy, space, eager=False)


@pytest.mark.slow
def test_contract_where_draws_are_predicted():
    space = nas.testing.tiny_space()
    strategy = predictor(space, batch_size=4, num_candidates=20, refit_every=None, **SMALL)
    nas.testing.check_strategy(strategy, space, eager=False)


def test_a_batch_may_be_larger_than_the_space():
    space = nas.testing.tiny_space()
    strategy = predictor(space, batch_size=30, **(SMALL | {"num_initial": 30}))
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))
    arch = jax.jit(lambda key: nas.search(key, strategy, evaluator, 2)[1].arch)(jax.random.key(0))
    assert len(np.unique(arch[1], axis=0)) == 24


def test_learning_rates_may_be_swept():
    space = nas.testing.conditional_space()
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))

    @jax.jit
    @jax.vmap
    def search(learning_rate):
        strategy = predictor(space, batch_size=4, learning_rate=learning_rate, **SMALL)
        return nas.search(jax.random.key(0), strategy, evaluator, 5)[1].arch

    low, high = search(jnp.array([0.0, 0.3]))
    np.testing.assert_array_equal(low[:2], high[:2])
    assert (low[2:] != high[2:]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_initial": 0}, "num_initial"),
        ({"refit_every": 0}, "refit_every"),
        ({"num_candidates": 0}, "num_candidates"),
        ({"num_layers": 0}, "num_layers"),
        ({"encoding": "path"}, "'path' is not defined"),
        ({"num_initial": 40, "capacity": 39}, "capacity"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        predictor(nas.testing.tiny_space(), **options)
