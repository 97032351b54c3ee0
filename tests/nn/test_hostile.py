"""Empty, tiny, huge, broken and wrong inputs: the right result, or an error that says what to write."""

import re

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import cellfuse as cf
from cellfuse.errors import InputError, OptionError, OptionTypeError, ShapeError
from compare import small_layer

THREE = ["RNN", "GRU", "LSTM"]
CELLS = sorted(cf.cells.CELLS)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("T", "B"), [(0, 2), (3, 0), (0, 0), (1, 1), (1, 5)])
def test_empty_and_tiny_sequences(name, directions, T, B):
    layer = small_layer(name, num_layers=2, bidirectional=directions == 2)
    x = torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True)
    output, states = layer(x)
    assert output.shape == (T, B, layer.output_size)
    states = states if isinstance(states, tuple) else (states,)
    for got, before in zip(states, layer.initial_states(B, x), strict=True):
        assert got.shape == before.shape
        if T == 0:
            assert torch.equal(got, before)
    output.sum().backward()


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize(("T", "B"), [(0, 2), (3, 0), (0, 0)])
def test_empty_sequences_where_torch_has_an_operator(name, T, B):
    """torch's operators refuse them; the layer runs them elsewhere."""
    layer = getattr(cf, name)(3, 4, 2, bidirectional=True)
    x = torch.randn(T, B, 3)
    assert layer(x)[0].shape == (T, B, 8)
    assert "empty" in layer.why_not(x)["aten"]


@pytest.mark.parametrize("name", THREE)
def test_one_unit_and_one_feature(name):
    theirs, ours = getattr(torch.nn, name)(1, 1), getattr(cf, name)(1, 1)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 1, 1)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("backend", ["cpu", "aten", "eager"])
@pytest.mark.parametrize("name", THREE)
def test_layout_of_the_input_in_memory_does_not_matter(name, backend):
    layer = getattr(cf, name)(3, 4, 2, bidirectional=True, backend=backend)
    x = torch.randn(3, 4, 10).permute(2, 1, 0)[::2, 1:3]
    assert not x.is_contiguous()
    torch.testing.assert_close(layer(x)[0], layer(x.contiguous())[0])
    same = torch.randn(1, 1, 3).expand(5, 2, 3)
    torch.testing.assert_close(layer(same)[0], layer(same.contiguous())[0])


