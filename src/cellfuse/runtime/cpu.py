"""The cpu backend: the whole loop over time in one kernel made for this processor, for any cell.

The kernel is compiled at the first call for given sizes, in a few tenths of a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime import aten, eager, library, low_precision, op
from cellfuse.runtime.case import Case, Result
from cellfuse.runtime.direction import Direction, direction_text
from cellfuse.runtime.private import is_dispatch_mode_active, is_forward_ad_active


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
        return "oneDNN's LSTM, which torch calls, is faster in low precision; backend='cpu' runs ours"
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
            result = _run(raised)
        return low_precision.lowered(case, result)
    return _run(case)


def _run(case: Case) -> Result:
    value, finals = case.input, []
    for layer in range(case.num_layers):
        outputs = []
        for direction in range(case.num_directions):
            k = layer * case.num_directions + direction
            states = [state[k] for state in case.states]
            output, final = _run_direction(case, k, direction == 1, value, states)
            outputs.append(output)
            finals.append(final)
        value = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if case.dropout and layer < case.num_layers - 1:
            value = F.dropout(value, case.dropout, training=True)
    if len(finals) == 1:
        return value, tuple(final.unsqueeze(0) for final in finals[0])
    return value, tuple(torch.stack(each) for each in zip(*finals, strict=True))


def _run_direction(
    case: Case, k: int, is_reverse: bool, value: Tensor, states: list[Tensor]
) -> tuple[Tensor, Sequence[Tensor]]:
    weights = case.weights[k]
    sizes = Sizes(case.hidden_size, case.proj_size, case.num_heads)
    names = tuple(weights)
    recompute = case.must_recompute
    if torch.compiler.is_compiling():
        text = direction_text(case.cell, sizes, case.has_bias, is_reverse, recompute, names)
        made = library.forward(value, states, list(weights.values()), case.batch_sizes, text, False)
    else:
        direction = Direction(case.cell, sizes, case.has_bias, is_reverse, recompute, names)
        values = (value, *states, *weights.values())
        made = op.run(direction, values, case.batch_sizes)
    return made[0], made[1 : 1 + len(states)]
