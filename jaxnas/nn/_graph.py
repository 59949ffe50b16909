"""Eager checks of a cell's graph."""

from collections.abc import Sequence


def check_graph(num_inputs: int, num_nodes: int, edges: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError unless edges can be run in the order in which they are given.

    Args:
      num_inputs: the first nodes, which no edge enters.
      num_nodes: nodes, inputs included.
      edges: (source, target) each.
    """
    if not 1 <= num_inputs < num_nodes:
        raise ValueError(
            f"num_inputs must be from 1 to num_nodes - 1 = {num_nodes - 1}, got {num_inputs}"
        )
    if not edges:
        raise ValueError("edges must hold at least one (source, target), got none")
    left: set[int] = set()
    for source, target in edges:
        if not 0 <= source < target < num_nodes or target < num_inputs:
            raise ValueError(
                "edges must lead from a node to a later one that is not an input, with "
                f"num_inputs = {num_inputs} and num_nodes = {num_nodes}, got {(source, target)}"
            )
        left.add(source)
        if target in left:
            raise ValueError(
                "edges must come in an order in which all edges into a node precede those out of "
                f"it, got {(source, target)} after an edge from node {target}"
            )


def output_nodes(output: str | Sequence[int], num_inputs: int, num_nodes: int) -> tuple[int, ...]:
    """The nodes that "last", "concat" or a sequence of nodes stands for; ValueError for others.

    Example:
      >>> output_nodes("concat", 2, 5)
      (2, 3, 4)
    """
    if output == "last":
        return (num_nodes - 1,)
    if output == "concat":
        return tuple(range(num_inputs, num_nodes))
    nodes = () if isinstance(output, str) else tuple(output)
    if not nodes or not all(0 <= node < num_nodes for node in nodes):
        raise ValueError(
            f"output must be 'last', 'concat' or nodes from 0 to {num_nodes - 1}, got {output!r}"
        )
    return nodes


def check_stack(num_cells: int, num_inputs: int, outputs: Sequence[int]) -> None:
    """Raises ValueError unless cells can follow one another."""
    if num_cells < 1:
        raise ValueError(f"num_cells must be at least 1 or None, got {num_cells}")
    if num_inputs != 1 or len(outputs) != 1:
        raise ValueError(
            f"num_cells must be None unless there is one input and one output node, got "
            f"{num_cells} with {num_inputs} inputs and {len(outputs)} output nodes"
        )
