"""Nodes of one unit's step as lines of CUDA C++ in float32. Leaves come with names, see ROWS."""

from __future__ import annotations

from collections.abc import Mapping

from cellfuse.codegen.cuda.spell import SPELL, literal, spell
from cellfuse.codegen.program import arguments
from cellfuse.graph.expr import Expr


class Writer:
    """Writes nodes as lines of C++, each value once."""

    def __init__(self, names: Mapping[Expr, str], hidden: int) -> None:
        self.names, self.hidden, self.lines = dict(names), hidden, list[str]()

    def value(self, expr: Expr) -> str:
        """The name of a node's value; writes whatever it needs and is not written yet."""
        stack = [expr]
        while stack:
            inner = stack[-1]
            missing = [arg for arg in arguments(inner) if arg not in self.names]
            if inner in self.names or not missing:
                stack.pop()
                if inner not in self.names:
                    self.names[inner] = self._write(inner)
            else:
                stack.extend(reversed(missing))
        return self.names[expr]

    def _write(self, expr: Expr) -> str:
        if expr.op == "constant":
            return literal(expr.value, "float")
        if expr.op == "size":
            return literal(float(self.hidden), "float")
        if expr.is_leaf:
            raise ValueError(f"{expr.label} is read, but is in no buffer")
        if expr.op not in SPELL:
            raise ValueError(f"{expr.op} is no operation on one unit")
        text = spell(expr.op, *(self.names[arg] for arg in arguments(expr)))
        if expr.op in ("expand", "detach"):
            return text
        name = f"t{len(self.lines)}"
        self.lines.append(f"  const {'bool' if expr.is_truth else 'float'} {name} = {text};")
        return name


# Buffer -> the function's argument that is a row of it.
ROWS = {"before": "s", "products": "x", "parameters": "p", "constants": "c"}
