"""What a search from the command line is made of, as simple JSON values, and how it is built.

The settings are kept in the run's `config.json`; `jaxnas resume` builds the same search from them.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxnas import datasets, evaluators, oneshot, proxies, spaces, strategies
from jaxnas.arm import check_budget
from jaxnas.latencies import MIN_NETWORKS
from jaxnas.space import SearchSpace
from jaxnas.supernet_run import Supernets
from jaxnas.training.costs import CostModel
from jaxnas.training.data import Data, Split, Task, from_arrays
from jaxnas.training.plan import Plan, choose
from jaxnas.training.recipe import Recipe
from jaxnas.types import Evaluator, Strategy

Options = dict[str, dict[str, Any]]  # group -> option -> JSON value

GROUPS = ("space", "strategy", "method", "data", "recipe", "retrain")

# What every differentiable method takes besides its own options.
_BILEVEL_OPTIONS = frozenset(["begin", "end", "period", "exclude"])

_SEARCH_BATCH = 64  # rows of an update of a supernet, unless the recipe says so

TYPICAL_EVALUATIONS = 256  # where the budget is in seconds

_DATA_TAG = 0x64617461  # apart from the seeds' own keys, so that no arm shares the split's key
_PROXY_TAG = 0x70726F78

PROXY_ROWS = 64  # training rows that proxies look at, as in the papers


@dataclass(frozen=True)
class Settings:
    """A search from the command line. All values are simple JSON values.

    Attributes:
      space: a name in `jaxnas.spaces.ALL`.
      strategies: names in `jaxnas.strategies.ALL`, searched one after the other.
      methods: names in `jaxnas.oneshot.ALL`, instead of strategies: supernets are trained for
        `epochs`, which is their budget, in mini-batches of the recipe's `batch_size`.
      data: a name in `jaxnas.datasets.ALL` or a path.
      num_evaluations: budget of each arm, or
      seconds: budget of each arm in wall time.
      seed: first seed of the arms; also decides the data split.
      num_seeds: arms per strategy.
      batch_size: candidates per step.
      epochs: of every candidate.
      proxies: names in `jaxnas.proxies.ALL`, scores to record of every candidate.
      baseline: the strategy to compare with, searched under the same budget; None: no comparison.
      retrain_epochs: of the winner; 0: it is not retrained.
      retrain_seeds: networks trained of the winner, the best on the validation split is kept.
      latency: networks whose latency is measured after the search; 0: none.
      devices: CPU devices; None: one per core.
      cost_model: seconds of a calibrated `CostModel`, by name; None: the built-in ones.
      options: overrides by group, see `GROUPS`; `retrain` is the recipe's for the winner.
      command: the command line, for the report.

    Raises:
      ValueError: for an unknown name or option, or a number out of range.
    """

    space: str
    strategies: tuple[str, ...]
    data: str
    methods: tuple[str, ...] = ()
    num_evaluations: int | None = None
    seconds: float | None = None
    seed: int = 0
    num_seeds: int = 1
    batch_size: int = 16
    epochs: int = 20
    proxies: tuple[str, ...] = ()
    baseline: str | None = "random_search"
    retrain_epochs: int = 100
    retrain_seeds: int = 5
    latency: int = 0
    devices: int | None = None
    cost_model: dict[str, float] | None = None
    options: Options = field(default_factory=dict)
    command: str | None = None

    def __post_init__(self):
        for name in ("strategies", "methods", "proxies"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists only
        _check_name("space", self.space, spaces.ALL)
        if bool(self.strategies) == bool(self.methods):
            raise ValueError("give at least one strategy or one-shot method, and not both")
        for name in self.methods:
            _check_name("method", name, oneshot.ALL)
        for name in self.searched:
            _check_name("strategy", name, strategies.ALL)
        if self.methods and (self.num_evaluations, self.seconds) != (None, None):
            raise ValueError("the budget of a one-shot method is its epochs, not evaluations")
        if self.methods and self.proxies:
            raise ValueError("proxies are recorded of a strategy's candidates, not of supernets")
        if self.proxies:
            proxies.resolve(self.proxies)
        if self.strategies:
            check_budget(self.num_evaluations, self.seconds)
        for name in ("num_seeds", "batch_size", "epochs", "retrain_seeds"):
            _check_count(name, getattr(self, name), 1)
        _check_count("seed", self.seed, 0)
        _check_count("retrain_epochs", self.retrain_epochs, 0)
        _check_count("latency", self.latency, MIN_NETWORKS if self.latency else 0)
        if self.devices is not None:
            _check_count("devices", self.devices, 1)
        for group, options in self.options.items():
            _check_options(group, options, self._allowed(group))

    @property
    def searched(self) -> tuple[str, ...]:
        """The strategies and the baseline, each once; nothing where methods are searched."""
        if self.methods:
            return ()
        baseline = () if self.baseline is None else (self.baseline,)
        return tuple(dict.fromkeys((*self.strategies, *baseline)))

    @property
    def num_candidates(self) -> int:
        """Roughly how many candidates all arms will train; it decides what is worth compiling."""
        each = self.num_evaluations or TYPICAL_EVALUATIONS
        return each * self.num_seeds * len(self.searched)

    @property
    def recipe(self) -> Recipe:
        """How candidates are trained."""
        with _typed("recipe"):
            return Recipe(**self.options.get("recipe", {}) | {"epochs": self.epochs})

    def retrain_recipe(self, task: Task) -> Recipe:
        """How the winner is trained at the end: with what pays only in a long training."""
        long: dict[str, Any] = {"schedule": "cosine"}
        if task.kind == "classification":
            long["label_smoothing"] = 0.1
        options = long | self.options.get("recipe", {}) | self.options.get("retrain", {})
        with _typed("recipe"):
            return Recipe(**options | {"epochs": self.retrain_epochs})

    def _allowed(self, group: str) -> set[str]:
        if group == "space":
            return _keywords(spaces.ALL[self.space])
        if group == "strategy":
            return set().union(*(_keywords(strategies.ALL[name]) for name in self.searched))
        if group == "method":
            return set().union(*(_method_options(name) for name in self.methods))
        if group in ("recipe", "retrain"):
            return {f.name for f in dataclasses.fields(Recipe)} - {"epochs"}
        if group == "data":
            files = (datasets.npz, datasets.cifar10, datasets.image_folder)
            loaders = [datasets.ALL[self.data]] if self.data in datasets.ALL else files
            return set().union(*map(_keywords, (*loaders, from_arrays))) - {"name"}
        raise ValueError(f"options begin with one of {', '.join(GROUPS)}, got {group!r}")


class Search(NamedTuple):
    """The objects that settings stand for."""

    space: SearchSpace
    data: Data
    strategies: dict[str, Strategy]
    evaluator: Evaluator
    plan: Plan  # of the candidates' training


def _image_shape(space: str, data: Data) -> dict[str, int]:
    """What a space of convolutional networks has to know about the data; {} for other spaces.

    Raises:
      ValueError: if the space needs square images and the rows are something else.
    """
    if not {"image_size", "in_channels"} <= set(_keywords(spaces.ALL[space])):
        return {}
    shape = data.train.x.shape[1:]
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ValueError(
            f"space {space!r} needs square images [size, size, channels], but rows of "
            f"{data.name!r} have shape {shape}; bundled digits are images with data.images=true"
        )
    return {"image_size": shape[0], "in_channels": shape[2]}


def build(settings: Settings) -> Search:
    """Loads the data and makes the space, the strategies and the evaluator.

    Raises:
      ValueError: for options that are out of range or do not go together.
    """
    options = {group: settings.options.get(group, {}) for group in GROUPS}
    recipe = settings.recipe
    with _typed("data"):
        data = datasets.load(settings.data, split_key(settings), **options["data"])
    if settings.retrain_epochs:
        settings.retrain_recipe(data.task)  # rather now than after the search
    with _typed("space"):
        own: dict[str, Any] = _image_shape(settings.space, data) | options["space"]
        space = spaces.ALL[settings.space](data.task.num_outputs, **own)
    made = {}
    for name in settings.searched:
        factory = strategies.ALL[name]
        own = {k: v for k, v in options["strategy"].items() if k in _keywords(factory)}
        with _typed("strategy"):
            made[name] = factory(space, batch_size=settings.batch_size, **own)
    model = None if settings.cost_model is None else CostModel(**settings.cost_model)
    plan = choose(space, recipe, data, settings.num_candidates, model=model)
    evaluator = evaluators.train_from_scratch(space, data, recipe, plan=plan)
    if settings.proxies:
        key = jax.random.fold_in(jax.random.key(settings.seed), _PROXY_TAG)
        batch = Split(*(part[:PROXY_ROWS] for part in data.train))  # they are in random order
        evaluator = proxies.recorded(key, space, evaluator, batch, settings.proxies)
    return Search(space, data, made, evaluator, plan)


def build_supernets(settings: Settings) -> Supernets:
    """Loads the data and makes the space, the supernets and the one-shot methods.

    A supernet's operations are normalised without a learned scale and bias, as in the published
    searches, where the space leaves it open; that of PC-DARTS sees a quarter of the channels. Both
    are options of the space.

    Raises:
      ValueError: for options that are out of range or do not go together.
    """
    options = {group: settings.options.get(group, {}) for group in GROUPS}
    recipe = settings.recipe
    with _typed("data"):
        data = datasets.load(settings.data, split_key(settings), **options["data"])
    if settings.retrain_epochs:
        settings.retrain_recipe(data.task)
    factory = spaces.ALL[settings.space]
    own: dict[str, Any] = _image_shape(settings.space, data) | options["space"]
    supernets, methods = {}, {}
    for name in settings.methods:
        usual = {"affine": False} | ({"partial": 4} if name == "pc_darts" else {})
        search: dict[str, Any] = {k: v for k, v in usual.items() if k in _keywords(factory)} | own
        with _typed("space"):
            supernets[name] = factory(data.task.num_outputs, **search)
        chosen = {k: v for k, v in options["method"].items() if k in _method_options(name)}
        methods[name] = partial(oneshot.ALL[name], **chosen)
    with _typed("space"):
        space = factory(data.task.num_outputs, **own)
    batch_size = options["recipe"].get("batch_size", _SEARCH_BATCH)
    problem_fn = partial(oneshot.from_space, data=data, recipe=recipe)
    with _typed("method"):
        return Supernets(space, supernets, methods, problem_fn, data, settings.epochs, batch_size)


def _method_options(name: str) -> set[str]:
    parameters = inspect.signature(oneshot.ALL[name]).parameters.values()
    rest = any(p.kind == p.VAR_KEYWORD for p in parameters)
    return _keywords(oneshot.ALL[name]) - {"num_steps"} | (_BILEVEL_OPTIONS if rest else set())


def split_key(settings: Settings) -> jax.Array:
    """The key of the data split, the same for all arms."""
    return jax.random.fold_in(jax.random.key(settings.seed), _DATA_TAG)


def parse_options(texts: Sequence[str]) -> Options:
    """Reads `group.option=value` texts; values are JSON, or else strings.

    Raises:
      ValueError: for a text of another form, or one option given twice.

    Example:
      >>> parse_options(["space.widths=[32, 64]", "strategy.policy=factorised"])
      {'space': {'widths': [32, 64]}, 'strategy': {'policy': 'factorised'}}
    """
    options: Options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        group, dot, option = name.partition(".")
        if not (equals and dot and option):
            raise ValueError(f"an option looks like recipe.learning_rate=0.01, got {text!r}")
        if option in options.setdefault(group, {}):
            raise ValueError(f"option {name} is given twice")
        try:
            options[group][option] = json.loads(value)
        except json.JSONDecodeError:
            options[group][option] = value
    return options


def _keywords(factory: Callable) -> set[str]:
    """The options of a factory: its keyword-only parameters but `batch_size`, which is shared."""
    parameters = inspect.signature(factory).parameters.values()
    return {p.name for p in parameters if p.kind == p.KEYWORD_ONLY} - {"batch_size"}


def _check_name(what: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; known are {', '.join(sorted(known))}")


def _check_count(what: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")


def _check_options(group: str, options: Iterable[str], allowed: set[str]) -> None:
    for name in options:
        if name not in allowed:
            raise ValueError(
                f"unknown option {group}.{name}; allowed are "
                f"{', '.join(f'{group}.{other}' for other in sorted(allowed))}"
            )


@contextmanager
def _typed(group: str) -> Generator[None]:
    """A factory that is given a value of another type fails in its own way; names the option."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"an option of {group} has the wrong type: {error}") from error
