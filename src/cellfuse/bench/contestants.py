"""Who runs a case: our layer, torch.nn's where it has the cell, and the loop a user would write.

All of one case hold the same weights and get the same input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellfuse import cells
from cellfuse.bench.cases import OPTIONS, SHARES, BenchCase
from cellfuse.bench.echo_lstm import echo_lstm
from cellfuse.cell import Cell
from cellfuse.nn import Layer

TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
TORCH_CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}
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
        states = self.zeros(input.shape[1], input)
        outputs = []
        for product in F.linear(input, self.weight_ih, self.bias_ih):
            states = self.step(product, states)
            outputs.append(states[0])
        return torch.stack(outputs), tuple(state.unsqueeze(0) for state in states)

    def zeros(self, batch: int, like: Tensor) -> States:
        """The states before the first time step."""
        return (like.new_zeros(batch, self.hidden_size),) * self.num_states

    def one_step(self, x_t: Tensor, states: States | None) -> tuple[Tensor, States]:
        """One time step with its own input product, as in a stream."""
        states = self.zeros(len(x_t), x_t) if states is None else states
        states = self.step(F.linear(x_t, self.weight_ih, self.bias_ih), states)
        return states[0], states


class Stream(nn.Module):
    """A module that runs a sequence one time step a call, by `step(x_t, state) -> (y_t, state)`."""

    def __init__(self, module: nn.Module, step: Callable) -> None:
        super().__init__()
        self.module, self.step = module, step

    def forward(self, input: Tensor) -> tuple[Tensor, States]:
        """As `Loop.forward`."""
        state, outputs = None, []
        for x_t in input:
            y_t, state = self.step(x_t, state)
            outputs.append(y_t)
        states = state if isinstance(state, tuple) else (state,)
        return torch.stack(outputs), tuple(s if s.dim() == 3 else s.unsqueeze(0) for s in states)


class Episodes(nn.Module):
    """A layer whose sequences start anew where the mask is true."""

    def __init__(self, layer: nn.Module, reset: Tensor) -> None:
        super().__init__()
        self.layer, self.reset = layer, reset

    def forward(self, input: Tensor) -> tuple[Tensor, States]:
        """As `Loop.forward`."""
        output, states = self.layer(input, reset=self.reset)
        return output, states if isinstance(states, tuple) else (states,)


class EpisodeLoop(Episodes):
    """The same around a layer of torch.nn: one time step a call, with the states zeroed in between."""

    def forward(self, input: Tensor) -> tuple[Tensor, States]:
        """As `Loop.forward`."""
        state, outputs = None, []
        for x_t, goes_on in zip(input.unsqueeze(1), (~self.reset).to(input.dtype), strict=True):
            if state is not None:
                states = tuple(s * goes_on.view(1, -1, 1) for s in _tuple(state))
                state = states if len(states) > 1 else states[0]
            y_t, state = self.layer(x_t, state)
            outputs.append(y_t)
        return torch.cat(outputs), _tuple(state)


class ZoneoutLoop(nn.Module):
    """A loop around one step, with zoneout as people write it: masks first, drawn as our layer draws them.

    Args:
        step: (a time step of what `prepare` makes of the input, states) -> new states.
    """

    def __init__(self, layer: nn.Module, prepare: Callable, step: Callable, ours: Layer) -> None:
        super().__init__()
        self.layer, self.prepare, self.step, self.width = layer, prepare, step, ours.hidden_size
        self.shares = [SHARES[state] for state in ours.cell.states]

    def forward(self, input: Tensor) -> tuple[Tensor, States]:
        """As `Loop.forward`."""
        steps, batch, _ = input.shape
        like = input.new_empty(steps, batch, self.width)
        masks = [torch.bernoulli(like, share) == 1 for share in self.shares]
        states, outputs = (input.new_zeros(batch, self.width),) * len(masks), []
        for x_t, *kept in zip(self.prepare(input), *masks, strict=True):
            pairs = zip(kept, states, self.step(x_t, states), strict=True)
            states = tuple(torch.where(is_kept, old, new) for is_kept, old, new in pairs)
            outputs.append(states[0])
        return torch.stack(outputs), tuple(state.unsqueeze(0) for state in states)


def _tuple(state: Tensor | States | None) -> States:
    assert state is not None
    return state if isinstance(state, tuple) else (state,)


class Stepped(nn.Module):
    """`layer.stepper`, made anew for each sequence: its weights are copies."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> tuple[Tensor, States]:
        """As `Loop.forward`."""
        stepper = self.layer.stepper(input.shape[1])
        outputs = [stepper(x_t)[0] for x_t in input]
        state = stepper.state
        return torch.stack(outputs), state if isinstance(state, tuple) else (state,)


