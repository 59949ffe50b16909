"""Search spaces: factories of `jaxnas.space.SearchSpace`."""

from types import MappingProxyType

from jaxnas.spaces.mlp import mlp as mlp
from jaxnas.spaces.nasbench201 import nasbench201 as nasbench201

ALL = MappingProxyType({"mlp": mlp, "nasbench201": nasbench201})
