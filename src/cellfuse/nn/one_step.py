"""OneStep: a cell with weights for one time step. RNNCell, GRUCell, LSTMCell as in torch.nn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cellfuse.cell import Cell
from cellfuse.cells.gru import gru
from cellfuse.cells.lstm import lstm
from cellfuse.errors import InputError, ShapeError
from cellfuse.nn import arguments, tracing
from cellfuse.nn.parameters import initialise
from cellfuse.nn.rnn import cell_of_nonlinearity
from cellfuse.runtime import aten, eager
from cellfuse.runtime.case import Case, Result, Weights
from cellfuse.runtime.torch_text import torch_step
from cellfuse.slots import slots


class OneStep(nn.RNNCellBase):
    """One time step of a cell, with weights named as in torch.nn.LSTMCell: weight_ih, weight_hh, ...

    Args:
        cell, input_size, hidden_size, bias, device, dtype, proj_size, num_heads: see `Layer`.

    Raises:
        OptionError, OptionTypeError: an option is wrong.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: int = 0,
        num_heads: int = 1,
    ) -> None:
        # Not RNNCellBase's own: it knows its own cells only. It is the base for `isinstance` in users' code.
        nn.Module.__init__(self)
        arguments.check_cell(cell)
        arguments.check_sizes(input_size, hidden_size, any_integer=True)
        arguments.check_projection(cell, hidden_size, proj_size)
        arguments.check_heads(cell, hidden_size, num_heads)
        self.cell = cell
        self.input_size = int(input_size)
        self.hidden_size = int(hidden_size)
        self.bias = bias
        self.proj_size = int(proj_size)
        self.num_heads = int(num_heads)
        self._lay_out()
        for slot in self._slots:
            value = torch.empty(slot.shape, device=device, dtype=dtype)
            if slot.learned:
                self.register_parameter(slot.name, nn.Parameter(value))
            else:
                self.register_buffer(slot.name, value)
        for name in () if bias else ("bias_ih", "bias_hh"):
            self.register_parameter(name, None)
        self.reset_parameters()

    def _lay_out(self) -> None:
        """Note the parameters, in torch's order."""
        self._slots = slots(
            self.cell,
            self.input_size,
            self.hidden_size,
            bias=self.bias,
            proj_size=self.proj_size,
            num_heads=self.num_heads,
        )
        # Made now, because torch.compile and export could not make them inside `forward`.
        torch_step(self.cell.step if self.bias else self.cell.step_without_bias)
        _ = self.cell.input_gates, self.cell.recurrent_gates, self.cell.output_is_a_state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lay_out()

    def reset_parameters(self) -> None:
        """Draw new initial values, the same as torch.nn's for the same seed."""
        values = {slot.name: getattr(self, slot.name) for slot in self._slots}
        initialise(values, self.cell, self._slots, self.hidden_size)

    def extra_repr(self) -> str:
        """Sizes and the options that differ from their defaults."""
        text = f"{self.input_size}, {self.hidden_size}"
        text += f", bias={self.bias}" if self.bias is not True else ""
        nonlinearity = getattr(self, "nonlinearity", "tanh")
        return text + (f", nonlinearity={nonlinearity}" if nonlinearity != "tanh" else "")

    def _get_name(self) -> str:
        return type(self).__name__ if type(self) is not OneStep else f"{self.cell.name}.one_step"

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """One time step.

        Args:
            input: [B, I], or [I] without a batch.
            hx: the states, [B, H] each ([H] without a batch); a tensor if the cell has one state, else
                a tuple. None: zeros.

        Returns:
            The new states, as `hx`; for a cell whose output is not a state, (output, states).

        Raises:
            InputError, ShapeError: input or states do not fit.
        """
        proxy = tracing.leaf(self, input, hx)
        if proxy is not None:
            return proxy
        name = self._get_name()
        arguments.check_tensor(name, input, or_packed=False)
        if input.dim() not in (1, 2):
            raise InputError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        is_batched = input.dim() == 2
        x = input if is_batched else input.unsqueeze(0)
        if x.size(1) != self.input_size:
            raise ShapeError(f"input has inconsistent input_size: got {x.size(1)} expected {self.input_size}")
        states = self._states(hx, x, is_batched)
        weights = {slot.name: getattr(self, slot.name) for slot in self._slots}
        if aten.has_step(self.cell):
            new = aten.run_step(self.cell, x, states, weights)
            output = new[0]
        else:
            output, new = self._run(x, states, weights)
        if not is_batched:
            output, new = output[0], tuple(state[0] for state in new)
        result = new if len(new) > 1 else new[0]
        return result if self.cell.output_is_a_state else (output, result)

    def _run(self, x: Tensor, states: tuple[Tensor, ...], weights: Weights) -> Result:
        """A sequence of one time step."""
        case = Case(
            cell=self.cell,
            has_bias=self.bias,
            hidden_size=self.hidden_size,
            proj_size=self.proj_size,
            num_heads=self.num_heads,
            num_layers=1,
            num_directions=1,
            dropout=0.0,
            weights=(weights,),
            input=x.unsqueeze(0),
            states=tuple(state.unsqueeze(0) for state in states),
        )
        outputs, finals = eager.run(case)
        return outputs[0], tuple(state[0] for state in finals)

    def _states(self, hx: Any, x: Tensor, is_batched: bool) -> tuple[Tensor, ...]:
        """The states with a batch axis, checked."""
        name, cell = self._get_name(), self.cell
        widths = {"H": self.hidden_size, "P": self.proj_size}
        if hx is None:
            return tuple(
                torch.full(
                    (len(x), widths[cell.width(state)]),
                    float(cell.initial.get(state, 0.0)),  # type: ignore[arg-type]
                    dtype=x.dtype,
                    device=x.device,
                )
                for state in cell.states
            )
        states = arguments.state_tuple(cell, hx, name)
        for place, state in enumerate(states):
            if state.dim() not in (1, 2):
                what = "hidden" if len(states) == 1 else f"hx[{place}]"
                raise InputError(f"{name}: Expected {what} to be 1D or 2D, got {state.dim()}D instead")
        if not is_batched:
            states = tuple(state.unsqueeze(0) for state in states)
        for place, (state, letter) in enumerate(zip(states, cell.states, strict=True)):
            wanted = widths[cell.width(letter)]
            if state.dim() != 2 or state.size(0) != x.size(0):
                raise ShapeError(
                    f"Input batch size {x.size(0)} doesn't match hidden{place} batch size "
                    f"{state.size(0)}: the input is {list(x.shape)}, state {letter} {list(state.shape)}"
                )
            if state.size(1) != wanted:
                raise ShapeError(
                    f"hidden{place} has inconsistent hidden_size: got {state.size(1)}, expected {wanted}"
                )
        return states


class RNNCell(OneStep):
    """One step of the simple recurrent network; in place of torch.nn.RNNCell."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        cell = cell_of_nonlinearity(nonlinearity)
        super().__init__(cell, input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity


class GRUCell(OneStep):
    """One step of the GRU; in place of torch.nn.GRUCell."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(gru, input_size, hidden_size, bias, device, dtype)


class LSTMCell(OneStep):
    """One step of the LSTM; in place of torch.nn.LSTMCell."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(lstm, input_size, hidden_size, bias, device, dtype)
