"""What can be traced equals torch on tensors; what cannot names the user's line and what to write."""

import functools
import linecache
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cellfuse as cf
from cellfuse.errors import CellError, TraceError
from cellfuse.graph import trace
from cellfuse.graph.backward import backward
from cellfuse.graph.expr import leaf
from cellfuse.graph.graph import Graph
from cellfuse.graph.interpret import interpret
from cellfuse.graph.trace import TORCH, Symbol
from cellfuse.runtime.torch_text import torch_function

TWO = torch.tensor(2.0, dtype=torch.float64)  # a number that happens to be a tensor

# For every name of trace.TORCH the ways to write it: functions of a, b (any number) and p (above 0).
FORMS = {
    "abs": [lambda a, b, p: torch.abs(a), lambda a, b, p: a.abs(), lambda a, b, p: torch.abs(input=a)],
    "absolute": [lambda a, b, p: torch.absolute(a)],
    "sign": [lambda a, b, p: torch.sign(a), lambda a, b, p: a.sign()],
    "sqrt": [lambda a, b, p: torch.sqrt(p), lambda a, b, p: p.sqrt()],
    "exp": [lambda a, b, p: torch.exp(a), lambda a, b, p: a.exp()],
    "log": [lambda a, b, p: torch.log(p), lambda a, b, p: p.log()],
    "expm1": [
        lambda a, b, p: torch.expm1(a),
        lambda a, b, p: torch.special.expm1(a),
        lambda a, b, p: a.expm1(),
    ],
    "sin": [lambda a, b, p: torch.sin(a), lambda a, b, p: a.sin()],
    "cos": [lambda a, b, p: torch.cos(a), lambda a, b, p: a.cos()],
    "erf": [lambda a, b, p: torch.erf(a), lambda a, b, p: torch.special.erf(a)],
    "tanh": [lambda a, b, p: torch.tanh(a), lambda a, b, p: a.tanh(), lambda a, b, p: F.tanh(a)],
    "sigmoid": [
        lambda a, b, p: torch.sigmoid(a),
        lambda a, b, p: torch.sigmoid(input=a),
        lambda a, b, p: a.sigmoid(),
        lambda a, b, p: F.sigmoid(a),
        lambda a, b, p: torch.nn.Sigmoid()(a),
    ],
    "expit": [lambda a, b, p: torch.special.expit(a)],
    "relu": [
        lambda a, b, p: torch.relu(a),
        lambda a, b, p: a.relu(),
        lambda a, b, p: F.relu(a),
        lambda a, b, p: F.relu(a, inplace=False),
    ],
    "neg": [lambda a, b, p: torch.neg(a), lambda a, b, p: a.neg()],
    "negative": [lambda a, b, p: torch.negative(a)],
    "detach": [lambda a, b, p: a.detach() * b, lambda a, b, p: torch.detach(a) * b],
    "logical_not": [lambda a, b, p: torch.where(torch.logical_not(a > 0), a, b)],
    "bitwise_not": [lambda a, b, p: torch.where(torch.bitwise_not(a > 0), a, b)],
    "logical_and": [
        lambda a, b, p: torch.where(torch.logical_and(a > 0, b > 0), a, b),
        lambda a, b, p: torch.where((a > 0).logical_and(b > 0), a, b),
    ],
    "logical_or": [lambda a, b, p: torch.where(torch.logical_or(a > 0, b > 0), a, b)],
    "__and__": [lambda a, b, p: torch.where(direct("__and__", a > 0, b > 0), a, b)],
    "__or__": [lambda a, b, p: torch.where(direct("__or__", a > 0, b > 0), a, b)],
    "maximum": [lambda a, b, p: torch.maximum(a, b), lambda a, b, p: a.maximum(b)],
    "minimum": [lambda a, b, p: torch.minimum(a, b), lambda a, b, p: torch.minimum(input=a, other=b)],
    "lt": [lambda a, b, p: torch.where(torch.lt(a, b), a, 1.0)],
    "le": [lambda a, b, p: torch.where(a.le(1), a, b)],
    "gt": [lambda a, b, p: torch.where(torch.gt(a, 0.0), a, b)],
    "ge": [lambda a, b, p: torch.where(torch.ge(a, other=b), a, b)],
    "eq": [lambda a, b, p: torch.where(torch.eq(a, 3.0), b, a)],
    "ne": [lambda a, b, p: torch.where(a.ne(3.0), b, a)],
    "less": [lambda a, b, p: torch.where(torch.less(a, b), a, b)],
    "greater": [lambda a, b, p: torch.where(torch.greater(a, b), a, b)],
    "less_equal": [lambda a, b, p: torch.where(torch.less_equal(a, b), a, b)],
    "greater_equal": [lambda a, b, p: torch.where(torch.greater_equal(a, b), a, b)],
    "not_equal": [lambda a, b, p: torch.where(torch.not_equal(a, b), a, b)],
    "add": [
        lambda a, b, p: torch.add(a, b),
        lambda a, b, p: torch.add(a, b, alpha=2),
        lambda a, b, p: a.add(1.5),
        lambda a, b, p: TWO + a,
        lambda a, b, p: torch.add(input=a, other=b),
    ],
    "sub": [
        lambda a, b, p: torch.sub(a, b, alpha=0.5),
        lambda a, b, p: a.sub(b),
        lambda a, b, p: TWO - a,
    ],
    "subtract": [lambda a, b, p: torch.subtract(a, b), lambda a, b, p: a.subtract(b, alpha=3)],
    "rsub": [lambda a, b, p: torch.rsub(a, b), lambda a, b, p: torch.rsub(a, 1, alpha=3)],
    "mul": [lambda a, b, p: torch.mul(a, b), lambda a, b, p: a.mul(2), lambda a, b, p: TWO * a],
    "multiply": [lambda a, b, p: torch.multiply(a, b)],
    "div": [lambda a, b, p: torch.div(a, p), lambda a, b, p: a.div(2), lambda a, b, p: TWO / p],
    "divide": [lambda a, b, p: torch.divide(a, p)],
    "true_divide": [lambda a, b, p: torch.true_divide(a, p)],
    "pow": [
        lambda a, b, p: torch.pow(a, 3),
        lambda a, b, p: torch.pow(a, exponent=2),
        lambda a, b, p: torch.pow(2, a),
        lambda a, b, p: torch.pow(p, b),
        lambda a, b, p: p.pow(0.5),
        lambda a, b, p: TWO**a,
    ],
    "__radd__": [lambda a, b, p: direct("__radd__", a, b)],
    "__rmul__": [lambda a, b, p: direct("__rmul__", a, b)],
    "__rsub__": [lambda a, b, p: torch.Tensor.__rsub__(TWO, a)],
    "__rdiv__": [lambda a, b, p: torch.Tensor.__rdiv__(TWO, a)],
    "__rpow__": [lambda a, b, p: torch.Tensor.__rpow__(TWO, p)],
    "where": [
        lambda a, b, p: torch.where(a > b, a, b),
        lambda a, b, p: torch.where(a > 0, 1.0, b),
        lambda a, b, p: torch.where(a > 0, a, 0),
        lambda a, b, p: torch.where(condition=a > 0, input=a, other=b),
        lambda a, b, p: a * torch.where(b > 0, 1.0, -1.0),
        lambda a, b, p: torch.where(a > 0, TWO, b),
    ],
    "reciprocal": [lambda a, b, p: torch.reciprocal(p), lambda a, b, p: p.reciprocal()],
    "rsqrt": [lambda a, b, p: torch.rsqrt(p), lambda a, b, p: p.rsqrt()],
    "square": [lambda a, b, p: torch.square(a), lambda a, b, p: a.square()],
    "log1p": [lambda a, b, p: torch.log1p(p), lambda a, b, p: torch.special.log1p(p)],
    "tan": [lambda a, b, p: torch.tan(a)],
    "sinh": [lambda a, b, p: torch.sinh(a)],
    "cosh": [lambda a, b, p: torch.cosh(a)],
    "sum": [
        lambda a, b, p: torch.sum(a, -1, True) * b,
        lambda a, b, p: a.sum(dim=-1, keepdim=True) * b,
        lambda a, b, p: a.sum((-1,), keepdim=True) * b,
        lambda a, b, p: torch.sum(a, dim=[-1], keepdim=True) * b,
    ],
    "mean": [lambda a, b, p: a.mean(-1, keepdim=True) * b, lambda a, b, p: torch.mean(a, -1, True) * b],
    "var": [
        lambda a, b, p: a.var(-1, keepdim=True) * b,
        lambda a, b, p: torch.var(a, -1, False, True) * b,
        lambda a, b, p: torch.var(a, dim=-1, unbiased=False, keepdim=True) * b,
        lambda a, b, p: torch.var(a, -1, correction=0, keepdim=True) * b,
        lambda a, b, p: torch.var(a, -1, correction=2, keepdim=True) * b,
    ],
    "std": [
        lambda a, b, p: a.std(-1, keepdim=True) * b,
        lambda a, b, p: torch.std(a, -1, correction=0, keepdim=True) * b,
    ],
    "amax": [lambda a, b, p: a.amax(-1, keepdim=True) * b, lambda a, b, p: torch.amax(a, -1, True) * b],
    "amin": [lambda a, b, p: a.amin(-1, keepdim=True) * b],
    "softmax": [
        lambda a, b, p: torch.softmax(a, -1),
        lambda a, b, p: torch.softmax(a, dim=-1),
        lambda a, b, p: F.softmax(a, -1),
        lambda a, b, p: a.softmax(-1),
        lambda a, b, p: torch.special.softmax(a, -1),
        lambda a, b, p: torch.nn.Softmax(-1)(a),
    ],
    "log_softmax": [
        lambda a, b, p: torch.log_softmax(a, -1),
        lambda a, b, p: F.log_softmax(a, dim=-1),
        lambda a, b, p: a.log_softmax(-1),
    ],
    "cumsum": [lambda a, b, p: torch.cumsum(a, -1), lambda a, b, p: a.cumsum(dim=-1)],
    "layer_norm": [
        lambda a, b, p: F.layer_norm(a, a.shape[-1:]),
        lambda a, b, p: F.layer_norm(a, (a.shape[-1],), eps=0.1),
        lambda a, b, p: F.layer_norm(a, [a.shape[-1]]) * b,
    ],
    "clamp": [
        lambda a, b, p: torch.clamp(a, -1, 1),
        lambda a, b, p: torch.clamp(a, min=0),
        lambda a, b, p: a.clamp(max=3.0),
        lambda a, b, p: torch.clamp(a, max=b),
        lambda a, b, p: torch.clamp(input=a, min=b, max=p),
        lambda a, b, p: torch.clamp(a, 1, -1),
    ],
    "clip": [lambda a, b, p: a.clip(-1, 1), lambda a, b, p: torch.clip(a, min=-3.0)],
    "hardtanh": [lambda a, b, p: F.hardtanh(a), lambda a, b, p: F.hardtanh(a, -3.0, 1.0)],
    "relu6": [lambda a, b, p: F.relu6(a)],
    "hardsigmoid": [lambda a, b, p: F.hardsigmoid(a)],
    "hardswish": [lambda a, b, p: F.hardswish(a)],
    "leaky_relu": [lambda a, b, p: F.leaky_relu(a), lambda a, b, p: F.leaky_relu(a, 0.2)],
    "elu": [lambda a, b, p: F.elu(a), lambda a, b, p: F.elu(a, alpha=0.5)],
    "gelu": [lambda a, b, p: F.gelu(a), lambda a, b, p: F.gelu(a, approximate="tanh")],
    "silu": [lambda a, b, p: F.silu(a)],
    "mish": [lambda a, b, p: F.mish(a)],
    "softplus": [
        lambda a, b, p: F.softplus(a),
        lambda a, b, p: F.softplus(a, beta=2),
        lambda a, b, p: F.softplus(a, 2, 1),
    ],
    "softsign": [lambda a, b, p: F.softsign(a)],
    "tanhshrink": [lambda a, b, p: F.tanhshrink(a)],
    "logsigmoid": [lambda a, b, p: direct("logsigmoid", a)],
    "log_sigmoid": [lambda a, b, p: F.logsigmoid(a), lambda a, b, p: torch.nn.LogSigmoid()(a)],
    "lerp": [
        lambda a, b, p: torch.lerp(a, b, 0.3),
        lambda a, b, p: a.lerp(b, weight=p),
        lambda a, b, p: torch.lerp(a, b, weight=p),
    ],
    "addcmul": [lambda a, b, p: torch.addcmul(a, b, p), lambda a, b, p: a.addcmul(b, p, value=2)],
    "zeros_like": [lambda a, b, p: torch.zeros_like(a) + b],
    "ones_like": [lambda a, b, p: torch.ones_like(a) * b],
    "full_like": [lambda a, b, p: torch.full_like(a, 2.5) * b],
    "clone": [lambda a, b, p: a.clone(), lambda a, b, p: torch.clone(a)],
    "contiguous": [lambda a, b, p: a.contiguous()],
}

