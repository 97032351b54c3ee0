"""Graph of one step -> its equations as people write them, in Unicode or LaTeX.

The user's own variable names stand on the left; everything without a name is written out in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cellfuse.graph.expr import Expr, order
from cellfuse.graph.graph import Graph


@dataclass(frozen=True)
class Spelling:
    """How one operation is written.

    Attributes:
        unicode, latex: templates for str.format.
        binds: how tightly it holds together: 1 sums, 2 products, 3 functions and names; 0 and below
            conditions. An argument that binds less than `inside` is put in brackets.
        inside: see `binds`; the second argument of - and / needs one more.
    """

    unicode: str
    latex: str
    binds: int = 3
    inside: int = 0


def _call(name: str, latex: str = "") -> Spelling:
    latex = latex or rf"\operatorname{{{{{name}}}}}"
    return Spelling(name + "({0})", latex + r"\left({0}\right)")


# One row per operation of the table; a test holds it complete.
SPELLINGS: dict[str, Spelling] = {
    "add": Spelling("{0} + {1}", "{0} + {1}", 1, 1),
    "sub": Spelling("{0} − {1}", "{0} - {1}", 1, 1),
    "mul": Spelling("{0} ⊙ {1}", r"{0} \odot {1}", 2, 2),
    "div": Spelling("{0} / {1}", r"\frac{{{0}}}{{{1}}}", 2, 2),
    "neg": Spelling("−{0}", "-{0}", 1, 2),
    "pow": Spelling("{0}^{1}", "{0}^{{{1}}}", 2, 3),
    "abs": Spelling("|{0}|", r"\left|{0}\right|"),
    "sign": _call("sign"),
    "sqrt": Spelling("√({0})", r"\sqrt{{{0}}}"),
    "exp": _call("exp", r"\exp"),
    "log": _call("log", r"\log"),
    "expm1": Spelling("exp({0}) − 1", r"\exp\left({0}\right) - 1", 1),
    "log1p": Spelling("log(1 + {0})", r"\log\left(1 + {0}\right)", inside=2),
    "sin": _call("sin", r"\sin"),
    "cos": _call("cos", r"\cos"),
    "erf": _call("erf"),
    "tanh": _call("tanh", r"\tanh"),
    "sigmoid": _call("σ", r"\sigma"),
    "relu": _call("relu"),
    "softplus": _call("softplus"),
    "max": Spelling("max({0}, {1})", r"\max\left({0}, {1}\right)"),
    "min": Spelling("min({0}, {1})", r"\min\left({0}, {1}\right)"),
    "where": Spelling(
        "({1} if {0} else {2})",
        r"\begin{{cases}} {1} & {0} \\ {2} & \text{{otherwise}} \end{{cases}}",
        inside=-2,
    ),
    "lt": Spelling("{0} < {1}", "{0} < {1}", 0, 1),
    "le": Spelling("{0} ≤ {1}", r"{0} \le {1}", 0, 1),
    "gt": Spelling("{0} > {1}", "{0} > {1}", 0, 1),
    "ge": Spelling("{0} ≥ {1}", r"{0} \ge {1}", 0, 1),
    "eq": Spelling("{0} = {1}", "{0} = {1}", 0, 1),
    "ne": Spelling("{0} ≠ {1}", r"{0} \ne {1}", 0, 1),
    "and": Spelling("{0} and {1}", r"{0} \land {1}", -2, -1),
    "or": Spelling("{0} or {1}", r"{0} \lor {1}", -2, -1),
    "not": Spelling("not {0}", r"\lnot {0}", -1, 1),
    "detach": _call("detach"),
    "sum": Spelling("Σ({0})", r"\sum_k \left({0}\right)_k"),
    "amax": Spelling("maxₖ({0})", r"\max_k \left({0}\right)_k"),
    "cumsum": _call("cumsum"),
    "cumsum_reversed": _call("cumsum_reversed", r"\operatorname{{cumsum\_reversed}}"),
    "expand": Spelling("{0}", "{0}"),
    "product": Spelling("{0} {1}", "{0} {1}", 2, 3),
    "product_t": Spelling("{0}ᵀ {1}", r"{0}^{{\top}} {1}", 2, 3),
    "outer": Spelling("{0} {1}ᵀ", r"{0} {1}^{{\top}}", 2, 3),
    "blocks_product": Spelling("{0} {1}", "{0} {1}", 2, 3),
    "blocks_product_t": Spelling("{0}ᵀ {1}", r"{0}^{{\top}} {1}", 2, 3),
    "blocks_outer": Spelling("blocks({0} {1}ᵀ)", r"\operatorname{{blocks}}({0} {1}^{{\top}})"),
}


# Called on the text of every node, with the node; what it returns is written instead.
Mark = Callable[[Expr, str], str]


@dataclass(frozen=True)
class Row:
    """One equation: `left` is the name of the node `expr`, `right` how it is computed."""

    expr: Expr
    left: str
    right: str


def equations(graph: Graph, style: str = "unicode") -> list[tuple[str, str]]:
    """(left, right) of every equation of a step, in the order of the computation.

    style: "unicode" or "latex". A state on the right is the one before this time step; new states
    and the output come last, with a prime: h′.
    """
    return [(row.left, row.right) for row in rows(graph, style)]


def rows(graph: Graph, style: str = "unicode", mark: Mark | None = None) -> list[Row]:
    """The equations with the nodes they are of; see `equations`."""
    left = left_sides(graph, style)
    new = _new_states(graph, style)
    named = [expr for expr, _ in graph.names if expr not in new]
    writer = Writer(left, style, mark, graph.has_input_bias)
    made = []
    for expr in order([*named, *graph.results]):
        if expr in left and not expr.is_leaf:
            made.append(Row(expr, left[expr], writer.computation(expr)))
    for name, expr in graph.outputs:
        label = "y" if name == "output" else _mark(name.removeprefix("new "), style)
        if left.get(expr) != label and not (name == "output" and expr in new):
            made.append(Row(expr, label, writer.value(expr)))
    return made


def left_sides(graph: Graph, style: str = "unicode") -> dict[Expr, str]:
    """What stands on the left of the equation of a node, for every node that has one."""
    states = {leaf.label for leaf in graph.of_role("state")}
    left = {e: _variable(n + "_" if n in states else n, style) for e, n in graph.names}
    left |= _new_states(graph, style)
    return left | {expr: _variable(name, style) for expr, name in _repeated(graph, left).items()}


def _new_states(graph: Graph, style: str) -> dict[Expr, str]:
    """Nodes that are the new value of a state: h′."""
    new: dict[Expr, str] = {}
    for name, expr in graph.outputs:
        if name.startswith("new "):
            new.setdefault(expr, _mark(name.removeprefix("new "), style))
    return new


def _repeated(graph: Graph, left: dict[Expr, str]) -> dict[Expr, str]:
    """Names u_1, u_2, ... for long values that the user did not name and that are used more than once."""
    users: dict[Expr, int] = {}
    for expr in order(graph.results):
        for arg in expr.args:
            users[arg] = users.get(arg, 0) + 1
    made: dict[Expr, str] = {}
    for expr in order(graph.results):
        if users.get(expr, 0) > 1 and expr not in left and not expr.is_leaf:
            if len(Writer(left | made, has_input_bias=graph.has_input_bias).computation(expr)) > 32:
                made[expr] = f"u_{len(made) + 1}"
    return made


def _mark(state: str, style: str) -> str:
    return f"{state}′" if style == "unicode" else f"{_variable(state, style)}'"


def _variable(name: str, style: str) -> str:
    if style == "unicode":
        return name
    stem, _, rest = name.partition("_")
    letter = stem if len(stem) == 1 else rf"\mathrm{{{stem}}}"
    rest = rest.replace("_", r"\_")
    return f"{letter}_{{{rest}}}" if rest else letter


def _number(value: float, style: str) -> tuple[str, int]:
    """A number's text and how tightly it binds: -2 as 0 - 2, 3e-05 as a product."""
    if math.isnan(value):
        return r"\mathrm{NaN}" if style == "latex" else "NaN", 3
    digits, _, power = f"{abs(value):.6g}".partition("e")
    if math.isinf(value):
        digits = r"\infty" if style == "latex" else "∞"
    minus = "-" if style == "latex" else "−"
    if power:
        power = power.lstrip("+0") if power[0] == "+" else minus + power.lstrip("-0")
        ten = f"10^{{{power}}}" if style == "latex" else f"10^{power}"
        times = r" \cdot " if style == "latex" else "·"
        digits = ten if digits == "1" else digits + times + ten
    return (minus + digits, 1) if value < 0 else (digits, 2 if power else 3)


