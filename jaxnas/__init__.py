"""Neural architecture search in JAX: spaces, strategies and evaluators as pure functions."""

from jaxnas import analysis as analysis
from jaxnas import datasets as datasets
from jaxnas import evaluators as evaluators
from jaxnas import objectives as objectives
from jaxnas import oneshot as oneshot
from jaxnas import parallel as parallel
from jaxnas import proxies as proxies
from jaxnas import spaces as spaces
from jaxnas import strategies as strategies
from jaxnas import tables as tables
from jaxnas import testing as testing
from jaxnas import training as training
from jaxnas.compare import compare as compare
from jaxnas.retrain import specialise as specialise
from jaxnas.run import resume as resume
from jaxnas.run import run as run
from jaxnas.search import Record as Record
from jaxnas.search import SearchState as SearchState
from jaxnas.search import best as best
from jaxnas.search import incumbent_curve as incumbent_curve
from jaxnas.search import init as init
from jaxnas.search import search as search
from jaxnas.search import step as step
from jaxnas.space import Decision as Decision
from jaxnas.space import SearchSpace as SearchSpace
from jaxnas.store import RunError as RunError
from jaxnas.training import Data as Data
from jaxnas.training import Plan as Plan
from jaxnas.training import Recipe as Recipe
from jaxnas.types import Evaluation as Evaluation
from jaxnas.types import Evaluator as Evaluator
from jaxnas.types import OneShot as OneShot
from jaxnas.types import Proposal as Proposal
from jaxnas.types import Strategy as Strategy

__version__ = "0.1.0"