# Python's operators, which do not go through torch.
OPERATORS = [
    lambda a, b, p: 1 - a,
    lambda a, b, p: a - 1.5,
    lambda a, b, p: a**2,
    lambda a, b, p: 2**a,
    lambda a, b, p: p**b,
    lambda a, b, p: -a + +b,
    lambda a, b, p: 1 / p + a / 2,
    lambda a, b, p: abs(a) * 2 * b,
    lambda a, b, p: sum([a, b, p]),
    lambda a, b, p: torch.where(a < b, a, 2 * b),
    lambda a, b, p: torch.where(a <= 1, a, b),
    lambda a, b, p: torch.where(1 > a, a, b),
    lambda a, b, p: torch.where(b >= a, a, b),
    lambda a, b, p: torch.where(a == 3, b, a),
    lambda a, b, p: torch.where(a != 3, b, a),
    lambda a, b, p: torch.where((a > 0) & (b > 0), a, b),
    lambda a, b, p: torch.where((a > 0) | ~(b > 0), a, b),
    lambda a, b, p: a / a.shape[-1] ** 0.5,
    lambda a, b, p: TWO >= a,
]
FORMS_LIST = [pytest.param(n, f, id=f"{n}-{k}") for n, each in FORMS.items() for k, f in enumerate(each)]
FORMS_LIST += [pytest.param("", f, id=f"operator-{k}") for k, f in enumerate(OPERATORS)]


