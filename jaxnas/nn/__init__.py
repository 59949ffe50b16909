"""Flax modules that networks and supernets are made of. Only `nn` and `spaces` import Flax."""

from jaxnas.nn.mlp import MLP as MLP
from jaxnas.nn.mlp import MLPSupernet as MLPSupernet
