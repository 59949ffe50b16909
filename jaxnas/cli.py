"""The command line: `jaxnas search`, `resume`, `retrain`, `report`, `compare`, `list`."""

import argparse
import dataclasses
import inspect
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from jaxnas import (
    compare_command,
    config,
    datasets,
    evaluators,
    latencies,
    oneshot,
    parallel,
    progress,
    report,
    signals,
    spaces,
    store,
    strategies,
    summary,
    supernet_run,
    tables,
)
from jaxnas.config import Search, Settings
from jaxnas.retrain import retrain
from jaxnas.run import resume, run, stopped_message
from jaxnas.store import Run, RunError
from jaxnas.supernet_run import Supernets
from jaxnas.training import calibration

RETRAIN_FACTOR = 5  # the winner is trained for so many times the epochs of a candidate


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the arguments; None: those of the process.

    Returns:
      The exit code: 0, 1 where the environment failed, 2 for bad arguments, 130 or 143 after a
      signal.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    args.command_line = shlex.join(["jaxnas", *arguments])
    try:
        with signals.immediate():
            args.command(args)
    except signals.Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except (ValueError, RunError, OSError) as error:
        if args.traceback:
            traceback.print_exc()
        print(f"jaxnas: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | FileNotFoundError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxnas", description="Neural architecture search in JAX."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--traceback", action="store_true", help="show where an error came from")
    working = argparse.ArgumentParser(add_help=False)
    working.add_argument(
        "--progress-every",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="between progress lines where the output is not a terminal; 0: every step",
    )
    working.add_argument(
        "--no-cache", action="store_true", help="keep no compiled programs for the next process"
    )

    def command(name, function, about, *parents):
        added = commands.add_parser(
            name,
            help=about,
            description=about,
            parents=[shared, *parents],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        added.set_defaults(command=function)
        return added

    _add_search(command("search", _search, "search a space into a new run directory", working))
    added = command("resume", _resume, "continue a run that was stopped or killed", working)
    added.add_argument("directory", type=Path)
    added = command("retrain", _retrain, "train the winner of a run again", working)
    added.add_argument("directory", type=Path)
    added.add_argument("--epochs", type=int, help="default: as the run was started with")
    added.add_argument("--seeds", type=int, help="default: as the run was started with")
    added = command("report", _report, "write the report of a run, finished or not")
    added.add_argument("directory", type=Path)
    added.add_argument("--out", type=Path, help="default: report.html in the run directory")
    added = command("compare", compare_command.run, "compare strategies on a table, many seeds")
    compare_command.add_arguments(added)
    added = command("list", _list, "list what there is to search with, or the runs in a folder")
    added.add_argument("folder", type=Path, nargs="?")
    return parser


def _add_search(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--space", default="mlp", help="see `jaxnas list`")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--strategy", default="regularized_evolution", metavar="NAME[,NAME...]", help="one or more"
    )
    how.add_argument(
        "--method",
        metavar="NAME[,NAME...]",
        help="one-shot methods instead: train a supernet for --epochs",
    )
    add("--data", default="digits", help="a bundled data set, or the path of one")
    add("--out", type=Path, required=True, metavar="DIR", help="the run directory to make")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--evaluations", type=int, help="per strategy and seed; whole batches")
    budget.add_argument("--seconds", type=float, help="of wall time per strategy and seed")
    add("--seed", type=int, default=0, help="the first one; also decides the data split")
    add("--seeds", type=int, default=1, help="searches per strategy")
    add("--batch-size", type=int, default=16, help="candidates proposed and trained at a time")
    add("--epochs", type=int, default=20, help="of a candidate, or of a supernet")
    add("--proxies", metavar="NAME[,NAME...]", help="scores to record of every candidate")
    add("--baseline", default="random_search", help="a strategy to compare with, or none")
    add("--retrain-epochs", type=int, help=f"of the winner; default: {RETRAIN_FACTOR} x epochs")
    add("--retrain-seeds", type=int, default=5, help="networks trained of the winner")
    add("--no-retrain", action="store_true", help="leave the winner as it was found")
    add(
        "--latency",
        type=int,
        default=0,
        metavar="N",
        help="measure so many networks on this device, the best ones and others, and predict them",
    )
    add("--devices", type=int, help="CPU devices; default: one per core")
    add(
        "--calibrate",
        action="store_true",
        help="plan with seconds measured on this device (once, then cached; kept in the run)",
    )
    add(
        "--option",
        nargs="+",
        action="extend",
        default=[],
        metavar="GROUP.NAME=VALUE",
        help=f"values in JSON; groups are {', '.join(config.GROUPS)}",
    )


def _search(args: argparse.Namespace) -> None:
    retrain_epochs = args.retrain_epochs
    if retrain_epochs is None:
        retrain_epochs = RETRAIN_FACTOR * args.epochs
    settings = Settings(
        space=args.space,
        strategies=() if args.method else tuple(args.strategy.split(",")),
        methods=tuple(args.method.split(",")) if args.method else (),
        data=args.data,
        num_evaluations=args.evaluations,
        seconds=args.seconds,
        seed=args.seed,
        num_seeds=args.seeds,
        batch_size=args.batch_size,
        epochs=args.epochs,
        proxies=tuple(args.proxies.split(",")) if args.proxies else (),
        baseline=None if args.baseline == "none" else args.baseline,
        retrain_epochs=0 if args.no_retrain else retrain_epochs,
        retrain_seeds=args.retrain_seeds,
        latency=args.latency,
        devices=args.devices,
        options=config.parse_options(args.option),
        command=args.command_line,
    )
    store.check_free(args.out)
    if args.calibrate:
        parallel.cpu_devices(settings.devices)
        model = calibration.calibrated()._asdict()
        settings = dataclasses.replace(settings, cost_model=model)
    made = _prepare(settings, args)
    show = progress.printer(interval=args.progress_every)
    if isinstance(made, Supernets):
        found = supernet_run.run(
            args.out,
            made,
            seed=settings.seed,
            num_seeds=settings.num_seeds,
            settings=dataclasses.asdict(settings),
            progress_fn=show,
        )
        return _finish(found, made, settings)
    found = run(
        args.out,
        made.space,
        made.strategies,
        made.evaluator,
        num_evaluations=settings.num_evaluations,
        seconds=settings.seconds,
        seed=settings.seed,
        num_seeds=settings.num_seeds,
        settings=dataclasses.asdict(settings),
        progress_fn=show,
    )
    _finish(found, made, settings)


def _resume(args: argparse.Namespace) -> None:
    opened = store.open_run(args.directory)
    settings = _settings_of(opened)
    made = _prepare(settings, args)
    show = progress.printer(interval=args.progress_every)
    if isinstance(made, Supernets):
        return _finish(supernet_run.resume(opened, made, progress_fn=show), made, settings)
    found = resume(
        args.directory,
        made.space,
        made.strategies,
        made.evaluator,
        progress_fn=show,
    )
    _finish(found, made, settings)


def _retrain(args: argparse.Namespace) -> None:
    opened = store.open_run(args.directory)
    settings = _settings_of(opened)
    changed = {"retrain_epochs": args.epochs, "retrain_seeds": args.seeds}
    given = {name: value for name, value in changed.items() if value is not None}
    settings = dataclasses.replace(settings, **given)
    if settings.retrain_epochs < 1:
        raise ValueError("the run was started without retraining; give --epochs of at least 1")
    _retrain_winner(opened, _prepare(settings, args), settings)
    print(f"report: {report.write(opened)}")


def _report(args: argparse.Namespace) -> None:
    print(report.write(store.open_run(args.directory), args.out))


def _list(args: argparse.Namespace) -> None:
    if args.folder is not None:
        print(summary.runs(args.folder))
        return
    for title, known in (
        ("spaces", spaces.ALL),
        ("strategies", strategies.ALL),
        ("one-shot methods", oneshot.ALL),
        ("evaluators", evaluators.ALL),
        ("tables", tables.ALL),
        ("data sets", datasets.ALL),
    ):
        print(f"{title}:")
        for name, factory in sorted(known.items()):
            print(f"  {name:<24}{(inspect.getdoc(factory) or '').splitlines()[0]}")


def _settings_of(opened: Run) -> Settings:
    stored = opened.config.get("settings")
    if not isinstance(stored, dict) or "strategies" not in stored:
        raise ValueError(
            f"{opened.directory} was not made by `jaxnas search`; "
            "continue it from Python with jaxnas.resume"
        )
    return Settings(**stored)


def _prepare(settings: Settings, args: argparse.Namespace) -> Search | Supernets:
    parallel.cpu_devices(settings.devices)
    if not args.no_cache:
        try:
            parallel.compilation_cache(parallel.cache_folder())
        except OSError as error:  # only slower without it
            print(f"jaxnas: no compilation cache: {error}", file=sys.stderr)
    return config.build_supernets(settings) if settings.methods else config.build(settings)


def _finish(found: Run, made: Search | Supernets, settings: Settings) -> None:
    if isinstance(made, Search):
        found.put_result("plan", {"report": made.plan.report})
        found.put_result("timing", summary.timing(found, made.plan.num_devices))
    print(summary.results(found, made.space))
    with signals.immediate(stopped_message(found.directory)):
        if settings.latency and found.result("latency") is None:
            shape = made.data.train.x.shape[1:]
            measured = latencies.measure_latencies(found, made.space, shape, num=settings.latency)
            print(latencies.told(measured))
        if settings.retrain_epochs and found.result("winner") is None:
            _retrain_winner(found, made, settings)
        print(f"report: {report.write(found)}")


def _retrain_winner(found: Run, made: Search | Supernets, settings: Settings) -> None:
    result = retrain(
        found,
        made.space,
        made.data,
        settings.retrain_recipe(made.data.task),
        seed=settings.seed,
        num_seeds=settings.retrain_seeds,
    )
    if result is None:
        print("every candidate failed, so there is no winner to retrain")
        return
    scores = ", ".join(f"{name} {value:.4f}" for name, value in result["test"].items())
    print(f"winner retrained for {result['epochs']} epochs: test {scores}")
