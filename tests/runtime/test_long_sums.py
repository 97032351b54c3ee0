"""Gradients that are sums over very many rows: their error next to torch's, and sums that are not finite."""

import pytest
import torch

import cellfuse as cf

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
