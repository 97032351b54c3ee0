"""Gradients that are sums over very many rows: their error next to torch's, and sums that are not finite."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import cellfuse as cf
from cellfuse.runtime import kernel_call

STEPS, BATCH, INPUTS, UNITS = 1000, 32, 32, 64


def gradients(layer, x, weighting):
    """By name, of x and of every parameter."""
    x = x.clone().requires_grad_()
    names, wanted = zip(*layer.named_parameters(), strict=True)
    found = torch.autograd.grad((layer(x)[0] * weighting).sum(), (x, *wanted))
    return dict(zip(("x", *names), found, strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_error_after_many_rows_is_at_most_twice_torchs(name, seed):
    torch.manual_seed(seed)
    theirs = getattr(torch.nn, name)(INPUTS, UNITS)
    ours = getattr(cf, name)(INPUTS, UNITS, backend="cpu")
    ours.load_state_dict(theirs.state_dict())
    x, weighting = torch.randn(STEPS, BATCH, INPUTS), torch.randn(STEPS, BATCH, UNITS)
    got, base = gradients(ours, x, weighting), gradients(theirs, x, weighting)
    exact = gradients(theirs.double(), x.double(), weighting.double())
    for what, want in exact.items():
        error, allowed = got[what] - want, base[what] - want
        for norm in (2, torch.inf):
            ratio = (error.flatten().norm(norm) / allowed.flatten().norm(norm)).item()
            assert ratio <= 2, f"{what}, norm {norm}: error {ratio:.2f} times torch's"


@pytest.mark.parametrize("units", [16, 64])
def test_error_of_long_sums_that_grow_is_below_torchs(units):
    """Sums of terms with a mean: what rounding takes from them grows with them."""
    torch.manual_seed(units)
    theirs = torch.nn.LSTM(INPUTS, units)
    ours = cf.LSTM(INPUTS, units, backend="cpu")
    ours.load_state_dict(theirs.state_dict())
    x, weighting = torch.randn(5000, 8, INPUTS) + 0.5, torch.randn(5000, 8, units) + 0.5
    got, base = gradients(ours, x, weighting), gradients(theirs, x, weighting)
    exact = gradients(theirs.double(), x.double(), weighting.double())
    for what in ("weight_ih_l0", "weight_hh_l0"):
        ratio = ((got[what] - exact[what]).norm() / (base[what] - exact[what]).norm()).item()
        assert ratio <= 1, f"{what}: error {ratio:.2f} times torch's"


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_sums_in_groups_are_whole(monkeypatch, threads, is_packed):
    if threads == 1:
        monkeypatch.setattr(kernel_call, "_QUICK", 1)  # one chunk in a native call
    theirs = torch.nn.LSTM(3, 19, bidirectional=True, dtype=torch.float64)
    ours = cf.LSTM(3, 19, bidirectional=True, dtype=torch.float64, backend="cpu")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2111, 3, 3, dtype=torch.float64)
    if is_packed:
        x = pack_padded_sequence(x, torch.tensor([2111, 1900, 501]))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = []
        for each in (ours, theirs):
            output = each(x)[0]
            total = (output.data if is_packed else output).sum()
            found.append(torch.autograd.grad(total, list(each.parameters())))
    finally:
        torch.set_num_threads(before)
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_sum_that_is_infinite_stays_so():
    layer = cf.RNN(3, 16, nonlinearity="relu", backend="cpu")
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
        layer.bias_ih_l0.fill_(1.0)
    weighting = torch.ones(5, 40, 16)
    # Of the first time step, whose gradients go no further back.
    weighting[0, 2, 5], weighting[0, 2, 6] = torch.inf, -torch.inf
    weighting[:, :, 7] = 1e37
    found = gradients(layer, torch.zeros(5, 40, 3), weighting)["bias_ih_l0"]
    want = torch.full((16,), 200.0)
    want[5], want[6], want[7] = torch.inf, -torch.inf, torch.inf
    assert torch.equal(found, want), found
