"""One-shot methods: a weight-sharing supernet and architecture parameters trained together."""

from types import MappingProxyType

from jaxnas.oneshot.darts import darts as darts
from jaxnas.oneshot.problem import Problem as Problem
from jaxnas.oneshot.problem import from_space as from_space
from jaxnas.oneshot.search import resume as resume
from jaxnas.oneshot.search import search as search

ALL = MappingProxyType(
    {
        "darts": darts,
    }
)
