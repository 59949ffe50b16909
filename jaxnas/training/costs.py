"""What a network costs, read off its jaxpr, and what that costs in seconds and bytes."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.space import SearchSpace


class NetworkCost(NamedTuple):
    """Costs of one forward pass of a stand-alone network.

    Attributes:
      parameters: number of trainable scalars.
      flops: multiplications and additions in matrix products and convolutions, per row.
      activations: scalars written by the forward pass, per row.
      products: matrix products and convolutions, a measure of how many layers there are.
    """

    parameters: int
    flops: float
    activations: float
    products: int


def _equation_flops(equation) -> float:
    out = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (contract, _), _ = equation.params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contract)
        return 2.0 * out.size * depth
    if equation.primitive.name == "conv":  # jaxnas.nn.conv
        kernel = equation.invars[1].aval
        return 2.0 * out.size * kernel.size / kernel.shape[-1]
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = equation.params["dimension_numbers"].rhs_spec[0]
        return 2.0 * out.size * kernel.size / kernel.shape[features]
    return 0.0


CONVOLUTIONS = frozenset(
    ["conv", "conv_input_gradient", "conv_kernel_gradient", "conv_general_dilated"]
)


def _walk(jaxpr, only: frozenset[str] = frozenset()) -> np.ndarray:
    """Flops, written scalars and products of a jaxpr, inner calls included: f64[3].

    `only`: the primitives to count; empty: all.
    """
    total = np.zeros(3)
    for equation in jaxpr.eqns:
        inner = [p for p in equation.params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
        for sub in inner:
            repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += repeats * _walk(getattr(sub, "jaxpr", sub), only)
        if not inner and (not only or equation.primitive.name in only):
            flops = _equation_flops(equation)
            written = sum(getattr(v.aval, "size", 0) for v in equation.outvars)
            total += flops, written, flops > 0.0
    return total


def network_cost(module: Any, feature_shape: tuple[int, ...]) -> NetworkCost:
    """Traces a stand-alone network; compiles and runs nothing.

    Args:
      module: Flax module with `__call__(x, *, train)`.
      feature_shape: shape of one row of the input.

    Returns:
      Its costs.

    Example:
      >>> from jaxnas.nn import MLP
      >>> network_cost(MLP((3,), num_outputs=2), (4,))[:2]
      (23, 36.0)
    """
    variables, jaxpr = _forward_jaxpr(module, feature_shape)
    flops, written, products = _walk(jaxpr)
    parameters = sum(
        int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables.get("params", {}))
    )
    return NetworkCost(parameters, float(flops), float(written), int(products))


def _forward_jaxpr(module: Any, feature_shape: tuple[int, ...]):
    x = jax.ShapeDtypeStruct((1, *feature_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    jaxpr = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, x)
    return variables, jaxpr.jaxpr


@lru_cache(maxsize=4096)
def _cost(space: SearchSpace, sizes: tuple[int, ...], shape: tuple[int, ...]) -> NetworkCost:
    return network_cost(space.network(np.asarray(sizes)), shape)


def cost_of(space: SearchSpace, arch: np.ndarray, feature_shape: tuple[int, ...]) -> NetworkCost:
    """Costs of a concrete `arch` i32[D]; decisions that do not reshape are taken as irrelevant.

    Except where the space says what its networks cost, or none of its decisions reshapes.
    """
    if space.cost is not None:
        return space.cost(arch)
    if all(not d.reshapes for d in space.decisions):
        return _cost(space, tuple(int(c) for c in arch), feature_shape)
    sizes = tuple(int(c) if d.reshapes else 0 for c, d in zip(arch, space.decisions, strict=True))
    return _cost(space, sizes, feature_shape)


class CostModel(NamedTuple):
    """Seconds, per device. The defaults are those of one core of a server CPU.

    `jaxnas.training.calibration` measures them on the device at hand.

    Attributes:
      compile_program: compiling, independent of the network.
      compile_operation: compiling one operation of a program, those of loops counted once.
      compile_convolution: what a convolution takes more than that.
      step: fixed cost of one training step.
      layer: fixed cost of one parameter group in one step.
      flop: one floating-point operation of a matrix product.
      conv_flop: the same of a convolution.
      parameter: reading and writing one parameter, its gradient and its optimiser state.
      activation: one scalar written by the forward pass, there and back.
    """

    compile_program: float = 1.4
    compile_operation: float = 5e-4
    compile_convolution: float = 0.2
    step: float = 2e-5
    layer: float = 7e-6
    flop: float = 1.2e-11
    conv_flop: float = 1.5e-11
    parameter: float = 1.4e-9
    activation: float = 1.1e-9


class ProgramSize(NamedTuple):
    """How much there is to compile.

    Attributes:
      operations: those of loops and branches counted once.
      convolutions: how many of them are convolutions or their gradients.
    """

    operations: int
    convolutions: int


@lru_cache(maxsize=64)
def conv_share(space: SearchSpace, shape: tuple[int, ...]) -> float:
    """Fraction of the flops that are convolutions', in the network of the last choices."""
    module = space.network(np.asarray([n - 1 for n in space.num_choices]))
    jaxpr = _forward_jaxpr(module, shape)[1]
    total, convolutions = _walk(jaxpr)[0], _walk(jaxpr, CONVOLUTIONS)[0]
    return convolutions / max(total, 1.0)