def direct(name, *args):
    """A name by which torch 2.13 asks for nothing: `a + b` comes as add, F.logsigmoid as log_sigmoid."""
    if isinstance(args[0], Symbol):
        return trace.call(name, args, {})
    return getattr(F, name)(*args) if hasattr(F, name) else getattr(args[0], name)(*args[1:])


def values():
    """Two random rows and, first, the values at which some function has a kink; b is equal to a in places."""
    a, b = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    a[0] = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 6.0])
    b[0] = torch.tensor([-3.0, 2.0, 0.0, -1.0, 3.0, 1.0])
    return [v.requires_grad_() for v in (a, b, torch.rand(3, 6, dtype=torch.float64) + 0.3)]


def traced(function):
    leaves = [leaf(label, ("H",), "state") for label in "abp"]
    result = function(*(Symbol(expr) for expr in leaves))
    return Graph("traced", tuple(leaves), (("y", trace.expr_of(result)),))


@pytest.mark.parametrize(("name", "function"), FORMS_LIST)
def test_value_and_gradient_are_those_of_torch(monkeypatch, name, function):
    called = []
    for each, row in list(TORCH.items()):
        monkeypatch.setitem(
            TORCH, each, lambda *args, _n=each, _r=row, **kw: (called.append(_n), _r(*args, **kw))[1]
        )
    graph = traced(function)
    assert not name or name in called
    tensors, size = values(), {"H": torch.tensor(6.0, dtype=torch.float64)}
    want, got = function(*tensors), torch_function(graph)(*tensors, size)[0]
    torch.testing.assert_close(got.expand_as(want), want, rtol=1e-12, atol=1e-12)
    plain = dict(zip("abp", (v.detach().numpy() for v in tensors), strict=True))
    (defined,) = interpret(graph, plain, {"H": 6})
    np.testing.assert_allclose(np.broadcast_to(defined, want.shape), want.detach(), rtol=1e-12, atol=1e-12)
    if want.requires_grad:
        seed = torch.randn_like(want)
        ours = torch.autograd.grad(got, tensors, seed, allow_unused=True, materialize_grads=True)
        theirs = torch.autograd.grad(want, tensors, seed, allow_unused=True, materialize_grads=True)
        for one, other in zip(ours, theirs, strict=True):
            # torch divides by a float32 6 in hardsigmoid's gradient
            torch.testing.assert_close(one, other, rtol=1e-7 if name == "hardsigmoid" else 1e-11, atol=1e-11)


