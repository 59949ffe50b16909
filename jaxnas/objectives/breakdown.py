"""What each layer of a network costs, from its structure.

The count is that of `jaxnas.objectives.costs.structural_cost`, equation by equation, each one put
down to the innermost Flax module that it is computed in. So the layers' costs add up to the
network's, whatever the network is made of; a layer inside a loop counts as often as it is run, and
its parameters as many times as there are of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.nn.scopes import layer_of, layer_scopes
from jaxnas.training.costs import equations, forward_jaxpr


class LayerCost(NamedTuple):
    """Costs of one layer in a forward pass.

    Attributes:
      path: names of the modules from the network to the layer, joined by "/"; "" for the network
        itself, which has what it computes between its layers.
      kind: class of the module.
      parameters: number of trainable scalars.
      flops: multiplications and additions in matrix products and convolutions, per row: a
        multiply-add is two.
      activations: scalars written by the forward pass, per row, before a compiler fuses anything.
      activation_bytes: what these take.
    """

    path: str
    kind: str
    parameters: int = 0
    flops: float = 0.0
    activations: int = 0
    activation_bytes: int = 0


def breakdown(
    module: Any, feature_shape: tuple[int, ...], *, dtype: Any = jnp.float32
) -> list[LayerCost]:
    """Costs of one forward pass per row, layer by layer; compiles and runs nothing.

    Args:
      module: a Flax module with `__call__(x, *, train)`, the stand-alone network.
      feature_shape: shape of one row of the input. Static.
      dtype: of the input.

    Returns:
      The layers in the order of their first calls, without those that cost nothing. Their sums are
      the costs that `structural_cost` gives the network.

    Example:
      >>> from jaxnas.nn import MLP
      >>> for layer in breakdown(MLP((3,), num_outputs=2), (4,)):
      ...     print(layer.path or "(network)", layer.kind, layer.parameters, layer.flops)
      (network) MLP 0 0.0
      hidden_0 Dense 15 24.0
      output Dense 8 12.0
    """
    with layer_scopes() as kinds:
        variables, jaxpr = forward_jaxpr(module, feature_shape, dtype)
    found = {path: LayerCost(path, kind) for path, kind in kinds.items()}
    for place, leaf in jax.tree_util.tree_leaves_with_path(variables.get("params", {})):
        path = "/".join(entry.key for entry in place[:-1])
        _add(found, path, parameters=leaf.size)
    for each in equations(jaxpr):
        _add(
            found,
            layer_of(each.scopes),
            flops=each.flops,
            activations=each.written,
            activation_bytes=each.written_bytes,
        )
    return [layer for layer in found.values() if any(layer[2:])]


def _add(found: dict[str, LayerCost], path: str, **costs: float) -> None:
    old = found.setdefault(path, LayerCost(path, ""))
    found[path] = old._replace(**{name: getattr(old, name) + cost for name, cost in costs.items()})


def grouped(layers: Sequence[LayerCost], most: int) -> list[LayerCost]:
    """Layers under the same module added up, so that no more than `most` are left if possible.

    Args:
      layers: in any order.
      most: groups wished for. Paths are cut after as many names as this allows, at least one.

    Returns:
      One `LayerCost` per group, in the order of its first layer; a group of several layers has no
      kind.

    Example:
      >>> layers = [LayerCost("cell/a", "Conv", 2), LayerCost("cell/b", "Conv", 3)]
      >>> grouped(layers, 1)[0][:3], len(grouped(layers, 2))
      (('cell', '', 5), 2)
    """
    depth = max((layer.path.count("/") + 1 for layer in layers), default=1)
    while True:
        groups: dict[str, list[LayerCost]] = {}
        for layer in layers:
            groups.setdefault("/".join(layer.path.split("/")[:depth]), []).append(layer)
        if len(groups) <= most or depth == 1:
            return [_summed(path, members) for path, members in groups.items()]
        depth -= 1


def _summed(path: str, members: Sequence[LayerCost]) -> LayerCost:
    kind = members[0].kind if [member.path for member in members] == [path] else ""
    return LayerCost(
        path,
        kind,
        parameters=sum(member.parameters for member in members),
        flops=sum(member.flops for member in members),
        activations=sum(member.activations for member in members),
        activation_bytes=sum(member.activation_bytes for member in members),
    )
