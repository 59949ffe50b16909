"""Strategies: where to look next. One paper, one file."""

from types import MappingProxyType

from jaxnas.strategies.genetic import genetic as genetic
from jaxnas.strategies.random_search import random_search as random_search
from jaxnas.strategies.regularized_evolution import (
    regularized_evolution as regularized_evolution,
)
from jaxnas.strategies.reinforce import reinforce as reinforce

ALL = MappingProxyType(
    {
        "genetic": genetic,
        "random_search": random_search,
        "regularized_evolution": regularized_evolution,
        "reinforce": reinforce,
    }
)
