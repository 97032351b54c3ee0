"""Autocast: torch's dtypes for torch's cells on every path, one rule for the others, float64 never cast."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import cellfuse as cf
from compare import OPTIONS, small_layer

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def dtypes(result):
    """Of output and states."""
    output, states = result
    output = output if isinstance(output, torch.Tensor) else output.data
    states = states if isinstance(states, tuple) else (states,)
    return [output.dtype, *(state.dtype for state in states)]


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["auto", "cpu", "eager"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"proj_size": 2}], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_dtypes_are_those_of_torchs_layers(name, options, dtype, backend, low):
    if "proj_size" in options and name != "LSTM":
        return
    theirs = getattr(nn, name)(3, 4, 2, dtype=dtype, **options)
    ours = getattr(cf, name)(3, 4, 2, dtype=dtype, backend=backend, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 3, dtype=dtype)
    packed = pack_padded_sequence(x, torch.tensor([5, 3]))
    for given in (x, packed):
        with torch.autocast("cpu", low):
            try:
                want = theirs(given)
            except RuntimeError:  # oneDNN has no LSTM in float16 on most processors
                assert (name, low, given is x) == ("LSTM", torch.float16, True)
                assert dtypes(ours(given)) == [low] * 3
                continue
            got = ours(given)
        assert dtypes(got) == dtypes(want)
        got, want = (r[0] if given is x else r[0].data for r in (got, want))
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_dtypes_are_the_same_for_every_length_and_transform(name, dtype):
    layer = getattr(cf, name)(3, 4, dtype=dtype)
    x = torch.randn(2, 3, 2, 3, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        want = dtypes(layer(x[0]))
        assert dtypes(layer(x[0, :1])) == want
        assert dtypes(layer(x[0, :0])) == want
        assert dtypes(torch.func.vmap(layer)(x)) == want


@pytest.mark.parametrize("backend", ["auto", "cpu", "eager"])
@pytest.mark.parametrize("name", ["mgu", "slstm", "layer_norm_lstm", "mingru"])
def test_other_cells_compute_in_the_low_precision_but_for_float64(name, backend):
    for dtype, want in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        layer = small_layer(name, dtype=dtype, backend=backend)
        for T in (4, 1, 0):
            with torch.autocast("cpu", torch.bfloat16):
                found = dtypes(layer(torch.randn(T, 2, 3, dtype=dtype)))
            assert set(found) == {want}


def test_float64_keeps_its_kernel_and_its_bits():
    layer = cf.cells.mgu.layer(3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    want = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.why_not(x)["cpu"] == ""
        assert torch.equal(layer(x)[0], want)


def test_float16_that_onednn_cannot_run_is_refused_with_a_reason(monkeypatch):
    layer, x = cf.LSTM(4, 6), torch.randn(3, 2, 4)
    with torch.autocast("cpu", torch.float16):
        assert layer(x)[0].dtype == torch.float16
        monkeypatch.setattr("cellfuse.runtime.aten.has_onednn_float16", lambda is_autocast: False)
        assert "in this precision" in layer.why_not(x)["aten"]
        assert layer(x)[0].dtype == torch.float16
        double = cf.LSTM(4, 6, dtype=torch.float64)
        assert double.why_not(x.double())["aten"] == ""


def test_gradients_under_autocast_have_the_dtype_of_the_weights():
    for name, backend in itertools.product(("lstm", "gru", "mgu", "slstm"), ("cpu", "eager")):
        layer = small_layer(name, dtype=torch.float32, backend=backend, **OPTIONS.get(name, {}))
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(torch.randn(4, 2, 3))[0]
        output.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
