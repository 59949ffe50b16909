"""Objectives: what a search is after besides accuracy, and how several are weighed."""

from jaxnas.objectives import costs as costs
from jaxnas.objectives import latency as latency
from jaxnas.objectives import latency_table as latency_table
from jaxnas.objectives import pareto as pareto
from jaxnas.objectives.breakdown import LayerCost as LayerCost
from jaxnas.objectives.breakdown import breakdown as breakdown
from jaxnas.objectives.hypervolume import hypervolume as hypervolume
from jaxnas.objectives.hypervolume import sampled_hypervolume as sampled_hypervolume
from jaxnas.objectives.objective import Objective as Objective
from jaxnas.objectives.objective import constrain as constrain
from jaxnas.objectives.objective import screened as screened
from jaxnas.objectives.objective import with_objectives as with_objectives
from jaxnas.objectives.scalarise import absolute as absolute
from jaxnas.objectives.scalarise import mnasnet as mnasnet
from jaxnas.objectives.scalarise import tchebycheff as tchebycheff
from jaxnas.objectives.scalarise import weighted_sum as weighted_sum
