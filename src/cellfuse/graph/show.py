"""Graph as text, one line a node. Stable: used by tests, error messages and `explain`."""

from __future__ import annotations

from cellfuse.graph.expr import Expr, order
from cellfuse.graph.graph import Graph


def show(graph: Graph) -> str:
    """The printed form: inputs by role, then one line per operation, then the outputs.

    Example:
        mgu(f.x f.b [H], R_f [H, H], h [H]):
          %0 = product R_f h           [H]
    """
    text: dict[Expr, str] = {}
    lines = [f"{graph.name}:"]
    for leaf in graph.inputs:
        lines.append(f"  input {leaf.label:<10} [{', '.join(leaf.shape)}]  {leaf.role}")
    names = dict(graph.names)
    number = 0
    for expr in order(graph.results):
        if expr.op == "input":
            text[expr] = expr.label
        elif expr.op == "constant":
            text[expr] = f"{expr.value:.17g}"
        elif expr.op == "size":
            text[expr] = f"size({expr.label})"
        else:
            text[expr] = f"%{number}"
            number += 1
            call = f"{text[expr]} = {expr.op} {' '.join(text[arg] for arg in expr.args)}"
            note = f"  # {names[expr]}" if expr in names else ""
            lines.append(f"  {call:<36} [{', '.join(expr.shape)}]{note}")
    lines.extend(f"  return {name} = {text[expr]}" for name, expr in graph.outputs)
    return "\n".join(lines)
