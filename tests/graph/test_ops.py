"""Every row of the operation table: value, first and second derivative, shapes, spellings."""

import itertools

import numpy as np
import pytest
import torch

from cellfuse.errors import CellfuseError, ShapeError, TraceError
from cellfuse.graph import equations
from cellfuse.graph.backward import backward
from cellfuse.graph.expr import constant, leaf, node
from cellfuse.graph.graph import Graph
from cellfuse.graph.interpret import interpret
from cellfuse.graph.ops import OPS
from cellfuse.runtime import torch_text
from graph.graphs import ARGUMENTS, CASES, POSITIVE, SIZES, as_shape, of_operation, values_of, with_torch

every_operation = pytest.mark.parametrize(
    ("name", "shapes"), CASES, ids=[f"{name}-{'-'.join(''.join(s) or '1' for s in c)}" for name, c in CASES]
)


def seeded(graph, values, seed=5):
    """The same values with a random incoming gradient for each output of `graph`."""
    draw = np.random.default_rng(seed)
    made = dict(values)
    for expr in backward(graph).of_role("gradient"):
        if expr.label not in made:
            made[expr.label] = draw.standard_normal([SIZES[axis] for axis in expr.shape])
    return made


def differences(graph, values, seeds, label, step=1e-6):
    """Central finite differences of sum(seed * output) with respect to one input."""

    def total(moved):
        results = interpret(graph, values | {label: moved}, SIZES)
        pairs = zip(results, (seeds[f"d({name})"] for name, _ in graph.outputs), strict=True)
        return sum(float(np.sum(np.reshape(r, np.shape(s)) * s)) for r, s in pairs)

    base, found = np.array(values[label], float), np.zeros_like(values[label])
    for index in np.ndindex(base.shape):
        up, down = base.copy(), base.copy()
        up[index] += step
        down[index] -= step
        found[index] = (total(up) - total(down)) / (2 * step)
    return found


@every_operation
def test_value_is_torchs(name, shapes):
    graph = of_operation(name, shapes)
    values = values_of(graph, positive=POSITIVE.get(name, ()))
    (want,) = interpret(graph, values, SIZES)
    (got,) = with_torch(graph, {k: torch.tensor(v) for k, v in values.items()})
    np.testing.assert_allclose(np.ravel(got.numpy()), np.ravel(want), rtol=1e-14, atol=1e-14)


@every_operation
def test_gradient_is_the_limit_of_differences(name, shapes):
    graph = of_operation(name, shapes)
    values = values_of(graph, positive=POSITIVE.get(name, ()))
    values = seeded(graph, values)
    found = interpret(backward(graph), values, SIZES)
    for expr, got in zip(graph.inputs, found, strict=True):
        if name == "detach":
            assert not np.any(got)
            continue
        want = differences(graph, values, values, expr.label)
        np.testing.assert_allclose(as_shape(got, expr.shape), want, rtol=1e-6, atol=1e-7)


@every_operation
def test_second_derivative_is_the_limit_of_differences_of_the_first(name, shapes):
    graph = backward(of_operation(name, shapes))
    values = values_of(graph, seed=3, positive=POSITIVE.get(name, ()))
    values = seeded(graph, values)
    found = interpret(backward(graph), values, SIZES)
    for expr, got in zip(graph.inputs, found, strict=True):
        want = differences(graph, values, values, expr.label)
        np.testing.assert_allclose(as_shape(got, expr.shape), want, rtol=1e-6, atol=1e-7)


@every_operation
def test_gradient_is_torchs(name, shapes):
    graph = of_operation(name, shapes)
    values = seeded(graph, values_of(graph, seed=1, positive=POSITIVE.get(name, ())))
    assert_gradients_are_torchs(graph, values)


