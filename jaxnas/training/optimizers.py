"""Optimisers by name, and one step of whichever of them a candidate chose.

A step is bound by memory: parameters, gradients and moments are read, parameters and moments
written. So an optimiser here is split in two elementwise halves, moments first and then the
direction as a function of the new moments. Each array is then updated in place in a single pass,
which XLA cannot do for an update that returns both at once, since its directions are computed from
the old moments: those would have to be copied first. The formulas are those of the papers with the
constants of PyTorch's defaults, which is what the NAS literature trained with; a test holds them to
optax.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnas.nn.activations import select

PyTree = Any
Moments = tuple[Array, ...]


class Optimizer(NamedTuple):
    """An elementwise rule `parameter - rate * direction`.

    Attributes:
      num_moments: arrays that it carries per parameter, zero at first.
      update: `(gradient, moments) -> moments`.
      direction: `(gradient, new moments, count f32[]) -> direction`, count from 1.
    """

    num_moments: int
    update: Callable[[Array, Moments], Moments]
    direction: Callable[[Array, Moments, Array], Array]


def _average(decay: float, old: Array, new: Array) -> Array:
    return decay * old + (1.0 - decay) * new


def _adam(b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> Optimizer:
    """Kingma & Ba, "Adam", ICLR 2015, https://arxiv.org/abs/1412.6980, Algorithm 1."""

    def update(gradient, moments):
        return _average(b1, moments[0], gradient), _average(b2, moments[1], gradient * gradient)

    def direction(gradient, moments, count):
        del gradient
        first, second = 1.0 / (1.0 - b1**count), 1.0 / (1.0 - b2**count)
        return moments[0] * first / (jnp.sqrt(moments[1] * second) + epsilon)

    return Optimizer(2, update, direction)


def _momentum(decay: float = 0.9, nesterov: bool = False) -> Optimizer:
    """Heavy ball, and the form of Nesterov's method of Sutskever et al., ICML 2013."""

    def direction(gradient, moments, count):
        del count
        return gradient + decay * moments[0] if nesterov else moments[0]

    return Optimizer(1, lambda gradient, moments: (gradient + decay * moments[0],), direction)


def _rmsprop(decay: float = 0.99, epsilon: float = 1e-8) -> Optimizer:
    """Tieleman & Hinton, Coursera lecture 6.5, 2012."""
    return Optimizer(
        1,
        lambda gradient, moments: (_average(decay, moments[0], gradient * gradient),),
        lambda gradient, moments, count: gradient / (jnp.sqrt(moments[0]) + epsilon),
    )


def _lion(b1: float = 0.9, b2: float = 0.99) -> Optimizer:
    """Chen et al., 2023, https://arxiv.org/abs/2302.06675, Algorithm 2.

    The direction interpolates with the moment before the update, which follows from the one after.
    """

    def direction(gradient, moments, count):
        del count
        before = (moments[0] - (1.0 - b2) * gradient) / b2
        return jnp.sign(_average(b1, before, gradient))

    return Optimizer(1, lambda gradient, moments: (_average(b2, moments[0], gradient),), direction)


OPTIMIZERS: MappingProxyType[str, Optimizer] = MappingProxyType(
    {
        "adam": _adam(),
        "sgd": Optimizer(0, lambda gradient, moments: (), lambda gradient, *_: gradient),
        "momentum": _momentum(),
        "nesterov": _momentum(nesterov=True),
        "rmsprop": _rmsprop(),
        "lion": _lion(),
    }
)


class Step(NamedTuple):
    """What one step has in common for all parameters.

    Attributes:
      index: i32[], the optimiser among those to choose from.
      count: f32[], steps including this one.
      rate: f32[], learning rate.
      decay: f32[], weight decay; None: none.
      decoupled: whether the decay bypasses the optimiser. Static.
    """

    index: Array
    count: Array
    rate: Array
    decay: Array | float | None = None
    decoupled: bool = False


def init_any(optimizers: Sequence[Optimizer], params: PyTree) -> tuple[PyTree, ...]:
    """The first moments: as many trees like `params` as the most demanding optimiser needs."""
    most = max(optimizer.num_moments for optimizer in optimizers)
    return tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(most))


def step_any(
    optimizers: Sequence[Optimizer],
    step: Step,
    active: Array | None,
    gradients: PyTree,
    moments: tuple[PyTree, ...],
    params: PyTree,
    decayed: PyTree,
) -> tuple[PyTree, tuple[PyTree, ...]]:
    """One step of `optimizers[step.index]`, or nothing where not `active`.

    Args:
      optimizers: at least one. Static.
      step: the settings of this step.
      active: bool[], whether to step at all; None: always.
      gradients: like `params`.
      moments: from `init_any` or the step before.
      params: what is optimised.
      decayed: like `params` with booleans: whether weight decay applies. Static.

    Returns:
      The new parameters and moments.

    Example:
      >>> both = [OPTIMIZERS["sgd"], OPTIMIZERS["momentum"]]
      >>> first, step = init_any(both, jnp.zeros(2)), Step(jnp.int32(1), 1.0, 0.5)
      >>> step_any(both, step, None, jnp.ones(2), first, jnp.zeros(2), True)[0].tolist()
      [-0.5, -0.5]
    """

    def run(gradients, moments, params):
        leaves, structure = jax.tree.flatten(params)
        columns = [structure.flatten_up_to(tree) for tree in (gradients, *moments, decayed)]
        rows = zip(leaves, *columns, strict=True)
        found = [_step_leaf(optimizers, step, *row) for row in rows]
        trees = [jax.tree.unflatten(structure, column) for column in zip(*found, strict=True)]
        return trees[0], tuple(trees[1:])

    if active is None:
        return run(gradients, moments, params)
    skip = lambda gradients, moments, params: (params, moments)  # noqa: E731
    return jax.lax.cond(active, run, skip, gradients, moments, params)


def _step_leaf(optimizers, step: Step, param, gradient, *moments_and_decayed):
    """One array's new value and moments.

    All rules are computed and one is selected, in the passes over memory that an update costs
    anyway: a `switch` computes less, but copies parameters and moments on the way into it.
    """
    *moments, decayed = moments_and_decayed
    decays = decayed and step.decay is not None
    if decays and not step.decoupled:
        gradient = gradient + step.decay * param
    options = []
    for optimizer in optimizers:
        new = optimizer.update(gradient, tuple(moments[: optimizer.num_moments]))
        options.append((*new, *moments[optimizer.num_moments :]))
    moments = [select(step.index, slot) for slot in zip(*options, strict=True)]
    # Without the barrier the direction would be computed from the old moments again.
    *moments, gradient, param = jax.lax.optimization_barrier((*moments, gradient, param))
    direction = select(
        step.index,
        [
            optimizer.direction(gradient, tuple(moments[: optimizer.num_moments]), step.count)
            for optimizer in optimizers
        ],
    )
    if decays and step.decoupled:
        direction = direction + step.decay * param
    return param - step.rate * direction, *moments
