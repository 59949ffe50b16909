"""Tabular benchmarks as arrays, for `jaxnas.evaluators.tabular`.

A loader returns a `Table`; `from_arrays` makes one of any numbers, `build` by training a small
space; `save` and `load` keep it in a file. In the shape descriptions, `N` denotes the rows
(architectures) of a table, `F` its fidelities, `S` its seeds and `D` the decisions of its space.
"""

from types import MappingProxyType

from jaxnas.tables.building import build as build
from jaxnas.tables.digits import digits as digits
from jaxnas.tables.files import load as load
from jaxnas.tables.files import save as save
from jaxnas.tables.hpolib import hpolib as hpolib
from jaxnas.tables.nasbench201 import nasbench201 as nasbench201
from jaxnas.tables.table import Table as Table
from jaxnas.tables.table import from_arrays as from_arrays

ALL = MappingProxyType({"digits": digits, "nasbench201": nasbench201, "hpolib": hpolib})
