"""Strategies: where to look next. One paper, one file."""

from types import MappingProxyType

from jaxnas.strategies.random_search import random_search as random_search

ALL = MappingProxyType({"random_search": random_search})
