"""The recurrent space: the cell of a language model, of DARTS and ENAS.

See `jaxnas.nn.recurrent` for the cell and the papers. Besides the space there are the published
cells, genotypes in the form of DARTS's code, and the conversion of that form both ways.
"""

from collections.abc import Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxnas.nn.activations import ACTIVATIONS
from jaxnas.nn.language_model import Dropout
from jaxnas.nn.recurrent import OUTPUTS, RecurrentNetwork, RecurrentSupernet, loose_nodes
from jaxnas.space import Decision, SearchSpace
from jaxnas.training.costs import NetworkCost

PUBLISHED_ACTIVATIONS = ("tanh", "relu", "sigmoid", "identity")


class Genotype(NamedTuple):
    """A cell as DARTS's code writes it.

    Attributes:
      recurrent: activation and input of each node from 1 on; 0 is the node of x and h.
      concat: the nodes whose mean is the output.
    """

    recurrent: tuple[tuple[str, int], ...]
    concat: tuple[int, ...]


def _genotype(sources: str, activations: str, concat: Sequence[int]) -> Genotype:
    by_letter = {name[0]: name for name in PUBLISHED_ACTIVATIONS}
    recurrent = tuple((by_letter[a], int(j)) for j, a in zip(sources, activations, strict=True))
    return Genotype(recurrent, tuple(concat))


# `rnn/genotypes.py` in https://github.com/quark0/darts: found by first and by second order, and by
# Pham et al. (2018, Figure 6). Inputs and initials of activations, node by node.
GENOTYPES: MappingProxyType[str, Genotype] = MappingProxyType(
    {
        "darts_v1": _genotype("01234151", "rrtrrirr", range(1, 9)),
        "darts_v2": _genotype("01112535", "srritstr", range(1, 9)),
        "enas": _genotype("01133347888", "ttrttrrrrrr", (2, 5, 6, 9, 10, 11)),
    }
)


def recurrent(
    num_symbols: int,
    *,
    num_units: int = 300,
    num_nodes: int = 8,
    activations: Sequence[str] = PUBLISHED_ACTIVATIONS,
    output: str = "all",
    normalise: bool = False,
    dropout: Dropout = Dropout(),  # noqa: B008, it is immutable
) -> SearchSpace:
    """Language models with one recurrent cell, which is the architecture.

    Networks map symbols i32[batch, time] to logits of the symbols that follow; they keep their
    state from one window of a text to the next in the collection "hidden", see
    `jaxnas.nn.language_model.LanguageModel`. The defaults are DARTS's search, which also has
    `normalise=True` and `dropout=Dropout(inputs=0.8, hidden=0.25, outputs=0.75)`; its final
    networks have 850 units and no normalisation.

    Args:
      num_symbols: different symbols of the text, at least 1.
      num_units: of the embedding and of the cell's states, at least 1.
      num_nodes: nodes after the one of x and h, at least 1.
      activations: the choices of every node, names in `jaxnas.nn.activations.ACTIVATIONS`.
      output: "all": the mean of those nodes (DARTS); "loose": of those that no other reads (ENAS),
        which only discrete cells have.
      normalise: whether every node is normalised by its batch, without learned scale and bias.
      dropout: rates of `jaxnas.nn.language_model.Dropout`.

    Returns:
      A `SearchSpace` with decisions `input_1`, `activation_1`, `input_2`, ...: for 8 nodes
      8! * 4^8 = 2,642,411,520 architectures. They all have the same parameters and flops, and
      `cost` counts one symbol as a row.

    Raises:
      ValueError: for a number out of range; for activations that are unknown, repeated or none; for
        another `output`; for a rate outside [0, 1).

    Example:
      >>> space = recurrent(num_symbols=65, num_units=16, num_nodes=2)
      >>> arch = space.arch({"input_2": 1, "activation_2": "relu"})
      >>> genotype_from_arch(arch).recurrent
      (('tanh', 0), ('relu', 1))
    """
    counts = {"num_symbols": num_symbols, "num_units": num_units, "num_nodes": num_nodes}
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number above 0, got {count!r}")
    names = _checked_activations(activations)
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}")
    for name, rate in dropout._asdict().items():
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"dropout.{name} must be in [0, 1), got {rate!r}")
    frame = {
        "num_symbols": num_symbols,
        "num_units": num_units,
        "dropout": dropout,
        "normalise": normalise,
        "output": output,
    }

    def network(arch):
        sources, chosen = _read(np.asarray(arch), names)
        return RecurrentNetwork(sources=sources, activations=chosen, **frame)

    def supernet(bucket):
        del bucket  # no decision reshapes, so every program serves the whole space
        return RecurrentSupernet(num_nodes=num_nodes, activations=names, **frame)

    return SearchSpace(
        "recurrent",
        _decisions(num_nodes, names),
        network,
        supernet,
        cost=partial(_cost, num_symbols, num_units, num_nodes),
    )


