"""What the forward loop writes for the backward loop, and what the backward loop computes again."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cellfuse.graph.expr import Expr, order

# Computed again rather than read from memory: each costs less than a load that misses the cache.
CHEAP = {
    *("add", "sub", "mul", "div", "neg", "abs", "sign", "relu", "sqrt", "max", "min", "where"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "detach", "expand"),
}


def kept(forward: Collection[Expr], backward: Iterable[Expr], free: Collection[Expr]) -> tuple[Expr, ...]:
    """The nodes of `forward` to be written, so that `backward` can be computed from them.

    A cheap node is computed again from others; if that takes two or more values that nothing else
    needs, it is kept itself.

    Args:
        forward: every node of the step.
        backward: the results of the backward loop.
        free: nodes that are in memory anyway.
    """
    inner, given = set(forward), set(free)
    boundary = dict.fromkeys(expr for expr in backward if expr in inner)
    for expr in order(backward):
        if expr not in inner and expr not in given:
            boundary.update((arg, None) for arg in expr.args if arg in inner)
    known: dict[Expr, frozenset[Expr]] = {}

    def needs(expr: Expr) -> frozenset[Expr]:
        if expr not in known:
            if expr in free or expr.op in ("constant", "size"):
                known[expr] = frozenset()
            elif expr.is_leaf or not (expr.op in CHEAP or expr.is_truth):
                known[expr] = frozenset((expr,))
            else:
                known[expr] = frozenset().union(*(needs(arg) for arg in expr.args))
        return known[expr]

    def wide(expr: Expr) -> int:
        """How many whole rows it takes; numbers cost next to nothing."""
        return sum(bool(need.shape) for need in needs(expr))

    chosen: set[Expr] = set()
    for expr in boundary:
        if wide(expr) <= 1 or expr.is_truth:
            chosen |= needs(expr)
    for expr in boundary:
        if not needs(expr) <= chosen:
            chosen.add(expr)
    return tuple(expr for expr in order(forward) if expr in chosen)
