"""Strategies: where to look next. One paper, one file."""

from types import MappingProxyType

from jaxnas.strategies.asha import asha as asha
from jaxnas.strategies.bananas import bananas as bananas
from jaxnas.strategies.bohb import bohb as bohb
from jaxnas.strategies.dehb import dehb as dehb
from jaxnas.strategies.dqn import dqn as dqn
from jaxnas.strategies.entropy_search import entropy_search as entropy_search
from jaxnas.strategies.gaussian_process import gaussian_process as gaussian_process
from jaxnas.strategies.genetic import genetic as genetic
from jaxnas.strategies.hyperband import hyperband as hyperband
from jaxnas.strategies.lanas import lanas as lanas
from jaxnas.strategies.local_search import local_search as local_search
from jaxnas.strategies.mixed import mixed as mixed
from jaxnas.strategies.monte_carlo_tree_search import (
    monte_carlo_tree_search as monte_carlo_tree_search,
)
from jaxnas.strategies.nao import nao as nao
from jaxnas.strategies.nsga2 import nsga2 as nsga2
from jaxnas.strategies.pareto_local_search import pareto_local_search as pareto_local_search
from jaxnas.strategies.ppo import ppo as ppo
from jaxnas.strategies.predictor import predictor as predictor
from jaxnas.strategies.q_learning import q_learning as q_learning
from jaxnas.strategies.random_search import random_search as random_search
from jaxnas.strategies.regularized_evolution import regularized_evolution as regularized_evolution
from jaxnas.strategies.reinforce import reinforce as reinforce
from jaxnas.strategies.simulated_annealing import simulated_annealing as simulated_annealing
from jaxnas.strategies.successive_halving import successive_halving as successive_halving
from jaxnas.strategies.tpe import tpe as tpe

ALL = MappingProxyType(
    {
        "asha": asha,
        "bananas": bananas,
        "bohb": bohb,
        "dehb": dehb,
        "dqn": dqn,
        "entropy_search": entropy_search,
        "gaussian_process": gaussian_process,
        "genetic": genetic,
        "hyperband": hyperband,
        "lanas": lanas,
        "local_search": local_search,
        "mixed": mixed,
        "monte_carlo_tree_search": monte_carlo_tree_search,
        "nao": nao,
        "nsga2": nsga2,
        "pareto_local_search": pareto_local_search,
        "ppo": ppo,
        "predictor": predictor,
        "q_learning": q_learning,
        "random_search": random_search,
        "regularized_evolution": regularized_evolution,
        "reinforce": reinforce,
        "simulated_annealing": simulated_annealing,
        "successive_halving": successive_halving,
        "tpe": tpe,
    }
)
