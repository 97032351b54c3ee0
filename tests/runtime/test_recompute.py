"""recompute=True: the same gradients, fewer bytes kept, refused where it cannot be had."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import cellfuse as cf
from cellfuse.cells import CELLS
from cellfuse.runtime.kernel_call import SESSIONS
from compare import OPTIONS, assert_same


def pair(name, **options):
    """A layer with and without recompute, with the same weights."""
    make, options = cf.cells.find(name).layer, OPTIONS.get(name, {}) | options
    ours, plain = make(3, 20, recompute=True, **options), make(3, 20, backend="cpu", **options)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def gradients(layer, x):
    output, finals = layer(x)
    output = getattr(output, "data", output)
    values = (output, *(finals if isinstance(finals, tuple) else (finals,)))
    loss = sum(
        (value * torch.arange(value.numel(), dtype=value.dtype).view(value.shape).sin()).sum()
        for value in values
    )
    return torch.autograd.grad(loss, list(layer.parameters()))


@pytest.mark.parametrize("name", list(CELLS))
def test_gradients_are_the_same(name, monkeypatch):
    monkeypatch.setattr("cellfuse.runtime.fused.CHUNK", 1 << 11)
    monkeypatch.setattr("cellfuse.runtime.fused.ROWS", 6)
    SESSIONS.clear()
    ours, plain = pair(name, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(9, 3, 3, dtype=torch.float64)
    packed = pack_sequence([x[:9, 0], x[:4, 1], x[:1, 2]])
    for given in (x, packed):
        for got, want in zip(gradients(ours, given), gradients(plain, given), strict=True):
            assert_same(got, want, tolerance=1e-11)


def kept_bytes(layer, x):
    """Bytes of different memory that autograd keeps for the backward pass."""
    found = {}

    def pack(value):
        found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        layer(x)
    return sum(found.values()) - sum(value.nbytes for value in layer.parameters())


@pytest.mark.parametrize(("name", "states"), [("lstm", 2), ("gru", 1), ("rnn", 1), ("mgu", 1)])
def test_only_states_are_kept(name, states):
    ours, plain = pair(name)
    x = torch.randn(200, 4, 3)
    width = 32 if ours.hidden_size % 16 else ours.hidden_size
    # the input, the states before and after all steps, and the initial ones
    most = x.nbytes + states * (201 * 4 * width + 4 * 20) * 4
    assert kept_bytes(ours, x) <= most
    assert kept_bytes(plain, x) >= kept_bytes(ours, x) + 200 * 4 * 20 * 4 * (name != "rnn")


def test_it_is_refused_with_a_reason():
    layer = cf.LSTM(3, 4, recompute=True)
    assert repr(layer) == "LSTM(3, 4, recompute=True)"
    reasons = layer.why_not(torch.randn(5, 2, 3))
    assert reasons["cpu"] == ""
    assert "keeps what it will read" in reasons["aten"]
    assert "autograd keeps every value" in reasons["eager"]
    on_meta = cf.LSTM(3, 4, recompute=True, device="meta")
    x = torch.randn(5, 2, 3, device="meta")
    with pytest.raises(cf.errors.BackendError, match=r"no backend can run this: cpu: the input is on meta"):
        on_meta(x)
    with torch.no_grad():
        assert on_meta(x)[0].shape == (5, 2, 4)  # nothing is kept without gradient
        assert layer.step(torch.randn(2, 3))[0].shape == (2, 4)
    with pytest.raises(cf.errors.BackendError, match="backend='aten' cannot run this: recompute=True"):
        cf.GRU(3, 4, recompute=True, backend="aten")(torch.randn(5, 2, 3))
    with pytest.raises(cf.errors.OptionTypeError, match="recompute should be of type bool"):
        cf.GRU(3, 4, recompute=1)
