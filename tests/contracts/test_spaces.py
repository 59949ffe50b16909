"""Every space, and the kit that checks it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas.space import sample


def test_contract(any_space):
    nas.testing.check_space(any_space)


def test_the_kit_notices_a_network_that_is_not_a_module():
    broken = dataclasses.replace(nas.testing.tiny_space(), network=lambda arch: None)
    with pytest.raises(AssertionError, match="not a flax Module"):
        nas.testing.check_space(broken)


def test_the_kit_notices_a_strategy_that_likes_failures():
    space = nas.testing.tiny_space()
    good = nas.strategies.regularized_evolution(space, batch_size=4, population_size=12)

    def tell(key, state, proposal, evaluation):
        fitness = jnp.where(jnp.isnan(evaluation.fitness), 9.0, evaluation.fitness)
        return good.tell(key, state, proposal, evaluation._replace(fitness=fitness))

    with pytest.raises(AssertionError, match="failed candidates attract"):
        nas.testing.check_strategy(good._replace(tell=tell), space)


def test_the_kit_notices_a_state_that_grows():
    space = nas.testing.tiny_space()

    def tell(key, state, proposal, evaluation):
        return jnp.concatenate([state, evaluation.fitness])

    good = nas.strategies.random_search(space, batch_size=4)
    growing = good._replace(init=lambda key: jnp.zeros(0), tell=tell)
    with pytest.raises(AssertionError, match="tell"):
        nas.testing.check_strategy(growing, space)


def test_the_kit_notices_a_cost_that_is_negative():
    space = nas.testing.tiny_space()
    evaluator = nas.evaluators.from_function(lambda k, a: a.sum(), cost_fn=lambda a: -1.0)
    with pytest.raises(AssertionError, match="cost"):
        nas.testing.check_evaluator(evaluator, space)


def test_train_from_scratch_keeps_the_contract():
    data = nas.datasets.wine(jax.random.key(0))
    space = nas.spaces.mlp(3, depths=(1,), widths=(8,))
    evaluator = nas.evaluators.train_from_scratch(space, data, nas.Recipe(epochs=2))
    nas.testing.check_evaluator(evaluator, space)


def test_supernet_has_the_logits_of_the_extracted_network():
    space = nas.spaces.mlp(3, depths=(1, 2, 3), widths=(4, 8), per_layer=True)
    supernet = space.supernet(space.full_bucket)
    x = jax.random.normal(jax.random.key(1), (5, 6))
    for seed in range(6):
        arch = sample(jax.random.key(seed), space)
        variables = supernet.init(jax.random.key(2), x, arch, train=False)
        routed = supernet.apply(variables, x, arch, train=False)
        concrete = np.asarray(arch)
        alone = space.network(concrete).apply(supernet.extract(variables, concrete), x, train=False)
        np.testing.assert_allclose(routed, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "widths is empty"),
        ({"depths": (0, 1)}, "depths has 0"),
        ({"depths": (2, 1)}, "must ascend"),
        ({"widths": (8, 8)}, "duplicates"),
        ({"activations": ("relu", "swoosh")}, "activations has 'swoosh'"),
        ({"dropouts": (1.0,)}, "dropouts has 1.0"),
        ({"learning_rates": (-0.1,)}, "learning_rates has -0.1"),
        ({"num_outputs": 0}, "num_outputs has 0"),
        ({"optimizers": ("adam", "sgdd")}, "optimizers has 'sgdd'"),
    ],
)
def test_bad_mlp_spaces_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nas.spaces.mlp(**({"num_outputs": 3} | options))
