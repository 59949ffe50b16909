"""Search spaces: factories of `jaxnas.space.SearchSpace`."""

from types import MappingProxyType

from jaxnas.spaces.mlp import mlp as mlp

ALL = MappingProxyType({"mlp": mlp})
