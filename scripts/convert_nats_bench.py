#!/usr/bin/env python
"""Converts the original NATS-Bench topology files to the `.npz` that `jaxnas.tables` reads.

NATS-Bench (Dong, Liu, Musial & Gabrys, 2021, https://arxiv.org/abs/2009.00437) is distributed by
its authors, https://github.com/D-X-Y/NATS-Bench, as pickles of their own classes; their package
reads them: `pip install nats_bench`. Unpack `NATS-tss-v1_0-3ffb9-simple.tar`, then

    python scripts/convert_nats_bench.py NATS-tss-v1_0-3ffb9-simple nasbench201.npz
    python -c "import jaxnas; print(jaxnas.tables.nasbench201('cifar10', 'nasbench201.npz').names)"

Accuracies are in percent and times in seconds, as in the original. Validation on CIFAR-10 is that
of the networks trained on its training part alone ("cifar10-valid"), test that of those trained on
training and validation part ("cifar10"), as the paper reports them.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxnas.tables.files import write_npz

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ("1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2")

# Key in the .npz: what the benchmark calls the data set when it is validated, and when tested.
DATASETS = {
    "c10": ("cifar10-valid", "cifar10"),
    "c100": ("cifar100", "cifar100"),
    "in16": ("ImageNet16-120", "ImageNet16-120"),
}


def operations_of(text: str) -> list[int]:
    """The operations of "|op~0|+|op~0|op~1|+…" as indices of `OPERATIONS`, in order of `EDGES`."""
    return [OPERATIONS.index(name) for name in re.findall(r"\|?([^|+~]+)~\d", text)]


def convert(api: Any, indices: Iterable[int]) -> dict[str, np.ndarray]:
    """The arrays of the `.npz`, one row per index.

    Args:
      api: what `nats_bench.create(path, "tss", fast_mode=True, verbose=False)` returns.
      indices: the architectures' numbers in the benchmark.

    Returns:
      Name to array; NaN where an architecture has fewer seeds than another.
    """
    rows: dict[str, list] = defaultdict(list)
    for index in indices:
        rows["ops"].append(operations_of(api.arch(index)))
        for key, names in DATASETS.items():
            _read(api, index, key, *names, rows)
        costs = api.query_meta_info_by_index(index, hp="200").get_compute_costs("cifar10")
        rows["params_c10"].append(round(1e6 * costs["params"]))
        rows["flops_c10"].append(round(1e6 * costs["flops"]))
        api.arch2infos_dict.pop(index, None)  # else the whole benchmark piles up in memory
    arrays = {name: _stacked(values) for name, values in rows.items()}
    arrays["ops"] = arrays["ops"].astype(np.uint8)
    return arrays | {"op_names": np.asarray(OPERATIONS), "edge_order": np.asarray(EDGES)}


def _read(api, index: int, key: str, valid: str, test: str, rows: dict[str, list]) -> None:
    """Appends what the benchmark knows of one architecture on one data set."""
    for epochs in ("12", "200"):
        runs = _runs(api, index, valid, epochs)
        seeds = [run["valid-accuracy"] for run in runs]
        rows[f"val_{key}_e{epochs}_seeds"].append(seeds)
        if epochs == "12":
            rows[f"val_{key}_e12"].append(np.mean(seeds))
        else:
            rows[f"train_time_{key}_e200_s"].append(_mean(runs, "train-all-time"))
            rows[f"valid_time_{key}_s"].append(_mean(runs, "valid-per-time"))
        tested = _runs(api, index, test, epochs)
        rows[f"test_{key}_e{epochs}"].append(_mean(tested, "test-accuracy"))
    costs = api.query_meta_info_by_index(index, hp="200").get_compute_costs(valid)
    known = costs["latency"] is not None and costs["latency"] > 0
    rows[f"gpu_latency_{key}_s"].append(costs["latency"] if known else np.nan)


def _runs(api, index: int, dataset: str, epochs: str) -> list[dict[str, float]]:
    seeds = api.query_meta_info_by_index(index, hp=epochs).get_dataset_seeds(dataset)
    return [api.get_more_info(index, dataset, hp=epochs, is_random=seed) for seed in seeds]


def _mean(runs: list[dict[str, float]], name: str) -> float:
    return float(np.mean([run[name] for run in runs]))


def _stacked(values: list) -> np.ndarray:
    """Rows of numbers, or of lists that may differ in length: then padded with NaN."""
    if not isinstance(values[0], list):
        array = np.asarray(values)
        return array if array.dtype.kind == "i" else array.astype(np.float32)
    most = max(map(len, values))
    return np.asarray([row + [np.nan] * (most - len(row)) for row in values], np.float32)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder NATS-tss-…-simple, or the .pickle.pbz2")
    parser.add_argument("target", type=Path, help="the .npz to write")
    arguments = parser.parse_args()
    try:
        from nats_bench import create
    except ImportError as error:
        parser.error(f"{error}; install the benchmark's reader with: pip install nats_bench")
    folder = arguments.source.is_dir()
    api = create(str(arguments.source), "tss", fast_mode=folder, verbose=False)
    write_npz(arguments.target, convert(api, range(len(api))))


if __name__ == "__main__":
    main()
