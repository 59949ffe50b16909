"""The networks of NAS-Bench-201: one architecture's own, and the supernet that holds all of them.

Dong & Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", 2020,
https://arxiv.org/abs/2001.00326, Section 2.1 and Figure 1; block details from the authors' code,
https://github.com/D-X-Y/AutoDL-Projects. Both networks have the same stem, reduction blocks and
head under the same names.

What the benchmark does not have, and is off unless asked for: drop-path on the cells' edges (not on
the reduction blocks, which are no choice), and an auxiliary head at the input of the last stage,
which in DARTS, too, is the first place with a quarter of the image's height and width.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnas.nn.auxiliary import auxiliary_logits
from jaxnas.nn.drop_path import DropPath, drop_output
from jaxnas.nn.layers import BatchNorm, Conv, Dense, Relu
from jaxnas.nn.mixed import Cell, Gated, operation_variables
from jaxnas.nn.operations import OPERATIONS, ReluConvNorm
from jaxnas.nn.pooling import avg_pool
from jaxnas.space import Bucket

NUM_STAGES = 3
NUM_NODES = 4
# (target, source) in the order of the architecture vector.
EDGES = tuple((target, source) for target in range(NUM_NODES) for source in range(target))


class ReductionBlock(nn.Module):
    """Residual block that halves the image: two 3x3 convolutions beside a pooled 1x1 convolution.

    Attributes:
      features: channels of the output.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x f32[batch, height, width, channels] to f32[batch, height/2, width/2, features]."""
        first = ReluConvNorm(self.features, 3, stride=2, name="first")
        second = ReluConvNorm(self.features, 3, name="second")
        shortcut = Conv(self.features, 1, name="shortcut")
        return second(first(x, train=train), train=train) + shortcut(avg_pool(x, 2, stride=2))


class FixedCell(nn.Module):
    """Nodes 0 (the input) to 3 (the output), each the sum of its edges from the earlier ones.

    An edge with `none` has no module; the others have theirs even where they lead nowhere.

    Attributes:
      operations: names in `OPERATIONS`, one per edge in the order of `EDGES`.
    """

    operations: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Array, *, train: bool, drop_path: DropPath | None = None) -> Array:
        """Maps x f32[batch, height, width, channels] to the same shape."""
        nodes = [x] + [jnp.zeros_like(x)] * (NUM_NODES - 1)
        for index, ((target, source), name) in enumerate(zip(EDGES, self.operations, strict=True)):
            if name != "none":
                edge = OPERATIONS[name](x.shape[-1], name=f"{target}<-{source}")
                y = edge(nodes[source], train=train)
                nodes[target] += drop_output(_fold(drop_path, index), edge, y)
        return nodes[-1]


def _fold(drop_path: DropPath | None, tag: int) -> DropPath | None:
    return None if drop_path is None else drop_path.fold(tag)


class _Skeleton(nn.Module):
    """What the networks share.

    Attributes:
      operations: see the subclasses.
      num_classes: outputs.
      num_channels: channels of the first stage; each later stage has twice as many.
      num_cells: cells per stage.
      image_size: height and width of the images, a multiple of 4.
      in_channels: channels of the images.
      auxiliary: whether there is an auxiliary head, see `jaxnas.nn.auxiliary`.
    """

    operations: tuple[str, ...]
    num_classes: int
    num_channels: int = 16
    num_cells: int = 5
    image_size: int = 32
    in_channels: int = 3
    auxiliary: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return self.image_size, self.image_size, self.in_channels

    def _run(self, x: Array, stage_fn: Callable[[int, Array], Array], *, train: bool) -> Array:
        """Stem, stages with reduction blocks between, and head: f32[batch, classes]."""
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"x must be images of shape {self.image_shape}, got {x.shape[1:]}; "
                "the space's image_size and in_channels say which"
            )
        x = Conv(self.num_channels, 3, name="stem")(x)
        x = BatchNorm(name="stem_norm")(x, train=train)
        for stage in range(NUM_STAGES):
            if stage > 0:
                block = ReductionBlock(self.num_channels * 2**stage, name=f"reduction_{stage}")
                x = block(x, train=train)
            if self.auxiliary and stage == NUM_STAGES - 1:
                auxiliary_logits(self, x, self.num_classes, train=train)
            x = stage_fn(stage, x)
        x = Relu(name="head_relu")(BatchNorm(name="head_norm")(x, train=train))
        self.sow("intermediates", "features", x)  # for whoever asks, see `jaxnas.nn.probes`
        return Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


class NASBench201(_Skeleton):
    """The stand-alone network of one architecture; nothing is masked.

    Attributes:
      operations: names in `OPERATIONS`, one per edge in the order of `EDGES`.
    """

    @nn.compact
    def __call__(self, x: Array, *, train: bool, drop_path: DropPath | None = None) -> Array:
        """Maps images f32[batch, height, width, channels] to logits f32[batch, num_classes]."""

        def run_stage(stage, x):
            own = _fold(drop_path, stage)
            for index in range(self.num_cells):
                cell = FixedCell(self.operations, name=f"stage_{stage}_cell_{index}")
                x = cell(x, train=train, drop_path=_fold(own, index))
            return x

        return self._run(x, run_stage, train=train)


def count_costs(module: NASBench201) -> tuple[int, int]:
    """Parameters and FLOPs as in the benchmark's tables, see `jaxnas.spaces.nasbench201`.

    Counts during an abstract call: nothing is compiled or run.

    Example:
      >>> count_costs(NASBench201(("none",) * 6, num_classes=10))
      (73306, 7783050)
    """
    flops = 0

    def count(call, args, kwargs, context):
        nonlocal flops
        y = call(*args, **kwargs)
        if isinstance(context.module, (Conv, Dense)) and context.method_name == "__call__":
            scalars = jax.tree.leaves(context.module.variables["params"])
            flops += math.prod(y.shape[:-1]) * sum(leaf.size for leaf in scalars)
        return y

    x = jax.ShapeDtypeStruct((1, *module.image_shape), jnp.float32)
    with nn.intercept_methods(count):
        variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    leaves = jax.tree.leaves(variables["params"])
    return sum(leaf.size for leaf in leaves), flops


class NASBench201Supernet(_Skeleton):
    """Every network of the space in one set of weights.

    Attributes:
      operations: the choices of every edge, names in `OPERATIONS`.
      bucket: per edge, the choices to serve.
      residuals: see `jaxnas.nn.routing.route`.
      affine: whether the operations' normalisation has a learned scale and bias.
      partial: see `jaxnas.nn.mixed`; each stage's channels must be a multiple.
      vmapped: see `jaxnas.nn.mixed.Cell`.
      run_all_edges: whether edges that lead nowhere run as well, for whoever looks at layers.
    """

    bucket: Bucket = ()
    residuals: str = "auto"
    affine: bool = True
    partial: int = 1
    vmapped: bool = False
    run_all_edges: bool = False

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node that each edge leads to."""
        return tuple(target for target, _ in EDGES)

    @nn.compact
    def __call__(
        self, x: Array, choice: Array | Gated, *, train: bool, drop_path: DropPath | None = None
    ) -> Array:
        """Maps images f32[batch, height, width, channels] to logits f32[batch, num_classes].

        `choice` is i32[6], an architecture, or f32[6, K], weights of all operations on every edge,
        or `Gated` of six operations; all cells share it. Of an architecture, edges that lead
        nowhere are left out unless `run_all_edges`.
        """
        keep = tuple(sorted(set().union(*self.bucket)))
        if not (self.run_all_edges or isinstance(choice, Gated)):
            choice = self._live(choice, keep)
        edges = tuple((source, target) for target, source in EDGES)

        def run_stage(stage, x):
            make = lambda name: partial(  # noqa: E731
                OPERATIONS[name], x.shape[-1] // self.partial, affine=self.affine
            )
            cells = Cell(
                tuple((name, make(name)) for name in self.operations),
                NUM_NODES,
                edges,
                num_cells=self.num_cells,
                keep=keep,
                residuals=self.residuals,
                partial=self.partial,
                vmapped=self.vmapped,
                name=f"stage_{stage}",
            )
            return cells(x, choice, train=train, drop_path=_fold(drop_path, stage))

        return self._run(x, run_stage, train=train)

    def _live(self, choice: Array, keep: tuple[int, ...]) -> Array:
        """An architecture i32[6] with `none` on the edges that lead nowhere; weights as they are.

        No output and no gradient depends on those. An edge behind a node without inputs is another
        matter: a normalisation has a bias to learn.
        """
        none = self.operations.index("none") if "none" in self.operations else -1
        if none not in keep or not jnp.issubdtype(choice.dtype, jnp.integer):
            return choice
        reaches: dict[int, Any] = dict.fromkeys(range(NUM_NODES - 1), False)
        reaches[NUM_NODES - 1] = True
        live = []
        for edge, (target, source) in reversed(list(enumerate(EDGES))):
            live.append(reaches[target] & (choice[edge] != none))
            reaches[source] |= live[-1]
        return jnp.where(jnp.stack(live[::-1]), choice, none)

    def weights(self, params: dict) -> dict:
        """Which parameters are weights rather than scales and biases."""
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    def charged(self, arch: np.ndarray) -> np.ndarray:
        """The architecture whose exact network costs what `arch` costs here: itself."""
        return np.asarray(arch)

    def extract(self, variables: dict, arch: np.ndarray) -> dict:
        """The variables of the stand-alone `NASBench201` of a concrete `arch` i32[6].

        A supernet without learned scales and biases gets ones and zeros for them.

        Raises:
          ValueError: if operations see a part of the channels only; no network of the space does.
        """
        if self.partial != 1:
            raise ValueError(f"partial must be 1 to extract a network, got {self.partial}")
        shared = {
            collection: {k: v for k, v in tree.items() if not k.startswith("stage_")}
            for collection, tree in variables.items()
        }
        for stage in range(NUM_STAGES):
            own = {c: tree.get(f"stage_{stage}", {}) for c, tree in variables.items()}
            for cell in range(self.num_cells):
                for edge, (target, source) in enumerate(EDGES):
                    name = self.operations[int(arch[edge])]
                    found = operation_variables(own, name, edge=edge, cell=cell)
                    found = found if self.affine else _with_affine(found)
                    for collection, tree in found.items():
                        place = shared[collection].setdefault(f"stage_{stage}_cell_{cell}", {})
                        place[f"{target}<-{source}"] = tree
        return shared


def _with_affine(variables: dict) -> dict:
    """An operation's variables with a scale of 1 and a bias of 0 for every normalisation."""

    def filled(params: dict, stats: dict) -> dict:
        if "mean" in stats:
            return {"scale": jnp.ones_like(stats["mean"]), "bias": jnp.zeros_like(stats["mean"])}
        return params | {name: filled(params.get(name, {}), own) for name, own in stats.items()}

    if "batch_stats" not in variables:
        return variables
    params = filled(variables.get("params", {}), variables["batch_stats"])
    return {**variables, "params": params}