def _decisions(num_nodes: int, activations: tuple[str, ...]) -> tuple[Decision, ...]:
    pairs = [
        (Decision(f"input_{i}", tuple(range(i))), Decision(f"activation_{i}", activations))
        for i in range(1, num_nodes + 1)
    ]
    return tuple(decision for pair in pairs for decision in pair)


def _checked_activations(activations: Sequence[str]) -> tuple[str, ...]:
    names = tuple(activations)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"activations must be at least one name, none twice, got {list(names)}")
    unknown = [name for name in names if name not in ACTIVATIONS]
    if unknown:
        raise ValueError(f"activations has {unknown[0]!r}; names must be in {sorted(ACTIVATIONS)}")
    return names


def _read(arch: np.ndarray, activations: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Inputs and activations of a concrete `arch` i32[2N]."""
    sources = tuple(int(j) for j in arch[::2])
    return sources, tuple(activations[int(k)] for k in arch[1::2])


def _cost(num_symbols: int, num_units: int, num_nodes: int, arch: ArrayLike) -> NetworkCost:
    """What one symbol costs; a gate and an activation are one scalar written each."""
    del arch  # they all have the same products
    products = (2 + num_nodes) * 2 * num_units**2
    return NetworkCost(
        parameters=num_symbols * (num_units + 1) + products,
        flops=2.0 * (products + num_symbols * num_units),
        activations=float((1 + num_nodes) * 3 * num_units + num_symbols),
        products=3 + num_nodes,
    )


def arch_from_genotype(
    genotype: Genotype, *, activations: Sequence[str] = PUBLISHED_ACTIVATIONS
) -> jax.Array:
    """The architecture of a cell in the form of DARTS's code.

    Args:
      genotype: the cell.
      activations: those of the space.

    Returns:
      i32[2N], for the space with that many nodes, and with `output="loose"` unless the cell's
      output is the mean of all nodes.

    Raises:
      ValueError: for an unknown activation, an input that is not an earlier node, or an output that
        is neither all nodes nor those that no other reads.

    Example:
      >>> arch_from_genotype(GENOTYPES["darts_v1"])[:6].tolist()
      [0, 1, 1, 1, 2, 0]
    """
    arch: list[int] = []
    for i, (name, source) in enumerate(genotype.recurrent):
        if name not in activations:
            raise ValueError(f"activation {name!r} of node {i + 1} is not in {list(activations)}")
        if not 0 <= source <= i:
            raise ValueError(f"input of node {i + 1} must be in 0 to {i}, got {source}")
        arch += [source, list(activations).index(name)]
    outputs = [_concat(np.asarray(arch), output) for output in OUTPUTS]
    if tuple(genotype.concat) not in outputs:
        raise ValueError(f"concat must be one of {outputs}, got {tuple(genotype.concat)}")
    return jnp.asarray(arch, jnp.int32)


def genotype_from_arch(
    arch: ArrayLike, *, activations: Sequence[str] = PUBLISHED_ACTIVATIONS, output: str = "all"
) -> Genotype:
    """The form of DARTS's code of a concrete `arch` i32[2N]; the inverse of `arch_from_genotype`.

    Args:
      arch: i32[2N].
      activations: those of the space.
      output: that of the space.

    Returns:
      The genotype.

    Example:
      >>> enas = GENOTYPES["enas"]
      >>> genotype_from_arch(arch_from_genotype(enas), output="loose") == enas
      True
    """
    concrete = np.asarray(arch)
    sources, names = _read(concrete, activations)
    return Genotype(tuple(zip(names, sources, strict=True)), _concat(concrete, output))


def _concat(arch: np.ndarray, output: str) -> tuple[int, ...]:
    """The nodes that are averaged."""
    nodes = np.arange(1, len(arch) // 2 + 1)
    return tuple((nodes if output == "all" else nodes[loose_nodes(arch[::2])]).tolist())