def _leaf(expr: Expr, style: str, has_input_bias: bool) -> tuple[str, int]:
    """A leaf's text and how tightly it binds."""
    stem, dot, gate = expr.label.partition(".")
    if expr.role == "input product":
        product = f"{_variable(f'W_{stem}', style)} x"
        return (f"{product} + {_variable(f'b_{stem}', style)}", 1) if has_input_bias else (product, 2)
    if expr.role == "bias":
        return _variable(f"d_{stem}", style), 3
    return _variable(f"{stem}_{gate}" if dot else stem, style), 3


class Writer:
    """Writes expressions; nodes in `left` are written as their names.

    Attributes:
        left: the nodes that have a name.
        style: "unicode" or "latex".
        mark: see `Mark`.
        has_input_bias: see `Graph`.
    """

    def __init__(
        self,
        left: dict[Expr, str],
        style: str = "unicode",
        mark: Mark | None = None,
        has_input_bias: bool = True,
    ) -> None:
        self.left, self.style, self.mark, self.has_input_bias = left, style, mark, has_input_bias

    def value(self, expr: Expr) -> str:
        """A node's name, or how it is computed if it has none."""
        return self._write(expr, top=False)[0]

    def computation(self, expr: Expr) -> str:
        """How a node is computed."""
        return self._write(expr, top=True)[0]

    def _write(self, expr: Expr, *, top: bool) -> tuple[str, int]:
        """Text of an expression and how tightly it binds."""
        text, binds = self._plain(expr, top)
        return (text if self.mark is None else self.mark(expr, text)), binds

    def _plain(self, expr: Expr, top: bool) -> tuple[str, int]:
        is_unicode = self.style == "unicode"
        if expr in self.left and not top:
            return self.left[expr], 3
        if expr.op == "input":
            return _leaf(expr, self.style, self.has_input_bias)
        if expr.op == "constant":
            return _number(expr.value, self.style)
        if expr.op == "size":
            return expr.label, 3
        if expr.op == "expand":  # not written, so it holds together as its value does
            return self._write(expr.args[0], top=False)
        spelling = SPELLINGS[expr.op]
        parts = []
        for place, arg in enumerate(expr.args):
            text, binds = self._write(arg, top=False)
            wanted = spelling.inside + (place == 1 and expr.op in ("sub", "div"))
            if binds < wanted and not (expr.op == "div" and not is_unicode):
                text = f"({text})" if is_unicode else rf"\left({text}\right)"
            parts.append(text)
        template = spelling.unicode if is_unicode else spelling.latex
        return template.format(*parts), spelling.binds
