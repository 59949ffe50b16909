"""Optimisers by name, and one transformation that is any of them by a traced index."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

PyTree = Any

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


class IndexedTransformation(NamedTuple):
    """A gradient transformation that is one of several, chosen per candidate.

    Attributes:
      init: `(index, params) -> state`.
      update: `(index, gradients, state, params) -> (updates, state)`.
    """

    init: Callable[[Array, PyTree], list[Array]]
    update: Callable[[Array, PyTree, list[Array], PyTree], tuple[PyTree, list[Array]]]


def any_of(transforms: Sequence[optax.GradientTransformation]) -> IndexedTransformation:
    """One of several optax transformations, by a traced index.

    Their states share slots: leaves of equal shape and dtype use the same memory, since a candidate
    needs one state only. So Adam, SGD and RMSprop together take Adam's two moments.

    Args:
      transforms: at least one; every state leaf is an array.

    Returns:
      The combined transformation; its state is a list of arrays.

    Example:
      >>> both = any_of([optax.identity(), optax.trace(0.9)])
      >>> state = both.init(0, jnp.zeros(2))
      >>> both.update(0, jnp.ones(2), state, jnp.zeros(2))[0].tolist()
      [1.0, 1.0]
    """

    def layout(params):
        """Slot shapes, and per transform the slot of each state leaf."""
        slots: list[jax.ShapeDtypeStruct] = []
        places = []
        for transform in transforms:
            free = list(range(len(slots)))
            place = []
            for leaf in jax.tree.leaves(jax.eval_shape(transform.init, params)):
                fit = [s for s in free if (slots[s].shape, slots[s].dtype) == _kind(leaf)]
                if fit:
                    free.remove(fit[0])
                else:
                    slots.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
                place.append(fit[0] if fit else len(slots) - 1)
            places.append(place)
        return slots, places

    def init(index, params):
        slots, places = layout(params)

        def branch(transform, place):
            def make():
                state = [jnp.zeros(slot.shape, slot.dtype) for slot in slots]
                leaves = jax.tree.leaves(transform.init(params))
                for slot, leaf in zip(place, leaves, strict=True):
                    state[slot] = jnp.asarray(leaf)
                return state

            return make

        return _switch(index, [branch(t, p) for t, p in zip(transforms, places, strict=True)])

    def update(index, gradients, state, params):
        _, places = layout(params)

        def branch(transform, place):
            def run(gradients, state, params):
                structure = jax.tree.structure(jax.eval_shape(transform.init, params))
                own = jax.tree.unflatten(structure, [state[slot] for slot in place])
                updates, own = transform.update(gradients, own, params)
                state = list(state)
                for slot, leaf in zip(place, jax.tree.leaves(own), strict=True):
                    state[slot] = leaf
                return updates, state

            return run

        branches = [branch(t, p) for t, p in zip(transforms, places, strict=True)]
        return _switch(index, branches, gradients, state, params)

    return IndexedTransformation(init, update)


def _kind(leaf):
    return leaf.shape, leaf.dtype


def _switch(index, branches, *operands):
    if len(branches) == 1:
        return branches[0](*operands)
    return jax.lax.switch(index, branches, *operands)
