"""How many NAS-Bench-201 networks a second can be trained from scratch, against PyTorch?

Both sides train the same candidates, drawn uniformly from the 15,625 architectures (16 channels,
one cell per stage), on the same images with the same recipe: batches of 64, SGD with Nesterov
momentum, a cosine schedule, PyTorch's initial weights. They end with a loss on the training rows
and a loss and accuracy on the validation rows. The peer is `benchmarks.peers.torch_cells`, on the
CPU. Each setting asks one question:

* `digits-P`, `cifar-P`: seconds for P candidates on images of 8x8 and 16x16 pixels, with and
  without compilation, against PyTorch and against compiling a JAX program per candidate. The
  second needs the CIFAR-10 subset in the folder `JAXNAS_DATA`.
* `flat`: whether cost per candidate and memory stay the same from 8 to 4,096 candidates.
* `placement`: one device against two, one process against two, and whether results are equal.
* `profile-digits`, `profile-cifar`: where the time of a training step goes.

Sides can be measured by separate commands: with `--append` a run is added to the result that is
there. `--steps` says how long every candidate trains; results of several lengths share a file.

Ours runs in a fresh process with an empty compilation cache. Its clock starts when jax is imported
and the data are on the device: `cold` includes planning, tracing and compiling, `steady` is the
second call. A GPU run of the same script would need a peer that moves its tensors and networks to
the GPU and synchronises before it reads a clock, a `group_size` chosen by measurement (the plan's
rule to map over candidates is a CPU's), and the peak of that device, which `harness` measures.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks import _cells_profile, _cells_scaling, _cells_sides, harness
from benchmarks._cells import Problem, candidate_flops, cifar_file, make_data
from benchmarks._cells import Setting as Setting
from benchmarks._cells import load as load
from benchmarks._cells_sides import METRICS as METRICS
from benchmarks.population_mlp import agreement, stratified

SIDES = ("ours", "processes", "loop", "recompile")
PEERS = ("processes", "loop")


def _settings() -> dict[str, Setting]:
    found = [
        Setting(f"{images}-{size}", "population", images, size)
        for images in ("digits", "cifar")
        for size in (32, 128, 512)
    ]
    found.append(Setting("flat", "flat", "digits", 4096, num_valid=64))
    found.append(Setting("placement", "placement", "digits", 32))
    found += [Setting(f"profile-{i}", "profile", i, 32) for i in ("digits", "cifar")]
    return {setting.name: setting for setting in found}


SETTINGS = MappingProxyType(_settings())
STEPS = MappingProxyType({"population": 100, "flat": 2, "placement": 20, "profile": 40})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=1, help="alternating rounds (default 1)")
    parser.add_argument(
        "--steps", type=int, help=f"training steps per candidate (default {dict(STEPS)})"
    )
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=["ours", "processes"], help="what to run"
    )
    parser.add_argument("--append", action="store_true", help="add to the runs that are stored")
    parser.add_argument(
        "--cold-only",
        action="store_true",
        help="leave out our second call: ours takes half as long",
    )
    parser.add_argument(
        "--peer-candidates",
        type=int,
        metavar="K",
        help="measure PyTorch on K candidates of all sizes and extrapolate (default: all)",
    )
    parser.add_argument(
        "--compiled-candidates",
        type=int,
        default=3,
        metavar="K",
        help="compile K candidates one by one and extrapolate (default 3)",
    )


# --- measuring ---


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Alternating runs in fresh processes, by number of steps and side."""
    setting = problem.setting
    if setting.images == "cifar" and not cifar_file().is_file():
        return {"skipped": f"no {cifar_file().name} in JAXNAS_DATA"}
    steps = options.steps or STEPS[setting.question]
    make_data(setting, steps)  # rejects what cannot be measured before anything is
    if setting.question == "flat":
        return _cells_scaling.measure_flat(setting, steps)
    if setting.question == "placement":
        return _cells_scaling.measure_placement(setting, steps, options.repeats)
    if setting.question == "profile":
        return harness.in_fresh_process("benchmarks._cells_profile:measure", (setting, steps))
    raw: dict[str, Any] = {"runs": {}}
    stored = options.out / f"population_cells-{setting.name}.json"
    if options.append and stored.exists():
        raw = json.loads(stored.read_text())["raw"]
    runs = raw["runs"].setdefault(str(steps), {})
    sides = {side: _side(problem, side, steps, options) for side in options.sides}
    for name, results in harness.alternate(sides, options.repeats).items():
        runs.setdefault(name, []).extend(results)
    return raw


