"""The cpu backend: the whole loop over time in one kernel made for this processor, for any cell.

The kernel is compiled at the first call for given sizes, in a few tenths of a second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime import aten, eager, library, low_precision, op
from cellfuse.runtime.case import Case, Result
from cellfuse.runtime.fused import fused_step
from cellfuse.runtime.private import (
    is_dispatch_mode_active,
    is_forward_ad_active,
    is_functorch_active,
)
from cellfuse.runtime.stack import run_stack
from cellfuse.runtime.times import times_of


def why_not(case: Case) -> str:
    """Why the kernels cannot run this case; empty if they can."""
    why = _why_not_compiled(case) if torch.compiler.is_compiling() else ""
    why = why or _why_not(case)
    if why and torch.compiler.is_compiling():
        return f"{why} (elsewhere the time steps are unrolled, and compiled again for another T)"
    return why


def _why_not(case: Case) -> str:
    input = case.input
    if input.device.type != "cpu":
        return f"the input is on {input.device.type}, not on a CPU"
    if low_precision.precision(case) not in (torch.float32, torch.float64, *low_precision.LOW):
        return f"CPU kernels compute in float32 and float64, not in {low_precision.precision(case)}"
    if is_functorch_active():
        return "CPU kernels have no rule for torch.func's transforms"
    if is_forward_ad_active():
        return "CPU kernels have no forward-mode derivative"
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and is_dispatch_mode_active():
        return "a torch dispatch mode is active, which could not see into the kernel"
    if torch.jit.is_tracing():
        return "torch.jit.trace cannot see into the kernel and would record its result as a constant"
    why = low_precision.why_not(case)
    if why:
        return why
    for name, value in case.tensors():
        if value.device != input.device:
            return f"{name} is on {value.device}, the input on {input.device}"
        if is_compiling:  # torch.compile gives the operator plain memory
            continue
        if type(value) not in (Tensor, torch.nn.Parameter):
            return f"{name} is a {type(value).__name__}, which may not be plain memory"
        if value.layout is not torch.strided or value.is_neg():
            return f"{name} is a {value.layout} or negated view, which is not plain memory"
    return ""


def why_rather_not(case: Case) -> str:
    """Why torch's operator is the better choice; empty if it is not.

    oneDNN's LSTM runs at the processor's limit. Measured on Zen 4 with T = 100: ours takes 0.94 to 1.1
    times as long from two sequences on; with one and 128 units or more it is 1.1 to 1.4 times as fast.
    """
    precision = low_precision.precision(case)
    if case.must_recompute or precision == torch.float64:
        return ""
    why = low_precision.why_rather_not(case)
    if why or case.cell.aten != "lstm" or case.proj_size:
        return why
    if case.batch_sizes is not None or aten.why_not(case) or not torch.backends.mkldnn.is_available():
        return ""
    if precision != torch.float32:
        return low_precision.why_rather_not_lstm(case)
    batch = case.states[0].shape[1]
    if batch == 1 and case.hidden_size >= 128 and torch.get_num_threads() == 1:
        return ""
    return "oneDNN's LSTM, which torch calls, is as fast here; backend='cpu' runs ours"


def _why_not_compiled(case: Case) -> str:
    """Why the kernel cannot be an operator in the graph that torch.compile makes."""
    if torch.compiler.is_exporting():
        return "an exported program must run in other processes, where the kernel does not exist"
    if case.batch_sizes is not None:
        return "torch.compile cannot look into the lengths of packed sequences"
    if case.must_recompute:
        return "recompute=True has no operator for the graph of torch.compile"
    return ""


def run(case: Case) -> Result:
    """Run the stack: layer by layer, direction by direction."""
    if case.input.numel() == 0 or 0 in case.states[0].shape:
        return eager.run(case)  # nothing to compute
    if low_precision.precision(case) in low_precision.LOW:
        raised = low_precision.raised(case)
        with torch.autocast("cpu", enabled=False):
            result = _run(raised)
        return low_precision.lowered(case, result)
    return _run(case)


def _run(case: Case) -> Result:
    return run_stack(case, _run_operator if torch.compiler.is_compiling() else _run_direct)


def _run_direct(
    case: Case, k: int, is_reverse: bool, value: Tensor, states: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    weights = case.weights[k]
    sizes = Sizes(case.hidden_size, case.proj_size, case.num_heads)
    fused = fused_step(case.cell, case.has_bias, sizes, value.dtype, case.must_recompute)
    call = op.Call(fused, case, times_of(case.input, case.batch_sizes, is_reverse), tuple(weights))
    return op.run(call, value, states, tuple(weights.values()))


def _run_operator(
    case: Case, k: int, is_reverse: bool, value: Tensor, states: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    weights = case.weights[k]
    sizes = [case.hidden_size, case.proj_size, case.num_heads]
    fixed = (list(weights), case.cell.number, case.has_bias, sizes, is_reverse)
    made = library.forward(value, states, list(weights.values()), *fixed, False)
    return made[0], list(made[1 : 1 + len(states)])
