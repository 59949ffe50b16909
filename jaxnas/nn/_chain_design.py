"""What a chain space offers, and what one architecture or bucket makes of it.

Everything here is static: lists of values, the place of every decision in an architecture, and the
rule by which blocks are dealt to stages.
"""

from dataclasses import dataclass

import numpy as np

from jaxnas.nn.chain_cnn import CONVOLUTIONS, KINDS, Link


def parse_operation(name: str) -> tuple[str, int]:
    """Kind and kernel size of an operation's name; size 0: none, or left to the kernel decision.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> parse_operation("conv_3x3"), parse_operation("conv"), parse_operation("skip")
      (('conv', 3), ('conv', 0), ('skip', 0))
    """
    if name in KINDS:
        return name, 0
    kind, _, sides = str(name).partition("_")
    size, _, other = sides.partition("x")
    if kind in CONVOLUTIONS and size == other and size.isdecimal() and int(size) % 2:
        return kind, int(size)
    raise ValueError(
        f"operations has {name!r}; names must be in {KINDS} or like conv_3x3 and separable_5x5"
    )


def needs_kernel(name: str) -> bool:
    """Whether the kernel decision says the size of operation `name`."""
    kind, size = parse_operation(name)
    return kind in CONVOLUTIONS and size == 0


def deal_blocks(num_blocks, num_stages: int):
    """Blocks per stage, as equal as possible, earlier stages with the larger share.

    Args:
      num_blocks: an integer or an array i32[].
      num_stages: static.

    Returns:
      i[num_stages], of the kind of `num_blocks`.

    Example:
      >>> deal_blocks(8, 3).tolist()
      [3, 3, 2]
    """
    return (num_blocks + np.arange(num_stages - 1, -1, -1)) // num_stages


@dataclass(frozen=True)
class ChainDesign:
    """The lists of `jaxnas.spaces.chain_cnn`, each with at least one value.

    Attributes:
      num_classes: outputs.
      image_size: height and width of the images.
      in_channels: channels of the images.
      num_stages: between stages images are halved.
      growth: factor of the channels from stage to stage.
      downsampling: how images are halved.
      lists: name of a decision, without the number of a layer, to values.
      positions: name of a decision to its place in an architecture; without one, the first value
        of its list is used.
    """

    num_classes: int
    image_size: int
    in_channels: int
    num_stages: int
    growth: int
    downsampling: str
    lists: tuple[tuple[str, tuple], ...]
    positions: tuple[tuple[str, int], ...]

    def values(self, name: str) -> tuple:
        """The list of decision `name`."""
        return dict(self.lists)[name]

    def position(self, name: str, layer: int) -> int | None:
        """Where an architecture says `name` of `layer`, counted from 0; None: nowhere."""
        positions = dict(self.positions)
        return positions.get(f"{name}_{layer + 1}", positions.get(name))

    def choice(self, arch, name: str, layer: int = 0):
        """The choice of `name` that `arch` i32[D] makes for `layer`; also for traced `arch`."""
        position = self.position(name, layer)
        return 0 if position is None else arch[position]

    def value(self, arch, name: str, layer: int = 0):
        """The value of `name` for `layer` in a concrete `arch`."""
        return self.values(name)[int(self.choice(arch, name, layer))]

    @property
    def num_layers(self) -> int:
        """Layers of the deepest chain."""
        return max(self.values("depth"))

    @property
    def filters_per_layer(self) -> bool:
        """Whether layers have filters of their own."""
        return "filters" not in dict(self.positions) and self.position("filters", 0) is not None

    def largest_kernel(self, kind: str) -> int:
        """The largest kernel of operations of this kind; 0 without one."""
        found = [parse_operation(name) for name in self.values("operation")]
        sizes = [size or max(self.values("kernel")) for k, size in found if k == kind]
        return max(sizes) if kind in CONVOLUTIONS else 0

    @property
    def channels(self) -> np.ndarray:
        """i64[filters, width multipliers]: channels of the first stage, at least 1."""
        products = np.outer(self.values("filters"), self.values("width_multiplier"))
        return np.maximum(1, np.floor(products + 0.5).astype(np.int64))


@dataclass(frozen=True)
class Chain:
    """A concrete architecture written out.

    Attributes:
      stages: blocks, stage by stage.
      stem_channels: channels of the stem.
      channels: channels that enter each stage.
      resolution: height and width that images are brought to.
      dropout: rate before the head.
    """

    stages: tuple[tuple[Link, ...], ...]
    stem_channels: int
    channels: tuple[int, ...]
    resolution: int
    dropout: float


def write_out(design: ChainDesign, arch: np.ndarray) -> Chain:
    """The chain of a concrete `arch` i32[D]."""
    multiplier = int(design.choice(arch, "width_multiplier"))
    # Where every layer has filters of its own, the stem has the fewest there are.
    first = 0 if design.filters_per_layer else int(design.choice(arch, "filters"))
    width = stem = int(design.channels[first, multiplier])
    repeats = design.value(arch, "repeats")
    counts = deal_blocks(design.value(arch, "depth") * repeats, design.num_stages)
    stages, entering, block = [], [], 0
    for stage, count in enumerate(counts.tolist()):
        scale = design.growth**stage
        entering.append(width * scale)
        links = []
        for index in range(block, block + count):
            layer = index // repeats
            kind, size, shortcut = _layer(design, arch, layer)
            if kind in CONVOLUTIONS:
                filters = int(design.choice(arch, "filters", layer))
                width = int(design.channels[filters, multiplier])
            links.append(Link(kind, size, width * scale, shortcut))
        stages.append(tuple(links))
        block += count
    resolution, dropout = design.value(arch, "resolution"), design.value(arch, "dropout")
    return Chain(tuple(stages), stem, tuple(entering), resolution, dropout)


def _layer(design: ChainDesign, arch: np.ndarray, layer: int) -> tuple[str, int, bool]:
    """Kind, kernel size and shortcut."""
    name = design.value(arch, "operation", layer)
    kind, size = parse_operation(name)
    if kind not in CONVOLUTIONS:
        return kind, 0, False
    size = size or design.value(arch, "kernel", layer)
    return kind, size, bool(design.value(arch, "skip_connection", layer))