@pytest.mark.parametrize("function", FORMS["clamp"] + FORMS["clip"])
def test_clamp_at_nan_and_infinity_is_torchs(function):
    odd = [torch.nan, torch.inf, -torch.inf, 0.0, 1.0, -1.0]
    tensors = [torch.tensor(v, dtype=torch.float64).requires_grad_() for v in (odd, odd[::-1], [2.0] * 6)]
    graph = traced(function)
    want = function(*tensors)
    (got,) = torch_function(graph)(*tensors, {"H": torch.tensor(6.0, dtype=torch.float64)})
    torch.testing.assert_close(got, want, equal_nan=True)
    theirs = torch.autograd.grad(want.sum(), tensors, allow_unused=True, materialize_grads=True)
    ours = torch.autograd.grad(got.sum(), tensors, allow_unused=True, materialize_grads=True)
    plain = dict(zip("abp", (v.detach().numpy() for v in tensors), strict=True)) | {"d(y)": np.ones(6)}
    defined = interpret(backward(graph), plain, {"H": 6})
    for eager, third, other in zip(ours, defined, theirs, strict=True):
        assert torch.equal(eager, other)
        np.testing.assert_array_equal(np.broadcast_to(third, 6), other)


def test_every_traceable_function_has_a_form():
    assert set(FORMS) == set(TORCH)


def test_gradient_of_std_of_equal_units_is_0_as_in_torch():
    same = torch.ones(2, 6, dtype=torch.float64, requires_grad=True)
    graph = traced(lambda a, b, p: a.std(-1, keepdim=True) * b)
    made = torch_function(graph)(same, same, same, {"H": torch.tensor(6.0, dtype=torch.float64)})[0]
    (got,) = torch.autograd.grad(made.sum(), same)
    (want,) = torch.autograd.grad((same.std(-1, keepdim=True) * same).sum(), same)
    assert torch.equal(got, want)


KNOWN = ", ".join(sorted(name for name in TORCH if not name.startswith("__")))
ARITHMETIC = "an expression of +, -, *, /, **, comparisons and torch functions"
BRANCH = (
    "a traced value was used in an `if`, `while`, `and`, `or` or `assert`. The cell is recorded once and its "
    "values are not known then.",
    "torch.where(condition, a, b)",
)
NUMBER = (
    "a traced value was turned into a Python number (math.tanh, float(), round() do that).",
    "the torch function, such as torch.tanh(value)",
)
OPERATOR = ("an operator that a cell's graph does not have (%, //, ^, round and the like).", ARITHMETIC)
BATCH = ("the batch size was used in a cell.", "an expression per sequence")
ITERATED = ("a traced value was iterated over.", "element-wise operations on the whole value")
INDEXED = (
    "a traced value was indexed; a cell works on all units at once.",
    "separate gates or states for the parts",
)
IN_PLACE = (
    "`+=`, `-=`, `*=` or `/=` changes a value in place, which would change the caller's state when the cell "
    "is called with tensors.",
    "h = h + value",
)
MATRIX = (
    "`@` between values of a cell. A cell's matrices belong to its gates.",
    "gate.k.of(value), which multiplies by the recurrent matrix of gate k",
)
LEARNED = (
    "a tensor from outside that needs a gradient was used in a cell.",
    'declare it: @cell(parameters={"p": cf.scalar(0.0)}) and take p as an argument',
)
OUTSIDE = (
    "a tensor of shape [3] from outside was used in a cell.",
    'declare it: @cell(parameters={"p": cf.per_unit(0.0)}) and take p as an argument',
)
TRUE = ("True or False was used as a number.", "1.0 or 0.0, or torch.where(condition, a, b)")
DROPPED = (
    "a reduction over the units that drops the axis; the result would not combine with other values.",
    "the reduction with dim=-1, keepdim=True",
)
CONDITION = "needs a condition such as a > b, got a number. Write the comparison."
ON_TRUTH = (
    "got a true/false value where a number is needed. "
    "Write torch.where(condition, a, b) instead of arithmetic on a comparison."
)


def unknown(name, near=""):
    hint = f" Similar ones that can: {near}." if near else ""
    return f"torch's `{name}` cannot be part of a cell.{hint} All that can: {KNOWN}.", ""


def attribute(name, near=""):
    hint = f" Similar ones that can: {near}." if near else ""
    return (
        f"`.{name}` of a value is not known while a cell is traced.{hint}",
        "an expression in the gates, states and parameters",
    )


