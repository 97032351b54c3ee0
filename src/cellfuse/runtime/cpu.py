"""The cpu backend: the whole loop over time in one kernel made for this processor, for any cell.

The kernel is compiled at the first call for given sizes, in a few tenths of a second.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from cellfuse.runtime import aten, eager, low_precision, op
from cellfuse.runtime.case import Case, Result
from cellfuse.runtime.private import is_dispatch_mode_active, is_forward_ad_active
from cellfuse.runtime.stack import run_stack


def why_not(case: Case) -> str:
    """Why the kernels cannot run this case; empty if they can."""
    why = _why_not(case)
    if why and torch.compiler.is_compiling():
        return f"{why} (elsewhere the time steps are unrolled, and compiled again for another T)"
    return why


def _why_not(case: Case) -> str:
    input = case.input
    if input.device.type != "cpu":
        return f"the input is on {input.device.type}, not on a CPU"
    if low_precision.precision(case) not in (torch.float32, torch.float64, *low_precision.LOW):
        return f"CPU kernels compute in float32 and float64, not in {low_precision.precision(case)}"
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
    if is_forward_ad_active():
        return "forward-mode derivatives are made by the formula, which eager runs; backend='cpu' does, too"
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


def run(case: Case) -> Result:
    """Run the stack: layer by layer, direction by direction."""
    if case.input.numel() == 0 or 0 in case.states[0].shape:
        return eager.run(case)  # nothing to compute
    if low_precision.precision(case) in low_precision.LOW:
        raised = low_precision.raised(case)
        with torch.autocast("cpu", enabled=False):
            result = run_stack(raised, partial(op.run_direction, "cpu"))
        return low_precision.lowered(case, result)
    return run_stack(case, partial(op.run_direction, "cpu"))
