"""Architectures as feature vectors, for predictors.

- "one_hot": `jaxnas.space.encode`, defined on every space.
- "path": White, Neiswanger & Savani (BANANAS), AAAI 2021, https://arxiv.org/abs/1910.11858,
  section 3: which sequences of operations lead from the input of a cell to its output. Defined on
  spaces whose decisions are the operations on the edges of one graph, such as NAS-Bench-201.
  Short paths come first and only the first are kept, as in the paper's section 4.
- one's own function.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnas._checks import check_count
from jaxnas.space import SearchSpace, encode

EncodeFn = Callable[[Array], Array]  # (arch i32[D]) -> f32[F]

NAMES = ("one_hot", "path")


def encoder(space: SearchSpace, encoding: str | EncodeFn) -> EncodeFn:
    """The function that an `encoding` argument means.

    Args:
      space: the space.
      encoding: "one_hot", "path", or a traceable function of one architecture, which is returned
        as it is.

    Returns:
      `(arch i32[D]) -> f32[F]`.

    Raises:
      ValueError: for an unknown name, or "path" on a space without paths.

    Example:
      >>> from jaxnas.testing import tiny_space
      >>> encoder(tiny_space(), "one_hot")(jnp.array([1, 0, 1])).tolist()
      [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """
    if callable(encoding):
        return encoding
    if encoding not in NAMES:
        raise ValueError(f"encoding must be one of {NAMES} or a function, got {encoding!r}")
    return path(space) if encoding == "path" else functools.partial(encode, space)


def path(space: SearchSpace, num_paths: int | None = 30) -> EncodeFn:
    """The path encoding of a graph whose edges are the decisions.

    The decisions must be named "target<-source" after two nodes, with the same operations as
    choices everywhere. Node 0 is the input, the node with the largest number the output. With n
    operations there are n sequences of length 1, then n^2 of length 2 and so on; within a length,
    the sequence (o_1, o_2, ...) of choices is number o_1 + n o_2 + n^2 o_3 + .... An operation
    that cuts an edge, such as `none`, is an operation like any other.

    On NAS-Bench-201 the paths are the edges (3<-0), (1<-0, 3<-1), (2<-0, 3<-2) and
    (1<-0, 2<-1, 3<-2); 155 sequences, of which BANANAS keeps 30, those of one and two operations.

    Args:
      space: the space.
      num_paths: sequences F to keep, the shortest first; None, or more than there are: all. Static.

    Returns:
      `(arch i32[D]) -> f32[F]` of zeros and ones.

    Raises:
      ValueError: if the decisions are not such edges, or `num_paths` is below 1.

    Example:
      >>> from jaxnas.spaces import nasbench201
      >>> encoding = path(nasbench201())(jnp.array([0, 0, 0, 3, 1, 2]))
      >>> jnp.nonzero(encoding)[0].tolist()  # 3, 5 + 0 + 5 * 1, 5 + 0 + 5 * 2
      [3, 10, 15]
    """
    if num_paths is not None:
        check_count("num_paths", num_paths)
    paths = _paths(space)
    num_ops = space.num_choices[0]
    longest = max(map(len, paths))
    total = sum(num_ops**length for length in range(1, longest + 1))
    features = np.arange(total if num_paths is None else min(num_paths, total))

    def encode_paths(arch):
        numbers = []
        for edges in paths:
            before = sum(num_ops**length for length in range(1, len(edges)))
            weights = jnp.asarray(num_ops ** np.arange(len(edges)), jnp.int32)
            numbers.append(before + arch[np.asarray(edges)] @ weights)
        return jnp.any(jnp.stack(numbers)[:, None] == features, axis=0).astype(jnp.float32)

    return encode_paths


def _paths(space: SearchSpace) -> list[tuple[int, ...]]:
    """All paths from node 0 to the last, as positions of decisions; the short ones first."""
    edges = [re.fullmatch(r"(\d+)<-(\d+)", decision.name) for decision in space.decisions]
    choices = {decision.choices for decision in space.decisions}
    if not all(edges) or len(choices) > 1:
        raise ValueError(
            f"encoding 'path' is not defined on space {space.name!r}: its decisions are not the "
            "edges 'target<-source' of a graph, all with the same operations; use 'one_hot'"
        )
    incoming: dict[int, list[tuple[int, int]]] = {}
    for position, edge in enumerate(edges):
        assert edge is not None
        target, source = map(int, edge.groups())
        incoming.setdefault(target, []).append((source, position))

    def ending_in(node: int) -> list[tuple[int, ...]]:
        if node == 0:
            return [()]
        steps = incoming.get(node, [])
        return [(*first, last) for source, last in steps for first in ending_in(source)]

    return sorted(ending_in(max(incoming)), key=lambda edges: (len(edges), edges))


def num_features(space: SearchSpace, encode_fn: EncodeFn) -> int:
    """F, how many features `encode_fn` gives; ValueError if it does not give a vector."""
    shape = jax.eval_shape(encode_fn, jnp.zeros(space.num_decisions, jnp.int32)).shape
    if len(shape) != 1 or not shape[0]:
        raise ValueError(f"encoding must give a vector of features, got shape {shape}")
    return shape[0]
