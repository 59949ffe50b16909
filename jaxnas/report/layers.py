"""The section on what each layer of the winner costs."""

from typing import Any

from jaxnas.objectives.breakdown import LayerCost, grouped
from jaxnas.report.bars import bar
from jaxnas.report.blocks import note, section, table
from jaxnas.report.markup import DASH, Markup, number, size
from jaxnas.report.summary import Summary

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
        parameters=sum(layer.parameters for layer in layers),
        flops=sum(layer.flops for layer in layers),
        activation_bytes=sum(layer.activation_bytes for layer in layers),
    )
    rows = [_row(layer, layer.path or "(between layers)", whole) for layer in shown]
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
            "Layers in the order in which they are first called, with shares of the network's cost",
            ("layer", "kind", "parameters", "share", "FLOPs", "share", "activations", "share"),
            [*rows, _row(whole, "whole network", whole)],
            numeric=(2, 4, 6),
        ),
    )


def _row(layer: LayerCost, name: str, whole: LayerCost) -> tuple[str, ...]:
    return (
        name,
        layer.kind or DASH,
        number(layer.parameters),
        _share(layer.parameters, whole.parameters),
        number(layer.flops),
        _share(layer.flops, whole.flops),
        size(layer.activation_bytes),
        _share(layer.activation_bytes, whole.activation_bytes),
    )


def _share(part: float, whole: float) -> str:
    return bar(part / whole, (0.0, 1.0)) if part > 0 else ""
