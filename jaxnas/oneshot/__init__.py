"""One-shot methods: a weight-sharing supernet and architecture parameters trained together."""

from types import MappingProxyType

from jaxnas.oneshot.darts import darts as darts
from jaxnas.oneshot.darts_minus import darts_minus as darts_minus
from jaxnas.oneshot.darts_pt import darts_pt as darts_pt
from jaxnas.oneshot.drnas import drnas as drnas
from jaxnas.oneshot.enas import enas as enas
from jaxnas.oneshot.fair_darts import fair_darts as fair_darts
from jaxnas.oneshot.fair_nas import fair_nas as fair_nas
from jaxnas.oneshot.fbnet import fbnet as fbnet
from jaxnas.oneshot.gdas import gdas as gdas
from jaxnas.oneshot.lambda_bilevel import lambda_bilevel as lambda_bilevel
from jaxnas.oneshot.optimizers import Adam as Adam
from jaxnas.oneshot.optimizers import Sgd as Sgd
from jaxnas.oneshot.p_darts import deepen as deepen
from jaxnas.oneshot.p_darts import p_darts as p_darts
from jaxnas.oneshot.pc_darts import pc_darts as pc_darts
from jaxnas.oneshot.problem import Problem as Problem
from jaxnas.oneshot.problem import from_space as from_space
from jaxnas.oneshot.proxyless import proxyless as proxyless
from jaxnas.oneshot.random_weight_sharing import random_weight_sharing as random_weight_sharing
from jaxnas.oneshot.robust_darts import robust_darts as robust_darts
from jaxnas.oneshot.sandwich import sandwich as sandwich
from jaxnas.oneshot.sdarts import sdarts as sdarts
from jaxnas.oneshot.search import resume as resume
from jaxnas.oneshot.search import search as search
from jaxnas.oneshot.single_path import single_path as single_path
from jaxnas.oneshot.snas import snas as snas

ALL = MappingProxyType(
    {
        "darts": darts,
        "darts_minus": darts_minus,
        "darts_pt": darts_pt,
        "drnas": drnas,
        "enas": enas,
        "fair_darts": fair_darts,
        "fair_nas": fair_nas,
        "fbnet": fbnet,
        "gdas": gdas,
        "lambda_bilevel": lambda_bilevel,
        "p_darts": p_darts,
        "pc_darts": pc_darts,
        "proxyless": proxyless,
        "random_weight_sharing": random_weight_sharing,
        "robust_darts": robust_darts,
        "sandwich": sandwich,
        "sdarts": sdarts,
        "single_path": single_path,
        "snas": snas,
    }
)
