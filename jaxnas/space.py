"""Search spaces: which decisions an architecture has, and operations on decision vectors.

An architecture is data: `arch: i32[D]`, one choice index per decision. All operations here act on
ONE architecture and are traceable; use `jax.vmap` for batches. Conditional decisions that are
switched off hold 0, so equal vectors mean equal networks ("canonical form").
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxnas import counter
from jaxnas.types import split_like

Bucket = tuple[tuple[int, ...], ...]  # per decision, the choices that one program serves

MAX_TRIES = 1000  # draws before `sample` and `mutate` give up looking for a valid architecture


@dataclass(frozen=True)
class Decision:
    """One decision of an architecture.

    Attributes:
      name: unique within its space.
      choices: the values to choose from; hashable, at least one, no duplicates.
      reshapes: whether the choice changes the shapes of parameters (width, depth, kernel size).
        Such decisions determine what one compiled program can hold, and their choices are numbers
        in ascending order. The others are data to a compiled program.
      active_if: `(index, choices)`: the decision counts only while the earlier decision `index` is
        itself active and set to one of these choice indices; None: always.
    """

    name: str
    choices: tuple[Hashable, ...]
    reshapes: bool = False
    active_if: tuple[int, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class SearchSpace:
    """A frozen description of a search space.

    `supernet` is a function of a bucket rather than one module, for one mechanism then gives every
    use: the bucket of all choices is the classic weight-sharing supernet, a bucket with single
    choices for the reshaping decisions is the exact program that trains candidates of one shape,
    and anything between holds several shapes by masks.

    Attributes:
      name: for reports and journals.
      decisions: in an order in which every condition comes before what depends on it.
      network: `(arch) -> nn.Module`, the stand-alone network of a concrete `arch`; nothing masked.
      supernet: `(bucket) -> nn.Module`, whose `__call__(x, choice, *, train)` serves every
        architecture inside the bucket (`jaxnas.nn.MLPSupernet` shows its optional methods).
      hyperparameters: `(arch) -> dict` of traced scalars that replace the recipe's values of the
        same names; `optimizer` is an index into that decision's choices.
      is_valid: `(arch) -> bool[]`, traceable; None: everything is valid.
      representative: `(arch) -> arch`, traceable, one and the same architecture for all that build
        the same function, for deduplication; None: different vectors build different functions.
      cost: `(arch) -> NetworkCost` of the stand-alone network of a concrete `arch`, where that is
        known without tracing it (`jaxnas.training.costs`); None: it is traced.
    """

    name: str
    decisions: tuple[Decision, ...]
    network: Callable[[ArrayLike], Any]
    supernet: Callable[[Bucket], Any] | None = None
    hyperparameters: Callable[[Array], dict[str, Array]] | None = None
    is_valid: Callable[[Array], Array] | None = None
    representative: Callable[[Array], Array] | None = None
    cost: Callable[[ArrayLike], Any] | None = None

    def __post_init__(self):
        if not self.decisions:
            raise ValueError(f"decisions of space {self.name!r} is empty; give at least one")
        names = [d.name for d in self.decisions]
        if len(set(names)) != len(names):
            raise ValueError(f"decisions of space {self.name!r} have duplicate names: {names}")
        for position, decision in enumerate(self.decisions):
            _check_decision(self.decisions, position, decision)

    @property
    def num_decisions(self) -> int:
        """D, the length of an architecture vector."""
        return len(self.decisions)

    @property
    def num_choices(self) -> tuple[int, ...]:
        """Choices per decision."""
        return tuple(len(d.choices) for d in self.decisions)

    @property
    def is_conditional(self) -> bool:
        """Whether any decision counts only under a condition."""
        return any(d.active_if is not None for d in self.decisions)

    @property
    def full_bucket(self) -> Bucket:
        """The bucket that holds the whole space."""
        return tuple(tuple(range(n)) for n in self.num_choices)

    def index(self, name: str) -> int:
        """Position of the decision called `name`; ValueError if there is none."""
        for position, decision in enumerate(self.decisions):
            if decision.name == name:
                return position
        known = [d.name for d in self.decisions]
        raise ValueError(f"space {self.name!r} has no decision {name!r}; it has {known}")

    def active_mask(self, arch: ArrayLike) -> tuple[bool, ...]:
        """Which decisions of a concrete `arch` i32[D] count; `is_active` without tracing."""
        arch = np.asarray(arch)
        mask: list[bool] = []
        for decision in self.decisions:
            on = True
            if decision.active_if is not None:
                parent, allowed = decision.active_if
                on = mask[parent] and int(arch[parent]) in allowed
            mask.append(on)
        return tuple(mask)

    def describe(self, arch: ArrayLike) -> dict[str, Hashable]:
        """The active decisions of a concrete `arch` i32[D] as name to chosen value."""
        triples = zip(self.decisions, np.asarray(arch), self.active_mask(arch), strict=True)
        return {d.name: d.choices[int(c)] for d, c, on in triples if on}

    def arch(self, values: Mapping[str, Hashable]) -> Array:
        """The canonical architecture with these values; the inverse of `describe`.

        Args:
          values: decision name to value; decisions left out take their first choice.

        Returns:
          i32[D].

        Raises:
          ValueError: for an unknown decision or value.
        """
        arch = np.zeros(self.num_decisions, np.int32)
        for name, value in values.items():
            decision = self.decisions[self.index(name)]
            if value not in decision.choices:
                raise ValueError(f"{name} = {value!r} is not one of {list(decision.choices)}")
            arch[self.index(name)] = decision.choices.index(value)
        return canonical(self, jnp.asarray(arch))


def _check_decision(decisions: Sequence[Decision], position: int, decision: Decision) -> None:
    name, choices = decision.name, decision.choices
    if not choices:
        raise ValueError(f"choices of decision {name!r} is empty; give at least one")
    if len(set(choices)) != len(choices):
        raise ValueError(f"choices of decision {name!r} has duplicates: {list(choices)}")
    if decision.reshapes and list(choices) != sorted(choices):  # type: ignore[type-var]
        raise ValueError(f"choices of decision {name!r} must ascend, got {list(choices)}")
    if decision.active_if is None:
        return
    parent, allowed = decision.active_if
    if not 0 <= parent < position:
        raise ValueError(f"active_if of decision {name!r} must name an earlier one, got {parent}")
    if not allowed or not set(allowed) <= set(range(len(decisions[parent].choices))):
        raise ValueError(
            f"active_if of decision {name!r} allows {allowed}, "
            f"but {decisions[parent].name!r} has choices 0 to {len(decisions[parent].choices) - 1}"
        )


def is_active(space: SearchSpace, arch: Array) -> Array:
    """Which decisions count in `arch` i32[D]: bool[D]."""
    if not space.is_conditional:
        return jnp.ones(space.num_decisions, bool)
    active: list[Array] = []
    for decision in space.decisions:
        on = jnp.asarray(True)
        if decision.active_if is not None:
            parent, allowed = decision.active_if
            on = active[parent] & jnp.isin(arch[parent], jnp.asarray(allowed))
        active.append(on)
    return jnp.stack(active)


def canonical(space: SearchSpace, arch: Array) -> Array:
    """`arch` i32[D] with its inactive decisions set to 0; idempotent."""
    arch = jnp.asarray(arch, jnp.int32)
    return jnp.where(is_active(space, arch), arch, 0) if space.is_conditional else arch


def is_valid(space: SearchSpace, arch: Array) -> Array:
    """Whether `arch` i32[D] is in range and passes the space's own rule: bool[]."""
    in_range = jnp.all((arch >= 0) & (arch < jnp.asarray(space.num_choices)))
    return in_range if space.is_valid is None else in_range & space.is_valid(arch)


