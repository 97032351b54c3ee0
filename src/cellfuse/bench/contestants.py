"""Who runs a case: our layer, torch.nn's where it has the cell, and the loop a user would write.

All of one case hold the same weights and get the same input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellfuse import cells
from cellfuse.bench.cases import OPTIONS, BenchCase
from cellfuse.nn import Layer

TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
States = tuple[Tensor, ...]


class Loop(nn.Module):
    """A Python loop over time as people write it by hand: the input product of all time steps first.

    Written for one layer of LSTM, GRU and RNN; the parameters are torch.nn's.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        for name, value in layer.named_parameters():
            self.register_parameter(name.removesuffix("_l0"), nn.Parameter(value.detach().clone()))
        self.step: Callable[[Tensor, States], States] = getattr(self, layer.cell.name)
        self.num_states, self.hidden_size = len(layer.cell.states), layer.hidden_size

    def lstm(self, x: Tensor, states: States) -> States:
        """One time step; x: the input product of all gates."""
        h, c = states
        i, f, g, o = (x + F.linear(h, self.weight_hh, self.bias_hh)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def gru(self, x: Tensor, states: States) -> States:
        """One time step; x: the input product of all gates."""
        (h,) = states
        x_r, x_z, x_n = x.chunk(3, -1)
        h_r, h_z, h_n = F.linear(h, self.weight_hh, self.bias_hh).chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return (n + z * (h - n),)

    def rnn(self, x: Tensor, states: States) -> States:
        """One time step; x: the input product."""
        return (torch.tanh(x + F.linear(states[0], self.weight_hh, self.bias_hh)),)

    def forward(self, input: Tensor) -> tuple[Tensor, States]:
        """Input [T, B, I] -> output [T, B, H] and the final states [1, B, H]."""
        products = F.linear(input, self.weight_ih, self.bias_ih)
        states = (input.new_zeros(input.shape[1], self.hidden_size),) * self.num_states
        outputs = []
        for product in products:
            states = self.step(product, states)
            outputs.append(states[0])
        return torch.stack(outputs), tuple(state.unsqueeze(0) for state in states)


def contestants(case: BenchCase, backend: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Modules by name, ours first; "loop" is always there and is what results are checked against.

    For a cell that is not LSTM, GRU or RNN the loop is our eager backend: the cell's own equations,
    operation by operation.
    """
    torch.manual_seed(0)
    cell, options = cells.find(case.cell), OPTIONS.get(case.cell, {})

    def layer(which: str) -> Layer:
        return cell.layer(case.I, case.H, dtype=dtype, backend=which, **options)

    ours = layer(backend)
    found: dict[str, nn.Module] = {"cellfuse": ours}
    if case.cell in TORCH:
        found["torch.nn"] = TORCH[case.cell](case.I, case.H, dtype=dtype)
        found["torch.nn"].load_state_dict(ours.state_dict())
        found["loop"] = Loop(ours)
    else:
        found["loop"] = layer("eager")
        found["loop"].load_state_dict(ours.state_dict())
    return found


def gradients(module: nn.Module, loss: Tensor, input: Tensor) -> dict[str, Tensor]:
    """Gradients of the input and of every parameter, by the same names for every contestant."""
    names = ["input", *(name.removesuffix("_l0") for name, _ in module.named_parameters())]
    values = torch.autograd.grad(loss, [input, *module.parameters()])
    return dict(zip(names, values, strict=True))
