"""Latency of mobile networks as a sum over measured blocks.

Cai, Zhu & Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR
2019, https://arxiv.org/abs/1812.00332, section 3.3, and Cai, Gan, Wang, Zhang & Han, "Once-for-All:
Train One Network and Specialize it for Efficient Deployment", ICLR 2020,
https://arxiv.org/abs/1908.09791: on one device, the blocks of a network run one after the other,
so that its latency is the sum of theirs. Two published forms of such tables are read.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

_SIZES = re.compile(r"(?:(\d+)x\d+x)?(\d+)")


class Block(NamedTuple):
    """An inverted bottleneck, or with kernel 0 another part of a network, by name.

    Attributes:
      in_size: height and width of the input, 0 where it is a vector.
      in_channels: channels of the input.
      out_size: height and width of the output, 0 where it is a vector.
      out_channels: channels of the output.
      expand: factor by which channels are expanded.
      kernel: side of the depthwise kernel.
      stride: 1 or 2.
      skip: whether there is a residual connection.
      squeeze: whether there is squeeze and excitation.
      part: "block", or the name of another part, as the table has it.
    """

    in_size: int
    in_channels: int
    out_size: int
    out_channels: int
    expand: int = 0
    kernel: int = 0
    stride: int = 1
    skip: bool = False
    squeeze: bool = False
    part: str = "block"


class LatencyTable(NamedTuple):
    """Milliseconds per block on one device.

    Attributes:
      blocks: block to milliseconds.
      device: its name.
    """

    blocks: Mapping[Block, float]
    device: str

    def total(self, blocks: Iterable[Block]) -> float:
        """Milliseconds of a network made of these blocks.

        Raises:
          ValueError: for a block that was not measured.
        """
        total = 0.0
        for block in blocks:
            if block not in self.blocks:
                raise ValueError(f"the table of {self.device} has no {block}")
            total += self.blocks[block]
        return total


def read_json(path: str | Path, device: str = "") -> LatencyTable:
    """Reads a table in the form of ProxylessNAS.

    Keys are such as `expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:3-stride:2-
    idskip:0`, values dictionaries with milliseconds under `ms` (or `mean`).

    Args:
      path: the file.
      device: its name; empty: the file's.

    Returns:
      A `LatencyTable`.

    Raises:
      ValueError: for a key or value of another form.
    """
    path = Path(path)
    entries = json.loads(path.read_text())
    return LatencyTable(MappingProxyType(_parse(entries)), device or path.stem)


def read_npz(path: str | Path, device: str = "") -> LatencyTable:
    """Reads a table with arrays `fields` [9], `keys` i[N, 9] and `latency_ms` f[N].

    Fields are `in_hw`, `in_c`, `out_hw`, `out_c`, `expand`, `kernel`, `stride`, `idskip`, `se` in
    any order; an optional array `other` is a text in the form of `read_json` for the other parts.

    Args:
      path: the file.
      device: its name; empty: the file's.

    Returns:
      A `LatencyTable`.

    Raises:
      ValueError: for a field that is missing.
    """
    path = Path(path)
    with np.load(path) as arrays:
        names = [str(name) for name in arrays["fields"]]
        missing = {"in_hw", "in_c", "out_hw", "out_c", "expand", "kernel", "stride"} - set(names)
        if missing:
            raise ValueError(f"{path} has no fields {sorted(missing)}; it has {names}")
        blocks = {}
        for row, value in zip(arrays["keys"].tolist(), arrays["latency_ms"].tolist(), strict=True):
            blocks[_block(dict(zip(names, row, strict=True)))] = float(value)
        if "other" in arrays:
            blocks |= _parse(json.loads(str(arrays["other"])))
    return LatencyTable(MappingProxyType(blocks), device or path.stem)


def _block(fields: Mapping[str, int]) -> Block:
    return Block(
        fields["in_hw"],
        fields["in_c"],
        fields["out_hw"],
        fields["out_c"],
        fields["expand"],
        fields["kernel"],
        fields["stride"],
        bool(fields.get("idskip", 0)),
        bool(fields.get("se", 0)),
    )


def _parse(entries: Mapping[str, Mapping[str, float]]) -> dict[Block, float]:
    blocks = {}
    for key, value in entries.items():
        part, *pairs = key.split("-")
        fields = dict(pair.split(":", 1) for pair in pairs if ":" in pair)
        milliseconds = value.get("ms", value.get("mean"))
        if not {"input", "output"} <= set(fields) or milliseconds is None:
            raise ValueError(f"{key!r} is no block with an input, an output and milliseconds")
        blocks[_from_text(part, fields)] = float(milliseconds)
    return blocks


def _from_text(part: str, fields: Mapping[str, str]) -> Block:
    (in_size, in_channels), (out_size, out_channels) = (
        _sizes(fields["input"]),
        _sizes(fields["output"]),
    )
    if "kernel" not in fields:
        return Block(in_size, in_channels, out_size, out_channels, part=part)
    numbers = {name: int(value) for name, value in fields.items() if value.isdigit()}
    sizes = {"in_hw": in_size, "in_c": in_channels, "out_hw": out_size, "out_c": out_channels}
    return _block({**numbers, **sizes})


def _sizes(text: str) -> tuple[int, int]:
    found = _SIZES.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not of the form 112x112x16")
    return int(found[1] or 0), int(found[2])
