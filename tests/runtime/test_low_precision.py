"""bfloat16 and float16 on the cpu backend: as accurate as torch's layers at least, with states in float32."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import cellfuse as cf
from cellfuse.runtime import low_precision
from compare import OPTIONS, array, assert_as_accurate, small_layer

LOW = [torch.bfloat16, torch.float16]
TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def three(name, dtype, *sizes, **options):
    """The same layer on the cpu backend, in plain torch in the same precision, and in float64."""
    cell, options = cf.cells.find(name), OPTIONS.get(name, {}) | options
    ours = cell.layer(*sizes, dtype=dtype, backend="cpu", **options)
    exact = cell.layer(*sizes, dtype=torch.float64, backend="eager", **options)
    if name in TORCH and not (name == "lstm" and dtype == torch.float16):  # which oneDNN has rarely
        plain = TORCH[name](*sizes, dtype=dtype, **options)
    else:
        plain = cell.layer(*sizes, dtype=dtype, backend="eager", **options)
    for layer in (plain, exact):
        layer.load_state_dict(ours.state_dict())
    return ours, plain, exact


def results(layer, x):
    """Output, states, and the gradients of input and parameters of a weighted sum of them, by name."""
    x = x.to(next(layer.parameters()).dtype).requires_grad_()
    output, finals = layer(pack(x) if isinstance(layer, Packed) else x)
    output = output.data if isinstance(output, PackedSequence) else output
    found = {"output": output}
    found |= dict(enumerate(finals if isinstance(finals, tuple) else (finals,)))
    draw = torch.Generator().manual_seed(3)
    weights = [torch.randn(v.shape, generator=draw).to(torch.bfloat16).to(v.dtype) for v in found.values()]
    wanted = [x, *layer.parameters()]
    gradients = torch.autograd.grad(list(found.values()), wanted, weights)
    names = ["input", *(name for name, _ in layer.named_parameters())]
    return found | {f"gradient of {name}": g for name, g in zip(names, gradients, strict=True)}


class Packed(nn.Module):
    """A layer that is given packed sequences."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, packed):
        return self.layer(packed)


def pack(x):
    lengths = torch.arange(x.shape[1]) % x.shape[0] + 1
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def check(layers, x, dtype):
    """Each result of the first within twice the error of the second, and of the layer's dtype."""
    got, baseline, want = (results(layer, x) for layer in layers)
    for key, value in got.items():
        assert value.dtype == dtype
        if not baseline[key].isfinite().all():  # float16 ends at 65504, which layer norm's squares pass
            assert dtype == torch.float16
            assert value.isfinite().all()
            continue
        floor = torch.finfo(dtype).eps * abs(array(want[key])).max()
        assert_as_accurate(value, want[key], baseline[key], floor=floor, what=key)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", list(cf.cells.CELLS))
def test_every_cell_is_as_accurate_as_plain_torch(name, dtype):
    layers = three(name, dtype, 5, 6, num_layers=2, bidirectional=True)
    for shape in ((9, 3, 5), (1, 1, 5), (40, 17, 5)):
        check(layers, torch.randn(shape).to(dtype), dtype)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "slstm"])
def test_packed_sequences_are_as_accurate_as_plain_torch(name):
    layers = three(name, torch.bfloat16, 5, 6)
    if name == "lstm":  # torch has none for packed sequences: oneDNN takes no lengths
        layers = (layers[0], cf.cells.lstm.layer(5, 6, dtype=torch.bfloat16, backend="eager"), layers[2])
        layers[1].load_state_dict(layers[0].state_dict())
    check([Packed(layer) for layer in layers], torch.randn(9, 4, 5).to(torch.bfloat16), torch.bfloat16)


def test_states_stay_in_float32_over_the_whole_sequence():
    # c adds up small values that bfloat16 would lose: 1 + 1/512 is 1 there.
    @cf.cell(gates="n", states="hc", source="this test")
    def adder(gate, h, c):
        c = c + gate.n.x
        return h + 0 * c, c

    layer = adder.layer(1, 1, dtype=torch.bfloat16, backend="cpu")
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
        for bias in (layer.bias_ih_l0, *(p for n, p in layer.named_parameters() if n.startswith("bias_hh"))):
            bias.zero_()
    x = torch.full((512, 1, 1), 1 / 512, dtype=torch.bfloat16)
    start = torch.zeros(1, 1, 1, dtype=torch.bfloat16), torch.ones(1, 1, 1, dtype=torch.bfloat16)
    assert layer(x, start)[1][1].item() == 2


def test_values_between_layers_are_not_rounded():
    layers = three("rnn", torch.bfloat16, 8, 64, num_layers=6)
    x = torch.randn(3, 2, 8).bfloat16()
    got, baseline, want = (results(layer, x) for layer in layers)
    error, other = (abs(array(r["output"]) - array(want["output"])).max() for r in (got, baseline))
    assert error < other / 1.5


@pytest.mark.parametrize("name", ["gru", "mgu"])
def test_autocast_computes_as_the_eager_backend_does(name):
    ours, x = small_layer(name, dtype=torch.float32, backend="cpu"), torch.randn(6, 2, 3)
    eager = small_layer(name, dtype=torch.float32, backend="eager")
    eager.load_state_dict(ours.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.why_not(x)["cpu"] == ""
        got, want = ours(x), eager(x)
    for value, wanted in zip(got, want, strict=True):
        assert value.dtype == wanted.dtype
        torch.testing.assert_close(value, wanted, rtol=0.02, atol=0.01)
    assert not torch.equal(got[0].float(), ours(x)[0])  # the weights were rounded


def test_dtypes_that_do_not_go_together_are_named():
    layer, x = cf.LSTM(3, 4, backend="cpu", proj_size=2), torch.randn(5, 2, 3)
    states = torch.zeros(1, 2, 2), torch.zeros(1, 2, 4, dtype=torch.bfloat16)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(cf.errors.BackendError, match="states have different dtypes"),
    ):
        layer(x, states)
    half = cf.GRU(3, 4).bfloat16()
    half.bias_ih_l0.data = half.bias_ih_l0.data.float()
    assert "bias_ih is torch.float32, the input torch.bfloat16" in half.why_not(x.bfloat16())["cpu"]


def test_quicker_products_are_preferred_where_they_win(monkeypatch):
    monkeypatch.setattr(low_precision, "is_quick_in", lambda dtype: dtype == torch.bfloat16)

    def why(layer, *shape):
        return layer.why_not(torch.randn(shape, dtype=layer.weight_ih_l0.dtype))["cpu"]

    small, large = (cf.GRU(3, size, dtype=torch.bfloat16) for size in (8, 512))
    assert why(small, 10, 2, 3) == ""
    assert "takes longer" in why(small, 1, 2, 3)
    assert why(large, 10, 16, 3) == ""  # with gradients ours is faster, up to here
    assert "several times as fast" in why(large, 10, 32, 3)
    with torch.no_grad():
        assert "several times as fast" in why(large, 10, 16, 3)
    assert why(large, 10, 4, 3) == ""
    assert why(cf.GRU(3, 512), 10, 16, 3) == ""
    assert "oneDNN" in why(cf.LSTM(3, 8, dtype=torch.bfloat16), 10, 2, 3)
    wide = cf.LSTM(3, 256, dtype=torch.bfloat16)
    assert why(wide, 10, 2, 3) == ""
    with torch.no_grad():
        assert "oneDNN" in why(wide, 10, 2, 3)
    monkeypatch.setattr(low_precision, "is_quick_in", lambda dtype: False)
    assert why(large, 10, 16, 3) == why(small, 1, 2, 3) == ""
