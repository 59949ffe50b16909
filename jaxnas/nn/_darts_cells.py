"""What the networks of the DARTS space have in common: nodes, edges, stages, architectures.

A cell has two inputs, nodes 0 and 1 (the outputs of the cell before the last one and of the last
one), and four nodes of its own, 2 to 5. Every node may take from every earlier one, which makes the
14 edges of `EDGES`; of those into one node, an architecture has two, each with one operation.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

INPUTS = (0, 1)
NODES = (2, 3, 4, 5)
# (source, target), all edges into a node before the first out of it.
EDGES = tuple((source, target) for target in NODES for source in range(target))
KINDS = ("normal", "reduce")
PER_KIND = 3 * len(NODES)  # decisions: per node the pair of sources and two operations
# Per node, the pairs of earlier nodes it may take from.
PAIRS = {target: tuple(itertools.combinations(range(target), 2)) for target in NODES}


class Stage(NamedTuple):
    """Equal cells one after another; every field is static.

    Attributes:
      name: unique within the network.
      first: position of the first cell among all cells.
      num_cells: how many; 1 for reduction cells.
      reduces: whether edges out of the cell's inputs have stride 2.
      features: channels of every node.
      halved: whether the first cell's input 0 is twice as high and wide as its input 1.
    """

    name: str
    first: int
    num_cells: int
    reduces: bool
    features: int
    halved: bool


def stages_of(num_channels: int, num_cells: int) -> list[Stage]:
    """The cells of a network from the first to the last, as stages of equal ones.

    Reduction cells stand at a third and at two thirds of the depth, and double the channels.

    Example:
      >>> [(s.name, s.first, s.num_cells, s.features) for s in stages_of(16, 8)][:3]
      [('normal_0', 0, 2, 16), ('reduce_1', 2, 1, 32), ('normal_1', 3, 2, 32)]
    """
    stages = []
    starts = (-1, num_cells // 3, 2 * num_cells // 3)
    ends = (*starts[1:], num_cells)
    for stage, (start, end) in enumerate(zip(starts, ends, strict=True)):
        features = num_channels * 2**stage
        if stage > 0:
            after_reduction = stages[-1].reduces
            stages.append(Stage(f"reduce_{stage}", start, 1, True, features, after_reduction))
        if end > start + 1:
            size = end - start - 1
            stages.append(Stage(f"normal_{stage}", start + 1, size, False, features, stage > 0))
    return stages


def chosen_edges(arch: Array) -> tuple[Array, Array]:
    """The edges of one kind of cell and their operations; traceable.

    Args:
      arch: i32[12], the decisions of one kind of cell.

    Returns:
      Positions in `EDGES` i32[8], two per node, ascending; choices of operation i32[8].
    """
    edges, operations = [], []
    for place, target in enumerate(NODES):
        pair, *chosen = (arch[3 * place + i] for i in range(3))
        edges.append(EDGES.index((0, target)) + jnp.asarray(PAIRS[target], jnp.int32)[pair])
        operations += chosen
    return jnp.concatenate(edges), jnp.stack(operations)


def strongest(strengths: Array) -> Array:
    """The decisions of one kind of cell by the rule of DARTS, Section 2.4; traceable.

    A node takes from the two sources whose edges have the strongest operations. Of equals the first
    counts, as in the authors' code.

    Args:
      strengths: f32[14, O], per edge of every operation that may be chosen, that is without `none`.

    Returns:
      i32[12].
    """
    operations = jnp.argmax(strengths, axis=1)
    strength = jnp.max(strengths, axis=1)
    decisions = []
    for target in NODES:
        start = EDGES.index((0, target))
        order = jnp.argsort(-strength[start : start + target], stable=True)
        pair = jnp.sort(order[:2])
        place = np.zeros((target, target), np.int32)
        for position, (low, high) in enumerate(PAIRS[target]):
            place[low, high] = position
        decisions += [jnp.asarray(place)[pair[0], pair[1]], *operations[start + pair]]
    return jnp.stack(decisions).astype(jnp.int32)


def concrete_edges(arch: np.ndarray) -> list[tuple[int, int]]:
    """(edge, choice of operation) of a concrete `arch` i32[12], in the order of `chosen_edges`."""
    found = []
    for target, (pair, *chosen) in zip(NODES, np.asarray(arch).reshape(-1, 3), strict=True):
        for source, operation in zip(PAIRS[target][int(pair)], chosen, strict=True):
            found.append((EDGES.index((source, target)), int(operation)))
    return found
