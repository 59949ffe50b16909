"""The section on what each layer of the winner costs."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxnas.objectives.breakdown import LayerCost, grouped
from jaxnas.report.bars import bar
from jaxnas.report.blocks import note, section, table
from jaxnas.report.markup import DASH, Markup, number, size
from jaxnas.report.summary import Summary

# What is shown of a `LayerCost`, and how.
MEASURES = MappingProxyType({"parameters": number, "flops": number, "activation_bytes": size})
MAX_LAYERS = 40  # lines; more layers are added up by the modules that they are in


def section_of(summary: Summary) -> Markup | None:
    """Parameters, FLOPs and activations of the winner, layer by layer; None where not known."""
    result: dict[str, Any] = summary.results.get("layers") or {}
    layers = [LayerCost(**layer) for layer in result.get("layers", ())]
    if not layers:
        return None
    shown = grouped(layers, MAX_LAYERS)
    whole = LayerCost(
        "",
        "",
        **{name: sum(getattr(layer, name) for layer in layers) for name in MEASURES},
    )
    largest = {name: max(getattr(layer, name) for layer in shown) for name in MEASURES}
    rows = [_row(layer, layer.path or "(between layers)", largest) for layer in shown]
    return section(
        "Cost of the winner by layer",
        note(
            "The stand-alone network for one row of data. FLOPs are multiplications and additions "
            "in matrix products and convolutions, so a multiply-add counts as two. Activations are "
            "the memory of all that the forward pass writes, layer after layer, before a compiler "
            "fuses operations: not what is held at once.",
            f"{len(layers):,} layers are added up by the modules that they are in."
            if len(shown) < len(layers)
            else "",
        ),
        table(
            "Layers in the order in which they are first called; bars compare them with the most "
            "expensive one",
            ("layer", "kind", "parameters", "", "FLOPs", "", "activations", ""),
            [*rows, _row(whole, "whole network", {})],
            numeric=(2, 4, 6),
        ),
    )


def _row(layer: LayerCost, name: str, largest: Mapping[str, float]) -> list[str]:
    """The layer's cells, with a bar for each measure whose largest value is given."""
    cells = [name, layer.kind or DASH]
    for measure, show in MEASURES.items():
        value, most = getattr(layer, measure), largest.get(measure, 0.0)
        cells += [show(value), bar(value / most, (0.0, 1.0)) if most and value else ""]
    return cells
