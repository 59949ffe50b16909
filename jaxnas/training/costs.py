"""What a network costs, read off its jaxpr, and what that costs in seconds and bytes."""

import math
from collections.abc import Iterator
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


class Equation(NamedTuple):
    """An equation of a jaxpr that holds no other, and where it stands.

    Attributes:
      equation: JAX's own.
      repeats: how often it is run by the loops around it.
      scopes: names of the `jax.named_scope`s around it, the outermost first.
    """

    equation: Any
    repeats: int
    scopes: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Multiplications and additions, if it is a matrix product or a convolution."""
        return self.repeats * _equation_flops(self.equation)

    @property
    def written(self) -> int:
        """Scalars of its results."""
        return self.repeats * sum(getattr(v.aval, "size", 0) for v in self.equation.outvars)

    @property
    def written_bytes(self) -> int:
        """Bytes of its results."""
        avals = [v.aval for v in self.equation.outvars if hasattr(v.aval, "size")]
        return self.repeats * sum(aval.size * aval.dtype.itemsize for aval in avals)


def equations(jaxpr, repeats: int = 1, scopes: tuple[str, ...] = ()) -> Iterator[Equation]:
    """The equations of a jaxpr, those of inner calls and loops included.

    Args:
      jaxpr: JAX's own, open.
      repeats: how often it is run.
      scopes: names of the `jax.named_scope`s around it.

    Yields:
      `Equation`s in the order in which they are run.
    """
    for equation in jaxpr.eqns:
        names = (getattr(scope, "name", "") for scope in equation.source_info.name_stack.stack)
        own = (*scopes, *names)
        inner = [p for p in equation.params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for sub in inner:
            yield from equations(getattr(sub, "jaxpr", sub), repeats * times, own)
        if not inner:
            yield Equation(equation, repeats, own)


def _walk(jaxpr, only: frozenset[str] = frozenset()) -> np.ndarray:
    """Flops, written scalars and products of a jaxpr, inner calls included: f64[3].

    `only`: the primitives to count; empty: all.
    """
    total = np.zeros(3)
    for found in equations(jaxpr):
        if not only or found.equation.primitive.name in only:
            flops = found.flops
            total += flops, found.written, found.repeats * (flops > 0.0)
    return total


def network_cost(
    module: Any, feature_shape: tuple[int, ...], *, dtype: Any = jnp.float32
) -> NetworkCost:
    """Traces a stand-alone network; compiles and runs nothing.

    Args:
      module: Flax module with `__call__(x, *, train)`.
      feature_shape: shape of one row of the input.
      dtype: of the input.

    Returns:
      Its costs.

    Example:
      >>> from jaxnas.nn import MLP
      >>> network_cost(MLP((3,), num_outputs=2), (4,))[:2]
      (23, 36.0)
    """
    variables, jaxpr = forward_jaxpr(module, feature_shape, dtype)
    flops, written, products = _walk(jaxpr)
    parameters = sum(
        int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables.get("params", {}))
    )
    return NetworkCost(parameters, float(flops), float(written), int(products))


def forward_jaxpr(module: Any, feature_shape: tuple[int, ...], dtype: Any = jnp.float32):
    """Shapes of a network's variables, and the jaxpr of its forward pass of one row."""
    x = jax.ShapeDtypeStruct((1, *feature_shape), dtype)
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
    jaxpr = forward_jaxpr(module, shape)[1]
    total, convolutions = _walk(jaxpr)[0], _walk(jaxpr, CONVOLUTIONS)[0]
    return convolutions / max(total, 1.0)
