"""One time step as boxes and arrows, from the traced graph. Says nothing about where a box is drawn.

A matrix product with its bias is one box, and so is W x + b + R h + d of one gate; every other operation
is a box of its own, unless there are so many that only values with a name or several users get one.
Numbers that are the same for all units stand inside the box of their operation.
"""

from __future__ import annotations

from collections import Counter

from cellfuse.explain.facts import CellGraph, CellNode
from cellfuse.explain.subject import Subject
from cellfuse.graph.equations import SPELLINGS, Row, Writer, left_sides, rows
from cellfuse.graph.expr import Expr, order

_SIGNS = {"add": "+", "mul": "⊙"}
_REDUCTIONS = ("sum", "amax", "cumsum", "cumsum_reversed")
# Operations through which a state is carried on: the path that is drawn straight.
_CARRIES = ("add", "sub", "mul", "neg", "where", "max", "min")
_ANY = "·"
# An operand that is longer than this is not written inside the box of its product.
_SHORT = 8

# With more boxes than this, unnamed values move into the box that uses them; then a box's text is cut.
_MANY, _LONG = 60, 24

# Matrix products and terms of one gate: its name, and the nodes that are added up.
Parts = tuple[str, tuple[Expr, ...]]


def cell_graph(subject: Subject) -> CellGraph:
    """The boxes and arrows of one time step."""
    made = _Builder(subject).made()
    return made if len(made.nodes) <= _MANY else _Builder(subject, is_short=True).made()


