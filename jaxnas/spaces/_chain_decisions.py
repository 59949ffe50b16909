"""The lists of a chain space, checked, and the decisions that they make."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxnas.nn._chain_design import needs_kernel, parse_operation
from jaxnas.nn.chain_cnn import CONVOLUTIONS
from jaxnas.space import Decision
from jaxnas.training.optimizers import OPTIMIZERS

PER_LAYER = ("operation", "filters", "kernel", "skip_connection")

_RESHAPING = ("width_multiplier", "resolution", "filters")


def checked_lists(*, smallest: int, **lists: Sequence[Any]) -> dict[str, tuple]:
    """The lists as tuples, in the order of the decisions."""

    def is_count(value):
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    def is_number(value):
        return isinstance(value, (int, float)) and value > 0.0

    count = (is_count, "whole numbers above 0")
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "depth": count,
        "width_multiplier": (is_number, "numbers above 0"),
        "resolution": (lambda r: is_count(r) and r >= smallest, f"at least {smallest}"),
        "repeats": count,
        "operation": (lambda name: bool(parse_operation(name)), "names of operations"),
        "filters": count,
        "kernel": (lambda k: is_count(k) and k % 2 == 1, "odd numbers above 0"),
        "skip_connection": (lambda skip: isinstance(skip, bool), "booleans"),
        "dropout": (lambda rate: 0.0 <= rate < 1.0, "rates in [0, 1)"),
        "learning_rate": (is_number, "numbers above 0"),
        "optimizer": (OPTIMIZERS.__contains__, f"in {sorted(OPTIMIZERS)}"),
    }
    for name, (is_allowed, allowed) in rules.items():
        if not len(lists[name]) and name not in ("learning_rate", "optimizer"):
            raise ValueError(f"{name} has no values; give at least one ({allowed})")
        for value in lists[name]:
            if not is_allowed(value):
                raise ValueError(f"{name} has {value!r}; values must be {allowed}")
    floats = ("width_multiplier", "dropout", "learning_rate")
    return {
        name: tuple(map(float, lists[name])) if name in floats else tuple(lists[name])
        for name in rules
    }


def decisions_of(lists: dict[str, tuple], per_layer: Sequence[str]) -> tuple[Decision, ...]:
    """Those with a choice, in an order in which conditions come first."""
    found: list[Decision] = []

    def place(name):
        return next((i for i, d in enumerate(found) if d.name == name), None)

    def add(name, number=None, active_if=None):
        label = name if number is None else f"{name}_{number}"
        if len(lists[name]) > 1:
            found.append(Decision(label, lists[name], name in _RESHAPING, active_if))

    def add_heeded(name, number, otherwise):
        """A decision that only some operations heed."""
        heeds = [_heeds(operation, name) for operation in lists["operation"]]
        own = place("operation" if number is None else f"operation_{number}")
        if not any(heeds):
            return
        if own is None:
            add(name, number, otherwise)
        else:
            add(name, number, (own, tuple(i for i, does in enumerate(heeds) if does)))

    for name in ("depth", "width_multiplier", "resolution", "repeats"):
        add(name)
    shared = [name for name in PER_LAYER if name not in per_layer]
    if "operation" in shared:
        add("operation")
    for name in shared:
        if name != "operation":
            add_heeded(name, None, None)
    for number in range(1, max(lists["depth"]) + 1):
        deep = _deeper(lists["depth"], number)
        if "operation" in per_layer:
            add("operation", number, deep)
        for name in PER_LAYER[1:]:
            if name in per_layer:
                add_heeded(name, number, deep)
    add("dropout")
    for name in ("learning_rate", "optimizer"):
        if lists[name]:
            found.append(Decision(name, lists[name]))
    return tuple(found)


def _deeper(depths: tuple[int, ...], number: int) -> tuple[int, tuple[int, ...]] | None:
    """The condition that there is a layer `number`; None: there always is."""
    deep = tuple(i for i, depth in enumerate(depths) if depth >= number)
    return None if len(deep) == len(depths) else (0, deep)


def _heeds(operation: str, name: str) -> bool:
    """Whether the operation does what decision `name` says."""
    if name == "kernel":
        return needs_kernel(operation)
    return parse_operation(operation)[0] in CONVOLUTIONS
