"""What does one step of a DARTS search cost, beside PyTorch's, and what do its forms cost?

One update of the whole supernet of Liu et al., 2019, https://arxiv.org/abs/1806.09055, alpha and
weights, on noise: of the first order; of the second by the paper's finite difference; of the second
exactly, as it is and with every edge's operations computed again on the way back; and one uniformly
sampled path. The peer is a PyTorch supernet of the same mathematics, see
`benchmarks.peers.torch_supernet`. Every side runs in processes of its own, pinned to one core and
on all cores, the sides in turn; a side's first process compiles with an empty cache, the later ones
read the programs that it left.

A cell of seconds is `median [min to max]` over the processes, each of which counts with the median
of its steps. Memory is not the same quantity on both sides: ours is what the compiler sets aside
beside arguments and results, the peer's the maximum resident set less what was resident before
there was a network.
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks import _supernet_sides as sides
from benchmarks import harness
from benchmarks._supernet_sides import DIFFERENCE, EXACT, FIRST, KINDS, RECOMPUTED, ROUTED
from jaxnas.training.memory import MIB

OURS, PEER = "jaxnas", "PyTorch"
ONE, ALL = "one core", "all cores"


@dataclass(frozen=True)
class Setting:
    """The supernet and its batches.

    Attributes:
      num_channels: of the first cells.
      num_cells: in all, two of them reduction cells.
      image_size: height and width.
      batch_size: rows of both batches.
    """

    num_channels: int
    num_cells: int
    image_size: int
    batch_size: int


SETTINGS = MappingProxyType({"smoke": Setting(4, 3, 8, 4), "darts-8": Setting(8, 4, 16, 32)})


class Problem(NamedTuple):
    """What is measured."""

    setting: Setting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=2, help="processes of a side (default 2)")
    parser.add_argument("--steps", type=int, default=3, help="timed in a process (default 3)")
    parser.add_argument("--sides", nargs="+", choices=(OURS, PEER), default=[OURS, PEER])
    parser.add_argument("--cores", nargs="+", choices=(ONE, ALL), default=[ONE, ALL])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))


def load(setting: Setting) -> Problem:
    """Nothing to load: processes make what they need."""
    return Problem(setting)


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Runs the sides in turn.

    Returns:
      Per placement and side, what each process returned.

    Raises:
      RuntimeError: if the sides do not have the same number of parameters.
    """
    cores = {ONE: 1, ALL: harness.num_cores()}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for where in options.cores:
            runs = {}
            for side in options.sides:
                request = {
                    "num_cores": cores[where],
                    "sizes": dataclasses.asdict(problem.setting),
                    "num_steps": options.steps,
                    "kinds": [k for k in options.kinds if side == OURS or k in sides.PEER_KINDS],
                }
                own = f"{cache}/{where}"
                runs[side] = (
                    partial(sides.run_ours, request, own)
                    if side == OURS
                    else partial(sides.run_peer, request)
                )
            found[where] = harness.alternate(runs, options.repeats)
    every = [run for runs in found.values() for side in runs.values() for run in side]
    counts = {run["parameters"] for run in every}
    if len(counts) > 1:
        raise RuntimeError(f"the sides must have as many parameters, got {sorted(counts)}")
    return found


# --- the tables ---


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The tables: every kind of step per placement, and what was to be reached."""
    del problem, machine
    tables = {}
    for where, runs in raw.items():
        rows = [_row(side, kind, runs) for side in runs for kind in runs[side][0]["kinds"]]
        tables[f"one step, {where}"] = rows
    tables["against the targets"] = [
        row for where, runs in raw.items() for row in _targets(where, runs)
    ]
    return tables


def _row(side: str, kind: str, runs: Mapping[str, Any]) -> dict[str, Any]:
    first = runs[side][0]["kinds"][kind]
    ratio = "" if side == PEER else _ratio(_seconds(runs, PEER, kind), _seconds(runs, side, kind))
    return {
        "side": side,
        "step": kind,
        "s": harness.format_spread(harness.spread(_seconds(runs, side, kind)), 3),
        "x PyTorch": ratio,
        "MiB": first["bytes"] / MIB,
        "compile s": first.get("compile_seconds", 0.0),
        "trace s": first.get("trace_seconds", 0.0),
        "parameters": runs[side][0]["parameters"],
    }


def _seconds(runs: Mapping[str, Any], side: str, kind: str) -> list[float]:
    """Per process the median of its steps; empty for what was not measured."""
    every = [run["kinds"].get(kind) for run in runs.get(side, [])]
    return [statistics.median(one["seconds"]) for one in every if one is not None]


def _ratio(above: list[float], below: list[float]) -> str:
    """Of neighbours in time; empty where one of them was not measured."""
    if not above or not below:
        return ""
    return harness.format_spread(harness.spread([a / b for a, b in zip(above, below, strict=True)]))


def _targets(where: str, runs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per quantity with a target, of those that were measured."""
    ours, rows = partial(_seconds, runs, OURS), []

    def compare(name: str, above: list[float], below: list[float], target: str) -> None:
        if above and below:
            rows.append(
                {"cores": where, "what": name, "measured": _ratio(above, below), "target": target}
            )

    def value(kind: str, field: str) -> list[float]:
        one = runs[OURS][0]["kinds"].get(kind) if OURS in runs else None
        return [] if one is None else [float(one[field])]

    for kind, target in ((FIRST, "at least 1.5"), (DIFFERENCE, "at least 2")):
        compare(f"{kind}, PyTorch / ours", _seconds(runs, PEER, kind), ours(kind), target)
    for kind in (EXACT, RECOMPUTED):
        compare(f"{kind} / {DIFFERENCE}, time", ours(kind), ours(DIFFERENCE), "at most 1.5")
        name = f"{kind} / {DIFFERENCE}, memory"
        compare(name, value(kind, "bytes"), value(DIFFERENCE, "bytes"), "at most 2")
    compare(f"{ROUTED} / {FIRST}, time", ours(ROUTED), ours(FIRST), "at most 0.25")
    for kind, limit in ((FIRST, 25), (DIFFERENCE, 60), (EXACT, 60), (RECOMPUTED, 60)):
        name = f"{kind}, seconds of compilation"
        compare(name, value(kind, "compile_seconds"), [1.0], f"at most {limit}")
    return rows