def changes(name):
    return f"`{name}` changes a value in place.", f"the form without change: {name.rstrip('_')}"


def random(name):
    return (
        f"torch.{name} draws random numbers, which a cell's graph cannot hold.",
        "the layer's dropout= option, or pass the noise in as part of the input",
    )


def axis(dim):
    return f"a reduction over dim={dim}; a cell can reduce over its units only.", "dim=-1"


# A line that cannot be part of a cell -> what was done, and what to write instead.
REFUSED = {
    "if h > 0: h = f": BRANCH,
    "while f: h = f": BRANCH,
    "assert (h < 1)": BRANCH,
    "h = h if f > h else f": BRANCH,
    "h = f and h": BRANCH,
    "h = max(f, h)": BRANCH,
    "h = 0 < h < 1": BRANCH,
    "h = math.tanh(h)": NUMBER,
    "h = float(h)": NUMBER,
    "h = int(h) + f": NUMBER,
    "h = range(h)": NUMBER,
    "h = round(h)": OPERATOR,
    "h = h % 2": OPERATOR,
    "h = 2 // h": OPERATOR,
    "h = (h > 0) ^ (f > 0)": OPERATOR,
    "h = list(h)": ITERATED,
    "a, b = h": ITERATED,
    "h = len(h) * f": ITERATED,
    "h = 1.0 in h": ITERATED,
    "h = h[0]": INDEXED,
    "h = h[:, 1:]": INDEXED,
    "h[0] = 1": ("a traced value was changed in place.", "torch.where(condition, new, old)"),
    "h += f": IN_PLACE,
    "h *= 2": IN_PLACE,
    "h = h.item()": attribute("item"),
    "h = h.numpy()": attribute("numpy"),
    "h = h.dtype": attribute("dtype"),
    "h = h.view(2, 2)": attribute("view"),
    "h = h.size(-1)": attribute("size"),
    "h = h * h.shape[0]": BATCH,
    "h = h / h.shape[0]": BATCH,
    "h = range(h.shape[0])": BATCH,
    "h = h.sigmod()": attribute("sigmod", "sigmoid, logsigmoid, log_sigmoid"),
    "print(f'{h:.2f}')": (
        "a traced value was formatted as a number (.2f).",
        "print(value), which shows the operation",
    ),
    "h = gate['n']": ("gate['n']: the gates are attributes.", "gate.n"),
    "h = gate[0]": ("gate[0]: the gates are attributes.", "gate.f"),
    "h = sum(g for g in gate)": (
        "`gate` was iterated over; the gates are attributes.",
        "[gate.f, gate.n]",
    ),
    "h = h * len(gate)": ("`gate` was iterated over; the gates are attributes.", "[gate.f, gate.n]"),
    "h = h if 'k' in gate else f": (
        "`gate` was iterated over; the gates are attributes.",
        "[gate.f, gate.n]",
    ),
    "h.data = f": ("`.data = ...` changes a value in place.", "a new value under a new name"),
    "h = h.add_(f)": changes("add_"),
    "h = torch.sigmoid_(h)": changes("sigmoid_"),
    "h = F.relu(h, inplace=True)": changes("relu"),
    "h = torch.exp(h, out=f)": changes("exp"),
    "h = torch.heaviside(h, f)": unknown("heaviside"),
    "h = torch.cat([h, f], -1)": unknown("cat"),
    "h = torch.zeros(h.shape[-1]) + h": unknown("zeros", "zeros_like"),
    "h = F.linear(h, torch.ones(3, 3))": unknown("linear", "lerp"),
    "h = torch.nn.Linear(3, 3)(h)": unknown("linear", "lerp"),
    "h = torch.max(h)": unknown("max", "amax, softmax, maximum"),
    "h = h @ f": MATRIX,
    "h = torch.ones(3, 3) @ h": unknown("matmul", "mul, maximum, addcmul"),
    "h = F.dropout(h, 0.5)": random("dropout"),
    "h = h + torch.rand_like(h)": random("rand_like"),
    "h = torch.bernoulli(f)": random("bernoulli"),
    "h = h.bernoulli()": random("bernoulli"),
    "h = h * torch.ones(3)": OUTSIDE,
    "h = torch.where(h > 0, h, torch.ones(3))": OUTSIDE,
    "h = h * torch.ones((), requires_grad=True)": LEARNED,
    "h = h * torch.ones(3, requires_grad=True)": LEARNED,
    "h = h * torch.nn.Parameter(torch.ones(()))": LEARNED,
    "h = h + True": TRUE,
    "h = h + None": ("a NoneType was used where a value of the time step is needed.", ""),
    "h = h * '2'": ("a str was used where a value of the time step is needed.", ""),
    "h = h.sum()": axis(None),
    "h = h.sum(0, keepdim=True)": axis(0),
    "h = torch.softmax(h, 0)": axis(0),
    "h = h.cumsum(1)": axis(1),
    "h = h - h.mean(-1)": DROPPED,
    "h = torch.amax(h, -1)": DROPPED,
    "h = F.layer_norm(h, (2, 3))": ("layer_norm over more than the units.", "F.layer_norm(v, v.shape[-1:])"),
    "h = F.layer_norm(h, (7,))": (
        "layer_norm over 7 units; a layer may have any number.",
        "F.layer_norm(v, v.shape[-1:])",
    ),
    "h = torch.nn.LayerNorm(7)(h)": (
        "layer_norm over 7 units; a layer may have any number.",
        "F.layer_norm(v, v.shape[-1:])",
    ),
    "h = h * (f > 0)": ("`mul` " + ON_TRUTH, ""),
    "h = torch.tanh(h > 0)": ("`tanh` " + ON_TRUTH, ""),
    "h = torch.where(h, f, 0.0)": ("`where` " + CONDITION, ""),
    "h = ~h": ("`not` " + CONDITION, ""),
    "h = h & f": ("`and` " + CONDITION, ""),
    "h = np.tanh(h)": ("NumPy's tanh was used on a traced value.", "the torch function"),
    "h = np.float64(2) * h": ("NumPy's multiply was used on a traced value.", "the torch function"),
    "h = gate.k * h": ("gate.k: the gates of wrong are f n.", ""),
    "h = gate.x * h": ("gate.x: the gates of wrong are f n.", "gate.f.x"),
    "h = gate.project(h)": (
        "gate.project needs a projected state.",
        '@cell(..., projected="h")',
    ),
    "h = gate.f.of(f * h)": (
        "gate f multiplies two different values by its one recurrent matrix R_f.",
        "a further gate for the second value: it may have a recurrent part only",
    ),
    "h = gate.f.of('h')": ("a str was used where a value of the time step is needed.", ""),
    "h = torch.softmax(h, -1, dtype=torch.float64)": (
        "torch's `softmax` was called with arguments that a cell cannot hold: "
        "_softmax() got an unexpected keyword argument 'dtype'",
        "",
    ),
    "with torch.no_grad(): h = h * 2": ("torch.no_grad() has no effect on a cell's graph.", "value.detach()"),
    "h = torch.zeros(h.shape) + h": (
        "a call in a cell failed: zeros(): argument 'size' (position 1) must be tuple of ints, "
        "but found element of type _Batch at pos 0",
        "",
    ),
    "h = {h: 1}": ("a call in a cell failed: unhashable type: 'Symbol'", ""),
    "h = f(h)": ("a call in a cell failed: 'Symbol' object is not callable", ""),
}

