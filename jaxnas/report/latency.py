"""The section on the latency of the best networks, measured and predicted."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnas import analysis
from jaxnas.latencies import mean_error
from jaxnas.report.architectures import values
from jaxnas.report.axes import Frame, Scale, padded, svg
from jaxnas.report.blocks import figure, note, section, table
from jaxnas.report.markup import DASH, Markup, element, number
from jaxnas.report.summary import Summary

Networks = Sequence[dict[str, Any]]


def section_of(summary: Summary) -> Markup | None:
    """Latency of some networks against its prediction; None where none was measured."""
    result: dict[str, Any] = summary.results.get("latency") or {}
    networks: Networks = result.get("networks", ())
    if not networks:
        return None
    sizes = list(enumerate(result["batch_sizes"]))
    drawn = [figure(f"Batch of {size:,}", _scatter(networks, place, size)) for place, size in sizes]
    return section(
        "Latency, measured and predicted",
        note(
            f"The forward pass of {len(networks)} stand-alone networks on this run's device "
            f"({result['device']}): the median of {result['num_repeats']} calls, with a 95% "
            "interval. The prediction of each network is a linear function of its "
            f"{', '.join(result['features'][:-1])} and {result['features'][-1]}, fitted to the "
            "measurements of the other networks alone. Half of the networks are the best of the "
            "run, the others are spread over the ranks of the rest."
        ),
        element("div", drawn, class_="grid-2"),
        _quality(networks, sizes),
        _measurements(summary, networks, sizes),
    )


def _column(networks: Networks, place: int, name: str) -> np.ndarray:
    return np.array([network["latency"][place][name] for network in networks], float)


def _scatter(networks: Networks, place: int, batch_size: int) -> Markup:
    """Predictions against measurements, with the line on which they are equal."""
    measured, predicted, low, high = (
        _column(networks, place, name) for name in ("median", "predicted", "low", "high")
    )
    every = np.concatenate([predicted, low, high])
    limits = padded(float(every.min()), float(every.max()))
    frame = Frame(480, 340, Scale(*limits, 64, 470), Scale(*limits, 292, 24), 292)
    body = frame.axes("measured, ms", "predicted, ms")
    corners = f"M{frame.x(limits[0]):.1f} {frame.y(limits[0]):.1f}"
    corners += f"L{frame.x(limits[1]):.1f} {frame.y(limits[1]):.1f}"
    body.append(element("path", d=corners, class_="edge", stroke_dasharray="4 3"))
    told = []
    for network, x, y, start, end in zip(networks, measured, predicted, low, high, strict=True):
        name = f"rank {network['rank']}: {number(x)} ms, predicted {number(y)} ms"
        height, hint = frame.y(y), element("title", name)
        ends = {"x1": frame.x(start), "y1": height, "x2": frame.x(end), "y2": height}
        body += [
            element("line", **ends, class_="line c1"),
            element("circle", hint, cx=frame.x(x), cy=height, r=4, class_="fill c0"),
        ]
        told.append(name)
    title = f"Predicted against measured latency, batch of {batch_size:,}"
    return svg(frame.width, frame.height, title, "; ".join(told), body)


def _quality(networks: Networks, sizes: Sequence[tuple[int, int]]) -> Markup:
    rows = []
    for place, size in sizes:
        measured, predicted = (_column(networks, place, name) for name in ("median", "predicted"))
        others = (measured.sum() - measured) / (len(measured) - 1)
        rows.append(
            (
                f"{size:,}",
                f"{len(measured)}",
                f"{mean_error(measured, predicted):.1%}",
                f"{mean_error(measured, others):.1%}",
                number(_spearman(measured, predicted), signed=True),
            )
        )
    return table(
        "Predictions of networks that were left out: mean absolute error as a share of the "
        "measured latency, the same error if the mean of the others is the prediction, and "
        "Spearman's rank correlation",
        ("batch", "networks", "error", "error of the mean", "rank correlation"),
        rows,
        numeric=range(5),
    )


def _spearman(measured: np.ndarray, predicted: np.ndarray) -> float | None:
    """Of predictions with measurements; None where a side does not vary."""
    a, b = np.float32(measured), np.float32(predicted)
    if min(np.ptp(a), np.ptp(b)) == 0.0:
        return None
    return float(analysis.spearman(jnp.asarray(a), jnp.asarray(b)))


def _measurements(summary: Summary, networks: Networks, sizes: Sequence[tuple[int, int]]) -> Markup:
    header = ["rank", "fitness"]
    for _, size in sizes:
        header += [f"batch {size:,}, ms", "95% interval", "predicted"]
        header += ["rows/s"] if size > 1 else []
    rows = []
    for network in networks:
        cells = [f"{network['rank']:,}", number(network["fitness"])]
        for place, size in sizes:
            found = network["latency"][place]
            cells += [
                number(found["median"]),
                f"{number(found['low'])} to {number(found['high'])}",
                number(found["predicted"]),
            ]
            cells += [number(found["rows_per_second"])] if size > 1 else []
        chosen = values(summary.space, network["arch"])
        rows.append([*cells, ", ".join(value for value in chosen if value != DASH)])
    return table(
        "Measured networks by their rank in the search; the first is the winner",
        [*header, "architecture"],
        rows,
        numeric=range(len(header)),
        wide=[len(header)],
    )
