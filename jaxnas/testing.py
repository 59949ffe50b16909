"""Public conformance kit: what every space, strategy, evaluator and one-shot method must satisfy.

A plug-in that passes these checks works with every part of jaxnas. Each check raises an
`AssertionError` that says what is wrong; none depends on a test framework. `tiny_space`,
`conditional_space` and `tiny_problem` are small enough to test against and big enough to go wrong
on.
"""

import functools
from collections.abc import Callable

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnas import enumeration
from jaxnas import space as ops
from jaxnas._requirements import assert_traced_once as assert_traced_once
from jaxnas._requirements import check_array, check_layout, check_parameters, check_same, require
from jaxnas._testing_one_shot import check_one_shot as check_one_shot
from jaxnas._testing_one_shot import tiny_problem as tiny_problem
from jaxnas._testing_one_shot import tiny_supernet_space as tiny_supernet_space
from jaxnas.evaluators.from_function import from_function
from jaxnas.search import search, start, step, step_key
from jaxnas.space import Decision, SearchSpace
from jaxnas.types import Evaluation, Evaluator, Proposal, PyTree, Strategy, split_like


def tiny_space() -> SearchSpace:
    """Three independent decisions of 3, 4 and 2 choices: 24 architectures, all valid."""
    decisions = (
        Decision("a", ("x", "y", "z")),
        Decision("b", (0, 1, 2, 3)),
        Decision("c", (False, True)),
    )
    return SearchSpace("tiny", decisions, network=lambda arch: nn.Dense(2))


def conditional_space() -> SearchSpace:
    """A space with reshaping decisions, a chain of two conditions and a validity rule.

    `depth` 1 to 3; `width_2` counts from depth 2, `width_3` from depth 3, `twist` only where
    `width_3` is wide; a deep network with activation "b" is invalid.
    """
    decisions = (
        Decision("depth", (1, 2, 3), reshapes=True),
        Decision("activation", ("a", "b", "c")),
        Decision("width_2", (4, 8), reshapes=True, active_if=(0, (1, 2))),
        Decision("width_3", (4, 8, 16), reshapes=True, active_if=(0, (2,))),
        Decision("twist", (0.1, 0.2, 0.3), active_if=(3, (2,))),
    )

    def valid(arch):
        return ~((arch[0] == 2) & (arch[1] == 1))

    return SearchSpace("conditional", decisions, network=lambda arch: nn.Dense(2), is_valid=valid)


def trap_fitness(space: SearchSpace) -> Callable[[Array, Array], Array]:
    """A fitness with a local optimum for `evaluators.from_function`, best at all last choices.

    Returns:
      `(key, arch) -> f32[]`: the mean of normalised choices, except that choice 0 everywhere scores
      0.95, nearly as well as the optimum 1.
    """
    top = jnp.asarray(space.num_choices, jnp.float32) - 1.0

    def fitness(key, arch):
        del key
        share = jnp.mean(arch / jnp.maximum(top, 1.0))
        return jnp.where(share == 0.0, 0.95, share)

    return fitness


def check_space(space: SearchSpace, *, num_samples: int = 32) -> None:
    """Checks a space and what the operations on architectures make of it.

    Args:
      space: the space.
      num_samples: random architectures to look at. Static.

    Raises:
      AssertionError: naming what is wrong.

    Example:
      >>> check_space(conditional_space())
    """

    @jax.jit
    @jax.vmap
    def probe(key):
        k_a, k_b, k_mutate, k_cross = jax.random.split(key, 4)
        a, b = ops.sample(k_a, space), ops.sample(k_b, space)
        child, mix = ops.mutate(k_mutate, space, a), ops.crossover(k_cross, space, a, b)
        decoded = ops.decode(space, ops.encode(space, a))
        one = ops.representative(space, a)
        twice = ops.representative(space, one)
        return a, child, mix, ops.neighbours(space, a), decoded, one, twice

    keys = jax.random.split(jax.random.key(0), num_samples)
    arch, child, mix, around, decoded, one, twice = jax.tree.map(np.asarray, probe(keys))
    for name, made in (("sample", arch), ("mutate", child), ("crossover", mix)):
        _check_arch(made, space, f"{name}(…)")
    _check_arch(one, space, "representative(…)")
    require((twice == one).all(), "representative(representative(arch)) is another one")
    _check_arch(around.reshape(-1, space.num_decisions), space, "neighbours(…)")
    require((decoded == arch).all(), "decode(encode(arch)) differs from arch")
    for row in arch[:4]:
        again = space.arch(space.describe(row))
        require((again == row).all(), f"arch(describe(…)) turns {row} into {again}")
        require(isinstance(space.network(row), nn.Module), "network(arch) is not a flax Module")
    if space.supernet is not None:
        module = space.supernet(space.full_bucket)
        require(isinstance(module, nn.Module), "supernet(bucket) is not a flax Module")
    if space.hyperparameters is not None:
        for name, value in jax.eval_shape(space.hyperparameters, arch[0]).items():
            require(value.shape == (), f"hyperparameter {name!r} has shape {value.shape}, not ()")
    if enumeration.num_architectures(space) <= 4096:
        every = {tuple(row) for row in enumeration.all_architectures(space).tolist()}
        require({tuple(row) for row in arch.tolist()} <= every, "sample leaves all_architectures")