FILE = """import math
import numpy as np
import torch
import torch.nn.functional as F
import cellfuse as cf

@cf.cell(gates="fn", states="h", source="none: a cell of the tests")
def wrong(gate, h):
    f = torch.sigmoid(gate.f)
    {line}
    return f * h + gate.n
"""


def execute(file, text):
    """Run a Python file with this text; what it defines."""
    file.write_text(text)
    names = {"__name__": file.stem}
    exec(compile(text, str(file), "exec"), names)
    return names


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_traced_names_the_line_and_what_to_write(tmp_path, line):
    problem, instead = REFUSED[line]
    with pytest.raises(TraceError) as caught:
        execute(tmp_path / "wrong.py", FILE.format(line=line))
    text = f"{problem}\n  wrong.py, line 10, in wrong:  {line}"
    assert str(caught.value) == text + (f"\n  Write instead: {instead}" if instead else "")


def test_every_in_place_operator_and_random_function_is_refused():
    h = Symbol(leaf("h", ("H",), "state"))
    for name in ("iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior"):
        with pytest.raises(TraceError, match="changes a value in place"):
            getattr(h, f"__{name}__")(h)
    for name in trace._RANDOM:
        with pytest.raises(TraceError, match="draws random numbers"):
            getattr(h, name)()


def test_the_line_may_be_in_a_function_of_another_file(tmp_path):
    (tmp_path / "apart.py").write_text("def clipped(h):\n    return h if h < 1 else 1\n")
    names = execute(tmp_path / "apart.py", (tmp_path / "apart.py").read_text())

    def outer(gate, h):
        return names["clipped"](gate.f + gate.n + h)

    with pytest.raises(TraceError, match=r"apart\.py, line 2, in clipped:  return h if h < 1 else 1\n"):
        cf.cell(gates="fn", source="none")(outer)


@pytest.mark.parametrize("prompt", ["<stdin>", "<ipython-input-3-abc>", "<python-input-0>"])
def test_the_line_may_be_typed_at_a_prompt(prompt):
    text = FILE.format(line="h = h[0]")
    linecache.cache[prompt] = (len(text), None, text.splitlines(keepends=True), prompt)
    with pytest.raises(TraceError, match=re.escape(f"\n  {prompt}, line 10, in wrong:  h = h[0]\n")):
        exec(compile(text, prompt, "exec"), {"__name__": "prompt"})
    del linecache.cache[prompt]
    with pytest.raises(TraceError, match=re.escape(f"\n  {prompt}, line 10, in wrong\n")):
        exec(compile(text, prompt, "exec"), {"__name__": "prompt"})


def test_the_tracer_leaves_the_profiler_and_other_errors_as_they_were():
    before = sys.getprofile()

    def broken(gate, h):
        return gate.f + gate.n + misspelled  # noqa: F821

    with pytest.raises(NameError, match="misspelled"):
        cf.cell(gates="fn", source="none")(broken)
    assert sys.getprofile() is before


# Functions whose shape of a cell is wrong; the facts are gates="fn", states="hc" unless given.


def good(gate, h, c):
    return torch.tanh(gate.f + gate.n), c + h