def first_valid(space: SearchSpace, key: Array, draw: Callable[[Array], Array]) -> Array:
    """The first valid one of up to `MAX_TRIES` draws, else the last draw."""
    if space.is_valid is None:
        return draw(key)

    def again(carry):
        tries, arch = carry
        return ~is_valid(space, arch) & (tries < MAX_TRIES)

    def redraw(carry):
        tries, _ = carry
        return tries + 1, draw(jax.random.fold_in(key, tries))

    return jax.lax.while_loop(again, redraw, redraw((0, None)))[1]


def _pick(uniform: Array, counts: Array) -> Array:
    """Whole numbers from 0 to counts - 1 out of uniform numbers in [0, 1): i32[D].

    One multiplication, where `randint` with array bounds is four hashes that compile for a second.
    """
    return jnp.minimum((uniform * counts).astype(jnp.int32), counts - 1)


def sample(key: Array, space: SearchSpace) -> Array:
    """Draws every decision uniformly, then brings the result to canonical form.

    Invalid draws are repeated; where `MAX_TRIES` draws in a row are invalid the last is returned.

    Args:
      key: PRNG key.
      space: the space.

    Returns:
      i32[D].

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> sample(jax.random.key(0), tiny_space()).shape
      (3,)
    """
    counts = jnp.asarray(space.num_choices)

    def draw(k):
        return canonical(space, _pick(counter.draw(k, counts.size), counts))

    return first_valid(space, key, draw)


