"""The cuda backend: generated kernels on NVIDIA GPUs, for any cell, without a compiler on the user's machine.

Kernels are compiled by NVRTC at the first call for given sizes. Its results have been compared with
float64 on an emulator only, until a results file of benchmarks/gpu.py says otherwise; so "auto" leaves the
cells that torch has to cuDNN.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime import aten, cuda_driver, cuda_step, eager, op
from cellfuse.runtime.case import Case, Result
from cellfuse.runtime.per_step import REAL
from cellfuse.runtime.private import (
    constant_in_graphs,
    is_dispatch_mode_active,
    is_forward_ad_active,
    is_functorch_active,
)
from cellfuse.runtime.stack import run_stack

# Where the kernels run.
DEVICE = "cuda"
_LOW = (torch.bfloat16, torch.float16)
# Older GPUs lack asynchronous copies and bfloat16.
_OLDEST = (8, 0)


def why_not(case: Case) -> str:
    """Why the kernels cannot run this case; empty if they can."""
    input, is_compiling = case.input, torch.compiler.is_compiling()
    if input.device.type != DEVICE:
        return f"the input is on {input.device.type}, not on a CUDA device"
    if input.dtype not in REAL:
        return f"GPU kernels compute in {', '.join(_names(REAL))}, not in {input.dtype}"
    why = _why_no_device(input.device.index)
    if why:
        return why
    if is_functorch_active():
        return "GPU kernels have no rule for torch.func's transforms"
    if is_forward_ad_active():
        return "GPU kernels have no forward-mode derivative"
    if not is_compiling and is_dispatch_mode_active():
        return "a torch dispatch mode is active, which could not see into the kernel"
    if torch.jit.is_tracing():
        return "torch.jit.trace cannot see into the kernel and would record its result as a constant"
    if is_compiling:
        why = _why_not_compiled(case)
        if why:
            return why
    # Autocast brings them to one dtype.
    allowed = (input.dtype,) if eager.autocast_dtype(case) is None else (torch.float32, *_LOW)
    for name, value in case.tensors():
        if value.dtype not in allowed or value.device != input.device:
            return f"{name} is {value.dtype} on {value.device}, the input {input.dtype} on {input.device}"
        if is_compiling:
            continue
        if type(value) not in (Tensor, torch.nn.Parameter):
            return f"{name} is a {type(value).__name__}, which may not be plain memory"
        if value.layout is not torch.strided or value.is_neg():
            return f"{name} is a {value.layout} or negated view, which is not plain memory"
    if case.states[0].shape[1] * max(case.hidden_size, case.proj_size) >= 2**31:
        return "one time step has 2**31 values or more"
    return ""


def _names(dtypes: dict[torch.dtype, torch.dtype]) -> list[str]:
    return [str(dtype).removeprefix("torch.") for dtype in dtypes]


@constant_in_graphs
def _why_no_device(index: int | None) -> str:
    """Why no kernel can run on this device, whatever the case."""
    why = cuda_driver.why_not()
    if why:
        return why
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; the kernels need 8.0"
    return ""


@constant_in_graphs
def _is_exporting() -> bool:
    """Not asked in a graph: there torch 2.11 answers that it exports when it compiles, too."""
    return torch.compiler.is_exporting()


def _why_not_compiled(case: Case) -> str:
    """Why the kernel cannot be an operator in the graph that torch.compile makes."""
    if _is_exporting():
        return "an exported program must run in other processes, where the kernel does not exist"
    if case.batch_sizes is not None:
        return "torch.compile cannot look into the lengths of packed sequences"
    if case.must_recompute:
        return "recompute=True has no operator for the graph of torch.compile"
    return ""


def why_rather_not(case: Case) -> str:
    """Why torch's operator is the better choice; empty if it is not."""
    if not case.cell.aten or case.must_recompute or aten.why_not(case):
        return ""
    return "cuDNN, which torch calls, is measured on GPUs, our kernels are not yet; backend='cuda' runs ours"


def plan(case: Case) -> cuda_step.Plan:
    """How the case would run."""
    if _is_empty(case):
        return cuda_step.Plan("no kernel", "there is nothing to compute")
    if case.must_recompute:
        made = cuda_step.Plan("per step", "recompute=True: it alone can make the values again")
        return cuda_step.in_turn(made, cuda_step.STEPS) if case.num_directions > 1 else made
    dtype = eager.autocast_dtype(case) or case.input.dtype
    sizes = Sizes(case.hidden_size, case.proj_size, case.num_heads)
    given = case.cell, case.has_bias, sizes, dtype, case.states[0].shape[1]
    return cuda_step.plan(cuda_step.wanted(*given, case.num_directions), case.input.device)


def _is_empty(case: Case) -> bool:
    return case.input.numel() == 0 or 0 in case.states[0].shape


def run(case: Case) -> Result:
    """Run the stack layer by layer."""
    if _is_empty(case):
        return eager.run(case)
    dtype = eager.autocast_dtype(case)
    if dtype is None:
        return _run(case)
    with torch.autocast(DEVICE, enabled=False):
        return _run(eager.cast(case, dtype))


def _run(case: Case) -> Result:
    with _current(case.input.device):
        return run_stack(case, partial(op.run_layer, "cuda"))


def _current(device: torch.device) -> AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
