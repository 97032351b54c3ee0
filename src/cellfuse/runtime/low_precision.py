"""bfloat16 and float16 on the CPU kernels: numbers are rounded where they enter and leave, float32 within.

Sums and states stay in float32 over the whole sequence and from layer to layer, so that the result is closer
to the exact one than that of torch's layers, which round at every step. Autocast is the same with weights
and input rounded first; what comes out has the dtype that torch's layer gives.

Products of bfloat16 pairs (vdpbf16ps) are not used: on a Xeon with AMX that instruction does 101 GFLOP/s
where float32 multiply-adds do 202, and there torch's AMX products win from some size on anyhow.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cellfuse.runtime import aten
from cellfuse.runtime.case import Case, Result
from cellfuse.runtime.private import is_quick_in

LOW = (torch.bfloat16, torch.float16)
FEW_STEPS = 3


def autocast(case: Case) -> torch.dtype | None:
    """What autocast asks for; None if it is off, or the input is float64, which it leaves alone."""
    if not torch.is_autocast_enabled("cpu") or case.input.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype("cpu")


def precision(case: Case) -> torch.dtype:
    """In which the numbers come or are to be rounded: float32 and float64, or one of LOW."""
    return autocast(case) or case.input.dtype


def why_not(case: Case) -> str:
    """Why tensors of these dtypes do not go together; empty if they do."""
    low = autocast(case)
    if low is None:
        allowed: tuple[torch.dtype, ...] = (case.input.dtype,)
    else:
        allowed = (torch.float32, *LOW)
        kinds = {state.dtype for state in case.states}
        if len(kinds) > 1 and not _casts_all(case):
            return "under autocast the states have different dtypes"
    for name, value in case.tensors():
        if value.dtype not in allowed:
            return f"{name} is {value.dtype}, the input {case.input.dtype}"
    return ""


def why_rather_not(case: Case) -> str:
    """Why products in the low precision are quicker than the kernels' float32; empty if they are not.

    Measured on a Xeon with AMX, one thread, bfloat16, torch's time over ours, GRU and RNN: 0.4 to 0.9 with 2
    time steps or 1; from 4 to 16 sequences of 256 units 1.2 to 4; with 32 of 256 units 0.8 to 1.2 without and
    1.2 with gradients; with 32 of 512 units 0.6 to 0.9. On an EPYC with AVX-512 and bf16 0.3 to 1.2 with 1
    or 2 time steps and 0.7 to 1.3 with 3; with 32 of 256 units 1.0 to 1.2; with 16 to 64 of 384 to 1024 units
    0.7 to 1.0 without gradients, with 32 and more 0.7 to 0.9 with them; with 4 and 8 of a GRU 0.8 to 0.9
    without, for which no rule is made.
    """
    if torch.compiler.is_compiling() or not is_quick_in(precision(case)):
        return ""  # compiled, the other ways are unrolled over the time steps
    steps = case.input.shape[0] if case.batch_sizes is None else len(case.batch_sizes)
    batch = case.states[0].shape[1]
    if steps <= FEW_STEPS:
        return f"to bring the weights to float32 takes longer than {FEW_STEPS} time steps"
    if case.hidden_size >= 256 and batch * case.hidden_size >= (16384 if _is_training(case) else 8192):
        return f"this processor multiplies {precision(case)} several times as fast as float32"
    return ""


def why_rather_not_lstm(case: Case) -> str:
    """Why oneDNN's LSTM is the better choice in the low precision; empty if it is not.

    Measured as above with 1 or 2 sequences: 0.35 to 0.5 without gradients, 0.8 to 0.9 with them and 64 or 128
    units, 1.2 to 2.7 with 256 or 512.
    """
    if _is_training(case) and case.states[0].shape[1] <= 2 and case.hidden_size >= 256:
        return ""
    return "oneDNN's LSTM, which torch calls, is faster in low precision; backend='cpu' runs ours"


def _is_training(case: Case) -> bool:
    return torch.is_grad_enabled() and any(value.requires_grad for _, value in case.tensors())


def _casts_all(case: Case) -> bool:
    """Whether under autocast output and states are in its precision, too: as eager has it."""
    return not case.cell.aten or aten.casts_all(case)


def raised(case: Case) -> Case:
    """The case with every tensor in float32, after autocast's rounding. Differentiable."""
    low, all_low = autocast(case), _casts_all(case)

    def up(value: Tensor, is_rounded: bool) -> Tensor:
        return (value.to(low) if low and is_rounded else value).to(torch.float32)

    return replace(
        case,
        input=up(case.input, True),
        states=tuple(up(state, all_low) for state in case.states),
        weights=tuple({name: up(value, True) for name, value in w.items()} for w in case.weights),
    )


def lowered(case: Case, result: Result) -> Result:
    """A result in float32 with the dtypes that torch's layer gives."""
    low, (output, states) = autocast(case), result
    if low is None or _casts_all(case):
        dtypes = [low or case.input.dtype] * len(states)
    else:  # element-wise operations take the wider dtype; a projection is a product
        wide = torch.promote_types(low, case.states[0].dtype)
        dtypes = [low if case.cell.width(name) == "P" else wide for name in case.cell.states]
    # The output of torch's cells, which alone come to the second way, is the first state.
    return output.to(dtypes[0]), tuple(s.to(d) for s, d in zip(states, dtypes, strict=True))
