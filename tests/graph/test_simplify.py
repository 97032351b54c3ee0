"""Each rule of simplification: what it makes of an expression, and what must stay as it is."""

import math

import numpy as np
import pytest

from cellfuse.graph.expr import constant, leaf, node
from cellfuse.graph.graph import Graph
from cellfuse.graph.interpret import interpret
from cellfuse.graph.simplify import RULES, simplify

H, N = ("H",), ()
a, b, s = leaf("a", H, "state"), leaf("b", H, "parameter"), leaf("s", N, "parameter")
minus_a, minus_b, truth = node("neg", a), node("neg", b), node("lt", a, b)

# (before, after): what a rule makes of it. The same on both sides: no rule may touch it.
CASES = {
    "add": [
        (node("add", a, 0.0), a),
        (node("add", 0.0, a), a),
        (node("add", a, minus_b), node("sub", a, b)),
        (node("add", minus_a, b), node("sub", b, a)),
        (node("add", 2.0, 3.0), constant(5.0)),
        (node("add", a, a), node("add", a, a)),
    ],
    "sub": [
        (node("sub", a, 0.0), a),
        (node("sub", a, minus_b), node("add", a, b)),
        (node("sub", a, a), node("sub", a, a)),  # NaN where a is infinite
        (node("sub", 0.0, a), node("sub", 0.0, a)),
    ],
    "mul": [
        (node("mul", a, 1.0), a),
        (node("mul", 1.0, a), a),
        (node("mul", a, -1.0), minus_a),
        (node("mul", -1.0, a), minus_a),
        (node("mul", a, 0.0), node("mul", a, 0.0)),
        (node("mul", s, 0.0), node("mul", s, 0.0)),
        (node("mul", a, s), node("mul", a, s)),
    ],
    "div": [
        (node("div", a, 1.0), a),
        (node("div", a, a), node("div", a, a)),
        (node("div", 0.0, a), node("div", 0.0, a)),
        (node("div", 0.0, s), node("div", 0.0, s)),  # NaN where s is 0
        (node("div", 1.0, 0.0), constant(math.inf)),
    ],
    "neg": [(node("neg", minus_a), a), (node("neg", 2.0), constant(-2.0))],
    "pow": [
        (node("pow", a, 1.0), a),
        (node("pow", a, 2.0), node("mul", a, a)),
        (node("pow", a, 3.0), node("pow", a, 3.0)),
        (node("pow", -1.0, 0.5), constant(math.nan)),
    ],
    "where": [
        (node("where", truth, a, a), a),
        (node("where", truth, a, b), node("where", truth, a, b)),
        (node("where", truth, s, s), node("where", truth, s, s)),  # H numbers, not one
        (node("where", node("lt", 1.0, 2.0), a, b), node("where", node("lt", 1.0, 2.0), a, b)),
    ],
    "expand": [
        (node("expand", a, b), a),
        (node("expand", s, a), node("expand", s, a)),
        (node("expand", 1.0, a), node("expand", 1.0, a)),
    ],
    "detach": [(node("detach", a), node("detach", a))],
}
LIST = [
    pytest.param(*case, id=f"{name}-{k}") for name, cases in CASES.items() for k, case in enumerate(cases)
]


@pytest.mark.parametrize(("before", "after"), LIST)
def test_rule_makes_this_and_keeps_every_value(before, after):
    graph = Graph("g", (a, b, s), (("y", before),))
    made = simplify(graph)
    assert made.results == (after,)
    odd = [np.nan, np.inf, -np.inf, 0.0, 2.0, -3.0]
    values = {"a": np.repeat(odd, 6), "b": np.tile(odd, 6), "s": np.array(-np.inf)}
    (old,), (new,) = interpret(graph, values), interpret(made, values)
    np.testing.assert_array_equal(new, old)


def test_every_rule_has_a_case():
    assert set(RULES) <= set(CASES)


def test_constants_are_folded_through_and_names_move_along():
    inner = node("mul", node("add", a, node("sub", 1.0, 1.0)), node("exp", 0.0))
    graph = Graph("g", (a, b), (("y", node("tanh", inner)),), ((inner, "v"), (node("add", b, b), "gone")))
    made = simplify(graph)
    assert made.results == (node("tanh", a),)
    assert made.names == ((a, "v"),)
