"""torch.nn's recurrent modules inside a model become ours, and nothing else changes."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import cellfuse as cf


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
        self.decoder = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1))
        self.again = self.encoder
        self.step = nn.GRUCell(3, 4)
        self.relu = nn.RNN(3, 5, nonlinearity="relu")

    def forward(self, x):
        y = self.again(self.decoder(self.encoder(x)[0]))[0]
        return y.sum() + self.step(x[0]).sum() + self.relu(x)[0].sum()


def test_a_model_computes_the_same_and_keeps_everything():
    model = Model().double().eval()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    want = model(x)
    calls = []
    model.encoder.register_forward_hook(lambda *args: calls.append(1))
    weights = dict(model.named_parameters())
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    lines = []
    assert cf.convert(model, report=lines.append) is model
    assert lines == [
        "encoder: torch.nn.LSTM -> cellfuse.LSTM",
        "step: torch.nn.GRUCell -> cellfuse.GRUCell",
        "relu: torch.nn.RNN -> cellfuse.RNN",
    ]
    assert type(model.encoder) is cf.LSTM
    assert model.again is model.encoder
    assert not model.encoder.training
    torch.testing.assert_close(model(x), want, rtol=1e-13, atol=1e-13)
    assert len(calls) == 2
    for name, weight in model.named_parameters():
        assert weight is weights[name]
    model(x).backward()
    optimiser.step()
    assert not torch.equal(model(x), want)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model.relu))(x)[0], model.relu(x)[0])
    cf.convert(model, report=lines.append)
    assert "stays: it is cellfuse's already" in lines[-1]


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_layer_itself_is_converted_in_place(name):
    layer = getattr(nn, name)(3, 4, 2, batch_first=True)
    x = torch.randn(2, 5, 3)
    want = layer(x)[0]
    assert cf.convert(layer, report=None) is layer
    assert type(layer) is getattr(cf, name)
    torch.testing.assert_close(layer(x)[0], want)
    assert repr(layer) == repr(getattr(nn, name)(3, 4, 2, batch_first=True))


def test_a_parametrised_layer_keeps_its_parametrisation():
    layer = parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    want = layer(x)[0]
    cf.convert(layer, report=None)
    assert isinstance(layer, cf.GRU)
    assert parametrize.is_parametrized(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x)[0], want)


def test_what_stays_says_why():
    class Own(nn.LSTM):
        pass

    lines = []
    cf.convert(nn.ModuleDict({"own": Own(3, 4), "other": nn.Linear(3, 4)}), report=lines.append)
    assert lines == [
        "own: Own stays: it is a class of its own, derived from torch.nn.LSTM, and may compute "
        "something else; derive it from cellfuse.LSTM instead"
    ]
    with pytest.raises(cf.errors.ConvertError, match=r"takes a torch\.nn\.Module, got int"):
        cf.convert(3)
