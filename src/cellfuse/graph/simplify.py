"""Rewrite a graph into a smaller one with the same meaning. Equal nodes are one object already.

Only rules that hold for every number, NaN and infinity included: 0 * a stays, because it is NaN
where a is infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cellfuse.graph.expr import Expr, constant, node, order
from cellfuse.graph.graph import Graph
from cellfuse.graph.ops import OPS


def _is(expr: Expr, value: float) -> bool:
    return expr.op == "constant" and expr.value == value


def _double_negative(a: Expr) -> Expr | None:
    return a.args[0] if a.op == "neg" else None


def _minus(a: Expr, b: Expr) -> Expr | None:
    if _is(b, 0.0):
        return a
    return node("add", a, b.args[0]) if b.op == "neg" else None


def _plus(a: Expr, b: Expr) -> Expr | None:
    # -0.0 + 0.0 is 0.0: the sign of zero is the one thing this changes.
    if _is(a, 0.0):
        return b
    if _is(b, 0.0):
        return a
    if b.op == "neg":
        return node("sub", a, b.args[0])
    return node("sub", b, a.args[0]) if a.op == "neg" else None


def _times(a: Expr, b: Expr) -> Expr | None:
    if _is(a, 1.0):
        return b
    if _is(b, 1.0):
        return a
    if _is(a, -1.0):
        return node("neg", b)
    return node("neg", a) if _is(b, -1.0) else None


RULES: dict[str, Callable[..., Expr | None]] = {
    "add": _plus,
    "sub": _minus,
    "mul": _times,
    "div": lambda a, b: a if _is(b, 1.0) else None,
    "neg": _double_negative,
    "pow": lambda a, b: a if _is(b, 1.0) else (node("mul", a, a) if _is(b, 2.0) else None),
    "where": lambda c, a, b: a if a is b else None,
    "expand": lambda a, like: a if a.shape == like.shape else None,
}


def simplify(graph: Graph) -> Graph:
    """The same graph after every rule in RULES and the folding of constants."""
    new: dict[Expr, Expr] = {}
    for expr in order(graph.results):
        new[expr] = expr if expr.is_leaf else _rewrite(expr, tuple(new[arg] for arg in expr.args))
    outputs = tuple((name, new[expr]) for name, expr in graph.outputs)
    left = set(order(expr for _, expr in outputs))
    names = tuple((new[e], name) for e, name in graph.names if e in new and new[e] in left)
    return replace(graph, outputs=outputs, names=names)


def _rewrite(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """The node on its new arguments, folded or replaced by its rule."""
    if all(arg.op == "constant" for arg in args) and not expr.shape and not expr.is_truth:
        with np.errstate(all="ignore"):
            values = (np.float64(arg.value) for arg in args)
            return constant(float(OPS[expr.op].meaning(*values)))
    rule = RULES.get(expr.op)
    if rule is not None:
        shorter = rule(*args)
        if shorter is not None and shorter.shape == expr.shape:
            return shorter
    return node(expr.op, *args)
