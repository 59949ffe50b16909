"""Evaluators: from proposed architectures to fitness."""

from types import MappingProxyType

from jaxnas.evaluators.from_function import from_function as from_function

ALL = MappingProxyType({"from_function": from_function})
