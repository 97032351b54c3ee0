"""Layers and inputs that the tests of explain go through, and cells that the registry lacks."""

import itertools

import torch
from torch.nn.utils.rnn import pack_padded_sequence

import cellfuse as cf

T, B, I, H = 5, 3, 2, 6
FORMS = ("batched", "batch_first", "unbatched", "packed", "sorted")


@cf.cell(
    gates="in out",
    states=("h", "m"),
    parameters={"gain": cf.per_unit((0.5, 1.5)), "rate": cf.scalar(0.3, learned=False)},
    initial={"m": 0.5},
    source="none",
)
def leaky(gate, h, m, gain, rate):
    """A cell whose output is no state, with a parameter, a constant and an initial value."""
    m = rate * m + (1 - rate) * torch.tanh(getattr(gate, "in"))
    h = torch.tanh(gain * m)
    return torch.sigmoid(gate.out) * h, (h, m)


@cf.cell(gates="n", states="h", source="none")
def read_out(gate, h):
    """A cell with one state that is not its output."""
    h = torch.tanh(gate.n)
    return 2 * h, (h,)


def made(layer, form, batch=B, length=T):
    """An input of one form for a layer."""
    if form == "unbatched":
        return torch.randn(length, layer.input_size, dtype=torch.float64)
    if form == "batch_first":
        return torch.randn(batch, length, layer.input_size, dtype=torch.float64)
    value = torch.randn(length, batch, layer.input_size, dtype=torch.float64)
    if form == "batched":
        return value
    lengths = [2, 5, 3] if form == "packed" else [5, 3, 2]
    return pack_padded_sequence(value, lengths, enforce_sorted=False)


def options(form, L, D, bias):
    return {
        "num_layers": L,
        "bidirectional": D == 2,
        "bias": bias,
        "batch_first": form == "batch_first",
        "dtype": torch.float64,
    }


GRID = list(itertools.product(FORMS, (1, 2, 3), (1, 2), (True, False)))
