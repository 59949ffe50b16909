"""Neural architecture search in JAX."""

from jaxnas import evaluators as evaluators
from jaxnas import strategies as strategies
from jaxnas import testing as testing
from jaxnas.search import (
    Record as Record,
)
from jaxnas.search import SearchState as SearchState
from jaxnas.search import best as best
from jaxnas.search import incumbent_curve as incumbent_curve
from jaxnas.search import init as init
from jaxnas.search import search as search
from jaxnas.search import step as step
