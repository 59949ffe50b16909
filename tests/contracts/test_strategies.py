"""Every strategy on every space keeps the contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnas as nas

# Small enough that all phases of a strategy are seen in ten steps of four.
NETWORK = {
    "num_initial": 8,
    "refit_every": 4,
    "num_members": 2,
    "num_layers": 1,
    "hidden_size": 4,
    "num_updates": 4,
    "capacity": 48,
}

OPTIONS = {
    "asha": {"min_budget": 1 / 9, "capacity": 32},
    "bananas": NETWORK | {"num_mutations": 12, "num_draws": 8},
    "bohb": {"min_budget": 1 / 3, "num_samples": 8, "capacity": 64},
    "dehb": {"min_budget": 1 / 3},
    "dqn": {"hidden_size": 8, "num_updates": 4, "replay_size": 4, "num_evaluations": 40},
    "entropy_search": {"population_size": 12, "unseen_tries": 2},
    "gaussian_process": {"num_initial": 4, "capacity": 16},
    "genetic": {"population_size": 12, "num_elites": 3},
    "hyperband": {"min_budget": 1 / 9},
    "lanas": {"num_init": 6, "capacity": 32, "pool_size": 32},
    "local_search": {"num_init": 4, "capacity": 24},
    "mixed": {"arms": ("random_search", "genetic"), "window_size": 8},
    "monte_carlo_tree_search": {"capacity": 100},
    "nao": {
        "num_initial": 8,
        "refit_every": 4,
        "num_parents": 3,
        "num_steps": 3,
        "num_updates": 4,
        "replay_size": 8,
        "hidden_size": 8,
        "embedding_size": 4,
        "capacity": 48,
    },
    "nsga2": {"num_objectives": 1, "population_size": 12},
    "pareto_local_search": {"num_objectives": 1, "num_init": 4, "capacity": 24},
    "ppo": {"hidden_size": 8, "num_epochs": 2},
    "predictor": NETWORK | {"num_candidates": 64},
    "q_learning": {"num_evaluations": 40, "num_replays": 4, "capacity": 24},
    "regularized_evolution": {"population_size": 12, "tournament_size": 3},
    "reinforce": {"hidden_size": 8},
    "simulated_annealing": {"num_chains": 2, "num_evaluations": 40},
    "successive_halving": {"num_candidates": 9, "min_budget": 1 / 9},
    "tpe": {"num_initial": 4, "num_candidates": 8, "capacity": 24},
}

FLOATS = {
    "bananas": ("learning_rate",),
    "dehb": ("mutation_factor", "crossover_rate"),
    "dqn": ("learning_rate", "discount"),
    "entropy_search": ("elite_rate", "smoothing", "exploration_rate"),
    "gaussian_process": ("confidence", "lengthscale", "noise"),
    "genetic": ("mutation_rate", "crossover_rate", "truncation_rate"),
    "lanas": ("exploration", "ridge"),
    "mixed": ("exploration",),
    "monte_carlo_tree_search": ("exploration",),
    "nao": ("step_size", "learning_rate", "score_weight"),
    "nsga2": ("mutation_rate", "crossover_rate"),
    "predictor": ("learning_rate",),
    "ppo": ("learning_rate", "clip_range", "entropy_weight", "baseline_decay"),
    "q_learning": ("learning_rate", "discount", "trace_decay", "initial_value"),
    "regularized_evolution": ("mutation_rate",),
    "reinforce": ("learning_rate", "entropy_weight", "baseline_decay"),
    "simulated_annealing": ("initial_temperature", "final_temperature", "mutation_rate"),
    "tpe": ("good_rate", "prior_weight"),
}


def make(name, space, **changes):
    return nas.strategies.ALL[name](space, batch_size=4, **(OPTIONS.get(name, {}) | changes))


@pytest.mark.parametrize("name", nas.strategies.ALL)
def test_contract(name):
    space = nas.testing.conditional_space()
    nas.testing.check_strategy(make(name, space), space, eager=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", nas.strategies.ALL)
def test_contract_on_every_space(name, any_space):
    # Outside `jit` once: that comparison is the slowest, and does not depend on the space.
    eager = any_space.name == "conditional"
    nas.testing.check_strategy(make(name, any_space), any_space, eager=eager)


@pytest.mark.slow
def test_contract_of_the_factorised_policy():
    space = nas.testing.conditional_space()
    nas.testing.check_strategy(make("reinforce", space, policy="factorised"), space)


@pytest.mark.slow
def test_contract_of_truncation_and_one_point():
    space = nas.testing.conditional_space()
    options = {"selection": "truncation", "crossover": "one_point"}
    nas.testing.check_strategy(make("genetic", space, **options), space)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOATS)
def test_float_hyperparameters_may_be_traced(name):
    space = nas.testing.tiny_space()
    evaluator = nas.evaluators.from_function(nas.testing.trap_fitness(space))
    selection = {"selection": "truncation"} if name == "genetic" else {}

    @jax.jit
    def search(options):
        strategy = make(name, space, **options, **selection)
        return nas.search(jax.random.key(0), strategy, evaluator, 8)[1].arch

    low, high = ({option: jnp.float32(v) for option in FLOATS[name]} for v in (0.05, 0.9))
    swept = jax.tree.map(lambda a, b: jnp.stack([a, b]), low, high)
    together = jax.jit(jax.vmap(search))(swept)
    np.testing.assert_array_equal(together, jnp.stack([search(low), search(high)]))
    assert (together[0] != together[1]).any()


@pytest.mark.parametrize("name", nas.strategies.ALL)
def test_batch_size_is_checked(name):
    with pytest.raises(ValueError, match="batch_size must be"):
        nas.strategies.ALL[name](nas.testing.tiny_space(), batch_size=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("regularized_evolution", {"population_size": 3}, "population_size"),
        ("regularized_evolution", {"tournament_size": 0}, "tournament_size"),
        ("regularized_evolution", {"mutation_rate": 1.5}, "mutation_rate"),
        ("genetic", {"population_size": 5, "num_elites": 3}, "population_size"),
        ("genetic", {"selection": "roulette"}, "selection"),
        ("genetic", {"crossover": "two_point"}, "crossover"),
        ("genetic", {"crossover_rate": -0.1}, "crossover_rate"),
        ("reinforce", {"policy": "transformer"}, "policy"),
        ("reinforce", {"baseline_decay": 1.1}, "baseline_decay"),
        ("reinforce", {"hidden_size": 0}, "hidden_size"),
    ],
)
def test_bad_hyperparameters_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, nas.testing.tiny_space(), **options)