def _side(problem: Problem, side: str, steps: int, options: argparse.Namespace):
    if side == "ours":
        return lambda: _cells_sides.run_ours(problem.setting, steps, 1 if options.cold_only else 2)
    if side == "recompile":
        chosen = _chosen(problem, steps, options.compiled_candidates)
        return lambda: _cells_sides.run_recompiled(problem, steps, chosen)
    chosen = _chosen(problem, steps, options.peer_candidates or len(problem.arch))
    return lambda: _cells_sides.run_peer(problem, side, steps, chosen)


def _chosen(problem: Problem, steps: int, num_chosen: int) -> np.ndarray:
    """Which candidates are measured: all, or some of all sizes."""
    if num_chosen == len(problem.arch):
        return np.arange(num_chosen)
    return stratified(candidate_flops(problem, steps), num_chosen)


# --- what it means ---


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The tables that answer the setting's question.

    Args:
      problem: what was measured.
      raw: from `measure`.
      machine: with `peak_gflops`.

    Returns:
      For a population, by number of steps: "time", one row per side; "our time"; "same results",
      per metric both distributions and two tests of whether they differ.
    """
    if "skipped" in raw:
        return {"skipped": [{"reason": raw["skipped"]}]}
    if problem.setting.question == "profile":
        return _cells_profile.score(raw)
    if problem.setting.question != "population":
        return _cells_scaling.score(raw)
    tables = {}
    for steps, runs in raw["runs"].items():
        tables |= _score(problem, int(steps), runs, machine["peak_gflops"]["all_devices"])
    return tables


def _score(problem: Problem, steps: int, runs, peak: float) -> dict[str, list[dict[str, Any]]]:
    num_candidates, title = len(problem.arch), f"{steps} steps"
    gflop = float(candidate_flops(problem, steps).sum()) / 1e9
    ours = runs.get("ours", [])
    sides = {"ours, cold": [run["seconds"][0] for run in ours]}
    sides["ours, steady"] = [run["seconds"][1] for run in ours if len(run["seconds"]) > 1]
    others = {
        _title(side, runs[side], num_candidates): [run["seconds"] for run in runs[side]]
        for side in SIDES[1:]
        if side in runs
    }
    tables = {
        f"{title}, {num_candidates} candidates, {gflop:.0f} GFLOP": [
            _time_row(name, seconds, others, num_candidates, gflop, peak)
            for name, seconds in {**sides, **others}.items()
            if seconds
        ]
    }
    if ours:
        tables[f"{title}, our programs"] = [
            {
                "programs": run["programs"],
                "over 1 s": run["long_programs"],
                "in the second call": run["later_programs"],
                "compile s": run["compile_seconds"],
                "run s": run["run_seconds"][-1],
            }
            for run in ours
        ]
    form = next((form for form in PEERS if form in runs), None)
    if ours and form:
        mine, theirs = ours[0]["metrics"], runs[form][0]
        chosen = np.asarray(theirs["candidates"])
        tables[f"{title}, same results"] = [
            {"metric": name, **_compared(_floats(mine[name])[chosen], theirs["metrics"][name])}
            for name in METRICS
        ]
    return tables


def _title(side: str, runs: Sequence[Mapping[str, Any]], num_candidates: int) -> str:
    name = "compiling each candidate" if side == "recompile" else f"torch {side}"
    measured = min(len(run["candidates"]) for run in runs)
    return name if measured == num_candidates else f"{name}, EXTRAPOLATED from {measured}"


def _time_row(name, seconds: Sequence[float], others, num_candidates, gflop, peak):
    middle = harness.spread(seconds)["median"]
    row = {
        "side": name,
        "s": harness.format_spread(harness.spread(seconds)),
        "candidates/s": num_candidates / middle,
        "GFLOP/s": gflop / middle,
        "% of peak": 100.0 * gflop / middle / peak,
    }
    for other, theirs in others.items():
        # Runs of equal index were neighbours in time, unless one side was measured more often.
        ratios = [b / a for a, b in zip(seconds, theirs, strict=False)]
        row[f"x {other}"] = harness.format_spread(harness.spread(ratios))
    return row


def _compared(ours: np.ndarray, theirs: Any) -> dict[str, Any]:
    theirs = _floats(theirs)
    means = {"mean ours": float(np.nanmean(ours)), "mean torch": float(np.nanmean(theirs))}
    return {**means, **agreement(ours, theirs)}


def _floats(values: Any) -> np.ndarray:
    """f64[P]; what was stored as null is not a number."""
    return np.array(values, np.float64)