def check_strategy(strategy: Strategy, space: SearchSpace, *, eager: bool = True) -> None:
    """Checks that a strategy keeps the contract; most of the time goes into compilation.

    Looked at: names and parameters; shapes, dtypes, validity and canonical form of proposals;
    `tell` keeps the state's structure; results are the same with and without `jit`, `vmap` and
    `scan`, depend on the key and on nothing else; ten steps trace once; failed (NaN) candidates
    neither stop nor attract the search; the state survives `flax.serialization`.

    Args:
      strategy: any strategy on `space`.
      space: a space with at least two architectures.
      eager: whether to compare with `ask` and `tell` outside `jit`, the slowest part.

    Raises:
      AssertionError: naming what is wrong.

    Example:
      >>> from jaxnas.strategies import random_search
      >>> check_strategy(random_search(tiny_space(), batch_size=4), tiny_space())
    """
    kind = type(strategy).__name__
    require(isinstance(strategy, Strategy), f"not a jaxnas Strategy but {kind}")
    check_parameters(strategy.init, ("key",), "init")
    check_parameters(strategy.ask, ("key", "state"), "ask")
    check_parameters(strategy.tell, ("key", "state", "proposal", "evaluation"), "tell")
    compiled = Strategy(
        strategy.init, assert_traced_once(strategy.ask), assert_traced_once(strategy.tell)
    )
    scored = from_function(_fitness_with_failures(space))
    evaluator = scored._replace(evaluate=jax.jit(scored.evaluate))
    state = _check_steps(strategy, compiled, evaluator, space, eager)
    stored = flax.serialization.from_bytes(state, flax.serialization.to_bytes(state))
    check_same(jax.tree.map(jnp.asarray, stored), state, "the state from flax.serialization")
    _check_searches(strategy, compiled, evaluator, space)


def check_evaluator(evaluator: Evaluator, space: SearchSpace, *, batch_size: int = 3) -> None:
    """Checks that an evaluator keeps the contract, by scoring a few random architectures.

    Args:
      evaluator: any evaluator that accepts architectures of `space`.
      space: the space.
      batch_size: architectures to score at once. Static.

    Raises:
      AssertionError: naming what is wrong.

    Example:
      >>> check_evaluator(from_function(trap_fitness(tiny_space())), tiny_space())
    """
    kind = type(evaluator).__name__
    require(isinstance(evaluator, Evaluator), f"not a jaxnas Evaluator but {kind}")
    check_parameters(evaluator.init, ("key",), "init")
    check_parameters(evaluator.evaluate, ("key", "state", "proposal"), "evaluate")
    key = jax.random.key(0)
    arch = jax.vmap(lambda k: ops.sample(k, space))(split_like(key, batch_size))
    proposal = Proposal(arch, jnp.ones(batch_size))
    state = evaluator.init(key)
    evaluation, after = evaluator.evaluate(key, state, proposal)
    require(isinstance(evaluation, Evaluation), "evaluate does not return an Evaluation first")
    check_layout(after, state, "evaluate's state")
    columns = {"fitness": evaluation.fitness, "cost": evaluation.cost, **evaluation.metrics}
    for name, value in columns.items():
        check_array(value, (batch_size,), jnp.float32, name)
    shape = (batch_size, evaluation.objectives.shape[-1])
    check_array(evaluation.objectives, shape, jnp.float32, "objectives")
    cost = np.asarray(evaluation.cost)
    require((np.isfinite(cost) & (cost >= 0)).all(), f"cost must be finite and >= 0, got {cost}")
    if evaluator.traceable:
        again = jax.jit(evaluator.evaluate)(key, state, proposal)
        check_same(again, (evaluation, after), "evaluate under jit", tolerance=1e-4)
    else:  # seconds and latencies may be measured, so only the fitness has to repeat
        again = evaluator.evaluate(key, state, proposal)[0]
        check_same(again.fitness, evaluation.fitness, "fitness of a second evaluate, same key")


