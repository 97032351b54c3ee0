"""Equations as people write them: golden texts, brackets that mean what the graph means, LaTeX."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cellfuse as cf
from cellfuse.graph.backward import backward
from cellfuse.graph.equations import SPELLINGS, equations
from cellfuse.graph.expr import constant, leaf, node
from cellfuse.graph.graph import Graph
from cellfuse.graph.interpret import interpret
from cellfuse.graph.simplify import simplify

GOLDEN = Path(__file__).parents[1] / "golden"
CELLS = sorted(cf.cells.CELLS)


def written(graph, style):
    return [f"{left} = {right}" for left, right in equations(graph, style)]


@pytest.mark.parametrize("name", ["lstm", "gru", "mgu", "slstm"])
def test_equations_are_the_papers(name):
    """Looked at next to the papers that the cells name; a change here is a change of what users read."""
    step = cf.cells.find(name).step
    text = "\n".join([*written(step, "unicode"), "", *written(step, "latex")]) + "\n"
    file = GOLDEN / f"{name}.equations.txt"
    if os.environ.get("CELLFUSE_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def fault_of(latex):
    """What is wrong with the brackets of a LaTeX formula, or nothing."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", latex):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return "a brace closes that was not opened"
    if depth:
        return "a brace is not closed"
    if latex.count(r"\left") != latex.count(r"\right"):
        return r"\left and \right differ in number"
    if re.search(r"[_^]\w{2}", latex.replace(r"\_", "")):
        return "an index or power of two letters has no braces"
    return "it holds a sign of the Unicode form" if re.search(r"[−⊙′σ√Σ∞]", latex) else ""


@pytest.mark.parametrize("style", ["step", "step_without_bias"])
@pytest.mark.parametrize("name", CELLS)
def test_latex_of_every_cell_is_whole(name, style):
    for line in written(getattr(cf.cells.find(name), style), "latex"):
        assert not fault_of(line), line


def test_a_broken_formula_is_seen():
    assert fault_of(r"\frac{a}{b") == "a brace is not closed"
    assert fault_of(r"a}{b") == "a brace closes that was not opened"
    assert fault_of(r"\left(a") == r"\left and \right differ in number"
    assert fault_of("W_hr v") == "an index or power of two letters has no braces"
    assert fault_of("1 − z") == "it holds a sign of the Unicode form"


@pytest.mark.parametrize("name", CELLS)
def test_every_state_and_the_output_stand_on_the_left(name):
    cell = cf.cells.find(name)
    left = [side for side, _ in equations(cell.step)]
    assert {f"{state}′" for state in cell.states} <= {*left}
    assert len(left) == len({*left})


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_operation_can_be_written(name):
    args = [f"a_{k}" for k in range(3)]
    for template in (SPELLINGS[name].unicode, SPELLINGS[name].latex):
        text = template.format(*args)
        assert "a_0" in text
    assert not fault_of(SPELLINGS[name].latex.format(*args).replace("cumsum_r", "cumsum r"))


def one_line(expr):
    """The one equation of an expression of numbers a, b, c, in Unicode."""
    inputs = tuple(leaf(label, ("H",), "parameter") for label in "abc")
    graph = Graph("g", inputs, (("output", expr),))
    ((left, right),) = equations(graph)
    assert left == "y"
    return graph, right


ARITHMETIC = ["add", "sub", "mul", "div", "neg", "pow", "max", "min", "where", "expand"]
PYTHON = {"−": "-", "⊙": "*", "^": "**", "=": "==", "≤": "<=", "≥": ">=", "≠": "!=", "·": "*"}


def in_python(text):
    """An equation of arithmetic as Python, whose brackets bind in the same order."""
    return "".join(PYTHON.get(letter, letter) for letter in text)


@st.composite
def arithmetic(draw):
    nodes = [leaf(label, ("H",), "parameter") for label in "abc"]
    nodes += [constant(v) for v in (-2.0, 3.0, 0.5, 2.5e-7)]
    truths = []
    for _ in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from([*ARITHMETIC, "lt", "ge", "ne", "and", "or", "not"]))
        a, b = draw(st.sampled_from(nodes)), draw(st.sampled_from(nodes))
        if name in ("lt", "ge", "ne"):
            truths.append(node(name, a, b))
        elif name in ("and", "or", "not", "where") and not truths:
            truths.append(node("gt", a, b))
        elif name in ("and", "or"):
            truths.append(node(name, draw(st.sampled_from(truths)), draw(st.sampled_from(truths))))
        elif name == "not":
            truths.append(node(name, draw(st.sampled_from(truths))))
        elif name == "where":
            nodes.append(node("where", draw(st.sampled_from(truths)), a, b))
        elif name == "pow":
            nodes.append(node("pow", a, constant(draw(st.sampled_from([2.0, 3.0, -1.0])))))
        elif name == "expand":
            nodes.append(node("expand", a, nodes[0]))
        else:
            nodes.append(node(name, *((a,) if name == "neg" else (a, b))))
    return nodes[-1]


