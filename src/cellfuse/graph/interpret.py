"""Graph -> its values, in float64, one node at a time. Slow: the definition of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cellfuse.errors import CellError
from cellfuse.graph.expr import Expr, order
from cellfuse.graph.graph import Graph
from cellfuse.graph.ops import OPS


def interpret(
    graph: Graph, values: Mapping[str, Any], sizes: Mapping[str, int] | None = None
) -> tuple[np.ndarray, ...]:
    """The graph's outputs for the given inputs.

    Args:
        values: one value per input label, of the input's shape behind any leading batch axes. A
            value of the shape () is a number, or [..., 1] where it differs along the batch.
        sizes: number of units by axis letter, for graphs that read one.

    Raises:
        CellError: an input or a size is missing.
    """
    missing = [leaf.label for leaf in graph.inputs if leaf.label not in values]
    if missing:
        raise CellError(f"graph {graph.name}: no values for {', '.join(missing)}")
    known: dict[Expr, Any] = {leaf: np.asarray(values[leaf.label], np.float64) for leaf in graph.inputs}
    with np.errstate(all="ignore"):
        for expr in order(graph.results):
            if expr.op == "constant":
                known[expr] = np.float64(expr.value)
            elif expr.op == "size":
                if expr.label not in (sizes or {}):
                    raise CellError(f"graph {graph.name}: reads the size of axis {expr.label}; give sizes=")
                known[expr] = np.float64((sizes or {})[expr.label])
            elif expr.op != "input":
                known[expr] = OPS[expr.op].meaning(*(known[arg] for arg in expr.args))
    return tuple(np.asarray(known[expr]) for expr in graph.results)
