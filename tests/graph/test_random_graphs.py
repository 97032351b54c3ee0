"""Random graphs: interpreter, torch's text, autograd and simplification agree."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellfuse.graph.backward import backward
from cellfuse.graph.expr import order
from cellfuse.graph.interpret import interpret
from cellfuse.graph.show import show
from cellfuse.graph.simplify import simplify
from graph.graphs import SIZES, as_shape, random_graphs, values_of, with_torch

seeds = st.integers(0, 2**32 - 1)


def assert_close(ours, theirs, shape):
    got, want = as_shape(ours, shape), as_shape(theirs, shape)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9 * (1 + np.abs(want).max(initial=0)))


def in_torch(graph, values):
    return {e.label: torch.tensor(values[e.label], requires_grad=True) for e in graph.inputs}


@given(random_graphs(), seeds)
def test_torch_text_is_the_interpreter(graph, seed):
    values = values_of(graph, seed)
    ours, theirs = interpret(graph, values, SIZES), with_torch(graph, in_torch(graph, values))
    for expr, a, b in zip(graph.results, ours, theirs, strict=True):
        assert_close(a, b, expr.shape)


@given(random_graphs(), seeds)
def test_first_and_second_derivatives_are_autograds(graph, seed):
    once = backward(graph)
    twice = backward(once)
    values = values_of(twice, seed)
    tensors = in_torch(twice, values)
    inputs = [tensors[e.label] for e in graph.inputs]
    incoming = [tensors[f"d({name})"] for name, _ in graph.outputs]
    results = with_torch(graph, tensors)
    total = sum((r.reshape(d.shape) * d).sum() for r, d in zip(results, incoming, strict=True))
    first = torch.autograd.grad(
        total, inputs + incoming, create_graph=True, allow_unused=True, materialize_grads=True
    )
    for expr, ours, theirs in zip(graph.inputs, interpret(once, values, SIZES), first, strict=False):
        assert_close(ours, theirs, expr.shape)
    again = sum(
        (gradient * tensors[f"d(d({expr.label}))"]).sum()
        for expr, gradient in zip(graph.inputs, first, strict=False)
    )
    second = torch.autograd.grad(again, inputs + incoming, allow_unused=True, materialize_grads=True)
    for expr, ours, theirs in zip(once.inputs, interpret(twice, values, SIZES), second, strict=True):
        assert_close(ours, theirs, expr.shape)


@given(random_graphs(), seeds)
def test_simplify_keeps_every_value_nan_and_infinity_included(graph, seed):
    values, draw = values_of(graph, seed), np.random.default_rng(seed)
    for value in values.values():
        odd = draw.random(value.shape) < 0.15
        value[odd] = draw.choice([np.nan, np.inf, -np.inf, 0.0], odd.sum())
    for ours, theirs in zip(
        interpret(graph, values, SIZES), interpret(simplify(graph), values, SIZES), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, equal_nan=True)


@given(random_graphs())
def test_printed_form_and_order_are_stable(graph):
    assert show(graph) == show(graph)
    done = set()
    for expr in order(graph.results):
        assert all(arg in done for arg in expr.args)
        done.add(expr)
    assert simplify(simplify(graph)).outputs == simplify(graph).outputs