@pytest.mark.parametrize("backend", ["cpu", "aten", "eager"])
@pytest.mark.parametrize("name", THREE)
def test_nan_stays_in_its_sequence_and_its_future(name, backend):
    layer = getattr(cf, name)(3, 4, backend=backend)
    x = torch.randn(6, 3, 3)
    clean = layer(x)[0].detach()
    x[2, 1] = float("nan")
    x.requires_grad_()
    output = layer(x)[0]
    assert output[2:, 1].isnan().all()
    torch.testing.assert_close(output[:2], clean[:2])
    torch.testing.assert_close(output[:, [0, 2]], clean[:, [0, 2]])
    output.sum().backward()
    assert x.grad[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_huge_and_infinite_values_saturate(name):
    layer = getattr(cf, name)(3, 4, backend="eager")
    for value in (1e30, -1e30, float("inf")):
        x = torch.zeros(2, 1, 3)
        x[0, 0, 0] = value
        assert layer(x)[0].abs().max() <= 1


def raises(kind, text):
    return pytest.raises(kind, match=re.escape(text))


@pytest.mark.parametrize("name", THREE)
def test_wrong_input_is_explained(name):
    layer = getattr(cf, name)(10, 20)
    with raises(InputError, "Expected input to be 2D or 3D, got 4D instead. Give [T, B, I]"):
        layer(torch.zeros(1, 2, 3, 10))
    with raises(ShapeError, "Expected 10, got 11"):
        layer(torch.zeros(5, 3, 11))
    with raises(ShapeError, "Axis 1 is 10 long: is the input transposed?"):
        layer(torch.zeros(5, 10, 3))
    with raises(ShapeError, "make the layer with batch_first=True"):
        layer(torch.zeros(5, 3, 7))
    with raises(InputError, "Convert input: input.to(torch.float32)"):
        layer(torch.zeros(5, 3, 10, dtype=torch.float64))
    with raises(InputError, "does not match weight dtype"):
        layer(torch.zeros(5, 3, 10, dtype=torch.int64))
    with raises(InputError, "does not match weight dtype"):
        layer(torch.zeros(5, 3, 10, dtype=torch.complex64))
    with raises(ShapeError, "not at the same device"):
        layer(torch.zeros(5, 3, 10, device="meta"))
    for given in ([[1.0]], None, "text"):
        with raises(OptionTypeError, "input must be a Tensor or a PackedSequence"):
            layer(given)


def test_wrong_states_are_explained():
    lstm, gru = cf.LSTM(10, 20, 2), cf.GRU(10, 20, 2)
    x, h = torch.zeros(5, 3, 10), torch.zeros(2, 3, 20)
    with raises(OptionTypeError, "hx must be (h_0, c_0), got Tensor"):
        lstm(x, h)
    with raises(OptionTypeError, "hx must be h_0, got 2 values"):
        gru(x, (h, h))
    with raises(ShapeError, "Expected hidden size (2, 3, 20), got [2, 3, 21]"):
        gru(x, torch.zeros(2, 3, 21))
    with raises(ShapeError, "Expected hidden[0] size (2, 3, 20), got [2, 4, 20]"):
        lstm(x, (torch.zeros(2, 4, 20), h))
    with raises(ShapeError, "Expected hidden[1] size (2, 3, 20), got [1, 3, 20]"):
        lstm(x, (h, torch.zeros(1, 3, 20)))
    with raises(ShapeError, "For batched 3-D input, hx and cx should also be 3-D but got (2-D, 2-D)"):
        lstm(x, (h[0], h[0]))
    with raises(ShapeError, "For unbatched 2-D input, hx should also be 2-D but got 3-D tensor"):
        gru(x[:, 0], h)
    with raises(ShapeError, "Input and hidden tensors are not the same dtype"):
        gru(x, h.double())


def test_a_packed_sequence_that_lies_is_found():
    data, sizes = torch.zeros(5, 10), torch.tensor([2, 2])
    with raises(ShapeError, "batch_sizes add up to 4, data has 5 rows"):
        cf.GRU(10, 20)(PackedSequence(data, sizes))
    with raises(ShapeError, "input must have 2 dimensions"):
        cf.GRU(10, 20)(PackedSequence(torch.zeros(4, 1, 10), sizes))


def test_wrong_options_are_explained():
    with raises(OptionError, "hidden_size must be greater than zero"):
        cf.LSTM(3, 0)
    with raises(OptionTypeError, "input_size should be of type int, got: float"):
        cf.LSTM(3.0, 4)
    with raises(OptionError, "dropout should be a number in range [0, 1]"):
        cf.LSTM(3, 4, dropout=2)
    with raises(OptionError, "proj_size argument is only supported for LSTM"):
        cf.GRU(3, 4, proj_size=2)
    with raises(OptionError, "proj_size has to be smaller than hidden_size"):
        cf.LSTM(3, 4, proj_size=4)
    with raises(OptionError, "Unknown nonlinearity 'sin'"):
        cf.RNN(3, 4, nonlinearity="sin")
    with raises(OptionError, "give proj_size=P"):
        cf.cells.projected_lstm.layer(3, 4)
    with raises(OptionError, "num_heads=3 must divide hidden_size=4"):
        cf.cells.slstm.layer(3, 4, num_heads=3)
    with raises(OptionError, "only cells with recurrence='blocks' have heads"):
        cf.cells.gru.layer(3, 4, num_heads=2)
    for error in (InputError, OptionError):
        assert issubclass(error, ValueError)
    assert issubclass(ShapeError, RuntimeError)
    assert issubclass(OptionTypeError, TypeError)


def test_an_empty_output_has_a_gradient():
    for name in CELLS:
        x = torch.zeros(0, 2, 3, dtype=torch.float64, requires_grad=True)
        small_layer(name)(x)[0].sum().backward()
        assert x.grad.shape == x.shape


RUNS = {
    "sequence": lambda layer: layer(torch.randn(5, 3, 4)),
    "one sequence": lambda layer: layer(torch.randn(5, 4)),
    "packed": lambda layer: layer(torch.nn.utils.rnn.pack_sequence([torch.randn(5, 4), torch.randn(2, 4)])),
    "step": lambda layer: layer.step(torch.randn(3, 4)),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=list(RUNS))
@pytest.mark.parametrize("backend", ["auto", "cpu", "eager"])
@pytest.mark.parametrize("name", THREE)
def test_the_shape_of_a_weight_is_looked_at(name, backend, run):
    layer = getattr(cf, name)(4, 6, backend=backend)
    with torch.no_grad():
        run(layer)
    layer.weight_hh_l0 = torch.nn.Parameter(torch.randn(1, 1))
    rows = len(layer.bias_hh_l0)
    for is_grad in (False, True):
        wanted = rf"weight_hh_l0 is \[1, 1\], expected \[{rows}, 6\]"
        with torch.set_grad_enabled(is_grad), pytest.raises(ShapeError, match=wanted):
            run(layer)
    layer = getattr(cf, name)(4, 6, backend=backend)
    layer.bias_ih_l0 = None
    with pytest.raises(ShapeError, match="bias_ih_l0 is NoneType"):
        run(layer)


@pytest.mark.parametrize("run", RUNS.values(), ids=list(RUNS))
@pytest.mark.parametrize("is_grad", [False, True])
def test_a_weight_without_memory_is_an_error(is_grad, run):
    layer = cf.GRU(4, 6, backend="cpu")
    with torch.set_grad_enabled(is_grad):
        run(layer)
        layer.weight_hh_l0.untyped_storage().resize_(0)
        with pytest.raises(InputError, match="has no memory"):
            run(layer)


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("is_quick", [False, True])
def test_zeros_without_memory_are_zeros(name, is_quick, monkeypatch):
    if not is_quick:
        monkeypatch.setattr("cellfuse.nn.quick.sequence", lambda *_: None)
    layer, x = getattr(cf, name)(4, 6, backend="cpu"), torch.randn(5, 3, 4, requires_grad=True)
    output, _ = layer(x)
    zeros = torch._efficientzerotensor(output.shape)
    for gradient in torch.autograd.grad(output, [x, *layer.parameters()], zeros):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    with pytest.raises(cf.errors.BackendError, match="zero tensor"):
        layer(torch._efficientzerotensor(x.shape))
