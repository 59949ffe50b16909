"""Training: recipes, data, and whole populations at once."""

from jaxnas.training import plan as plan
from jaxnas.training import population as population
from jaxnas.training.costs import CostModel as CostModel
from jaxnas.training.data import Data as Data
from jaxnas.training.data import Split as Split
from jaxnas.training.data import Task as Task
from jaxnas.training.optimizers import OPTIMIZERS as OPTIMIZERS
from jaxnas.training.plan import Plan as Plan
from jaxnas.training.recipe import Recipe as Recipe
