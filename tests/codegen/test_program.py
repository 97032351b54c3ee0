"""The Program of every cell, interpreted, against the eager layer."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import cellfuse as cf
from cellfuse.codegen.interpret import Run
from cellfuse.codegen.lower import lower
from cellfuse.codegen.program import show
from cellfuse.masked import masked
from cellfuse.runtime.eager import _leaf_values
from codegen import cells_of_tests
from compare import OPTIONS, array, assert_same

CELLS = cf.cells.CELLS | cells_of_tests.CELLS
GOLDEN = Path(__file__).parents[1] / "golden"


def make(name, bias=True, hidden_size=4):
    options = OPTIONS | cells_of_tests.OPTIONS
    layer = CELLS[name].layer(
        3, hidden_size, bias=bias, dtype=torch.float64, backend="eager", **options.get(name, {})
    )
    with torch.no_grad():
        for value in layer.parameters():
            value.uniform_(-0.8, 0.8)
    return layer


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_program_computes_what_the_layer_does(name, bias, recompute):
    layer, (T, B) = make(name, bias), (4, 3)
    program = lower(layer.cell.step if bias else layer.cell.step_without_bias, recompute=recompute)
    x = torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True)
    states = tuple(torch.rand(s, dtype=torch.float64).requires_grad_() for s in layer._state_shapes(B))
    output, finals = layer(x, states if len(states) > 1 else states[0])
    finals = finals if isinstance(finals, tuple) else (finals,)
    weights = {key[:-3]: value for key, value in layer.state_dict(keep_vars=True).items()}
    fixed = {k: array(v) for k, v in _leaf_values(layer._case(x, states), weights).items()}
    gates = torch.nn.functional.linear(x, weights["weight_ih"], weights.get("bias_ih")).chunk(
        len(layer.cell.input_gates), -1
    )
    by_gate = dict(zip(layer.cell.input_gates, gates, strict=True))
    moved = {x: fixed[bias] for bias, x in program.moved}
    products = [array(by_gate[g]) + moved.get(f"{g}.x", 0) for g in program.inputs]
    sizes = {"H": 4, "P": layer.proj_size}
    run = Run(program, products, [array(s[0]) for s in states], fixed, sizes, T)
    for keep in (False, True):
        got, last = run.forward(keep=keep)
        assert_same(got, output)
        for value, final in zip(last, finals, strict=True):
            assert_same(value, final[0])
    grad = torch.randn_like(output)
    grads = [torch.randn_like(f) for f in finals]
    loss = (output * grad).sum() + sum((f * g).sum() for f, g in zip(finals, grads, strict=True))
    found = run.backward(array(grad), [array(g[0]) for g in grads])
    wanted = [x, *states, *layer.parameters()]
    want = torch.autograd.grad(loss, wanted, allow_unused=True)
    names = ["x", *layer.cell.states, *(key[:-3] for key, _ in layer.named_parameters())]
    by_name = {
        k: np.zeros(v.shape) if g is None else array(g) for k, v, g in zip(names, wanted, want, strict=True)
    }
    into = np.concatenate([found[f"{g}.x"] for g in layer.cell.input_gates], -1)
    assert_same(into @ array(weights["weight_ih"]), by_name["x"], what="d(x)")
    for state in layer.cell.states:
        assert_same(found[state], by_name[state][0], what=f"d({state})")
    back = layer.cell.recurrent_gates
    if back:
        got = np.concatenate([found[f"R_{g}"].reshape(4, -1) for g in back])
        assert_same(got.reshape(by_name["weight_hh"].shape), by_name["weight_hh"], what="d(weight_hh)")
    if back and bias and "hh" in layer.cell.biases:
        assert_same(np.concatenate([found[f"{g}.b"] for g in back]), by_name["bias_hh"], what="d(bias_hh)")
    for name, value in by_name.items():
        if name in found and name not in layer.cell.states:
            assert_same(found[name], value, what=f"d({name})")
        elif name in layer.cell.parameters:
            assert_same(np.concatenate([found[f"{name}.{g}"] for g in layer.cell.gates]), value, what=name)


MASKED = masked(CELLS["gru"], {"h": None}, True)


@pytest.mark.parametrize("name", ["lstm", "gru", "mgu", "masked_gru"])
def test_printed_form_is_stable(name):
    file = GOLDEN / f"{name}.program.txt"
    text = show(lower((MASKED if name == "masked_gru" else CELLS[name]).step)) + "\n"
    if os.environ.get("CELLFUSE_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def test_only_what_the_backward_loop_cannot_make_again_is_kept():
    kept = {
        name: [e.op for e, _ in lower(CELLS[name].step).kept] for name in ("lstm", "gru", "rnn", "mingru")
    }
    assert sorted(kept["lstm"]) == ["sigmoid"] * 3 + ["tanh"] * 2
    assert sorted(kept["gru"]) == ["product", "sigmoid", "sigmoid", "tanh"]
    assert kept["rnn"] == []
    assert kept["mingru"] == ["sigmoid"]
    assert lower(CELLS["lstm"].step, recompute=True).kept == ()
