"""Does a recurrent cell found by DARTS predict text better than an LSTM of equal size?

Characters of Tiny Shakespeare. First-order DARTS (Liu et al., 2019,
https://arxiv.org/abs/1806.09055) searches the cell of `spaces.recurrent`, several times; weights
learn from the training part, the mixture from the validation part, by the paper's recipe for
recurrent cells (SGD at 20, gradients clipped at 0.25, Adam at 0.003 for the mixture, normalised
nodes). Every window of the search starts from a state of zeros, and there is no dropout: the text
is seen a few times only.

Then four kinds of networks are trained from scratch with one budget: the cells found; cells drawn
uniformly, which is what a search has to beat; the published cell DARTS_V2, found on the Penn
Treebank; and Flax's LSTM with as many units as give it the parameters of the others. Every network
is trained at every one of a few learning rates by Adam with a cosine schedule and clipping, and
each kind is shown at the rate that is best for it on the validation part. Cells run in one program,
the routed supernet. A kind's spread is over its cells or, where it has one, over seeds.

Needs `tinyshakespeare.txt` in the folder `JAXNAS_DATA`.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from benchmarks import harness
from jaxnas import datasets, oneshot, spaces
from jaxnas.nn.language_model import LSTM
from jaxnas.oneshot.language import language_problem
from jaxnas.oneshot.optimizers import Adam, Sgd
from jaxnas.space import SearchSpace, sample
from jaxnas.spaces.recurrent import GENOTYPES, arch_from_genotype, genotype_from_arch
from jaxnas.training import Recipe, language_model
from jaxnas.training.text import Text, bits, from_string, windows

FILE = "tinyshakespeare.txt"
FOUND, RANDOM, PUBLISHED, BASELINE = "DARTS", "random cells", "DARTS_V2", "LSTM"
RATES = (5e-3, 1e-2, 2e-2)


@dataclass(frozen=True)
class Setting:
    """One size of the question."""

    num_characters: int  # of the text, from its start
    num_units: int  # of the cells
    num_searches: int
    search_steps: int  # updates of a search
    num_random: int  # cells
    num_seeds: int  # of the kinds that have one cell
    epochs: int
    batch_size: int = 32  # streams
    num_steps: int = 64  # characters of a window
    search_batch_size: int = 64
    search_num_steps: int = 32


SETTINGS = MappingProxyType(
    {
        "smoke": Setting(60_000, 16, 1, 40, 2, 2, 1),
        "shakespeare": Setting(1_115_394, 64, 3, 400, 5, 3, 3),
    }
)


class Problem(NamedTuple):
    """What is searched and trained."""

    setting: Setting
    text: Text
    space: SearchSpace  # of the networks
    search_space: SearchSpace  # with normalised nodes
    lstm: LSTM


class _Trained(NamedTuple):
    """Nats per character of each network: f32[P, epochs] and f32[P]."""

    train_curve: Array
    valid_loss: Array
    test_loss: Array


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--seed", type=int, default=0, help="of everything (default 0)")


def text_file() -> Path:
    """Where the text would be: in the folder `JAXNAS_DATA`."""
    folder = os.environ.get("JAXNAS_DATA", harness.ROOT.parent / "shared" / "data")
    return Path(folder) / FILE


def load(setting: Setting) -> Problem:
    """Text, spaces and the LSTM that is as large as the cells.

    Raises:
      FileNotFoundError: without the text.
    """
    text = datasets.text_file(text_file())
    if setting.num_characters < sum(len(part) for part in (text.train, text.valid, text.test)):
        whole = text_file().read_text(encoding="utf-8")
        text = from_string(whole[: setting.num_characters], name=text.name)
    sizes = {"num_units": setting.num_units}
    space = spaces.recurrent(text.num_symbols, **sizes)
    search_space = spaces.recurrent(text.num_symbols, normalise=True, **sizes)
    target = space.cost(np.zeros(space.num_decisions)).parameters
    return Problem(
        setting, text, space, search_space, LSTM(text.num_symbols, units_for(text, target))
    )


def units_for(text: Text, parameters: int) -> int:
    """The units with which an LSTM comes closest to so many parameters."""
    away = [abs(LSTM.count(text.num_symbols, units) - parameters) for units in range(1, 4096)]
    return 1 + int(np.argmin(away))


# --- measuring ---


def measure(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Searches, then trains all networks at all rates."""
    setting = problem.setting
    k_search, k_sample, k_train = jax.random.split(jax.random.key(options.seed), 3)
    seconds: dict[str, float] = {}
    with _timed(seconds, "search"):
        found, strengths = _each(partial(_search, problem), _keys(k_search, setting.num_searches))
    random = [sample(key, problem.space) for key in _keys(k_sample, setting.num_random)]
    published = [arch_from_genotype(GENOTYPES["darts_v2"])] * setting.num_seeds
    archs = jnp.stack([*found, *random, *published])
    kinds = [FOUND] * len(found) + [RANDOM] * len(random) + [PUBLISHED] * len(published)
    trained = []
    for rate in RATES:
        with _timed(seconds, f"cells at rate {rate:g}"):
            supernet = problem.space.supernet(problem.space.full_bucket)
            train = partial(_train, problem, rate, supernet)
            cells = _each(train, _keys(k_train, len(archs)), archs)
        with _timed(seconds, f"LSTM at rate {rate:g}"):
            train = partial(_train, problem, rate, problem.lstm)
            lstms = _each(train, _keys(k_train, setting.num_seeds))
        trained.append(jax.tree.map(lambda *parts: np.concatenate(parts), cells, lstms))
    every = jax.tree.map(lambda *rows: np.stack(rows), *trained)
    return {
        "kind": kinds + [BASELINE] * setting.num_seeds,
        "cell": [_spelled(arch) for arch in archs] + [""] * setting.num_seeds,
        "strengths": strengths,
        "rate": RATES,
        "train_bits": np.asarray(bits(every.train_curve)),
        "valid_bits": np.asarray(bits(every.valid_loss)),
        "test_bits": np.asarray(bits(every.test_loss)),
        "seconds": seconds,
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    print(f"  {name}: {seconds[name]:.0f} s", file=sys.stderr, flush=True)


def _keys(key: Array, num: int) -> Array:
    return jax.random.split(key, num)


def _each(fn: Callable, *columns: Any) -> Any:
    """`fn` of every row of the columns, dealt over the devices: NumPy arrays with a leading axis.

    A compiled program of its own for each call; rows beyond the last one fill up.
    """
    devices = jax.local_devices()
    num_rows = len(columns[0])
    rows = np.arange(-(-num_rows // len(devices)) * len(devices)) % num_rows
    spec = PartitionSpec("row")
    dealt = jax.shard_map(
        lambda *columns: jax.lax.map(lambda row: fn(*row), columns),
        mesh=Mesh(np.asarray(devices), ("row",)),
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    found = jax.jit(dealt)(*(column[rows] for column in columns))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:num_rows], found)


def _search(problem: Problem, key: Array) -> tuple[Array, Array]:
    """One search: the architecture i32[16], and the mixture f32[36, 5]."""
    setting, text = problem.setting, problem.text
    method = oneshot.darts(
        language_problem(problem.search_space),
        num_steps=setting.search_steps,
        weight_optimizer=Sgd(20.0, 20.0, momentum=0.0, weight_decay=5e-7, clip_norm=0.25),
        alpha_optimizer=Adam(3e-3, b1=0.9),
    )
    size = setting.search_batch_size
    parts = (windows(part, size, setting.search_num_steps) for part in (text.train, text.valid))
    state, _ = oneshot.search(key, method, *parts, num_steps=setting.search_steps, batch_size=size)
    return method.derive(state), state.strengths


def _train(problem: Problem, rate: float, module: Any, key: Array, arch: Array | None = None):
    setting = problem.setting
    recipe = Recipe(
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        learning_rate=rate,
        schedule="cosine",
        warmup=0.05,
        clip_norm=1.0,
    )
    outcome = language_model.train(
        key, module, problem.text, arch, recipe=recipe, num_steps=setting.num_steps
    )
    return _Trained(outcome.train_curve, outcome.valid_loss, outcome.test_loss)


def _spelled(arch: Array) -> str:
    """Activation and input of each node.

    Example:
      >>> _spelled(arch_from_genotype(GENOTYPES["darts_v1"]))
      'relu 0, relu 1, tanh 2, relu 3, relu 4, identity 1, relu 5, relu 1'
    """
    return ", ".join(f"{name} {source}" for name, source in genotype_from_arch(arch).recurrent)


# --- what it means ---


def score(
    problem: Problem, raw: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Each kind at its best rate, then each cell, in bits per character; lower is better.

    A kind's cell that is best on the validation part is what a search with that many runs would
    hand out: its bits on the test part are in the last column.
    """
    del machine
    kind = np.asarray(raw["kind"])
    valid, test = np.asarray(raw["valid_bits"]), np.asarray(raw["test_bits"])
    parameters = {name: _cell_parameters(problem) for name in (FOUND, RANDOM, PUBLISHED)}
    parameters[BASELINE] = LSTM.count(problem.lstm.num_symbols, problem.lstm.num_units)
    kinds, cells = [], []
    for name in (FOUND, RANDOM, PUBLISHED, BASELINE):
        mine = np.flatnonzero(kind == name)
        best = int(np.argmin(_last(valid[:, mine]).mean(axis=1)))
        kinds.append(
            {
                "kind": name,
                "networks": len(mine),
                "parameters": parameters[name],
                "rate": raw["rate"][best],
                "valid bits": _mean_and_range(valid[best, mine]),
                "test bits": _mean_and_range(test[best, mine]),
                "test of best": float(test[best, mine[np.argmin(_last(valid[best, mine]))]]),
            }
        )
        cells += [
            {
                "kind": name,
                "valid bits": float(valid[best, i]),
                "test bits": float(test[best, i]),
                "cell": raw["cell"][i],
            }
            for i in mine
        ]
    setting = problem.setting
    title = f"bits per character after {setting.epochs} epochs, mean [range]"
    seconds = [{"part": part, "s": value} for part, value in raw["seconds"].items()]
    return {title: kinds, "each network": cells, "seconds with compilation": seconds}


def _cell_parameters(problem: Problem) -> int:
    return problem.space.cost(np.zeros(problem.space.num_decisions)).parameters


def _last(losses: np.ndarray) -> np.ndarray:
    """With networks that diverged behind all others."""
    return np.where(np.isnan(losses), np.inf, losses)


def _mean_and_range(values: np.ndarray) -> str:
    """Mean and range of f[S].

    Example:
      >>> _mean_and_range(np.array([1.0, 2.0, 6.0]))
      '3.000 [1.000 to 6.000]'
    """
    return f"{values.mean():.3f} [{values.min():.3f} to {values.max():.3f}]"
