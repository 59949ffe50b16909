"""Every chain of a bucket in one set of weights.

Blocks of a stage have one shape, so a stage is a `lax.scan` over its blocks, whatever their number,
with one conditional for the operation. Kernels of all sizes are the centre of one array, of which a
branch takes what it needs, and depth is a matter of blocks that do nothing. Chains with fewer
channels than the bucket's widest have theirs masked. Each resolution has a branch of its own:
images of several sizes share no shape, and masks over pixels would spend the work of the largest.
"""

import zlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from jaxnas import counter
from jaxnas.nn._chain_bucket import ChainBucket, Schedule
from jaxnas.nn._chain_design import ChainDesign, write_out
from jaxnas.nn._chain_weights import crop, scaled
from jaxnas.nn.chain_cnn import WEIGHTED, Block, halve, resize
from jaxnas.nn.layers import Dense
from jaxnas.nn.routing import route
from jaxnas.space import Bucket

PyTree = Any


class ChainSupernet(nn.Module):
    """All chains of a bucket.

    Attributes:
      design: the space's lists.
      bucket: per decision, the choices to serve.
    """

    design: ChainDesign
    bucket: Bucket

    @property
    def _held(self) -> ChainBucket:
        return ChainBucket(self.design, self.bucket)

    @nn.compact
    def __call__(self, x: Array, choice: Array, *, train: bool) -> Array:
        """Maps images f32[batch, height, width, channels] to logits f32[batch, num_classes].

        `choice` is i32[D], an architecture.
        """
        design, held = self.design, self._held
        shape = (design.image_size, design.image_size, design.in_channels)
        if x.shape[1:] != shape:
            raise ValueError(
                f"x must be images of shape {shape}, got {x.shape[1:]}; "
                "the space's image_size and in_channels say which"
            )
        if not jnp.issubdtype(choice.dtype, jnp.integer):
            raise ValueError(f"choice must be integers, an architecture, got {choice.dtype}")
        schedule = held.schedule(choice)
        if self.is_initializing():
            self._create(held, schedule)
            return jnp.zeros((len(x), design.num_classes))  # tracing the rest takes seconds
        variables = {c: dict(self.variables[c]) for c in ("params", "batch_stats")}
        rate = seed = None
        if train and any(held.values("dropout")):
            rate = jnp.asarray(design.values("dropout"))[design.choice(choice, "dropout")]
            seed = counter.module_seed(self, "dropout")
        served = held.served("resolution")
        place = np.zeros(len(design.values("resolution")), np.int32)
        place[served] = np.arange(len(served))
        index = jnp.asarray(place)[design.choice(choice, "resolution")]
        branches = [partial(self._run, held, size, train) for size in held.values("resolution")]
        logits, stats = route(branches, index, variables, schedule, x, rate, seed)
        if self.is_mutable_collection("batch_stats"):
            for name, tree in stats.items():
                self.put_variable("batch_stats", name, tree)
        return logits

    # The forward pass, a pure function.

    def _run(self, held, size, train, variables, schedule, x, rate, seed):
        """Logits, and the batch statistics after the call."""
        design = self.design
        stats = dict(variables["batch_stats"])

        def single(name, kernel, stage, width, x):
            own = {c: variables[c][name] for c in variables}
            block = Block("conv", kernel, held.capacity(stage), parent=None)
            y, after = block.apply(own, x, train=train, mutable=["batch_stats"] if train else [])
            stats[name] = after.get("batch_stats", stats[name])
            return _masked(held, y, width)

        x = single("stem", 3, 0, schedule.before[0, 0], resize(x, size))
        for stage, slots in enumerate(held.slots):
            if stage > 0:
                x = halve(x, design.downsampling)
                if design.growth > 1:
                    width = schedule.before[stage, 0]
                    x = single(f"transition_{stage}", 1, stage, width, x)
            if slots:
                own = jax.tree.map(lambda a, s=stage, n=slots: a[s, :n], schedule)
                x, after = self._run_stage(held, stage, train, variables, own, x)
                stats |= after
        h = x.mean(axis=(1, 2))
        if rate is not None:
            h = counter.dropout(seed, rate, h, 1.0 / (1.0 - rate))
        head = Dense(design.num_classes, parent=None)
        return head.apply({"params": variables["params"]["head"]}, h), stats

    def _run_stage(self, held, stage, train, variables, schedule, x):
        """The images after the stage's blocks, and the stage's batch statistics."""
        capacity = held.capacity(stage)
        possible = held.values("skip_connection")

        def branch(kind, size, params, stats, shortcut, x):
            block = Block(kind, size, capacity, parent=None)
            if kind not in WEIGHTED:
                return block.apply({}, x, train=train), stats
            shortcut = shortcut if len(possible) > 1 else possible[0]
            y, after = block.apply(
                {"params": crop(params[kind], size=size), "batch_stats": stats[kind]},
                x,
                train=train,
                shortcut=shortcut,
                mutable=["batch_stats"] if train else [],
            )
            return y, stats | {kind: after.get("batch_stats", stats[kind])}

        branches = [partial(branch, kind, size) for kind, size in held.branches]

        def body(x, own):
            params, stats, block = own
            y, stats = route(branches, block.branch, params, stats, block.shortcut, x)
            return _masked(held, y, block.after), stats

        params, stats = (
            {kind: variables[c][_name(stage, kind)] for kind in held.kinds}
            for c in ("params", "batch_stats")
        )
        x, stats = lax.scan(body, x, (params, stats, schedule))
        return x, {_name(stage, kind): tree for kind, tree in stats.items()}

    # Variables.

    def _create(self, held: ChainBucket, schedule: Schedule) -> None:
        """Makes the variables; used weights are at first those of the exact bucket."""
        design = self.design
        seed = counter.module_seed(self, "params")

        def make(name, block, channels, largest, slot, size, before):
            own = counter.fold(counter.fold(seed, zlib.crc32(name.encode())), slot)
            key = jax.random.wrap_key_data(own, impl="threefry2x32")
            made = block.init({"params": key}, jnp.zeros((1, 1, 1, channels)), train=False)
            params = crop(scaled(made["params"], size, before), size=largest)
            return {"params": params, "batch_stats": made["batch_stats"]}

        def single(name, kernel, stage, channels, before):
            block = Block("conv", kernel, held.capacity(stage), parent=None)
            size = jnp.int32(kernel)
            self._keep(name, make(name, block, channels, kernel, jnp.int32(0), size, before))

        single("stem", 3, 0, design.in_channels, jnp.int32(design.in_channels))
        for stage, slots in enumerate(held.slots):
            capacity = held.capacity(stage)
            if stage > 0 and design.growth > 1:
                before = schedule.after[stage - 1, -1]
                single(f"transition_{stage}", 1, stage, held.capacity(stage - 1), before)
            for kind in held.kinds if slots else ():
                name, full = _name(stage, kind), design.largest_kernel(kind)
                block = Block(kind, full, capacity, parent=None)
                largest = held.largest_kernel(kind)
                makes = jax.vmap(partial(make, name, block, capacity, largest))
                chosen = schedule.kind[stage, :slots] == WEIGHTED.index(kind)
                size = jnp.where(chosen, schedule.size[stage, :slots], full)
                before = schedule.before[stage, :slots]
                self._keep(name, makes(jnp.arange(slots), size, before))
        self._keep("head", {"params": self._head(held, seed, schedule.after[-1, -1])})

    def _head(self, held: ChainBucket, seed: Array, width: Array) -> PyTree:
        """Initial weights of the last layer for `width` inputs."""
        capacity = held.capacity(self.design.num_stages - 1)
        key = jax.random.wrap_key_data(counter.fold(seed, zlib.crc32(b"head")), impl="threefry2x32")
        head = Dense(self.design.num_classes, parent=None)
        params = head.init({"params": key}, jnp.zeros((1, capacity)))["params"]
        return jax.tree.map(lambda leaf: leaf * jnp.sqrt(capacity / width), params)

    def _keep(self, name: str, variables: PyTree) -> None:
        self.param(name, lambda _: variables["params"])
        if "batch_stats" in variables:
            self.variable("batch_stats", name, lambda: variables["batch_stats"])

    # What the trainer asks.

    def active_groups(self, choice: Array) -> dict[str, Array]:
        """Which parameter groups `choice` i32[D] uses; groups not named are always used."""
        held = self._held
        kinds = held.schedule(choice).kind
        return {
            _name(stage, kind): jnp.any(kinds[stage] == WEIGHTED.index(kind))
            for stage, slots in enumerate(held.slots)
            for kind in (held.kinds if slots else ())
        }

    def weights(self, params: PyTree) -> PyTree:
        """Which parameters are weights rather than scales and biases."""
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    def charged(self, arch: np.ndarray) -> np.ndarray:
        """The architecture whose exact network costs what `arch` costs here: widths are padded."""
        arch = np.array(arch)
        for name, position in self.design.positions:
            if name == "width_multiplier" or name.startswith("filters"):
                arch[position] = max(self.bucket[position])
        return arch

    def extract(self, variables: PyTree, arch: np.ndarray) -> PyTree:
        """The variables of the stand-alone `ChainCNN` of a concrete `arch` i32[D]."""
        chain = write_out(self.design, arch)
        found: dict[str, PyTree] = {c: {} for c in variables}

        def take(name, source, slot, size, before, after):
            for collection, tree in variables.items():
                own = tree[source]
                own = own if slot is None else jax.tree.map(lambda leaf: leaf[slot], own)
                found[collection][name] = crop(own, size=size, before=before, after=after)

        width = chain.stem_channels
        take("stem", "stem", None, 3, self.design.in_channels, width)
        for stage, links in enumerate(chain.stages):
            if stage > 0 and self.design.growth > 1:
                name = f"transition_{stage}"
                take(name, name, None, 1, width, chain.channels[stage])
            width = chain.channels[stage]
            for slot, link in enumerate(links):
                if link.kind in WEIGHTED:
                    name, source = f"stage_{stage}_block_{slot}", _name(stage, link.kind)
                    take(name, source, slot, link.size, width, link.channels)
                width = link.channels
        head = variables["params"]["head"]
        found["params"]["head"] = {"kernel": head["kernel"][:width], "bias": head["bias"]}
        return found


def _name(stage: int, kind: str) -> str:
    return f"stage_{stage}_{kind}"


def _masked(held: ChainBucket, x: Array, width: Array) -> Array:
    """`x` f32[..., C] with zeros in the channels from `width` on."""
    if len(held.widths) == 1:
        return x
    return x * (jnp.arange(x.shape[-1]) < width).astype(x.dtype)
