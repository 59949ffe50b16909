"""A table that comes with the package: 324 perceptrons on handwritten digits, trained by jaxnas.

Made by `python scripts/build_digits_table.py` with `jaxnas.tables.build`: every architecture of
`space()` was trained three times for 16 epochs of batches of 32 on the 1,079 training rows of
`jaxnas.datasets.digits(jax.random.key(0))` and scored on its 359 validation rows after every epoch,
on two cores of an x86-64 server CPU. Seconds are as measured there. Runs that diverged are NaN.
"""

import dataclasses
from functools import lru_cache
from importlib import resources

from jaxnas.space import SearchSpace
from jaxnas.spaces.mlp import mlp
from jaxnas.tables.files import load
from jaxnas.tables.table import Table

FILE = "digits.npz"

EPOCHS, NUM_SEEDS = 16, 3


@lru_cache(maxsize=1)
def space() -> SearchSpace:
    """The table's space: depth, width, activation, dropout, learning rate and optimiser."""
    return mlp(
        10,
        depths=(1, 2, 3),
        widths=(16, 64, 256),
        activations=("relu", "tanh"),
        dropouts=(0.0, 0.4),
        learning_rates=(0.1, 0.01, 0.001),
        optimizers=("adam", "sgd", "rmsprop"),
    )


def digits() -> Table:
    """324 perceptrons on scikit-learn's digits: 16 fidelities, three seeds; bundled.

    The fidelity e / 16 is a point of the whole run's learning curve, not a run of e epochs.

    Returns:
      A table with the metrics `valid_accuracy` and `train_loss` and the column `params`; its space
      builds the networks.

    Example:
      >>> table = digits()
      >>> table.metrics["valid_accuracy"].shape
      (324, 16, 3)
      >>> bool(table.final("valid_accuracy").max() > 0.97)
      True
    """
    with resources.as_file(resources.files("jaxnas.tables") / FILE) as path:
        return dataclasses.replace(load(path), name="digits", space=space())
