"""`jaxnas compare`: strategies on a table, seed by seed, with a page of their anytime curves."""

import argparse
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxnas import parallel, strategies, tables
from jaxnas.compare import Comparison, Searches, compare, table_of_results
from jaxnas.config import parse_options
from jaxnas.evaluators.tabular import SEEDS, STOPS
from jaxnas.report import comparison as page
from jaxnas.store import check_free
from jaxnas.tables.files import write_npz
from jaxnas.tables.table import Table
from jaxnas.types import Strategy

GROUPS = ("table", "strategy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    add = parser.add_argument
    add("--table", default="digits", help="see `jaxnas list`, or the path of a saved table")
    add("--strategy", default="all", metavar="NAME[,NAME...]", help="or all that apply")
    add("--evaluations", type=int, default=150, help="of each search")
    add("--seeds", type=int, default=50, help="searches per strategy")
    add("--seed", type=int, default=0, help="the first one")
    add("--batch-size", type=int, default=1, help="candidates proposed at a time")
    add("--metric", default="valid_accuracy", help="what is searched for; -NAME if less is better")
    add("--score", help="what incumbents are judged by; default: test_accuracy if known")
    add("--noise", choices=SEEDS, default="random", help="one run per query, or the mean of all")
    add("--fidelity", type=float, default=1.0, help="fraction of full training that is looked up")
    add("--seconds", type=float, help="simulated seconds that a search may take")
    add("--stop", choices=STOPS, default="before", help="whether the last may exceed --seconds")
    add("--devices", type=int, help="CPU devices; default: one per core")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    add(
        "--option",
        nargs="+",
        action="extend",
        default=[],
        metavar="GROUP.NAME=VALUE",
        help=f"values in JSON; groups are {', '.join(GROUPS)}",
    )


def run(args: argparse.Namespace) -> None:
    """Compares, prints a table, and writes `comparison.npz` and `report.html`."""
    check_free(args.out)
    options = parse_options(args.option)
    unknown = set(options) - set(GROUPS)
    if unknown:
        raise ValueError(f"options begin with one of {GROUPS}, got {sorted(unknown)[0]!r}")
    parallel.cpu_devices(args.devices)
    table = _table(args.table, options.get("table", {}))
    made = _strategies(args.strategy, table, args.batch_size, options.get("strategy", {}))
    found = compare(
        table,
        made,
        num_evaluations=args.evaluations,
        num_seeds=args.seeds,
        first_seed=args.seed,
        metric=args.metric,
        score=args.score,
        progress_fn=_show,
        seed=args.noise,
        max_fidelity=args.fidelity,
        time_limit=args.seconds,
        stop=args.stop,
    )
    print(table_of_results(found))
    args.out.mkdir(parents=True)
    save(found, args.out / "comparison.npz")
    print(f"report: {page.write(found, args.out / 'report.html')}")


def save(found: Comparison, path: Path) -> None:
    """Writes all curves as arrays `NAME/fitness`, `NAME/score` and `NAME/seconds`."""
    arrays = {
        f"{name}/{field}": getattr(searches, field)
        for name, searches in found.searches.items()
        for field in ("fitness", "score", "seconds")
    }
    told = found._replace(searches={})._asdict()
    write_npz(path, arrays | {"description": np.asarray(json.dumps(told))})


def _show(name: str, searches: Searches) -> None:
    score = searches.score[:, -1]
    print(
        f"{name}: {np.nanmean(score):.4f} +- {np.nanstd(score):.4f}, compile "
        f"{searches.compile_seconds:.1f} s, {len(score)} searches {searches.run_seconds:.1f} s",
        file=sys.stderr,
    )


def _table(name: str, options: Mapping[str, Any]) -> Table:
    if name not in tables.ALL:
        if options:
            raise ValueError(f"a saved table takes no options, got {sorted(options)}")
        return tables.load(name)
    known = list(inspect.signature(tables.ALL[name]).parameters)
    for option in options:
        if option not in known:
            raise ValueError(f"unknown option table.{option}; allowed are {known}")
    return tables.ALL[name](**options)


def _strategies(
    names: str, table: Table, batch_size: int, options: Mapping[str, Any]
) -> dict[str, Strategy]:
    chosen: Sequence[str] = names.split(",")
    if names == "all":  # what needs several objectives, or budgets that the table lacks, stays out
        chosen = [
            name
            for name, factory in strategies.ALL.items()
            if "num_objectives" not in inspect.signature(factory).parameters
        ]
    made, used = {}, set()
    for name in chosen:
        if name not in strategies.ALL:
            raise ValueError(
                f"unknown strategy {name!r}; known are {', '.join(sorted(strategies.ALL))}"
            )
        known = inspect.signature(strategies.ALL[name]).parameters
        own = {option: value for option, value in options.items() if option in known}
        used |= set(own)
        made[name] = strategies.ALL[name](table.space, batch_size=batch_size, **own)
    unused = set(options) - used
    if unused:
        raise ValueError(f"option strategy.{sorted(unused)[0]} fits none of {', '.join(made)}")
    return made
