"""Runs a benchmark, prints its tables and stores its result.

Examples, from the root of the repository:

* `python -m benchmarks.run population_mlp --settings regression-512 --repeats 3`
* `python -m benchmarks.run strategies_mlp --set num_seeds=40`
* `python -m benchmarks.run population_mlp --settings digits-64 --set num_candidates=4 epochs=1`,
  a quick look at whether everything works
"""

import argparse
import dataclasses
import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from jaxnas import parallel

NAMES = (
    "collapse",
    "gp_search",
    "hypergradients",
    "language_model",
    "memory",
    "one_shot",
    "pareto_tabular",
    "population_cells",
    "population_mlp",
    "racing",
    "rank_agreement",
    "strategies_mlp",
    "strategies_tabular",
    "supernet_step",
    "tabular_searches",
    "zero_cost",
)


def _override(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    try:
        return name, int(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like epochs=2, got {text!r}") from None


def make_parser(modules: Mapping[str, Any]) -> argparse.ArgumentParser:
    """The command line, with one sub-command per benchmark module."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmarks = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, module in modules.items():
        summary = module.__doc__.splitlines()[0]
        sub = benchmarks.add_parser(name, help=summary, description=summary)
        known = list(module.SETTINGS)
        sub.add_argument("--settings", nargs="+", choices=known, default=known, metavar="SETTING")
        sub.add_argument(
            "--set",
            nargs="+",
            type=_override,
            default=[],
            metavar="NAME=NUMBER",
            help="replace numbers of the settings",
        )
        sub.add_argument("--out", type=Path, default=harness.RESULTS, help="folder for results")
        module.add_arguments(sub)
    return parser


def run_setting(
    name: str, module: Any, setting_name: str, setting: Any, options: Any, machine: Any
) -> None:
    """Measures one setting, stores `<out>/<name>-<setting>.json` and prints its tables."""
    print(f"\n{name}, {setting_name}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    problem = module.load(setting)
    raw = module.measure(problem, options)
    tables = module.score(problem, raw, machine)
    result = {
        "benchmark": name,
        "setting_name": setting_name,
        "setting": dataclasses.asdict(setting),
        "machine": machine,
        "seconds": time.perf_counter() - start,
        "tables": tables,
        "raw": raw,
    }
    path = harness.store(f"{name}-{setting_name}", result, folder=options.out)
    for title, rows in tables.items():
        print(f"\n{name}, {setting_name}: {title}\n{harness.format_table(rows)}")
    print(f"\nstored in {path}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
    parser = make_parser(modules)
    options = parser.parse_args(arguments)
    module = modules[options.name]
    overrides = dict(options.set)
    known = {field.name for field in dataclasses.fields(module.Setting)}
    if not overrides.keys() <= known:
        parser.error(f"--set knows {sorted(known)}, got {sorted(overrides)}")
    parallel.cpu_devices(harness.num_cores())
    print("measuring the machine's matrix-multiply peak", file=sys.stderr, flush=True)
    machine = {**harness.machine(), "peak_gflops": harness.peak_gflops()}
    print(f"machine: {machine}", file=sys.stderr)
    for name in options.settings:
        setting = dataclasses.replace(module.SETTINGS[name], **overrides)
        run_setting(options.name, module, name, setting, options, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
