"""Optimisers by name, and one step of whichever of them a candidate chose."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

PyTree = Any
Transforms = Sequence[optax.GradientTransformation]

# Directions of unit learning rate; the recipe's schedule scales them. Constants are PyTorch's
# defaults, which is what the NAS literature trained with.
OPTIMIZERS: MappingProxyType[str, Callable[[], optax.GradientTransformation]] = MappingProxyType(
    {
        "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        "sgd": optax.identity,
        "momentum": lambda: optax.trace(decay=0.9),
        "nesterov": lambda: optax.trace(decay=0.9, nesterov=True),
        "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False),
        "lion": optax.scale_by_lion,
    }
)


def _layout(transforms: Transforms, params: PyTree):
    """Slots that hold the state of any one transformation, and each one's places among them.

    Leaves of equal shape and dtype share a slot, since a candidate needs one state only: Adam, SGD
    and RMSprop together take Adam's two moments.
    """
    slots: list[jax.ShapeDtypeStruct] = []
    places: list[list[int]] = []
    structures = []
    for transform in transforms:
        leaves, structure = jax.tree.flatten(jax.eval_shape(transform.init, params))
        place: list[int] = []
        for leaf in leaves:
            fit = (
                s
                for s, slot in enumerate(slots)
                if s not in place and (slot.shape, slot.dtype) == (leaf.shape, leaf.dtype)
            )
            place.append(next(fit, len(slots)))
            if place[-1] == len(slots):
                slots.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        places.append(place)
        structures.append(structure)
    return slots, places, structures


def init_any(transforms: Transforms, index: Array, params: PyTree) -> list[Array]:
    """The first state of `transforms[index]`, in slots that suit each of them.

    Args:
      transforms: at least one; every leaf of their states is an array.
      index: i32[], may be traced.
      params: what will be optimised.

    Returns:
      A list of arrays.
    """
    slots, places, _ = _layout(transforms, params)

    def branch(transform, place):
        def make():
            state = [jnp.zeros(slot.shape, slot.dtype) for slot in slots]
            for slot, leaf in zip(place, jax.tree.leaves(transform.init(params)), strict=True):
                state[slot] = jnp.asarray(leaf)
            return state

        return make

    branches = [branch(t, place) for t, place in zip(transforms, places, strict=True)]
    return branches[0]() if len(branches) == 1 else jax.lax.switch(index, branches)


def step_any(
    transforms: Transforms,
    index: Array,
    active: Array | None,
    rate: Array,
    gradients: PyTree,
    state: list[Array],
    params: PyTree,
) -> tuple[PyTree, list[Array]]:
    """One step `params - rate * direction` of `transforms[index]`, or nothing where not `active`.

    Args:
      transforms: as for `init_any`.
      index: i32[], may be traced.
      active: bool[], whether to step at all; None: always.
      rate: f32[], learning rate.
      gradients: like `params`.
      state: from `init_any` or the step before.
      params: what is optimised.

    Returns:
      The new parameters and state.

    Example:
      >>> both = [optax.identity(), optax.trace(0.9)]
      >>> state = init_any(both, jnp.int32(1), jnp.zeros(2))
      >>> step_any(both, jnp.int32(1), None, 0.5, jnp.ones(2), state, jnp.zeros(2))[0].tolist()
      [-0.5, -0.5]
    """
    _, places, structures = _layout(transforms, params)

    def branch(transform, place, structure):
        def direct(gradients, state, params):
            own = jax.tree.unflatten(structure, [state[slot] for slot in place])
            directions, own = transform.update(gradients, own, params)
            state = list(state)
            for slot, leaf in zip(place, jax.tree.leaves(own), strict=True):
                state[slot] = leaf
            return jax.tree.map(lambda p, d: p - rate * d, params, directions), state

        return direct

    branches = [branch(*each) for each in zip(transforms, places, structures, strict=True)]

    # The switch stands inside the condition, for XLA elides the copies of a branch that changes
    # nothing in a condition of two branches, but not in a switch of four.
    def run(gradients, state, params):
        if len(branches) == 1:
            params, state = branches[0](gradients, state, params)
        else:
            params, state = jax.lax.switch(index, branches, gradients, state, params)
        return params, state

    if active is None:
        return run(gradients, state, params)
    skip = lambda gradients, state, params: (params, state)  # noqa: E731
    return jax.lax.cond(active, run, skip, gradients, state, params)
