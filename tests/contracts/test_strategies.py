"""Every strategy on every space: what third parties may rely on."""

import inspect
import pkgutil
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas
from jaxnas import strategies
from jaxnas.evaluators import from_function
from jaxnas.testing import check_strategy, tiny_space, trap_fitness

pytestmark = pytest.mark.usefixtures("quick_compile")

VARIANTS = {
    "regularized_evolution": {"mutation_rate": 0.3, "population_size": 6},
    "genetic": {"selection": "truncation", "crossover": "one_point", "mutation_rate": None},
    "reinforce": {"policy": "factorised"},
}


def test_defaults_conform(strategy_name, space):
    check_strategy(strategies.ALL[strategy_name](space, batch_size=4), space, eager=False)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_conform(name):
    space = tiny_space()
    strategy = strategies.ALL[name](space, batch_size=4, **VARIANTS[name])
    check_strategy(strategy, space, eager=False)


@pytest.mark.slow
def test_without_jit_nothing_changes(strategy_name, space):
    check_strategy(strategies.ALL[strategy_name](space, batch_size=4), space, eager=True)


def test_all_lists_every_module():
    assert isinstance(strategies.ALL, MappingProxyType)
    modules = {m.name for m in pkgutil.iter_modules(strategies.__path__)}
    assert set(strategies.ALL) == {name for name in modules if not name.startswith("_")}
    assert all(factory.__name__ == name for name, factory in strategies.ALL.items())


def test_one_signature_for_all(strategy_name):
    space, *options = inspect.signature(strategies.ALL[strategy_name]).parameters.values()
    assert space.name == "space"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)
    assert "batch_size" in {p.name for p in options}


def float_hyperparameters(name):
    """Names and default values of everything that may be a tracer."""
    parameters = inspect.signature(strategies.ALL[name]).parameters.values()
    found = {p.name: p.default for p in parameters if isinstance(p.default, float)}
    return found | {"regularized_evolution": {"mutation_rate": 0.3}}.get(name, {})


@pytest.mark.parametrize(
    "name", [name for name in sorted(strategies.ALL) if float_hyperparameters(name)]
)
def test_float_hyperparameters_may_be_traced(name, key):
    space = tiny_space()
    evaluator = from_function(trap_fitness(space))

    def run(values):
        return nas.search(key, strategies.ALL[name](space, batch_size=4, **values), evaluator, 40)

    values = float_hyperparameters(name)
    concrete = jax.jit(lambda: run(values))()
    swept = jax.jit(jax.vmap(run))(jax.tree.map(lambda x: jnp.array([x, x / 2]), values))
    for leaf, expected in zip(jax.tree.leaves(swept), jax.tree.leaves(concrete), strict=True):
        np.testing.assert_allclose(leaf[0], expected, rtol=1e-4, atol=1e-5)
    assert any((leaf[0] != leaf[1]).any() for leaf in jax.tree.leaves(swept)), "values are unused"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random_search", {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ("random_search", {"batch_size": 2.5}, "batch_size must be an integer"),
        ("regularized_evolution", {"batch_size": 0}, "batch_size"),
        ("regularized_evolution", {"population_size": 0}, "population_size"),
        ("regularized_evolution", {"tournament_size": 0}, "tournament_size"),
        (
            "regularized_evolution",
            {"mutation_rate": 1.5},
            r"mutation_rate .* \[0.0, 1.0\], got 1.5",
        ),
        (
            "regularized_evolution",
            {"batch_size": 9, "population_size": 8},
            "population_size must be at least batch_size = 9, got 8",
        ),
        ("genetic", {"batch_size": 0}, "batch_size"),
        ("genetic", {"num_elites": -1}, "num_elites must be an integer of at least 0"),
        (
            "genetic",
            {"num_elites": 50},
            r"population_size .* num_elites \+ batch_size = 66, got 64",
        ),
        ("genetic", {"selection": "best"}, "selection must be one of"),
        ("genetic", {"tournament_size": 0}, "tournament_size"),
        ("genetic", {"truncation_rate": -0.1}, "truncation_rate"),
        ("genetic", {"crossover": "two_point"}, "crossover must be one of"),
        ("genetic", {"crossover_rate": float("nan")}, "crossover_rate"),
        ("genetic", {"mutation_rate": 2}, "mutation_rate"),
        ("reinforce", {"batch_size": 0}, "batch_size"),
        ("reinforce", {"policy": "transformer"}, "policy must be one of"),
        ("reinforce", {"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ("reinforce", {"baseline_decay": 1.1}, "baseline_decay"),
        ("reinforce", {"entropy_weight": -1e-3}, "entropy_weight"),
        ("reinforce", {"hidden_size": 0}, "hidden_size"),
        ("reinforce", {"num_layers": 0}, "num_layers"),
    ],
)
def test_bad_input_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        strategies.ALL[name](tiny_space(), **options)