def missing_state(gate, h, c):
    return torch.tanh(gate.f + gate.n)


def a_list(gate, h, c):
    return [gate.f + h, gate.n + c]


def nothing_returned(gate, h, c):
    gate.f + gate.n + h + c


def truth_as_state(gate, h, c):
    return gate.f + gate.n, c > h


def truth_as_output(gate, h, c):
    return gate.f > gate.n, (h, c)


def gate_unused(gate, h, c):
    return gate.f * h, c


def parameter_unused(gate, h, c, p):
    return good(gate, h, c)


def parameter_R(gate, h, c, R_f):
    return gate.f + gate.n + R_f, c


def with_weight(gate, h, c, weight_hh):
    return gate.f + gate.n + weight_hh, c


def with_n(gate, h, c, n):
    return gate.f + gate.n + n, c


def without_gate(h, c):
    return h, c


def swapped(gate, c, h):
    return h, c


def keyword_only(gate, h, *, c):
    return gate.f + gate.n, c


def gathered(gate, h, *c):
    return gate.f + gate.n, c


def of_wrong_width(gate, h, c):
    return torch.tanh(gate.f + gate.n), c


def mixed_widths(gate, h, c):
    return gate.project(gate.f + gate.n) * c, c


def with_p(gate, h, c, p):
    return p.f * gate.f + p.n * gate.n, c


def two_widths(gate, h, c):
    return gate.project(gate.f), gate.n.x + gate.n.of(c)


def no_such_part(gate, h, c, p):
    return gate.f + gate.n + p.k, c


STRUCTURE = [
    (
        missing_state,
        {},
        "missing_state: takes 2 state(s) (h, c) but returns 1. Return the new value of every state, in the "
        "order they are taken; if the output is none of them, return output, (state, ...).",
    ),
    (
        a_list,
        {"states": "h"},
        "a_list: the function takes (gate, h, c); with these states and parameters it must take (gate, h)",
    ),
    (nothing_returned, {}, "nothing_returned: takes 2 state(s) (h, c) but returns 1. Return"),
    (truth_as_state, {}, "truth_as_state: state c is true or false; return torch.where(c, 1.0, 0.0)"),
    (truth_as_output, {}, "truth_as_output: the output is true or false; return torch.where(c, 1.0, 0.0)"),
    (gate_unused, {}, "gate_unused: gate n is never used; leave it out of gates=."),
    (
        parameter_unused,
        {"parameters": {"p": cf.scalar(0.0)}},
        "parameter_unused: parameter p is never used; leave it out.",
    ),
    (
        parameter_R,
        {"parameters": {"R_f": cf.per_unit(0.0)}},
        "parameter_R: R_f is a name of every layer's own",
    ),
    (
        with_weight,
        {"parameters": {"weight_hh": cf.per_unit(0.0)}},
        "weight_hh is a name of every layer's own",
    ),
    (
        with_n,
        {"parameters": {"n": cf.per_unit(0.0)}},
        "with_n: a gate or state has the parameter's name n already",
    ),
    (
        without_gate,
        {},
        "the function takes (h, c); with these states and parameters it must take (gate, h, c)",
    ),
    (
        swapped,
        {},
        "the function takes (gate, c, h); with these states and parameters it must take (gate, h, c)",
    ),
    (keyword_only, {}, "keyword_only: the function takes (gate, h, keyword-only c)"),
    (gathered, {}, "gathered: the function takes (gate, h, variadic positional c)"),
    (
        of_wrong_width,
        {"projected": "h"},
        "state h is [P] but its new value is [H]. gate.project(v) makes the state named",
    ),
    (
        mixed_widths,
        {"projected": "h"},
        "values of the shapes [H] and [P] cannot be combined element by element",
    ),
    (
        two_widths,
        {"projected": "h"},
        "gate f multiplies a value of P units by its recurrent matrix and gate n one of H. The matrices are "
        "rows of one weight_hh, so they are equally wide.\n  test_trace.py, line",
    ),
    (
        two_widths,
        {"projected": "h"},
        "Write instead: gate.n.of(gate.project(value)), which brings it to P units",
    ),
    (no_such_part, {"parameters": {"p": cf.per_gate(0.0)}}, "p.k: the gates are f n."),
    (
        good,
        {"source": ""},
        "good: say where the equation is from: source='Zhou et al. 2016, arXiv:1603.09420'",
    ),
    (
        functools.partial(with_p, p=1.0),
        {},
        "@cell takes a function written with def, got a partial. Write a function of one time step; values",
    ),
    (torch.nn.Identity(), {}, "got a Identity. Write a function"),
    (cf.cells.mgu, {}, "@cell takes a function written with def, got a cell already."),
    (good, {"gates": "ff"}, "gates='ff': a name appears twice"),
    (good, {"gates": "f-"}, "gates='f-': '-' is not a name such as 'f' or 'forget'"),
    (good, {"gates": ""}, "good: a cell needs at least one gate, such as gates='n'"),
    (good, {"states": ""}, "good: a recurrent cell needs at least one state, such as states='h'"),
    (good, {"gates": ("f", "n", "project")}, "gate.project is the projection; call the gate otherwise"),
    (good, {"recurrence": "sparse"}, "recurrence='sparse'; use one of ('dense', 'diagonal', 'blocks')"),
    (good, {"biases": "hh"}, "use 'ih', 'hh' or both"),
    (good, {"projected": "n"}, "projected='n' is not one of ('h', 'c')"),
    (
        good,
        {"initial": {"bias_ih.k": 1.0}},
        "initial={'bias_ih.k': ...} names nothing; this cell has bias_hh, bias_hh.f, bias_hh.n",
    ),
    (good, {"initial": {"weight_hr": 1.0}}, "initial={'weight_hr': ...} names nothing"),
    (good, {"initial": {"h.f": 1.0}}, "initial={'h.f': ...} names nothing"),
    (good, {"biases": ("ih",), "initial": {"bias_hh": 1.0}}, "initial={'bias_hh': ...} names nothing"),
    (
        good,
        {"initial": {"weight_hh": "orthogonal"}},
        "good: initial={'weight_hh': 'orthogonal'} is no initial value; use a number, a range (low, high), "
        "'uniform' for +-1/sqrt(H), or a function that fills a tensor in place, such as torch.nn.init",
    ),
    (good, {"initial": {"weight_hh.f": True}}, "initial={'weight_hh.f': True} is no initial value"),
    (good, {"initial": {"bias_ih": (1.0, 0.0)}}, "(1.0, 0.0)} is an empty range; write (0.0, 1.0)"),
    (
        good,
        {"initial": {"h": (0.0, 1.0)}},
        "good: initial={'h': (0.0, 1.0)}: a state begins with one number, such as 0.0; for other beginnings "
        "pass hx to the layer",
    ),
    (good, {"initial": {"c": "uniform"}}, "initial={'c': 'uniform'}: a state begins with one number"),
    (good, {"initial": {"c": torch.nn.init.ones_}}, "a state begins with one number"),
    (
        with_p,
        {"parameters": {"p": cf.per_gate("normal")}},
        "with_p: parameter p: 'normal' is no initial value",
    ),
    (
        with_p,
        {"parameters": {"p": cf.per_gate(1.0)}, "initial": {"p": 2.0}},
        "a parameter's initial value stands where it is declared: parameters={'p': cf.per_gate(2.0)}",
    ),
    (with_p, {"parameters": {"p": cf.per_gate(1.0)}, "initial": {"p.k": 2.0}}, "{'p.k': ...} names nothing"),
]


