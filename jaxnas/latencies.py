"""Latency of the networks that a run found: measured here, and predicted from their structure.

Half of the networks are the best ones; the others are spread evenly over the ranks of all that the
run evaluated, for a predictor learns little from networks that are all alike. Each prediction is
made from the measurements of the other networks alone. Structure counts work that leads nowhere,
such as an edge into a node that nobody reads; a compiler leaves it out, which predictions miss.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxnas._checks import check_count
from jaxnas.objectives import latency
from jaxnas.objectives.costs import structural_cost
from jaxnas.space import SearchSpace, canonical
from jaxnas.store import Row, Run

MIN_NETWORKS = 3  # to predict one from the others
BATCH_SIZES = (1, 64)  # for the latency of one row, and for throughput
FEATURES = ("parameters", "flops", "activations", "products")  # fields of `NetworkCost`


def measure_latencies(
    run: Run,
    space: SearchSpace,
    feature_shape: tuple[int, ...],
    *,
    num: int,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    num_repeats: int = 30,
) -> dict[str, Any] | None:
    """Measures networks of a run on the default device, and predicts each from the others.

    Every network is compiled once per batch size. The result is stored in the run as `latency`.

    Args:
      run: a run with evaluations.
      space: its space.
      feature_shape: shape of one row of its data.
      num: distinct architectures to measure, at least 3; fewer where the run has fewer.
      batch_sizes: rows of a call.
      num_repeats: timed calls of each network and batch size, at least 1.

    Returns:
      What was stored; None where the run has too few architectures.

    Raises:
      ValueError: for numbers out of range.
      RunError: if the result cannot be written, or another process uses the run.
    """
    check_count("num", num, MIN_NETWORKS)
    chosen = pick(space, run.rows(), num)
    if len(chosen) < MIN_NETWORKS:
        return None
    archs = [np.asarray(row.arch, np.int32) for _, row in chosen]
    costs = [structural_cost(space, arch, feature_shape) for arch in archs]
    features = np.array([[getattr(cost, name) for name in FEATURES] for cost in costs])
    networks: list[dict[str, Any]] = [
        {"arch": list(row.arch), "rank": rank, "fitness": row.fitness, "latency": []}
        for rank, row in chosen
    ]
    for batch_size in batch_sizes:
        measured = [
            latency.measure(
                space, arch, feature_shape, batch_size=batch_size, num_repeats=num_repeats
            )
            for arch in archs
        ]
        medians = np.array([found.median for found in measured])
        predicted = latency.leave_one_out(features, medians)
        for network, found, guess in zip(networks, measured, predicted, strict=True):
            network["latency"].append({**found._asdict(), "predicted": float(guess)})
    result = {
        "batch_sizes": list(batch_sizes),
        "num_repeats": num_repeats,
        "device": jax.devices()[0].device_kind,
        "features": list(FEATURES),
        "networks": networks,
    }
    with run.lock():
        run.put_result("latency", result)
    return result


def pick(space: SearchSpace, rows: Sequence[Row], num: int) -> list[tuple[int, Row]]:
    """Distinct architectures of a run: the best half of `num`, the others spread over the rest.

    Args:
      space: the space of the run.
      rows: evaluations; those that failed are left out.
      num: how many at most.

    Returns:
      Ranks from 1, ascending, each with the best row of its architecture. The first is the winner.
    """
    best: dict[tuple[int, ...], Row] = {}
    arch = jnp.asarray([row.arch for row in rows], jnp.int32)
    keys = jax.vmap(lambda own: canonical(space, own))(arch).tolist() if rows else []
    for key, row in zip(map(tuple, keys), rows, strict=True):
        held = best.get(key)
        better = held is None or (row.budget, row.fitness) > (held.budget, held.fitness)
        if not math.isnan(row.fitness) and better:
            best[key] = row
    ordered = sorted(best.values(), key=lambda row: (-row.budget, -row.fitness))
    num = min(num, len(ordered))
    top = -(-num // 2)
    spread = np.linspace(top, len(ordered) - 1, num - top).round().astype(int)
    return [(int(place) + 1, ordered[place]) for place in (*range(top), *spread)]


def mean_error(measured: ArrayLike, predicted: ArrayLike) -> float:
    """Mean absolute error of predictions as a share of what was measured.

    Example:
      >>> mean_error([1.0, 2.0], [1.25, 1.0])
      0.375
    """
    true = np.asarray(measured, float)
    return float(np.mean(np.abs(np.asarray(predicted, float) - true) / true))


def told(result: dict[str, Any] | None) -> str:
    """What `measure_latencies` found, one line per batch size."""
    if result is None:
        return "too few architectures succeeded to measure their latency and predict it"
    networks, lines = result["networks"], []
    for place, batch_size in enumerate(result["batch_sizes"]):
        every = [network["latency"][place] for network in networks]
        measured = [found["median"] for found in every]
        error = mean_error(measured, [found["predicted"] for found in every])
        lines.append(
            f"latency of {len(every)} networks, batch {batch_size}: {min(measured):.3g} to "
            f"{max(measured):.3g} ms, predicted from the others within {error:.1%} on average"
        )
    return "\n".join(lines)
