"""What a network costs: from its structure, from the compiler, and as a table inside `jit`.

Structure counts what the mathematics needs: parameters, multiplications and additions, scalars
written. The compiler says what its program does on this kind of device: operations after fusion,
bytes moved, memory. The two agree in flops up to elementwise operations, which only the compiler
counts, and except where a convolution is carried out in another form, such as a product with more
zeros than the kernel has numbers (`jaxnas.nn.conv`).

A cost that is a sum over decisions is a table: exact for every architecture, traceable, and its
expectation under architecture weights is differentiable, as FBNet and ProxylessNAS need it.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxnas._checks import check_count
from jaxnas.space import SearchSpace, canonical, encode, sample
from jaxnas.training.costs import NetworkCost
from jaxnas.training.costs import network_cost as network_cost


class CompiledCost(NamedTuple):
    """What the compiler says of a stand-alone network's programs, on the present kind of device.

    Attributes:
      flops: floating-point operations of a forward pass, elementwise ones included.
      bytes_moved: bytes that its operations read and write, as if nothing stayed in a cache.
      activation_bytes: memory of its intermediate results, at their peak.
      training_bytes: memory at the peak of one step of gradient descent: parameters, gradients,
        everything kept for the backward pass, and the batch.
    """

    flops: float
    bytes_moved: float
    activation_bytes: int
    training_bytes: int


def structural_cost(
    space: SearchSpace, arch: ArrayLike, feature_shape: tuple[int, ...]
) -> NetworkCost:
    """Costs of one forward pass per row, from the structure alone: nothing is compiled or run.

    Args:
      space: the space.
      arch: i32[D], concrete.
      feature_shape: shape of one row of the input. Static.

    Returns:
      A `NetworkCost`.

    Example:
      >>> import jaxnas as nas
      >>> space = nas.spaces.nasbench201(10)
      >>> structural_cost(space, [0, 1, 2, 3, 4, 0], (32, 32, 3)).parameters
      344346
    """
    return network_cost(space.network(np.asarray(arch)), feature_shape)


class ForwardCost(NamedTuple):
    """What the compiler says of one network's forward pass; see `CompiledCost`."""

    flops: float
    bytes_moved: float
    activation_bytes: int


def forward_cost(
    module: Any, feature_shape: tuple[int, ...], *, batch_size: int = 1
) -> ForwardCost:
    """Compiles the forward pass of any network and reads the compiler's account.

    Args:
      module: Flax module with `__call__(x, *, train)`. For its costs from structure see
        `network_cost`.
      feature_shape: shape of one row of the input.
      batch_size: rows, at least 1.

    Returns:
      A `ForwardCost` of the whole batch.

    Raises:
      ValueError: for a batch size below 1.

    Example:
      >>> from jaxnas.nn import MLP
      >>> forward_cost(MLP((8,), num_outputs=2), (4,)).flops >= 2 * (4 * 8 + 8 * 2)
      True
    """
    check_count("batch_size", batch_size)
    variables, x = _shapes(module, feature_shape, batch_size)
    forward = jax.jit(lambda variables, x: module.apply(variables, x, train=False))
    program: Any = forward.lower(variables, x).compile()
    account = program.cost_analysis()
    return ForwardCost(
        float(account["flops"]),
        float(account["bytes accessed"]),
        int(program.memory_analysis().temp_size_in_bytes),
    )


def _shapes(module: Any, feature_shape: tuple[int, ...], batch_size: int):
    """Of a network's variables and its input."""
    x = jax.ShapeDtypeStruct((batch_size, *feature_shape), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x), x


def compiled_cost(
    space: SearchSpace, arch: ArrayLike, feature_shape: tuple[int, ...], *, batch_size: int = 1
) -> CompiledCost:
    """Compiles a stand-alone network, forward and for training, and reads the compiler's account.

    Takes seconds for large networks; results are kept for the life of the process.

    Args:
      space: the space.
      arch: i32[D], concrete.
      feature_shape: shape of one row of the input.
      batch_size: rows, at least 1.

    Returns:
      A `CompiledCost` of the whole batch.

    Raises:
      ValueError: for a batch size below 1.
    """
    check_count("batch_size", batch_size)
    choices = tuple(int(choice) for choice in np.asarray(arch))
    return _compiled(space, choices, tuple(feature_shape), batch_size)