@pytest.mark.parametrize(("function", "facts", "text"), STRUCTURE, ids=[s[2][:40] for s in STRUCTURE])
def test_a_cell_whose_parts_do_not_fit_says_what_to_change(function, facts, text):
    with pytest.raises(CellError, match=re.escape(text)):
        cf.cell(**{"gates": "fn", "states": "hc", "source": "none"} | facts)(function)


def test_one_gates_part_of_a_parameter_has_its_own_initial_value():
    facts = {"gates": "fn", "states": "hc", "source": "none", "parameters": {"p": cf.per_gate(1.0)}}
    layer = cf.cell(**facts, initial={"p.n": 3.0})(with_p).layer(2, 2)
    assert layer.p_l0.tolist() == [1.0, 1.0, 3.0, 3.0]


def test_a_list_of_one_state_is_refused():
    with pytest.raises(TraceError, match="returned a list; return values computed from the gates"):
        cf.cell(gates="n", source="none")(lambda gate, h: [gate.n])


def test_the_users_names_and_line_stay_out_of_the_mathematics():
    """Interned: tracing again gives the same nodes, and other names for them the same graph."""

    def one(gate, h):
        f = torch.sigmoid(gate.f)
        return f * h + gate.n

    def other(gate, h):
        return torch.sigmoid(gate.f) * h + gate.n

    first, second = (cf.cell(gates="fn", source="none")(function).step for function in (one, other))
    assert first.outputs == second.outputs
    assert [name for _, name in first.names] == ["f"]
    assert second.names == ()


@cf.cell(
    gates=("x", "n"),
    parameters={"p": cf.per_gate(2.0), "p_n": cf.per_unit(3.0), "R": cf.per_gate(1.0)},
    recurrence="diagonal",
    biases=(),
    source="none: a cell of the tests, with every name that could be mistaken for another",
)
def alike(gate, h, p, p_n, R):
    return p.x * gate.x + p.n * gate.n + p_n * h + R.n + R.x


def test_names_that_look_alike_are_told_apart():
    layer = alike.layer(3, 4, dtype=torch.float64)
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    weights = dict(layer.named_parameters())
    h = torch.randn(1, 2, 4, dtype=torch.float64)
    products = x[0] @ weights["weight_ih_l0"].T + h[0].repeat(1, 2) * weights["weight_hh_l0"]
    gx, gn = products.chunk(2, -1)
    torch.testing.assert_close(layer(x, h)[0][0], 2 * gx + 2 * gn + 3 * h[0] + 2)


@cf.cell(
    gates="n",
    parameters={"shift": cf.per_unit(1.0, is_bias=True)},
    source="none: a cell of the tests; without bias its condition is on a number",
)
def switched(gate, h, shift):
    return torch.where(shift > 0.5, torch.tanh(gate.n), 0.5 * h)


def test_a_condition_on_a_missing_bias_is_false_everywhere():
    x, h = torch.randn(1, 2, 3), torch.randn(1, 2, 4)
    torch.testing.assert_close(switched.layer(3, 4, bias=False)(x, h)[1], 0.5 * h)
    assert not torch.equal(switched.layer(3, 4)(x, h)[1], 0.5 * h)