def assert_gradients_are_torchs(graph, values):
    tensors = {e.label: torch.tensor(values[e.label], requires_grad=True) for e in graph.inputs}
    (result,) = with_torch(graph, tensors)
    ours = interpret(backward(graph), values, SIZES)
    if not result.requires_grad:
        assert not any(np.any(value) for value in ours)
        return
    seed = torch.tensor(values["d(result)"]).reshape(result.shape)
    theirs = torch.autograd.grad(result, list(tensors.values()), seed, allow_unused=True)
    for expr, got, want in zip(graph.inputs, ours, theirs, strict=True):
        want = torch.zeros(tensors[expr.label].shape) if want is None else want
        np.testing.assert_allclose(as_shape(got, expr.shape), want.numpy(force=True), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["max", "min", "amax", "relu", "abs"])
def test_ties_and_kinks_are_torchs(name):
    graph = of_operation(name, ARGUMENTS[name][0])
    values = {e.label: np.array([1.0, 0.0, -1.0, 1.0]) for e in graph.inputs}
    assert_gradients_are_torchs(graph, seeded(graph, values))


@pytest.mark.parametrize("name", ["max", "min", "relu", "abs", "sign", "tanh", "sigmoid", "softplus"])
def test_gradients_at_nan_and_infinity_are_torchs(name):
    graph = of_operation(name, ARGUMENTS[name][0])
    one, other = np.array([np.nan, 1.0, np.inf, -np.inf]), np.array([1.0, np.nan, 0.0, 0.0])
    values = {e.label: value for e, value in zip(graph.inputs, (one, other), strict=False)}
    assert_gradients_are_torchs(graph, seeded(graph, values))


@pytest.mark.parametrize("large", [800.0, -800.0, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "relu", "erf"])
def test_large_values_are_torchs(name, large):
    graph = of_operation(name, ARGUMENTS[name][0])
    values = seeded(graph, {"a0": np.full(4, large)})
    (want,) = interpret(graph, values, SIZES)
    (got,) = with_torch(graph, {"a0": torch.tensor(values["a0"])})
    np.testing.assert_allclose(got.numpy(), want)
    if np.isfinite(large):
        assert np.isfinite(interpret(backward(graph), values, SIZES)[0]).all()


def missing_from(*tables):
    return {name for table in tables for name in OPS.keys() ^ table}


def test_every_operation_is_spelled_and_tested():
    assert not missing_from(torch_text.SPELL, equations.SPELLINGS, ARGUMENTS)


def test_a_missing_spelling_is_noticed():
    assert missing_from({name: "" for name in OPS if name != "tanh"}) == {"tanh"}


