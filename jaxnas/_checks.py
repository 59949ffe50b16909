"""Eager checks of hyperparameters, worded alike in every factory."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def check_count(name: str, value: Any, minimum: int = 1) -> None:
    """Raises ValueError unless `value` is an integer of at least `minimum`.

    Example:
      >>> check_count("batch_size", 0)
      Traceback (most recent call last):
      ...
      ValueError: batch_size must be an integer of at least 1, got 0
    """
    if not isinstance(value, Integral) or int(value) < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def check_number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Raises ValueError if `value` is a concrete number outside [low, high]; arrays pass.

    Example:
      >>> check_number("crossover_rate", 1.5, high=1.0)
      Traceback (most recent call last):
      ...
      ValueError: crossover_rate must be in [0.0, 1.0], got 1.5
    """
    if isinstance(value, Real) and not low <= float(value) <= high:
        allowed = f"at least {low}" if math.isinf(high) else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_option(name: str, value: Any, options: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `options`.

    Example:
      >>> check_option("policy", "lstm", ("recurrent", "factorised"))
      Traceback (most recent call last):
      ...
      ValueError: policy must be one of ('recurrent', 'factorised'), got 'lstm'
    """
    if value not in options:
        raise ValueError(f"{name} must be one of {tuple(options)}, got {value!r}")
