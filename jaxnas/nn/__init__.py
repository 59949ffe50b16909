"""Flax modules that networks and supernets are made of. Only `nn` and `spaces` import Flax."""

from jaxnas.nn.darts import DARTS as DARTS
from jaxnas.nn.darts_supernet import DARTSSupernet as DARTSSupernet
from jaxnas.nn.mlp import MLP as MLP
from jaxnas.nn.mlp import MLPSupernet as MLPSupernet
from jaxnas.nn.nasbench201 import NASBench201 as NASBench201
from jaxnas.nn.nasbench201 import NASBench201Supernet as NASBench201Supernet