@given(arithmetic())
def test_brackets_mean_what_the_graph_means(expr):
    if expr.is_leaf:
        return
    inputs = tuple(leaf(label, ("H",), "parameter") for label in "abc")
    graph = Graph("g", inputs, (("output", expr),))
    values = {"a": 1.3, "b": -0.7, "c": 2.1}
    known = dict(values)
    rows = equations(graph)
    for left, right in rows:
        try:
            known[left] = eval(in_python(right), {"max": max, "min": min}, known)
        except (ZeroDivisionError, OverflowError):
            return
    (want,) = interpret(graph, {label: np.full(1, v) for label, v in values.items()})
    if np.isfinite(want).all():
        np.testing.assert_allclose(known["y"], want.reshape(-1)[0], rtol=1e-5)


a, b, c = (leaf(label, ("H",), "parameter") for label in "abc")


@pytest.mark.parametrize(
    ("expr", "unicode"),
    [
        (node("pow", a, 3.0), "a^3"),
        (node("pow", node("tanh", a), node("neg", b)), "tanh(a)^(−b)"),
        (node("pow", node("pow", a, 2.0), 3.0), "(a^2)^3"),
        (node("neg", node("pow", a, 2.0)), "−a^2"),
        (node("mul", node("expand", node("add", constant(-2.0), 1.0), a), b), "(−2 + 1) ⊙ b"),
        (node("mul", constant(-2.0), a), "(−2) ⊙ a"),
        (node("add", a, 1e-5), "a + 10^−5"),
        (node("mul", a, 2.5e-7), "a ⊙ 2.5·10^−7"),
        (node("max", a, float("-inf")), "max(a, −∞)"),
        (node("sub", a, node("sub", b, c)), "a − (b − c)"),
        (node("div", a, node("mul", b, c)), "a / (b ⊙ c)"),
        (node("where", node("and", node("lt", a, b), node("not", node("eq", a, c))), a, b),
         "(a if a < b and not (a = c) else b)"),
    ],
)  # fmt: skip
def test_brackets_are_there_where_they_are_needed_and_nowhere_else(expr, unicode):
    assert one_line(expr)[1] == unicode


@cf.cell(gates=("in_gate", "n"), source="none: a cell of the tests")
def wordy(gate, h):
    i = torch.sigmoid(gate.in_gate)
    return i * h + 1e-5 * torch.tanh(gate.n)


def test_a_bias_that_does_not_exist_is_not_written():
    for style in ("unicode", "latex"):
        text = "\n".join(written(cf.cells.lstm.step_without_bias, style))
        assert "b_" not in text
        assert "d_" not in text
    assert written(cf.cells.lstm.step_without_bias, "unicode")[0] == "i = σ(W_i x + R_i h)"
    assert written(cf.cells.gru.step_without_bias, "unicode")[2] == "n = tanh(W_n x + r ⊙ R_n h)"
    assert "b_" not in "\n".join(written(cf.cells.layer_norm_lstm.step, "unicode"))
    assert "b_i" in "\n".join(written(cf.cells.slstm.step, "unicode"))


def test_an_input_product_without_bias_binds_as_a_recurrent_one():
    def own(gate, h):
        return gate.n.x**2 + 3 * gate.f.x + gate.f.h - gate.n.h

    cell = cf.cell(gates="fn", source="none")(own)
    assert written(cell.step_without_bias, "unicode") == ["h′ = W_n x ⊙ W_n x + 3 ⊙ W_f x + R_f h − R_n h"]


def test_the_facts_of_a_graph_stay_with_it():
    step = cf.cells.lstm.step_without_bias
    assert not step.has_input_bias
    assert not simplify(step).has_input_bias
    assert not backward(step).has_input_bias


def test_names_of_several_letters_have_braces_in_latex():
    assert written(wordy.step, "latex")[0] == (
        r"i = \sigma\left(W_{in\_gate} x + b_{in\_gate} + R_{in\_gate} h + d_{in\_gate}\right)"
    )
    assert written(wordy.step, "unicode")[0] == "i = σ(W_in_gate x + b_in_gate + R_in_gate h + d_in_gate)"
    assert r"10^{-5}" in written(wordy.step, "latex")[1]
