"""Search spaces: factories of `jaxnas.space.SearchSpace`."""

from types import MappingProxyType

from jaxnas.spaces.chain_cnn import chain_cnn as chain_cnn
from jaxnas.spaces.darts import darts as darts
from jaxnas.spaces.mlp import mlp as mlp
from jaxnas.spaces.nasbench201 import nasbench201 as nasbench201
from jaxnas.spaces.recurrent import recurrent as recurrent

ALL = MappingProxyType(
    {
        "chain_cnn": chain_cnn,
        "darts": darts,
        "mlp": mlp,
        "nasbench201": nasbench201,
        "recurrent": recurrent,
    }
)
