"""Graph: the mathematics of one time step, with named inputs and outputs. Says nothing about time."""

from __future__ import annotations

from dataclasses import dataclass, field

from cellfuse.errors import CellError
from cellfuse.graph.expr import ROLES, Expr, order
from cellfuse.graph.ops import OPS


@dataclass(frozen=True)
class Graph:
    """Expressions of one time step of one sequence.

    Attributes:
        name: the cell's name, with a suffix for derived graphs.
        inputs: the leaves, in the order in which values are given.
        outputs: (name, expression) pairs. For a step: the output, then one new value per state.
        names: the user's own variable names of inner nodes, for printing.
        has_input_bias: whether an input product is W x + b rather than W x, for printing.
    """

    name: str
    inputs: tuple[Expr, ...]
    outputs: tuple[tuple[str, Expr], ...]
    names: tuple[tuple[Expr, str], ...] = field(default=(), compare=False)
    has_input_bias: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        check(self)

    @property
    def results(self) -> tuple[Expr, ...]:
        """The output expressions without their names."""
        return tuple(expr for _, expr in self.outputs)

    def of_role(self, role: str) -> tuple[Expr, ...]:
        """The inputs of one role, in order."""
        return tuple(leaf for leaf in self.inputs if leaf.role == role)


def check(graph: Graph) -> None:
    """Verify that a graph is whole: known operations, right shapes, every leaf among the inputs.

    Runs on every Graph that is made, so after every pass.

    Raises:
        CellError: what is wrong and in which node.
    """
    known = set(graph.inputs)
    labels = [leaf.label for leaf in graph.inputs]
    if len(set(labels)) != len(labels):
        raise CellError(f"graph {graph.name}: two inputs have the same name in {labels}")
    for leaf in graph.inputs:
        if leaf.op != "input" or leaf.role not in ROLES:
            raise CellError(f"graph {graph.name}: input {leaf!r} is not a leaf with a role")
    for expr in order(graph.results):
        if expr.op == "input":
            if expr not in known:
                raise CellError(f"graph {graph.name}: reads {expr.label}, which is not an input")
        elif expr.op not in ("constant", "size"):
            if expr.op not in OPS:
                raise CellError(f"graph {graph.name}: no operation is called {expr.op!r}")
            if OPS[expr.op].shape(*(arg.shape for arg in expr.args)) != expr.shape:
                raise CellError(f"graph {graph.name}: {expr.op} has the wrong shape {expr.shape}")
