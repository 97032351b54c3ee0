"""Rewrite a step for a loop: biases moved out of it, sums of products gathered into one product."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from cellfuse.codegen.program import Term
from cellfuse.graph.expr import Expr, node, order
from cellfuse.graph.graph import Graph

# operation -> whether the matrix is transposed
PRODUCTS = {"product": False, "product_t": True, "blocks_product": False, "blocks_product_t": True}
Sums = dict[Expr, tuple[Term, ...]]


def users(results: Iterable[Expr]) -> dict[Expr, list[Expr]]:
    """The nodes that read each node; a result is read once more, by nobody."""
    found: dict[Expr, list[Expr]] = {}
    results = list(results)
    for expr in order(results):
        for arg in expr.args:
            found.setdefault(arg, []).append(expr)
    for expr in results:
        found.setdefault(expr, []).append(expr)
    return found


def rebuild(results: Iterable[Expr], change: Callable[[Expr, tuple[Expr, ...]], Expr]) -> dict[Expr, Expr]:
    """Old node -> new node, where `change(node, new arguments)` makes each new one."""
    new: dict[Expr, Expr] = {}
    for expr in order(results):
        new[expr] = expr if expr.is_leaf else change(expr, tuple(new[arg] for arg in expr.args))
    return new


def same(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """The node on new arguments."""
    return expr if args == expr.args else node(expr.op, *args)


def move_biases(step: Graph) -> tuple[Graph, tuple[tuple[str, str], ...]]:
    """The step without the recurrent biases that can be added to an input product before the loop.

    Also returns (bias, input product) labels of the moved ones: x + (R h + b) becomes (x + b) + R h,
    where neither x nor b is used otherwise.
    """
    readers = users(step.results)
    moved: dict[Expr, tuple[str, str]] = {}
    for bias in step.of_role("bias"):
        inner = readers.get(bias, [])
        outer = readers.get(inner[0], []) if len(inner) == 1 and inner[0].op == "add" else []
        if len(outer) == 1 and outer[0].op == "add" and outer[0] is not inner[0]:
            x = next((a for a in outer[0].args if a is not inner[0]), bias)
            if x.role == "input product" and len(readers[x]) == 1:
                moved[inner[0]] = (bias.label, x.label)
    biases = {label for label, _ in moved.values()}

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        if expr in moved:
            return next(arg for arg in args if arg.label not in biases)
        return same(expr, args)

    new = rebuild(step.results, change)
    outputs = tuple((name, new[expr]) for name, expr in step.outputs)
    inputs = tuple(leaf for leaf in step.inputs if leaf.label not in biases)
    return Graph(step.name, inputs, outputs), tuple(moved.values())


def gather_products(results: tuple[Expr, ...], fixed: Collection[Expr] = ()) -> tuple[tuple[Expr, ...], Sums]:
    """The results with R a + S b + v written as (R a + S b) + v, and every sum of products by its node.

    Nodes in `fixed` stay as they are.
    """
    readers, pinned = users(results), set(fixed)
    sums: Sums = {}

    def is_inner(expr: Expr) -> bool:
        """Whether the node is an addend of a larger sum and nothing else."""
        return len(readers[expr]) == 1 and readers[expr][0].op == "add" and readers[expr][0] is not expr

    def addends(expr: Expr) -> list[Expr]:
        if expr.op == "add" and expr not in pinned:
            parts = []
            for arg in expr.args:
                parts += addends(arg) if is_inner(arg) and arg.shape == expr.shape else [arg]
            return parts
        return [expr]

    new: dict[Expr, Expr] = {}

    def term(expr: Expr) -> Term:
        return Term(new[expr.args[0]], PRODUCTS[expr.op], new[expr.args[1]])

    for expr in order(results):
        if expr.is_leaf or expr in pinned:
            new[expr] = expr
            continue
        parts = addends(expr)
        made = [part for part in parts if part.op in PRODUCTS and is_inner(part) and part not in pinned]
        if expr.op != "add" or len(made) < 2 or (is_inner(expr) and readers[expr][0] not in pinned):
            new[expr] = same(expr, tuple(new[arg] for arg in expr.args))
            continue
        total = new[made[0]]
        for part in made[1:]:
            total = node("add", total, new[part])
        sums[total] = tuple(term(part) for part in made)
        for part in parts:
            if part not in made:
                total = node("add", total, new[part])
        new[expr] = total
    gathered = tuple(new[expr] for expr in results)
    for expr in order(gathered):
        if expr.op in PRODUCTS:
            sums.setdefault(expr, (Term(expr.args[0], PRODUCTS[expr.op], expr.args[1]),))
    return gathered, sums
