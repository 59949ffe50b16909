"""Bayesian optimisation of a table with scikit-learn, as a user would write it.

After every evaluation a `GaussianProcessRegressor` is fitted to what was seen, predicts the whole
table, and the unseen row with the largest expected improvement is next. Kernel, hyperparameters,
warping of the fitness and acquisition are those of `jaxnas.strategies.gaussian_process`.

Where there was a choice, the one that makes the peer faster was taken: the kernel counts
differing choices with SciPy's compiled Hamming distance (the squared exponential kernel of one-hot
encodings is the same function and takes longer), hyperparameters are not optimised, and searches
run in one single-threaded process per core, which are started and warm before the clock starts.
"""

import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import norm, rankdata
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel, NormalizedKernelMixin


class Hamming(NormalizedKernelMixin, Kernel):
    """exp(-d / lengthscale^2) with d the number of differing choices."""

    def __init__(self, lengthscale: float = 3.0):
        self.lengthscale = lengthscale

    def __call__(self, X, Y=None, eval_gradient=False):
        """The kernel matrix; scikit-learn asks for gradients only to optimise."""
        share = cdist(X, X if Y is None else Y, "hamming")
        return np.exp(-share * X.shape[1] / self.lengthscale**2)

    def is_stationary(self) -> bool:
        """It is."""
        return True


def half_rank(fitness: np.ndarray) -> np.ndarray:
    """Below the median only ranks count, above it distances do; standardised.

    Example:
      >>> half_rank(np.array([0.1, 0.88, 0.9, 0.91])).round(2).tolist()
      [-1.37, -0.46, 0.57, 1.26]
    """
    gain = fitness - np.median(fitness)
    above = gain >= 0.0
    scale = np.sqrt(np.mean(gain[above] ** 2))
    quantile = norm.ppf((rankdata(fitness) - 0.5) / len(fitness))
    warped = np.where(above, gain / max(scale, 1e-12), quantile)
    return (warped - warped.mean()) / max(warped.std(), 1e-12)


def search(
    arch: np.ndarray, fitness: np.ndarray, seed: int, request: Mapping[str, Any]
) -> np.ndarray:
    """One search over the rows of a table; returns the rows in the order of their evaluation."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(arch), request["num_initial"], replace=False).tolist()
    features = arch.astype(np.float64)
    while len(rows) < request["evaluations"]:
        targets = half_rank(fitness[rows])
        kernel = Hamming(request["lengthscale"])
        model = GaussianProcessRegressor(kernel, alpha=request["noise"], optimizer=None)
        model.fit(features[rows], targets)
        mean, std = model.predict(features, return_std=True)
        # The likeliest amplitude in closed form.
        std = np.maximum(std, 1e-3) * np.sqrt(targets @ model.alpha_ / len(rows))
        gain = (mean - targets.max()) / std
        value = std * (gain * norm.cdf(gain) + norm.pdf(gain))
        value[rows] = -np.inf
        rows.append(int(np.argmax(value)))
    return np.array(rows)


def _work(request: Mapping[str, Any], seed: int) -> tuple[np.ndarray, float]:
    start = time.process_time()
    rows = search(request["arch"], request["fitness"], seed, request)
    return rows, time.process_time() - start


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Entry point of a fresh process: all searches, in one process per core.

    Args:
      request: `arch` [N, D], `fitness` f[N], `seeds`, `evaluations`, `num_initial`, `lengthscale`,
        `noise` and `num_processes`.

    Returns:
      `rows` i[S, E]; `seconds` for all searches together, and their `cpu_seconds`.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # read by the children when they import NumPy
    seeds, num_processes = request["seeds"], request["num_processes"]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context) as pool:
        warm = {**request, "evaluations": request["num_initial"] + 2}
        list(pool.map(_work, [warm] * num_processes, range(num_processes)))
        start = time.perf_counter()
        rows, cpu_seconds = zip(*pool.map(_work, [request] * len(seeds), seeds), strict=True)
        seconds = time.perf_counter() - start
    return {"rows": np.stack(rows), "seconds": seconds, "cpu_seconds": sum(cpu_seconds)}