class InputProduct(nn.Module):
    """Only the product W x + b of all time steps: what any way of running a linear cell has to make."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        weight = layer.get_parameter("weight_ih_l0")
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)

    def forward(self, input: Tensor) -> tuple[Tensor, None]:
        """Input [T, B, I] -> products [T, B, G*H]."""
        return self.linear(input), None


def contestants(
    case: BenchCase, backend: str, dtype: torch.dtype, weights: dict[str, Tensor] | None = None
) -> dict[str, nn.Module]:
    """Modules by name, ours first; "loop" is always there and is what results are checked against.

    For a cell that is not LSTM, GRU or RNN, for ragged input and two directions, the loop is our eager
    backend: the cell's own equations, operation by operation.

    weights: of all; None draws new ones.
    """
    torch.manual_seed(0)
    cell = cell_of(case)
    options: dict[str, Any] = {**OPTIONS.get(case.cell, {})}
    if case.family == "directions":
        options["bidirectional"] = True
    if case.family == "zoneout":
        options["zoneout"] = {state: SHARES[state] for state in cell.states}
    ours = cell.layer(case.I, case.H, dtype=dtype, backend=backend, **options)
    ours.load_state_dict(weights or ours.state_dict())
    if case.family == "stream":
        return _streams(case, ours)
    if case.family == "reset":
        return _episodes(case, ours)
    if case.family == "zoneout":
        return _zoneout(case, ours)
    found: dict[str, nn.Module] = {"cellfuse": ours}
    if case.cell in TORCH:
        theirs = TORCH[case.cell](case.I, case.H, dtype=dtype, bidirectional=ours.bidirectional)
        found["torch.nn"] = _with(theirs, ours)
    if case.cell in TORCH and case.family not in ("ragged", "directions"):
        found["loop"] = Loop(ours)
    else:
        found["loop"] = _with(cell.layer(case.I, case.H, dtype=dtype, backend="eager", **options), ours)
    if case.family == "custom":
        found["our LSTM"] = cells.find("lstm").layer(case.I, case.H, dtype=dtype, backend="cpu")
    if case.family == "linear":
        found["our input product"] = InputProduct(ours)
    if case.family == "bf16":
        found["our float32"] = _with(cell.layer(case.I, case.H, backend=backend, **options), ours)
    if case.family == "memory" and backend in ("auto", "cpu"):
        again = cell.layer(case.I, case.H, dtype=dtype, backend="cpu", recompute=True, **options)
        found["our recompute"] = _with(again, ours)
    return found


def cell_of(case: BenchCase) -> Cell:
    """The cell of a case: a published one, or the one invented for the measurements."""
    return echo_lstm if case.cell == echo_lstm.name else cells.find(case.cell)


def _streams(case: BenchCase, ours: Layer) -> dict[str, nn.Module]:
    """One time step a call; torch.nn both as a layer at T=1 and as its one-step cell."""
    dtype, loop = next(ours.parameters()).dtype, Loop(ours)
    theirs = _with(TORCH[case.cell](case.I, case.H, dtype=dtype), ours)
    one = TORCH_CELLS[case.cell](case.I, case.H, dtype=dtype)
    one.load_state_dict({name.removesuffix("_l0"): value for name, value in ours.state_dict().items()})

    def layer_step(x_t: Tensor, state: States | None) -> tuple[Tensor, States]:
        output, state = theirs(x_t.unsqueeze(0), state)
        return output[0], state

    def cell_step(x_t: Tensor, state: States | None) -> tuple[Tensor, States]:
        state = one(x_t, state)
        return (state[0] if isinstance(state, tuple) else state), state

    return {
        "cellfuse": Stream(ours, ours.step),
        "our stepper": Stepped(ours),
        "torch.nn": Stream(theirs, layer_step),
        "torch.nn cell": Stream(one, cell_step),
        "loop": Stream(loop, loop.one_step),
    }


def _episodes(case: BenchCase, ours: Layer) -> dict[str, nn.Module]:
    """Episodes that start inside; torch.nn in a loop over time, and the pieces by our eager backend."""
    dtype, cell = next(ours.parameters()).dtype, cell_of(case)
    theirs = _with(TORCH[case.cell](case.I, case.H, dtype=dtype), ours)
    eager = _with(cell.layer(case.I, case.H, dtype=dtype, backend="eager"), ours)
    unbroken = _with(cell.layer(case.I, case.H, dtype=dtype), ours)
    return {
        "cellfuse": Episodes(ours, case.reset),
        "torch.nn": EpisodeLoop(theirs, case.reset),
        "loop": Episodes(eager, case.reset),
        "our layer without resets": unbroken,
    }


def _zoneout(case: BenchCase, ours: Layer) -> dict[str, nn.Module]:
    """Units that keep their value; torch.nn by its one-step cell in a loop over time."""
    dtype, loop = next(ours.parameters()).dtype, Loop(ours)
    one = TORCH_CELLS[case.cell](case.I, case.H, dtype=dtype)
    one.load_state_dict({name.removesuffix("_l0"): value for name, value in ours.state_dict().items()})
    plain = _with(cell_of(case).layer(case.I, case.H, dtype=dtype, backend="cpu"), ours)

    def cell_step(x_t: Tensor, states: States) -> States:
        new = one(x_t, states if len(states) > 1 else states[0])
        return new if isinstance(new, tuple) else (new,)

    return {
        "cellfuse": ours,
        "torch.nn cell": ZoneoutLoop(one, lambda input: input, cell_step, ours),
        "loop": ZoneoutLoop(
            loop, lambda input: F.linear(input, loop.weight_ih, loop.bias_ih), loop.step, ours
        ),
        "our layer without zoneout": plain,
    }


def _with(module: nn.Module, ours: Layer) -> nn.Module:
    module.load_state_dict(ours.state_dict())
    return module


def gradients(module: nn.Module, loss: Tensor, input: Tensor) -> dict[str, Tensor]:
    """Gradients of the input and of every parameter, by the same names for every contestant."""
    names = ["input", *(n.removeprefix("layer.").replace("_l0", "") for n, _ in module.named_parameters())]
    values = torch.autograd.grad(loss, [input, *module.parameters()])
    return dict(zip(names, values, strict=True))
