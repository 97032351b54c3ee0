"""The cell's equations, each with what its left side is. The meanings come from the cell's docstring."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable

from cellfuse.cell import Cell
from cellfuse.explain.facts import Equation, TensorFact
from cellfuse.explain.subject import Subject
from cellfuse.explain.words import Words, say, translated
from cellfuse.graph.equations import rows


def equations_of(subject: Subject) -> tuple[Equation, ...]:
    """The equations of one time step, in the order of the computation."""
    graph, said = subject.step, dict(gate_meanings(subject.cell))
    # A sigmoid is a gate without being called one; another function is one if the docstring says so.
    are_gates = {name for expr, name in graph.names if expr.op == "sigmoid"}
    are_gates |= {gate for gate, meaning in _meanings(subject.cell) if _GATE.match(meaning)}
    names, lines = dict(graph.names), _lines(code_of(subject.cell))
    made = []
    for row in rows(graph):
        words = _left(row.left, subject, said, row.left in are_gates)
        is_end = row.left.endswith("′") or row.left == "y"
        line = lines.get(names.get(row.expr, ""), lines.get("return", 0) if is_end else 0)
        made.append(Equation(row.left, row.right, *words, line=line))
    return tuple(made)


def code_of(cell: Cell) -> tuple[str, ...]:
    """The lines of the cell's function; none where Python cannot find them."""
    try:
        return tuple(textwrap.dedent(inspect.getsource(cell.function)).rstrip().split("\n"))
    except (OSError, TypeError):
        return ()


def _lines(code: tuple[str, ...]) -> dict[str, int]:
    """The line where each variable is last set, and that of "return"."""
    made: dict[str, int] = {}
    for node in ast.walk(ast.parse("\n".join(code))) if code else ():
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made[node.id] = max(node.lineno, made.get(node.id, 0))
        elif isinstance(node, ast.Return):
            made["return"] = node.lineno
    return made


def gate_meanings(cell: Cell) -> tuple[tuple[str, str], ...]:
    """(gate, meaning) pairs from a docstring such as "... r: reset gate, n: candidate."; reset, candidate."""
    return tuple((gate, re.sub(_GATE, r"\1", meaning)) for gate, meaning in _meanings(cell))


_GATE = re.compile(r"^(\w+) gate$")


def _meanings(cell: Cell) -> tuple[tuple[str, str], ...]:
    text = " ".join((cell.function.__doc__ or "").split())
    found = re.findall(r"\b(\w+): ([^,:.;]+)", text)
    return tuple((gate, meaning.strip()) for gate, meaning in found if gate in cell.gates)


def letters_of(tensors: Iterable[TensorFact]) -> list[Words]:
    """W is in weight_ih, ..."""
    names = {fact.name.removesuffix("_l0") for fact in tensors}
    places = {"weight_ih": "W", "weight_hh": "R", "bias_ih": "b", "bias_hh": "d"}
    return [say("letter", letter=letter, tensor=name) for name, letter in places.items() if name in names]


def state_words(state: str) -> Words:
    """hidden state h, cell state c, state n."""
    return say(f"state {state}") if state in ("h", "c") else say("state other", name=state)


def _left(left: str, subject: Subject, said: dict[str, str], is_gate: bool) -> Words:
    state = left.removesuffix("′")
    if left.endswith("′") and state in subject.cell.states:
        key = "new state and output" if state in subject.output_states else "new state"
        return say(key, name=state_words(state))
    if left == "y":
        return say("the output")
    if left not in said:
        return Words("", "")
    words = translated(said[left])
    is_word = said[left].isalpha() and said[left] not in ("candidate", "content")
    return say("gate", name=words) if is_gate and is_word else words