def mutate(key: Array, space: SearchSpace, arch: Array, rate: float | Array | None = None) -> Array:
    """Changes `arch` a little.

    Decisions that the change switches on are drawn uniformly, so that deeper children are not all
    alike; decisions that it switches off become 0.

    Args:
      key: PRNG key.
      space: the space.
      arch: i32[D], canonical.
      rate: None changes exactly one active decision that has an alternative, picked uniformly; a
        number in [0, 1] changes each active decision with that probability. May be traced.

    Returns:
      i32[D], canonical; `arch` where nothing can change, or `MAX_TRIES` changes in a row are
      invalid.
    """
    counts = jnp.asarray(space.num_choices)
    was_active = is_active(space, arch)
    free = was_active & (counts > 1)

    def draw(k):
        k_change, k_new = split_like(k, 2)
        if rate is None:
            which, other = counter.draw(k_change, 2)
            nth = 1 + _pick(which, free.sum())
            change = free & (jnp.cumsum(free) == nth)
        else:
            which, other = counter.draw(k_change, 2 * free.size).reshape(2, -1)
            change = free & (which < rate)
        # A shift of 1 to n - 1 modulo n reaches each other choice with equal probability.
        shift = 1 + _pick(other, jnp.maximum(counts - 1, 1))
        child = jax.lax.rem(arch + jnp.where(change, shift, 0), counts)
        if not space.is_conditional:
            return child
        drawn = _pick(counter.draw(k_new, counts.size), counts)
        fresh = is_active(space, jnp.where(was_active, child, drawn))
        return canonical(space, jnp.where(fresh & ~was_active, drawn, child))

    child = first_valid(space, key, draw)
    return child if space.is_valid is None else jnp.where(is_valid(space, child), child, arch)


def crossover(
    key: Array, space: SearchSpace, a: Array, b: Array, *, kind: str = "uniform"
) -> Array:
    """Mixes two parents.

    A decision that counts in one parent only comes from that one, wherever the child needs it: the
    0 that stands for an inactive decision in the other is not a choice anybody made.

    Args:
      key: PRNG key.
      space: the space.
      a: i32[D], first parent.
      b: i32[D], second parent.
      kind: "uniform" takes each decision from either parent with equal chance; "one_point" takes
        the decisions before a random cut from `a` and the rest from `b`. Static.

    Returns:
      i32[D], canonical; `a` where `MAX_TRIES` mixtures in a row are invalid.

    Raises:
      ValueError: for an unknown `kind`.
    """
    if kind not in ("uniform", "one_point"):
        raise ValueError(f"kind must be 'uniform' or 'one_point', got {kind!r}")

    in_a, in_b = is_active(space, a), is_active(space, b)
    either, other = jnp.where(in_a, a, b), jnp.where(in_b, b, a)

    def draw(k):
        if kind == "uniform":
            from_a = counter.draw(k, a.size) < 0.5
        else:
            from_a = jnp.arange(a.size) < jax.random.randint(k, (), 1, max(a.size, 2))
        return canonical(space, jnp.where(from_a, either, other))

    child = first_valid(space, key, draw)
    return child if space.is_valid is None else jnp.where(is_valid(space, child), child, a)


def neighbours(space: SearchSpace, arch: Array) -> Array:
    """Every architecture one choice away from `arch` i32[D].

    Returns:
      i32[N, D] with the static N = sum of (choices - 1), ordered by decision. Rows that would
      change an inactive decision, or be invalid, repeat `arch`, so drop rows equal to it.
    """
    rows = [
        canonical(space, arch.at[d].set((arch[d] + shift) % n))
        for d, n in enumerate(space.num_choices)
        for shift in range(1, n)
    ]
    if not rows:
        return jnp.zeros((0, space.num_decisions), jnp.int32)
    stacked = jnp.stack(rows)
    valid = jax.vmap(lambda row: is_valid(space, row))(stacked)
    return jnp.where(valid[:, None], stacked, arch)


def representative(space: SearchSpace, arch: Array) -> Array:
    """The one architecture i32[D] that stands for all that build the same function as `arch`."""
    arch = canonical(space, arch)
    return arch if space.representative is None else space.representative(arch)


def encode(space: SearchSpace, arch: Array) -> Array:
    """One-hot encoding of `arch` i32[D]: f32[sum of choices], zeros for inactive decisions."""
    active = is_active(space, arch)
    blocks = [jax.nn.one_hot(arch[d], n) * active[d] for d, n in enumerate(space.num_choices)]
    return jnp.concatenate(blocks)


def decode(space: SearchSpace, encoding: Array) -> Array:
    """The architecture i32[D] of an `encode`d one; also the nearest one of scores f32[...]."""
    ends = np.cumsum(space.num_choices)
    blocks = jnp.split(encoding, ends[:-1])
    return canonical(space, jnp.stack([jnp.argmax(block) for block in blocks]))
