"""Graph of one time step -> graph of its gradients. Closed: the result can be differentiated again."""

from __future__ import annotations

from dataclasses import replace

from cellfuse.graph.expr import Expr, constant, leaf, node, order
from cellfuse.graph.graph import Graph
from cellfuse.graph.ops import OPS
from cellfuse.graph.simplify import simplify


def backward(graph: Graph) -> Graph:
    """The gradient of every input, contracted with one incoming gradient per output.

    Inputs are the graph's inputs, then `d(name)` for each output. Outputs are `d(label)` for each
    input, shaped like it; the constant 0 where nothing flows.
    """
    seeds = tuple(leaf(f"d({name})", expr.shape, "gradient") for name, expr in graph.outputs)
    gradients: dict[Expr, Expr] = {}
    for expr, seed in zip(graph.results, seeds, strict=True):
        _accumulate(gradients, expr, seed)
    for expr in reversed(order(graph.results)):
        if expr in gradients and not expr.is_leaf:
            flows = OPS[expr.op].vjp(gradients[expr], expr, *expr.args)
            for arg, flow in zip(expr.args, flows, strict=True):
                if flow is not None:
                    _accumulate(gradients, arg, flow)
    outputs = tuple((f"d({i.label})", gradients.get(i, constant(0.0))) for i in graph.inputs)
    name, inputs = graph.name + ".backward", graph.inputs + seeds
    return simplify(replace(graph, name=name, inputs=inputs, outputs=outputs))


def _accumulate(gradients: dict[Expr, Expr], target: Expr, flow: Expr) -> None:
    """Add `flow` to the gradient of `target`, summed or expanded to the target's shape."""
    if target.op in ("constant", "size"):
        return
    if flow.shape != target.shape:
        flow = node("expand", flow, target) if target.shape else node("sum", flow)
    gradients[target] = gradients[target] + flow if target in gradients else flow