def _check_steps(
    strategy: Strategy, compiled: Strategy, evaluator: Evaluator, space: SearchSpace, eager: bool
) -> PyTree:
    """Ten steps, some of which fail wholly; returns the last state."""
    key = jax.random.key(0)
    state = strategy.init(key)
    for index in range(10):
        k = jax.random.fold_in(key, index)
        proposal = compiled.ask(k, state)
        require(isinstance(proposal, Proposal), "ask does not return a Proposal")
        _check_arch(proposal.arch, space, "ask(…).arch")
        check_array(proposal.budget, proposal.arch.shape[:1], jnp.float32, "ask(…).budget")
        budget = np.asarray(proposal.budget)
        require(((budget > 0) & (budget <= 1)).all(), f"budget must be in (0, 1], got {budget}")
        evaluation, _ = evaluator.evaluate(k, (), proposal)
        if index in (0, 1, 5):
            evaluation = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), evaluation)
        before, state = state, compiled.tell(k, state, proposal, evaluation)
        check_layout(state, before, "tell(…)")
    if eager:
        check_same(strategy.ask(k, before), proposal, "ask without jit")
        check_same(strategy.tell(k, before, proposal, evaluation), state, "tell without jit")
    return state


def _check_searches(
    strategy: Strategy, compiled: Strategy, evaluator: Evaluator, space: SearchSpace
) -> None:
    """Whole searches: under `vmap` and `scan` as by hand, set by the key, not drawn to failures."""
    keys = jax.random.split(jax.random.key(1), 8)
    states, history = jax.jit(jax.vmap(lambda key: search(key, strategy, evaluator, 20)))(keys)
    k_steps, state = start(keys[0], strategy, evaluator)
    for index in range(20):
        state, record = step(step_key(k_steps, index), state, compiled, evaluator)
        expected = jax.tree.map(lambda leaf, index=index: leaf[0, index], history)
        check_same(record, expected, f"step {index} by hand against search under vmap: ")
    check_same(state, jax.tree.map(lambda leaf: leaf[0], states), "the last state by hand: ")
    paths = np.asarray(history.arch).reshape(len(keys), -1)
    require(len(np.unique(paths, axis=0)) > 1, "searches with different keys are all the same")
    usual = float(_random_failures(space, keys[0]))
    failed = np.isnan(history.evaluation.fitness[:, 10:]).mean()
    require(
        failed < usual + 0.2,
        f"{failed:.0%} of the proposals fail where random ones fail in {usual:.0%} of cases: "
        "failed candidates attract the search; compare fitness through rank_value",
    )


def _fitness_with_failures(space: SearchSpace) -> Callable[[Array, Array], Array]:
    """`trap_fitness` that fails where the first real decision takes its first choice."""
    position = next(
        i for i, d in enumerate(space.decisions) if len(d.choices) > 1 and d.active_if is None
    )
    fitness = trap_fitness(space)

    def failing(key, arch):
        # Coarse, or equals would differ in the last bit from one compilation to the next.
        coarse = jnp.round(fitness(key, arch) * 4096.0) / 4096.0
        return jnp.where(arch[position] == 0, jnp.nan, coarse)

    return failing


@functools.partial(jax.jit, static_argnums=0)
def _random_failures(space: SearchSpace, key: Array) -> Array:
    """Share of 500 uniform draws that fail: f32[]."""
    arch = jax.vmap(lambda k: ops.sample(k, space))(split_like(key, 500))
    fitness = jax.vmap(_fitness_with_failures(space), in_axes=(None, 0))(key, arch)
    return jnp.isnan(fitness).mean()


def _check_arch(arch: Array, space: SearchSpace, what: str) -> None:
    """i32[B, D], valid and canonical."""
    check_array(arch, (len(arch), space.num_decisions), jnp.int32, what)
    valid, canonical = map(np.asarray, _judge(space, arch))
    require(valid.all(), f"{what} has invalid rows: {np.asarray(arch)[~valid][:3].tolist()}")
    off = (canonical != np.asarray(arch)).any(axis=1)
    require(not off.any(), f"{what} has rows not canonical: {np.asarray(arch)[off][:3].tolist()}")


@functools.partial(jax.jit, static_argnums=0)
def _judge(space: SearchSpace, arch: Array) -> tuple[Array, Array]:
    return jax.vmap(lambda row: (ops.is_valid(space, row), ops.canonical(space, row)))(arch)
