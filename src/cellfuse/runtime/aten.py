"""The aten backend: torch's own operators (oneDNN, cuDNN, ATen) for the cells torch has.

A cell is torch's if it says so (`Cell.aten`); everything else runs elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellfuse.cell import Cell
from cellfuse.masked import Masked
from cellfuse.runtime.case import Case, Result, Weights
from cellfuse.runtime.private import (
    constant_in_graphs,
    has_onednn_bfloat16,
    has_onednn_float16,
    is_dispatch_mode_active,
    is_forward_ad_active,
    is_functorch_active,
    torch_operator,
)


def why_not(case: Case) -> str:
    """Why torch's operator cannot run this case; empty if it can."""
    if case.must_recompute:
        return "recompute=True: torch's operator keeps what it will read in the backward pass"
    input = case.input
    if isinstance(case.cell, Masked):
        return "torch's operators know neither zoneout nor recurrent dropout"
    if not case.cell.aten:
        return f"torch has no operator for the cell {case.cell.name}"
    if input.numel() == 0 or 0 in case.states[0].shape:
        return "torch's operators refuse empty sequences"
    if is_functorch_active():
        return "torch's operators have no batching rule for torch.func"
    if is_forward_ad_active():
        return "torch's operators have no forward-mode derivative"
    if torch.compiler.is_compiling() and not _is_onnx_node(case):
        return (
            "torch.compile unrolls torch's operator over the time steps, once for every T, and then "
            "leaves out the dropout between layers"
        )
    if _onednn_lacks(case):
        return "oneDNN has no LSTM in this precision on this processor, and torch calls it all the same"
    return ""


# A constant, because torch.compile, which the exporter may use, takes torch's own answer for False.
@constant_in_graphs
def is_onnx_export() -> bool:
    """Whether torch.onnx.export is looking."""
    return torch.onnx.is_in_onnx_export()


def _is_onnx_node(case: Case) -> bool:
    """Whether torch.onnx.export makes one LSTM or GRU node of torch's operator."""
    is_whole = case.cell.aten in ("lstm", "gru") and not case.proj_size and not case.dropout
    return is_whole and case.batch_sizes is None and is_onnx_export()


def casts_all(case: Case) -> bool:
    """Whether torch's layer of this cell computes all in autocast's precision, the states included.

    On CPU its GRU, and its LSTM where oneDNN is not asked, compute the equation as it is written:
    products in the low precision, what is made of them and of float32 states in float32.
    """
    is_simple = case.cell.aten.startswith("rnn")  # no state is read outside of a product
    return is_simple or case.input.device.type != "cpu" or _is_onednn(case)


def _is_onednn(case: Case) -> bool:
    """Whether torch asks oneDNN for the whole layer, for which autocast has a rule of its own."""
    is_lstm = case.cell.aten == "lstm" and not case.proj_size
    return is_lstm and case.input.device.type == "cpu" and case.batch_sizes is None


def _onednn_lacks(case: Case) -> bool:
    """Whether torch would ask oneDNN for a low-precision LSTM that the processor cannot run."""
    low = case.input.dtype
    if not _is_onednn(case) or low == torch.float64:
        return False
    is_autocast = torch.is_autocast_enabled("cpu")
    if is_autocast:
        low = torch.get_autocast_dtype("cpu")
    if low == torch.float16:
        return is_dispatch_mode_active() or not has_onednn_float16(is_autocast)
    return low == torch.bfloat16 and not has_onednn_bfloat16()


class Operator:
    """torch's operator for cases like one, for `cellfuse.nn.quick`.

    Attributes:
        initial: the initial states where a call is given none.
    """

    def __init__(self, case: Case) -> None:
        # cuDNN has no backward in evaluation mode; with dropout 0, as Case has it there, the modes are the
        # same.
        is_training = case.dropout > 0 or (case.input.is_cuda and torch.is_grad_enabled())
        self._options = case.has_bias, case.num_layers, case.dropout, is_training, case.num_directions == 2
        self._operator, self.initial = torch_operator(case.cell.aten), list(case.states)

    def run(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor],
        batch_sizes: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """(output, final states) of the whole stack in one call; states empty: the initial ones."""
        # Anew at each call, as torch.nn makes them: autograd keeps them. These cells begin with zeros.
        states = states or [torch.zeros_like(value) for value in self.initial]
        hx = states if len(states) > 1 else states[0]
        if batch_sizes is None:
            output, *finals = self._operator(x, hx, weights, *self._options, False)
        else:
            output, *finals = self._operator(x, batch_sizes, hx, weights, *self._options)
        return output, finals


def run(case: Case) -> Result:
    """Run the whole stack in one call of torch's operator."""
    flat = [weight for weights in case.weights for weight in weights.values()]
    output, finals = Operator(case).run(case.input, case.states, flat, case.batch_sizes)
    return output, tuple(finals)


def has_step(cell: Cell) -> bool:
    """Whether torch has an operator for one time step of this cell, as torch.nn.LSTMCell calls it."""
    return bool(cell.aten) and not cell.projected


def run_step(cell: Cell, x: Tensor, states: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """The new states after one time step: x [B, I], states [B, H] each. For every kind of input."""
    packed = [weights.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    operator = torch_operator(cell.aten + "_cell")
    new = operator(x, states if len(states) > 1 else states[0], *packed)
    return new if isinstance(new, tuple) else (new,)
