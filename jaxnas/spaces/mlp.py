"""Joint architecture and hyperparameter space of multilayer perceptrons.

The space in which architecture decisions (depth, width, activation, dropout) and training
decisions (learning rate, optimiser) are searched together, as in the joint tables of Klein &
Hutter, "Tabular Benchmarks for Joint Architecture and Hyperparameter Optimization", 2019,
https://arxiv.org/abs/1905.04970. The lists are wider than there and can be replaced.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxnas.nn.activations import ACTIVATIONS
from jaxnas.nn.mlp import MLP, MLPSupernet
from jaxnas.space import Decision, SearchSpace
from jaxnas.training.optimizers import OPTIMIZERS


def mlp(
    num_outputs: int,
    *,
    depths: Sequence[int] = (1, 2, 3, 4, 5),
    widths: Sequence[int] = (32, 64, 128, 256, 512),
    per_layer: bool = False,
    activations: Sequence[str] = ("relu", "leaky_relu", "tanh"),
    learning_rates: Sequence[float] = (0.1, 0.01, 0.001, 0.0001),
    optimizers: Sequence[str] = ("adam", "sgd", "rmsprop"),
    dropouts: Sequence[float] = (0.0, 0.2, 0.4, 0.6),
) -> SearchSpace:
    """Perceptrons together with how to train them.

    A list of one value fixes that decision. An empty `learning_rates` or `optimizers` removes it
    from the space, and the recipe's own value holds.

    Args:
      num_outputs: classes or regression targets, at least 1.
      depths: numbers of hidden layers, ascending, at least 1.
      widths: units of a hidden layer, ascending, at least 1.
      per_layer: whether every hidden layer has a width decision of its own; those of layers beyond
        the depth are inactive.
      activations: names in `jaxnas.nn.activations.ACTIVATIONS`.
      learning_rates: positive numbers.
      optimizers: names in `jaxnas.training.OPTIMIZERS`.
      dropouts: rates in [0, 1).

    Returns:
      A `SearchSpace` with decisions `depth`, `width` (or `width_1` to `width_L`), `activation`,
      `dropout`, `learning_rate`, `optimizer`: 3,600 architectures by default.

    Raises:
      ValueError: for an empty list, a value out of range or an unknown name.

    Example:
      >>> space = mlp(10, depths=(1, 2), widths=(16, 32))
      >>> space.num_choices
      (2, 2, 3, 4, 4, 3)
    """
    _check("num_outputs", [num_outputs], lambda n: isinstance(n, int) and n >= 1, "at least 1")
    _check("depths", depths, lambda d: isinstance(d, int) and d >= 1, "whole numbers above 0")
    _check("widths", widths, lambda w: isinstance(w, int) and w >= 1, "whole numbers above 0")
    _check("activations", activations, ACTIVATIONS.__contains__, f"in {sorted(ACTIVATIONS)}")
    _check("dropouts", dropouts, lambda r: 0.0 <= r < 1.0, "rates in [0, 1)")
    if optimizers:
        _check("optimizers", optimizers, OPTIMIZERS.__contains__, f"in {sorted(OPTIMIZERS)}")
    if learning_rates:
        _check("learning_rates", learning_rates, lambda r: r > 0.0, "positive numbers")

    decisions = [Decision("depth", tuple(depths), reshapes=True)]
    decisions += _width_decisions(tuple(depths), tuple(widths), per_layer)
    decisions += [
        Decision("activation", tuple(activations)),
        Decision("dropout", tuple(float(rate) for rate in dropouts)),
    ]
    if learning_rates:
        decisions.append(Decision("learning_rate", tuple(float(r) for r in learning_rates)))
    if optimizers:
        decisions.append(Decision("optimizer", tuple(optimizers)))
    positions = {decision.name: position for position, decision in enumerate(decisions)}

    def network(arch):
        arch = np.asarray(arch)

        def value(name):
            return decisions[positions[name]].choices[arch[positions[name]]]

        depth = value("depth")
        names = [f"width_{layer + 1}" if per_layer else "width" for layer in range(depth)]
        hidden = tuple(value(name) for name in names)
        return MLP(hidden, num_outputs, value("activation"), value("dropout"))

    def supernet(bucket):
        return MLPSupernet(
            depths=tuple(depths),
            widths=tuple(widths),
            activations=tuple(activations),
            dropouts=tuple(dropouts),
            num_outputs=num_outputs,
            positions=tuple(positions.items()),
            bucket=bucket,
        )

    def hyperparameters(arch):
        found = {}
        if learning_rates:
            found["learning_rate"] = jnp.asarray(learning_rates)[arch[positions["learning_rate"]]]
        if optimizers:
            found["optimizer"] = arch[positions["optimizer"]]
        return found

    return SearchSpace("mlp", tuple(decisions), network, supernet, hyperparameters)


def _check(name, values, is_allowed, allowed):
    if not len(values):
        raise ValueError(f"{name} is empty; give at least one value ({allowed})")
    for value in values:
        if not is_allowed(value):
            raise ValueError(f"{name} has {value!r}; values must be {allowed}")


def _width_decisions(depths, widths, per_layer):
    if not per_layer:
        return [Decision("width", widths, reshapes=True)]
    return [
        Decision(
            f"width_{layer}",
            widths,
            reshapes=True,
            active_if=(0, tuple(c for c, depth in enumerate(depths) if depth >= layer)),
        )
        for layer in range(1, max(depths) + 1)
    ]
