"""The cpu backend: the whole loop over time in one kernel made for this processor, for any cell.

The kernel is compiled at the first call for given sizes, in a few tenths of a second.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime import eager, op
from cellfuse.runtime.case import Case, Result
from cellfuse.runtime.fused import Fused, Times
from cellfuse.runtime.private import (
    is_any_autocast_enabled,
    is_dispatch_mode_active,
    is_forward_ad_active,
    is_functorch_active,
)


def why_not(case: Case) -> str:
    """Why the kernels cannot run this case; empty if they can."""
    input = case.input
    if input.device.type != "cpu":
        return f"the input is on {input.device.type}, not on a CPU"
    if input.dtype not in (torch.float32, torch.float64):
        return f"CPU kernels compute in float32 and float64, not in {input.dtype}"
    if is_functorch_active():
        return "CPU kernels have no rule for torch.func's transforms"
    if is_forward_ad_active():
        return "CPU kernels have no forward-mode derivative"
    if torch.compiler.is_compiling():
        return "torch.compile and torch.export trace the plain formula instead"
    if is_any_autocast_enabled() and torch.is_autocast_enabled("cpu"):
        return "autocast asks for a lower precision, which CPU kernels do not have"
    if is_dispatch_mode_active():
        return "a torch dispatch mode is active, which could not see into the kernel"
    for name, value in case.tensors():
        if value.dtype != input.dtype or value.device != input.device:
            return f"{name} is {value.dtype} on {value.device}, the input {input.dtype} on {input.device}"
        if type(value) not in (Tensor, torch.nn.Parameter):
            return f"{name} is a {type(value).__name__}, which may not be plain memory"
    return ""


@lru_cache(maxsize=256)
def _fused(cell, has_bias: bool, sizes: Sizes, dtype: torch.dtype) -> Fused:  # type: ignore[no-untyped-def]
    return Fused(cell, has_bias, sizes, dtype)


@lru_cache(maxsize=64)
def _starts(steps: int, batch: int) -> Tensor:
    return torch.arange(steps + 1) * batch


def run(case: Case) -> Result:
    """Run the stack: layer by layer, direction by direction."""
    if case.input.numel() == 0 or 0 in case.states[0].shape:
        return eager.run(case)  # nothing to compute
    sizes = Sizes(case.hidden_size, case.proj_size, case.num_heads)
    fused = _fused(case.cell, case.has_bias, sizes, case.input.dtype)
    value, finals = case.input, []
    for layer in range(case.num_layers):
        outputs = []
        for direction in range(case.num_directions):
            k = layer * case.num_directions + direction
            weights = case.weights[k]
            call = op.Call(fused, case, _times(case, direction == 1), tuple(weights))
            states = [state[k] for state in case.states]
            output, final = op.run(call, value, states, tuple(weights.values()))
            outputs.append(output)
            finals.append(final)
        value = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if case.dropout and layer < case.num_layers - 1:
            value = F.dropout(value, case.dropout, training=True)
    if len(finals) == 1:
        return value, tuple(final.unsqueeze(0) for final in finals[0])
    return value, tuple(torch.stack(each) for each in zip(*finals, strict=True))


def _times(case: Case, is_reverse: bool) -> Times:
    if case.batch_sizes is None:
        steps, batch = case.input.shape[:2]
        return Times(_starts(steps, batch), batch, is_reverse)
    sizes = case.batch_sizes
    starts = F.pad(sizes.cumsum(0), (1, 0))
    return Times(starts, int(sizes[0]), is_reverse, sizes)
