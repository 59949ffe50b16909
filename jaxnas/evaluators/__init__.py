"""Evaluators: from proposed architectures to fitness."""

from types import MappingProxyType

from jaxnas.evaluators.from_function import from_function as from_function
from jaxnas.evaluators.low_fidelity import low_fidelity as low_fidelity
from jaxnas.evaluators.racing import racing as racing
from jaxnas.evaluators.shared_weights import shared_weights as shared_weights
from jaxnas.evaluators.tabular import tabular as tabular
from jaxnas.evaluators.train_from_scratch import train_from_scratch as train_from_scratch
from jaxnas.evaluators.zero_cost import zero_cost as zero_cost

ALL = MappingProxyType(
    {
        "from_function": from_function,
        "low_fidelity": low_fidelity,
        "racing": racing,
        "shared_weights": shared_weights,
        "tabular": tabular,
        "train_from_scratch": train_from_scratch,
        "zero_cost": zero_cost,
    }
)
