"""One-shot methods: a weight-sharing supernet and architecture parameters trained together."""

from types import MappingProxyType

from jaxnas.oneshot.enas import enas as enas
from jaxnas.oneshot.fair_nas import fair_nas as fair_nas
from jaxnas.oneshot.problem import Problem as Problem
from jaxnas.oneshot.problem import from_space as from_space
from jaxnas.oneshot.random_weight_sharing import random_weight_sharing as random_weight_sharing
from jaxnas.oneshot.sandwich import sandwich as sandwich
from jaxnas.oneshot.search import resume as resume
from jaxnas.oneshot.search import search as search
from jaxnas.oneshot.single_path import single_path as single_path

ALL = MappingProxyType(
    {
        "enas": enas,
        "fair_nas": fair_nas,
        "random_weight_sharing": random_weight_sharing,
        "sandwich": sandwich,
        "single_path": single_path,
    }
)
