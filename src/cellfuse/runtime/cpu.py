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
    is_compiling = torch.compiler.is_compiling()
    if is_compiling and aten.is_onnx_export():
        return "an ONNX file holds ONNX's operators only, and no kernel"
    why = _why_not(case)
    if why and is_compiling:
        return f"{why} (elsewhere the time steps are unrolled, and compiled again for another T)"
    return why


def _why_not(case: Case) -> str:
    input = case.input
    if not input.is_cpu:
        return f"the input is on {input.device.type}, not on a CPU"
    if low_precision.precision(case) not in (torch.float32, torch.float64, *low_precision.LOW):
        return f"CPU kernels compute in float32 and float64, not in {low_precision.precision(case)}"
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and is_dispatch_mode_active():
        return "a torch dispatch mode is active, which could not see into the kernel"
    if torch.jit.is_tracing():
        return "torch.jit.trace cannot see into the kernel and would record its result as a constant"
    dtype = input.dtype
    if dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu"):
        for value in case.values():
            if value.dtype is not dtype or not value.is_cpu or not (is_compiling or _is_plain(value)):
                break
        else:
            return ""
    why = low_precision.why_not(case)
    if why:
        return why
    for name, value in case.tensors():
        if value.device != input.device:
            return f"{name} is on {value.device}, the input on {input.device}"
        if is_compiling or _is_plain(value):  # torch.compile gives the operator plain memory
            continue
        if type(value) not in (Tensor, torch.nn.Parameter):
            return f"{name} is a {type(value).__name__}, which may not be plain memory"
        return f"{name} is {value.layout}, a negated view or a zero tensor, which is not plain memory"
    return ""


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is dense numbers in memory."""
    kind = type(value)
    is_dense = (kind is Tensor or kind is torch.nn.Parameter) and value.layout is torch.strided
    return is_dense and not value.is_neg() and not value._is_zerotensor()


def why_rather_not(case: Case) -> str:
    """Why torch's operator is the better choice; empty if it is not."""
    if is_forward_ad_active():
        return "forward-mode derivatives are made by the formula, which eager runs; backend='cpu' does, too"
    precision = low_precision.precision(case)
    if case.must_recompute or precision == torch.float64:
        return ""
    why = low_precision.why_rather_not(case)
    if why or not case.cell.aten or case.batch_sizes is not None or aten.why_not(case):
        return why
    if case.cell.aten != "lstm":
        return _why_rather_not_few(case)
    if case.proj_size or not torch.backends.mkldnn.is_available():
        return ""
    if precision == torch.float32:
        return _why_rather_not_large(case)
    return low_precision.why_rather_not_lstm(case)


def _why_rather_not_large(case: Case) -> str:
    """Why oneDNN's LSTM is better with many units; empty if it is not.

    Measured on a Xeon with 2 MB of second-level cache and 64 sequences of 1024 units, torch's time over ours:
    1.1 to 1.2 without gradients, 0.9 with them; with 512 units 1.1 and 1.2.
    """
    if case.hidden_size < 1024 or torch.compiler.is_compiling() or not _is_trained(case):
        return ""
    return "oneDNN's LSTM, which torch calls, trains so many units faster; backend='cpu' runs ours"


def _why_rather_not_few(case: Case) -> str:
    """Why torch's operator is better for few time steps; empty if it is not.

    Measured on an EPYC with 1 MB of second-level cache, torch's time over ours, one to four time steps of 1,
    8 and 32 sequences: up to 256 units 1.0 to 4; with 400 units 0.7 to 1.3 in one step, 1.0 to 1.4 in two,
    because the matrices are brought into another order first. torch's LSTM does so, too.
    """
    steps, batch = case.input.shape[0], case.states[0].shape[1]
    if torch.compiler.is_compiling() or case.hidden_size <= 256 or steps > (2 if batch == 1 else 1):
        return ""
    return f"to prepare a call of the kernel takes longer than {steps} time steps of torch's"


def _is_trained(case: Case) -> bool:
    return torch.is_grad_enabled() and any(value.requires_grad for value in case.values())


def run(case: Case) -> Result:
    """Run the stack: layer by layer, direction by direction."""
    if case.input.numel() == 0 or 0 in case.states[0].shape:
        return eager.run(case)  # nothing to compute
    if low_precision.precision(case) in low_precision.LOW:
        raised = low_precision.raised(case)
        with torch.autocast("cpu", enabled=False):
            result = run_stack(raised, partial(op.run_layer, "cpu"))
        return low_precision.lowered(case, result)
    return run_stack(case, partial(op.run_layer, "cpu"))
