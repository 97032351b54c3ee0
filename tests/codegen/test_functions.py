"""Functions of one value in CPU kernels, and what a cell makes of them, against float64 and torch."""

import ctypes

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cellfuse.codegen.cpu.compile import _link, object_code
from cellfuse.codegen.cpu.spell import SPELL
from cellfuse.codegen.cpu.target import TARGETS, host
from cellfuse.codegen.cpu.text import Code, Module
from cellfuse.graph.expr import leaf, order
from cellfuse.graph.graph import Graph
from cellfuse.graph.interpret import interpret
from cellfuse.graph.trace import Symbol
from cellfuse.runtime.torch_text import torch_function

DTYPES = {32: np.float32, 64: np.float64}


USABLE = [name for name in ("avx512", "avx512-intel") if TARGETS[name].bytes <= host().bytes] or [host().name]


def in_kernel(graph, value, bits):
    """A graph of one input as machine code, on an array of numbers; all targets agree on what is finite."""
    first, *others = (on_target(graph, value, bits, TARGETS[name]) for name in USABLE)
    for other in others:
        assert ((np.isnan(first) == np.isnan(other)) & (np.isinf(first) == np.isinf(other))).all()
    return others[0] if others else first


def on_target(graph, value, bits, target):
    lanes = target.lanes(bits)
    code = Code(Module(bits, lanes, target.has_slow_division))
    with code.loop(0, "%count", lanes) as loop:
        known = {graph.inputs[0]: code.load("%in", loop.index)}
        for expr in order(graph.results):
            if expr.op == "constant":
                known[expr] = code.constant(expr.value)
            elif expr.op != "input":
                known[expr] = SPELL[expr.op](code, *(known[arg] for arg in expr.args))
        code.store(known[graph.results[0]], "%out", loop.index)
    code.define("run", ["ptr %in", "ptr %out", "i64 %count"], linkage="")
    engine = _link(object_code(str(code.module), target), target)
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(
        engine.get_function_address("run")
    )
    padded = np.zeros(-(-len(value) // lanes) * lanes, DTYPES[bits])
    padded[: len(value)] = value
    made = np.full_like(padded, np.nan)
    run(padded.ctypes.data, made.ctypes.data, len(padded))
    return made[: len(value)]


def traced(function):
    a = leaf("a", ("H",), "state")
    return Graph("traced", (a,), (("y", function(Symbol(a)).expr),))


def relative(got, want):
    """The largest relative error; where the wanted value is 0 or infinite, any other is infinite."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(all="ignore"):
        return float(np.where(same, 0.0, np.abs(got - want) / np.abs(want)).max())


TINY = np.concatenate([s * np.logspace(-30, -1, 200) for s in (1, -1)])
WIDE = np.concatenate([np.linspace(-80, 80, 1601)[1::2], TINY])
FUNCTIONS = {
    "elu": (F.elu, WIDE),
    "expm1": (torch.expm1, WIDE),
    "log1p": (torch.log1p, np.concatenate([np.logspace(-3, 30, 300), np.linspace(-0.99, 1, 200), TINY])),
    "sinh": (torch.sinh, WIDE),
    "sigmoid": (torch.sigmoid, WIDE),
    "softplus": (F.softplus, np.concatenate([np.linspace(-80, 19, 900), TINY])),
    "tanh": (torch.tanh, WIDE),
}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_relative_error_is_at_most_twice_torchs(name, bits):
    function, points = FUNCTIONS[name]
    points = points.astype(DTYPES[bits])
    exact = {
        "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
        "expm1": np.expm1,
        "log1p": np.log1p,
        "sinh": np.sinh,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "softplus": lambda x: np.log1p(np.exp(x)),
        "tanh": np.tanh,
    }[name](points.astype(np.longdouble))
    graph, last = traced(function), 2.0 ** {32: -23, 64: -52}[bits]
    theirs = relative(function(torch.from_numpy(points)).numpy(), exact)
    allowed = 2 * max(theirs, last)
    (eager,) = torch_function(graph)(torch.from_numpy(points), {})
    assert relative(eager.numpy(), exact) <= allowed
    assert relative(in_kernel(graph, points, bits), exact) <= allowed


HOSTILE = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 89.0, -89.0, 1000.0, -1000.0]
SINGLE = [
    "neg",
    "abs",
    "sign",
    "sqrt",
    "exp",
    "log",
    "sin",
    "cos",
    "erf",
    "tanh",
    "sigmoid",
    "relu",
    "softplus",
]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", [*SINGLE, "expm1", "log1p"])
def test_hostile_values_mean_the_same_in_a_kernel(name, bits):
    graph = traced(lambda a: getattr(Symbol, f"__{name}__")(a) if name in ("neg", "abs") else of(name, a))
    points = np.array(HOSTILE, DTYPES[bits])
    (want,) = interpret(graph, {"a": points.astype(np.float64)})
    got = in_kernel(graph, points, bits)
    with np.errstate(over="ignore"):
        want = want.astype(got.dtype)
    # Numbers below the format's ordinary ones are 0 in a kernel.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=np.finfo(got.dtype).tiny, equal_nan=True)


def of(name, a):
    return F.softplus(a) if name == "softplus" else getattr(torch, name)(a)
