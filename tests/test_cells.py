"""What every cell of the registry must satisfy; a new file in cells/ is picked up by itself."""

import copy
import importlib
import inspect
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import cellfuse as cf
from cellfuse.graph.show import show
from compare import OPTIONS, array, assert_same, small_layer

CELLS = sorted(cf.cells.CELLS)
GOLDEN = Path(__file__).parent / "golden"
BACKENDS = ["cpu", "eager"]
SHAPES = [(5, 3, 3, 4), (1, 1, 1, 2), (7, 2, 5, 6)]  # T B I H


def random_states(layer, batch, like):
    states = []
    for shape in layer._state_shapes(batch):
        states.append(torch.randn(shape, dtype=like.dtype) * 0.5)
    names = layer.cell.states
    if "n" in names:  # a normaliser is positive
        states[names.index("n")] = states[names.index("n")].abs() + 1
    return tuple(states)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_cell_matches_its_handwritten_reference(name, bias, backend):
    reference = importlib.import_module(f"reference.{name}").reference
    for T, B, I, H in SHAPES:
        options = {"proj_size": 1} if name == "projected_lstm" else {}
        layer = small_layer(name, I, H, bias=bias, backend=backend, **options)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.uniform_(-1, 1)
        x = torch.randn(T, B, I, dtype=torch.float64)
        for states in (layer.initial_states(B, x), random_states(layer, B, x)):
            output, finals = layer(x, states if len(states) > 1 else states[0])
            finals = finals if isinstance(finals, tuple) else (finals,)
            weights = {key[:-3]: array(value) for key, value in layer.state_dict().items()}
            wanted = reference(array(x), tuple(array(s[0]) for s in states), weights)
            assert_same(output, wanted[0], what="output")
            for got, want, letter in zip(finals, wanted[1], layer.cell.states, strict=True):
                assert_same(got[0], want, what=f"final {letter}")


def of_smooth_point(name, backend):
    layer = small_layer(name, 2, 4 if name == "slstm" else 3, backend=backend)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    states = tuple(s.requires_grad_() for s in random_states(layer, 2, x))
    names = [key for key, _ in layer.named_parameters()]

    def function(x, *values):
        states, weights = values[: len(layer.cell.states)], values[len(layer.cell.states) :]
        hx = states if len(states) > 1 else states[0]
        output, finals = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x, hx))
        return output, *(finals if isinstance(finals, tuple) else (finals,))

    return function, (x, *states, *(p.detach().requires_grad_() for p in layer.parameters()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_input_states_and_every_parameter(name, backend):
    function, values = of_smooth_point(name, backend)
    assert gradcheck(function, values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CELLS)
def test_second_derivatives(name, backend):
    function, values = of_smooth_point(name, backend)
    assert gradgradcheck(function, values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CELLS)
def test_step_by_step_is_the_whole_sequence(name, backend):
    layer = small_layer(name, num_layers=2, backend=backend)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    output, final = layer(x)
    state = None
    for t in range(6):
        y, state = layer.step(x[t], state)
        assert_same(y, output[t], tolerance=1e-14)
    for cut in range(1, 6):
        first, between = layer(x[:cut])
        second, last = layer(x[cut:], between)
        assert_same(torch.cat([first, second]), output, tolerance=1e-14)
    finals = zip(*((s,) if isinstance(s, torch.Tensor) else s for s in (state, final, last)), strict=True)
    for a, b, c in finals:
        assert_same(a, b, tolerance=1e-14)
        assert_same(c, b, tolerance=1e-14)


@pytest.mark.parametrize("name", CELLS)
def test_one_step_module_is_a_layer_of_one_step(name):
    layer = small_layer(name)
    module = cf.cells.find(name).one_step(3, 4, dtype=torch.float64, **OPTIONS.get(name, {}))
    module.load_state_dict({key[:-3]: value for key, value in layer.state_dict().items()})
    x = torch.randn(2, 3, dtype=torch.float64)
    _, finals = layer(x.unsqueeze(0))
    new = module(x)
    if not module.cell.output_is_a_state:
        output, new = new
        assert torch.equal(output, layer(x.unsqueeze(0))[0][0])
    new = new if isinstance(new, tuple) else (new,)
    for got, want in zip(new, finals if isinstance(finals, tuple) else (finals,), strict=True):
        assert torch.equal(got, want[0])


@pytest.mark.parametrize("name", CELLS)
def test_cell_says_what_it_is(name):
    cell = cf.cells.find(name)
    assert cell.source
    assert cell.function.__doc__
    lines = Path(inspect.getfile(cell.function)).read_text().count("\n")
    assert lines <= 60, f"{name} takes {lines} lines"
    assert pickle.loads(pickle.dumps(cell)) is cell
    assert copy.deepcopy(cell) is cell


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm", "mgu"])
def test_printed_form_is_stable(name):
    file = GOLDEN / f"{name}.graph.txt"
    text = show(cf.cells.find(name).step) + "\n"
    if os.environ.get("CELLFUSE_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("size", [200.0, -200.0])
def test_slstm_stays_finite_where_exp_would_overflow(size):
    layer = cf.cells.find("slstm").layer(2, 4, num_heads=2)
    with torch.no_grad():
        layer.bias_ih_l0.fill_(size)
    x = torch.randn(20, 3, 2, requires_grad=True)
    output, _ = layer(x)
    output.sum().backward()
    assert output.isfinite().all()
    assert x.grad.isfinite().all()


def test_every_cell_has_a_reference_and_every_reference_a_cell():
    files = {p.stem for p in (Path(__file__).parent / "reference").glob("*.py")} - {"__init__"}
    assert files == set(CELLS)


def test_an_unknown_cell_gives_the_nearest_names():
    with pytest.raises(cf.errors.CellError, match="did you mean lstm"):
        cf.cells.find("lstn")


def test_initial_values_of_a_cell():
    weight = cf.cells.find("indrnn").layer(3, 50).weight_hh_l0
    assert weight.min() >= 0
    assert weight.max() > 0.8
    assert np.isneginf(array(small_layer("slstm").initial_states(2, torch.zeros(1))[3])).all()