@pytest.mark.parametrize(
    ("name", "shapes", "text"),
    [
        ("add", [("H",), ("P",)], r"shapes \[H\] and \[P\] cannot be combined"),
        ("sum", [("H", "H")], r"one value per unit, got \[H, H\]"),
        ("expand", [("P",), ("H",)], r"\[P\] cannot be expanded to \[H\]"),
        ("product", [("P", "H"), ("P",)], "cannot multiply"),
        ("product_t", [("P", "H"), ("H",)], "transposed"),
        ("blocks_product", [("H", "H"), ("H",)], "blocks"),
        ("blocks_outer", [("H",), ("P",), ("N", "K", "K")], "no blocks"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, shapes, text):
    with pytest.raises(ShapeError, match=text):
        node(name, *(leaf(f"a{k}", shape, "parameter") for k, shape in enumerate(shapes)))


def test_truths_and_numbers_are_kept_apart():
    a = leaf("a", ("H",), "parameter")
    truth = node("gt", a, 0.0)
    with pytest.raises(TraceError, match=r"torch\.where"):
        node("add", truth, a)
    with pytest.raises(TraceError, match="needs a condition"):
        node("where", a, a, a)


def test_a_graph_is_checked_when_it_is_made():
    a, b = leaf("a", ("H",), "parameter"), leaf("b", ("H",), "parameter")
    with pytest.raises(CellfuseError, match="reads b, which is not an input"):
        Graph("g", (a,), (("y", node("add", a, b)),))
    with pytest.raises(CellfuseError, match="same name"):
        Graph("g", (a, leaf("a", (), "parameter")), (("y", a),))
    with pytest.raises(CellfuseError, match="not a leaf"):
        Graph("g", (constant(1.0),), (("y", a),))


def test_the_interpreter_names_what_is_missing():
    a = leaf("a", ("H",), "parameter")
    graph = Graph("g", (a,), (("y", node("tanh", a)),))
    with pytest.raises(CellfuseError, match="no values for a"):
        interpret(graph, {})


@pytest.mark.parametrize("name", ["max", "min", "amax", "relu", "abs"])
def test_second_derivatives_at_ties_are_torchs(name):
    graph = of_operation(name, ARGUMENTS[name][0])
    twice = backward(backward(graph))
    values = seeded(
        backward(graph), seeded(graph, {e.label: np.array([1.0, 0.0, 1.0, 1.0]) for e in graph.inputs})
    )
    tensors = {e.label: torch.tensor(values[e.label], requires_grad=True) for e in twice.inputs}
    inputs, incoming = [tensors[e.label] for e in graph.inputs], tensors["d(result)"]
    (result,) = with_torch(graph, tensors)
    first = torch.autograd.grad(result, inputs, incoming.reshape(result.shape), create_graph=True)
    again = sum((g * tensors[f"d(d({e.label}))"]).sum() for g, e in zip(first, graph.inputs, strict=True))
    second = torch.autograd.grad(again, [*inputs, incoming], allow_unused=True, materialize_grads=True)
    found = interpret(twice, values, SIZES)
    for expr, got, want in zip(twice.inputs, found, second, strict=False):
        np.testing.assert_allclose(as_shape(got, expr.shape), want.numpy(force=True), rtol=1e-12, atol=1e-13)


HOSTILE = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e300, -1e300, 710.0, -40.0, -700.0, 1e-300, 0.5]
ELEMENT_WISE = [n for n, shapes in ARGUMENTS.items() if set(shapes[0]) == {("H",)} and n != "outer"]


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_hostile_values_mean_the_same_in_torch(name):
    graph = of_operation(name, ARGUMENTS[name][0])
    pairs = list(itertools.product(HOSTILE, repeat=min(2, len(graph.inputs))))
    columns = [*np.array(pairs).T, np.full(len(pairs), 2.0), np.full(len(pairs), 3.0)]
    values = {e.label: column for e, column in zip(graph.inputs, columns, strict=False)}
    (got,) = interpret(graph, values, SIZES)
    (want,) = with_torch(graph, {label: torch.tensor(value) for label, value in values.items()})
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-13, equal_nan=True)


@pytest.mark.parametrize(
    "name", [n for n, shapes in ARGUMENTS.items() if {((),), ((), ()), (("H",), ())} & {*shapes}]
)
def test_an_operation_on_numbers_alone_has_a_torch_text(name):
    """Conditions on constants stay in a graph after simplify, as in a layer without bias."""
    truths = {"where": 1}.get(name, 0)
    args = [node("gt", constant(0.5), 0.0)] * truths
    args += [constant(0.5)] * (len(ARGUMENTS[name][0]))
    h = leaf("h", ("H",), "state")
    graph = Graph("g", (h,), (("y", node(name, *args)),))
    (want,) = interpret(graph, {"h": np.zeros(4)}, SIZES)
    (got,) = with_torch(graph, {"h": torch.zeros(4, dtype=torch.float64)})
    np.testing.assert_allclose(np.asarray(got), want)


def test_a_number_times_a_matrix_has_no_gradient_and_says_so():
    """No cell can write it: matrices occur in products only."""
    m, s = leaf("m", ("P", "H"), "matrix"), leaf("s", (), "parameter")
    with pytest.raises(ShapeError, match=r"got \[P, H\]"):
        backward(Graph("g", (m, s), (("y", node("mul", m, s)),)))
