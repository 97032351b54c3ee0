"""What users' code and torch's expect of an RNNBase: its methods, fx leaves, flat weights, isinstance."""

import copy
import io
import pickle
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import cellfuse as cf
from cellfuse.errors import InputError, OptionError, OptionTypeError

THREE = ["RNN", "GRU", "LSTM"]


def pair(name, **options):
    theirs, ours = getattr(nn, name)(3, 4, 2, **options), getattr(cf, name)(3, 4, 2, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


class Model(nn.Module):
    """A model that calls two layers with states."""

    def __init__(self, layer, step):
        super().__init__()
        self.inner = nn.Sequential(layer)
        self.step = step
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        output, states = self.inner[0](x)
        output, _ = self.inner[0](x, states)
        new = self.step(x[0])
        new = self.step(x[1], hx=new)
        return self.head(output), new


class StatesOnly(nn.Module):
    """A model whose layer gets a real input and a traced state in a tuple."""

    def __init__(self):
        super().__init__()
        self.rnn = cf.LSTM(3, 4)
        self.start = nn.Parameter(torch.randn(5, 2, 3))

    def forward(self, h):
        return self.rnn(self.start, (h, h))[0]


@pytest.mark.parametrize("name", THREE)
def test_layers_are_leaves_for_fx(name):
    model = Model(getattr(cf, name)(3, 4), getattr(cf, name + "Cell")(3, 4))
    traced = torch.fx.symbolic_trace(model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["inner.0", "inner.0", "step", "step", "head"]
    for T in (5, 7):
        x = torch.randn(T, 2, 3)
        torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


def test_fx_with_a_traced_state_and_with_the_layer_itself():
    model, h = StatesOnly(), torch.randn(1, 2, 4)
    assert torch.equal(torch.fx.symbolic_trace(model)(h), model(h))
    for module in (cf.LSTM(3, 4), cf.LSTMCell(3, 4)):
        with pytest.raises(InputError, match=r"Write torch\.fx\.symbolic_trace\(torch\.nn\.Sequential"):
            torch.fx.symbolic_trace(module)


def outcome(function):
    """What a call gives, or its error."""
    try:
        return function()
    except (ValueError, RuntimeError) as error:
        return ValueError if isinstance(error, ValueError) else RuntimeError, str(error)


def states_of(name, *shapes):
    states = tuple(torch.zeros(shape) for shape in shapes)
    return states if name == "LSTM" else states[0]


@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True, "bidirectional": True}, {"proj_size": 2}], ids=str
)
@pytest.mark.parametrize("name", THREE)
def test_inherited_methods_do_as_torchs(name, options):
    if "proj_size" in options and name != "LSTM":
        return
    theirs, ours = pair(name, **options)
    x, sizes = torch.zeros(5, 2, 3), torch.tensor([2, 1])
    count, width = (4 if ours.bidirectional else 2), (options.get("proj_size") or 4)
    batch = 5 if ours.batch_first else 2
    good = states_of(name, (count, batch, width), (count, batch, 4))
    calls = [
        lambda m: m.check_forward_args(x, good, None),
        lambda m: m.check_forward_args(x, states_of(name, (1, 1, 1), (1, 1, 1)), None),
        lambda m: m.check_forward_args(x, states_of(name, (count, batch, width), (1, 1, 1)), None),
        lambda m: m.check_forward_args(x[..., :2], good, None),
        lambda m: m.check_input(x, None),
        lambda m: m.check_input(x, sizes),
        lambda m: m.check_input(x.double(), None),
        lambda m: m.check_input(x[..., :2], None),
        lambda m: tuple(m.get_expected_hidden_size(x, None)),
        lambda m: tuple(m.get_expected_hidden_size(x[0], sizes)),
        lambda m: m.check_hidden_size(torch.zeros(1, 2, 3), (1, 2, 4)),
        lambda m: m._all_weights,
        lambda m: m._flat_weights_names,
        lambda m: [tuple(w.shape) for w in m._flat_weights],
        lambda m: m._weights_have_changed(),
        lambda m: m._update_flat_weights(),
        lambda m: m.permute_hidden(good, None) is good,
    ]
    if name == "LSTM":
        calls.append(lambda m: tuple(m.get_expected_cell_size(x, None)))
        calls.append(lambda m: tuple(m.get_expected_cell_size(x[0], sizes)))
    for call in calls:
        assert outcome(lambda call=call: call(ours)) == outcome(lambda call=call: call(theirs))
    assert hasattr(ours, "get_expected_cell_size") == hasattr(theirs, "get_expected_cell_size")
    order = torch.arange(batch).flip(0)
    hx = tuple(torch.randn_like(state) for state in good) if name == "LSTM" else torch.randn_like(good)
    torch.testing.assert_close(
        ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order), rtol=0, atol=0
    )


