"""Strategies: where to look next. One paper, one file."""

from types import MappingProxyType

from jaxnas.strategies.dqn import dqn as dqn
from jaxnas.strategies.genetic import genetic as genetic
from jaxnas.strategies.local_search import local_search as local_search
from jaxnas.strategies.nsga2 import nsga2 as nsga2
from jaxnas.strategies.ppo import ppo as ppo
from jaxnas.strategies.q_learning import q_learning as q_learning
from jaxnas.strategies.random_search import random_search as random_search
from jaxnas.strategies.regularized_evolution import (
    regularized_evolution as regularized_evolution,
)
from jaxnas.strategies.reinforce import reinforce as reinforce
from jaxnas.strategies.simulated_annealing import simulated_annealing as simulated_annealing

ALL = MappingProxyType(
    {
        "dqn": dqn,
        "genetic": genetic,
        "local_search": local_search,
        "nsga2": nsga2,
        "ppo": ppo,
        "q_learning": q_learning,
        "random_search": random_search,
        "regularized_evolution": regularized_evolution,
        "reinforce": reinforce,
        "simulated_annealing": simulated_annealing,
    }
)