class _Builder:
    def __init__(self, subject: Subject, *, is_short: bool = False) -> None:
        self.subject, self.graph, self.is_short = subject, subject.step, is_short
        self.users = Counter(arg for expr in order(self.graph.results) for arg in expr.args)
        self.left = left_sides(self.graph)
        self.rows = rows(self.graph)
        self.equation = _equations_of_nodes(self.rows)
        self.nodes: dict[str, CellNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.keys: dict[Expr, str] = {}

    def _writer(self, left: dict[Expr, str]) -> Writer:
        return Writer(left, has_input_bias=self.graph.has_input_bias)

    def made(self) -> CellGraph:
        self._add("x", "input", ("x",), "x")
        for state in self.subject.cell.states:
            self._add(f"s/{state}", "state", (state,), state)
        output, *news = self.graph.results
        ends = dict(zip(self.subject.cell.states, news, strict=True))
        for state, expr in ends.items():
            is_output = state in self.subject.output_states
            self._end(f"new/{state}", "new output" if is_output else "new", f"{state}′", expr)
        if output not in news:
            self._end("out", "output", "y", output)
        spines = self._spines(ends)
        return CellGraph(tuple(self.nodes.values()), tuple(dict.fromkeys(self.edges)), spines)

    def _add(
        self, key: str, kind: str, lines: tuple[str, ...], title: str, equation: int = -1, rows: str = ""
    ) -> None:
        self.nodes[key] = CellNode(key, kind, lines, title, equation, rows)

    def _end(self, key: str, kind: str, label: str, expr: Expr) -> None:
        source = self._visit(expr)
        equation = next(place for place, row in enumerate(self.rows) if row.expr is expr)
        self._add(key, kind, (label,), label, equation)
        if source:
            self.edges.append((source, key))

    def _visit(self, expr: Expr) -> str:
        """The key of a node's box, made with everything below it; "" for a number."""
        if expr.op in ("constant", "size"):
            return ""
        if expr.op == "expand":
            return self._visit(expr.args[0])
        if expr.role == "state":
            return f"s/{expr.label}"
        if expr not in self.keys:
            parts = self._parts(expr)
            self.keys[expr] = self._product(expr, parts) if parts else self._operation(expr)
        return self.keys[expr]

    def _parts(self, expr: Expr, *, is_inside: bool = False) -> Parts | None:
        """The gate and the terms of a sum of products of one gate; None if it is something else."""
        if is_inside and (self.users[expr] > 1 or expr in self.left) and not expr.is_leaf:
            return None
        if expr.role == "input product" or (is_inside and expr.role == "bias"):
            return expr.label.rpartition(".")[0], (expr,)
        if self._is_product(expr):
            return expr.args[0].label.removeprefix("R_"), (expr,)
        if expr.op != "add":
            return None
        parts = [self._parts(arg, is_inside=True) for arg in expr.args]
        first, second = parts
        if first is None or second is None or first[0] != second[0]:
            return None
        return first[0], first[1] + second[1]

    def _is_product(self, expr: Expr) -> bool:
        is_diagonal = expr.op == "mul" and expr.args[0].role == "diagonal"
        return is_diagonal or expr.op in ("product", "blocks_product")

    def _product(self, expr: Expr, parts: Parts) -> str:
        gate, terms = parts
        operands = [term.args[1] for term in terms if self._is_product(term)]
        sources = ["x"] * any(term.role == "input product" for term in terms)
        sources += [self._visit(operand) for operand in operands]
        key = f"n/{len(self.nodes)}"
        left = dict(self.left)
        for operand in operands:
            if not operand.is_leaf and len(self._writer(left).value(operand)) > _SHORT:
                left[operand] = _ANY
        text = self._writer(left).computation(expr)
        name = (self.left[expr],) if expr in self.left else ()
        self._add(key, "product", (*name, text), self._title(expr), self._at(expr), self._rows(gate, terms))
        self.edges += [(source, key) for source in sources if source]
        return key

    def _rows(self, gate: str, terms: tuple[Expr, ...]) -> str:
        """Which rows of weight_ih and weight_hh a box reads."""
        sizes, cell = self.subject.sizes, self.subject.cell
        if gate == "W_hr":
            return f"[{sizes['P']}, {sizes['H']}]"
        has = {term.role == "input product" for term in terms if term.role != "bias"}
        orders = {True: cell.input_gates, False: cell.recurrent_gates}
        places = {kind: orders[kind].index(gate) for kind in (True, False) if kind in has}
        texts = {k: f"{n * sizes['H']}:{(n + 1) * sizes['H']}" for k, n in places.items()}
        if len(set(texts.values())) == 1:
            return next(iter(texts.values()))
        return ", ".join(f"{'ih' if kind else 'hh'} {text}" for kind, text in texts.items())

    def _operation(self, expr: Expr) -> str:
        arguments = self._read_by(expr)
        sources = [self._visit(arg) for arg in arguments]
        key = f"n/{len(self.nodes)}"
        if expr.is_leaf:
            self._add(key, "parameter", (self._writer({}).value(expr),), expr.label)
            return key
        kind = "reduction" if expr.op in _REDUCTIONS else "choice" if expr.op == "where" else "pointwise"
        kind = "activation" if len(expr.args) == 1 and kind == "pointwise" else kind
        name = self.left.get(expr, "")
        name = "" if name.endswith("′") else name
        lines = (name, self._label(expr)) if name else (self._label(expr),)
        self._add(key, kind, lines, self._title(expr), self._at(expr))
        self.edges += [(source, key) for source in sources if source]
        return key

    def _read_by(self, expr: Expr) -> list[Expr]:
        """What goes into the box of a node: its arguments, or theirs where they are inside the box."""
        found: list[Expr] = []
        for arg in expr.args:
            found += self._read_by(arg) if self._is_inside(arg) else [arg]
        return found

    def _is_inside(self, expr: Expr) -> bool:
        if not self.is_short or self.users[expr] > 1 or expr in self.left or self._parts(expr):
            return False
        return expr.role == "parameter" or not expr.is_leaf

    def _label(self, expr: Expr) -> str:
        """The operation; its arguments only where they are numbers or their order matters."""
        if any(self._is_inside(arg) for arg in expr.args):
            outer = {arg: _ANY for arg in self._read_by(expr) if not arg.is_leaf}
            text = self._writer(outer | self.left).computation(expr)
            return text if len(text) <= _LONG else text[: _LONG - 1] + "…"
        if expr.op in _SIGNS and not any(arg.op in ("constant", "size") for arg in expr.args):
            return _SIGNS[expr.op]
        parts = [self._short(arg) for arg in expr.args] if len(expr.args) > 1 else [_ANY]
        text = SPELLINGS[expr.op].unicode.format(*parts)
        return text.removesuffix(f"({_ANY})") or text

    def _short(self, expr: Expr) -> str:
        if expr in self.left:
            return self.left[expr]
        if not (expr.op in ("input", "constant", "size") or self._parts(expr)):
            return _ANY
        text = self._writer({}).value(expr)
        return text if len(text) <= _SHORT else _ANY

    def _title(self, expr: Expr) -> str:
        """The whole expression, for who points at the box."""
        text = self._writer(self.left).computation(expr)
        return f"{self.left[expr]} = {text}" if expr in self.left else text

    def _at(self, expr: Expr) -> int:
        return self.equation.get(expr, -1)

    def _spines(self, ends: dict[str, Expr]) -> tuple[tuple[str, ...], ...]:
        """For each state the keys on its way from one time step to the next; no key on two of them."""
        paths = [(f"s/{state}", *path, f"new/{state}") for state, end in ends.items()
                 if (path := self._carried(end, state)) is not None]  # fmt: skip
        made: list[tuple[str, ...]] = []
        for path in sorted(paths, key=len, reverse=True):
            if not any(set(path) & set(other) for other in made):
                made.append(path)
        return tuple(made)

    def _carried(self, expr: Expr, state: str) -> tuple[str, ...] | None:
        """The longest way from a state to a node through operations that carry it."""
        if expr.role == "state" and expr.label == state:
            return ()
        if expr.op == "expand":
            return self._carried(expr.args[0], state)
        if expr.op not in _CARRIES or self._parts(expr):
            return None
        found = [path for arg in expr.args if (path := self._carried(arg, state)) is not None]
        own = (self.keys[expr],) if expr in self.keys else ()  # it may stand inside another's box
        return (*max(found, key=len), *own) if found else None


def _equations_of_nodes(made: list[Row]) -> dict[Expr, int]:
    """Which equation each node is written in; the first one if there are several."""
    roots = {row.expr for row in made}
    found: dict[Expr, int] = {}
    for place, row in enumerate(made):
        stack = [row.expr]
        while stack:
            expr = stack.pop()
            if expr not in found:
                found[expr] = place
            stack += [arg for arg in expr.args if arg not in roots and arg not in found]
    return found