def test_flat_weights_may_be_set_as_code_for_torch_does():
    layer, x = cf.GRU(3, 4), torch.randn(5, 2, 3)
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
    new = [nn.Parameter(torch.zeros_like(weight)) for weight in layer._flat_weights]
    layer._flat_weights = new
    assert layer.weight_hh_l0 is new[1]
    assert layer(x)[0].abs().max() == 0
    layer._init_flat_weights()
    assert torch.equal(copy.deepcopy(layer)(x)[0], layer(x)[0])
    with pytest.raises(ValueError, match="shorter"):
        layer._flat_weights = new[:2]
    with pytest.raises(TypeError, match="as parameter 'weight_ih_l0'"):
        layer._flat_weights = [weight.detach() for weight in new]


def test_weights_are_flattened_where_torch_flattens_them():
    with mock.patch.object(nn.RNNBase, "flatten_parameters") as torchs:
        layer = cf.LSTM(3, 4)
        layer.double()
        assert not torchs.called  # on CPU there is nothing to do
        on_cuda = iter([mock.Mock(is_cuda=True)] * 2)
        with mock.patch.object(nn.Module, "parameters", return_value=on_cuda):
            layer.flatten_parameters()
            assert torchs.call_count == 1
            cf.cells.mgu.layer(3, 4).flatten_parameters()
            assert torchs.call_count == 1  # a cell that cuDNN does not have
    with mock.patch.object(cf.Layer, "flatten_parameters") as ours:
        layer = cf.LSTM(3, 4)
        assert ours.call_count == 1
        layer.double()
        assert ours.call_count == 2
        nn.Sequential(layer).float()
        assert ours.call_count == 3


@pytest.mark.parametrize("name", THREE)
def test_one_step_modules_are_torchs_kind(name):
    module = getattr(cf, name + "Cell")(3, 4)
    assert isinstance(module, nn.RNNCellBase)
    assert isinstance(cf.convert(getattr(nn, name + "Cell")(3, 4), None), cf.OneStep)
    assert repr(module) == repr(getattr(nn, name + "Cell")(3, 4))
    x = torch.randn(2, 3)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for other in (pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)):
        torch.testing.assert_close(other(x), module(x))


@pytest.mark.parametrize("name", THREE)
def test_numbers_of_numpy_are_numbers_where_torch_takes_them(name):
    layer = getattr(cf, name)(3, 4, np.int64(2), dropout=np.float32(0.5))
    assert repr(layer) == repr(getattr(nn, name)(3, 4, np.int64(2), dropout=np.float32(0.5)))
    assert type(layer.num_layers) is int
    assert type(getattr(cf, name + "Cell")(np.int64(3), np.int64(4)).hidden_size) is int
    for wrong in (None, 1j, [0.5]):
        with pytest.raises(TypeError):
            getattr(nn, name)(3, 4, 2, dropout=wrong)
        with pytest.raises(OptionTypeError, match=r"dropout should be a number in range \[0, 1\]"):
            getattr(cf, name)(3, 4, 2, dropout=wrong)
    for wrong in (True, "0.5", 2, -0.1, float("nan")):
        with pytest.raises(OptionError, match=r"dropout should be a number in range \[0, 1\]"):
            getattr(cf, name)(3, 4, 2, dropout=wrong)


def test_sizes_and_cells_of_one_step_modules_are_checked():
    with pytest.raises(OptionError, match="input_size must be greater than zero, got -4"):
        cf.cells.mgu.one_step(-4, 6)
    with pytest.raises(OptionError, match="hidden_size must be greater than zero, got 0"):
        cf.LSTMCell(4, 0)
    with pytest.raises(OptionTypeError, match=r"input_size should be of type int, got: float \(4\.0\)"):
        cf.GRUCell(4.0, 6)
    with pytest.raises(OptionTypeError, match="input must be a Tensor, got list"):
        cf.GRUCell(4, 6)([1.0])
    for make in (cf.Layer, cf.OneStep):
        with pytest.raises(OptionTypeError, match=r"got str \('gru'\)\. Write cellfuse\.cells\.gru"):
            make("gru", 4, 6)