@lru_cache(maxsize=1024)
def _compiled(space, choices, feature_shape, batch_size) -> CompiledCost:
    module = space.network(np.asarray(choices))
    variables, x = _shapes(module, feature_shape, batch_size)

    def step(variables, x):
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def loss_fn(params):
            y, updated = module.apply(
                {"params": params, **rest},
                x,
                train=True,
                mutable=list(rest),
                rngs={"dropout": jax.random.key(0)},
            )
            return jnp.sum(y**2), updated

        gradients, updated = jax.grad(loss_fn, has_aux=True)(variables["params"])
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients)
        return {"params": moved, **updated}

    forward = forward_cost(module, feature_shape, batch_size=batch_size)
    training: Any = jax.jit(step).lower(variables, x).compile()
    return CompiledCost(*forward, training_bytes=_peak_bytes(training.memory_analysis()))


def _peak_bytes(memory: Any) -> int:
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return int(kept + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


class AdditiveCost(NamedTuple):
    """A cost that is a sum over decisions; a pytree, callable on one architecture.

    Attributes:
      base: f32[], what does not depend on any decision.
      table: f32[sum of choices], what each choice adds, in the order of `jaxnas.space.encode`.
    """

    base: Array
    table: Array

    def of(self, space: SearchSpace, arch: Array) -> Array:
        """The cost f32[] of `arch` i32[D]; traceable. `vmap` for batches."""
        return self.base + jnp.dot(encode(space, arch), self.table)

    def expected(self, space: SearchSpace, weights: Array) -> Array:
        """The cost f32[] of decisions with the probabilities `weights` f32[D, K]; differentiable.

        K is the most choices that any decision has; what lies beyond a decision's own is not read.
        Decisions are taken as independent and all active.
        """
        ends = np.cumsum([0, *space.num_choices])
        rows = [
            jnp.dot(weights[d, : stop - start], self.table[start:stop])
            for d, (start, stop) in enumerate(pairwise(ends))
        ]
        return self.base + sum(rows)


def additive(
    space: SearchSpace,
    cost_fn: Callable[[np.ndarray], float],
    *,
    num_checks: int = 20,
    tolerance: float = 1e-3,
) -> AdditiveCost:
    """Takes a cost apart into what each choice adds, by changing one decision at a time.

    Args:
      space: the space, without conditional decisions.
      cost_fn: `(arch i32[D], concrete) -> float`, for example the parameters or a measured
        latency. Called once per choice and check.
      num_checks: random architectures on which the sum is compared with `cost_fn`.
      tolerance: largest relative difference that is still additive.

    Returns:
      An `AdditiveCost`.

    Raises:
      ValueError: if the space has conditional decisions, or the cost is not additive.

    Example:
      >>> import jaxnas as nas
      >>> space = nas.spaces.nasbench201(image_size=8, num_channels=4, num_cells=1)
      >>> cost = additive(space, lambda arch: space.cost(arch).parameters)
      >>> arch = jnp.array([3, 2, 0, 1, 4, 3])
      >>> float(cost.of(space, arch)) == space.cost(arch).parameters
      True
    """
    if space.is_conditional:
        raise ValueError(
            f"space {space.name!r} has conditional decisions; an additive cost needs a space "
            "whose decisions always count"
        )
    start = np.zeros(space.num_decisions, np.int32)
    base = float(cost_fn(start))
    table = []
    for d, count in enumerate(space.num_choices):
        for choice in range(count):
            arch = start.copy()
            arch[d] = choice
            table.append(float(cost_fn(arch)) - base if choice else 0.0)
    found = AdditiveCost(jnp.float32(base), jnp.asarray(table, jnp.float32))
    _check_additive(space, found, cost_fn, num_checks, tolerance)
    return found


def _check_additive(space, found: AdditiveCost, cost_fn, num_checks, tolerance) -> None:
    for seed in range(num_checks):
        arch = canonical(space, sample(jax.random.key(seed), space))
        sum_, true = float(found.of(space, arch)), float(cost_fn(np.asarray(arch)))
        if abs(sum_ - true) > tolerance * max(abs(true), 1e-12):
            raise ValueError(
                f"cost_fn is not a sum over decisions: {true:.6g} for {np.asarray(arch).tolist()}, "
                f"where the choices add up to {sum_:.6g}"
            )
