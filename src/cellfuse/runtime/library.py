"""The torch operators of the compiled kernels: one node in the graphs of torch.compile.

`cpu` and `cuda` call them only while torch.compile traces; otherwise `op` calls the kernel directly, which
is faster.
Torch's own `custom_op` with `register_autograd` would return zeros as forward-mode derivatives, without an
error; so there is an Autograd kernel of ours, which refuses what it cannot do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cellfuse.cell import cell_of_number
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.errors import BackendError
from cellfuse.runtime.cuda_step import per_step, runner, wanted
from cellfuse.runtime.fused import Fused, Kept, fused_step
from cellfuse.runtime.op import Runner
from cellfuse.runtime.per_step import PerStep
from cellfuse.runtime.private import below_autograd, is_forward_ad_active, is_functorch_active
from cellfuse.runtime.times import Times, starts

_library = torch.library.Library("cellfuse", "DEF")
# cell: number of the cell in this process. sizes: H, P, N. kept: what the forward loop left.
_library.define(
    "forward(Tensor x, Tensor[] states, Tensor[] weights, str[] names, int cell, bool has_bias, int[] sizes, "
    "bool is_reverse, bool keep) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "backward(Tensor x, Tensor[] states, Tensor[] weights, str[] names, int cell, bool has_bias, "
    "int[] sizes, bool is_reverse, Tensor[] kept, Tensor[] gradients) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)

_BUFFERS = ("products", "kept", "kept_numbers", "output")


def _fused(x: Tensor, cell: int, has_bias: bool, sizes: Sequence[int]) -> Fused | PerStep:
    given = cell_of_number(cell), has_bias, Sizes(*sizes), x.dtype
    return fused_step(*given) if x.device.type == "cpu" else per_step(*given, x.device)


def _runner(x: Tensor, cell: int, has_bias: bool, sizes: Sequence[int]) -> Runner:
    """What runs the loops; in float32 all leave the same for the backward loop, in the same memory."""
    if x.device.type == "cpu" or x.dtype != torch.float32:
        return _fused(x, cell, has_bias, sizes)
    want = wanted(cell_of_number(cell), has_bias, Sizes(*sizes), x.dtype, x.shape[1])
    return runner(want, x.device)


def _kept_names(fused: Fused | PerStep) -> list[str]:
    return [name for name in _BUFFERS if fused.layout.strides.get(name)]


def _times(x: Tensor, is_reverse: bool) -> Times:
    return Times(starts(x.shape[0], x.shape[1]), x.shape[1], is_reverse)


def _forward(
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    names: list[str],
    cell: int,
    has_bias: bool,
    sizes: list[int],
    is_reverse: bool,
    keep: bool,
) -> list[Tensor]:
    """[output, *final states, *slabs, *buffers]; the last two if `keep`."""
    fused = _fused(x, cell, has_bias, sizes)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    by_name = dict(zip(names, weights, strict=True))
    run = _runner(x, cell, has_bias, sizes)
    output, finals, kept = run.forward(rows, _times(x, is_reverse), states, by_name, keep=keep)
    if kept is None:
        return [output.contiguous(), *finals]
    # No two results of an operator may share memory.
    buffers = [kept.buffers[name] for name in _kept_names(fused)]
    return [output.clone(memory_format=torch.contiguous_format), *finals, *kept.slabs, *buffers]


def _forward_fake(x, states, weights, names, cell, has_bias, sizes, is_reverse, keep):  # type: ignore[no-untyped-def]
    fused = _fused(x, cell, has_bias, sizes)
    (steps, batch), layout = x.shape[:2], fused.layout
    shape = fused.columns.shape(fused.program.output)
    width = {"H": layout.sizes.hidden, "P": layout.sizes.projected}
    made = [x.new_empty(steps, batch, width[shape[0]])]
    made += [x.new_empty(batch, width[shape[0]]) for shape in fused.shapes]
    if keep:
        made += [x.new_empty(steps + 1, batch, size, dtype=fused.real) for size in fused.widths]
        made += [
            x.new_empty(steps * batch, layout.strides[name], dtype=fused.dtype_of(name))
            for name in _kept_names(fused)
        ]
    return made


def _backward(
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    names: list[str],
    cell: int,
    has_bias: bool,
    sizes: list[int],
    is_reverse: bool,
    kept: list[Tensor],
    gradients: list[Tensor],
) -> list[Tensor]:
    """[gradient of x, of each state, of each weight]."""
    fused = _fused(x, cell, has_bias, sizes)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    count = len(states)
    buffers = dict(zip(_kept_names(fused), kept[count:], strict=True))
    dx, dstates, dweights = _runner(x, cell, has_bias, sizes).backward(
        rows,
        _times(x, is_reverse),
        dict(zip(names, weights, strict=True)),
        Kept(kept[:count], buffers),
        gradients[0],
        gradients[1:],
        needs_x=True,
    )
    assert dx is not None
    return [dx.view(x.shape), *dstates, *(dweights[name].contiguous() for name in names)]


def _backward_fake(x, states, weights, *_: Any):  # type: ignore[no-untyped-def]
    return [x.new_empty(value.shape) for value in (x, *states, *weights)]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, fixed: tuple, *values: Tensor) -> tuple[Tensor, ...]:
        x, states, weights = values[0], list(values[1 : 1 + count]), list(values[1 + count :])
        with below_autograd():
            made = torch.ops.cellfuse.forward(x, states, weights, *fixed, True)
        ctx.count, ctx.fixed = count, fixed
        ctx.save_for_backward(*values, *made[1 + count :])
        ctx.mark_non_differentiable(*made[1 + count :])
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        count, saved = ctx.count, ctx.saved_tensors
        values = saved[: 1 + count + len(ctx.fixed[0])]
        kept = list(saved[len(values) :])
        states, weights = list(values[1 : 1 + count]), list(values[1 + count :])
        wanted = list(gradients[: 1 + count])
        return None, None, *torch.ops.cellfuse.backward(values[0], states, weights, *ctx.fixed, kept, wanted)


def _forward_autograd(x, states, weights, names, cell, has_bias, sizes, is_reverse, keep):  # type: ignore[no-untyped-def]
    _refuse_transforms()
    fixed = (names, cell, has_bias, sizes, is_reverse)
    if torch.is_grad_enabled() and any(value.requires_grad for value in (x, *states, *weights)):
        return list(_Function.apply(len(states), fixed, x, *states, *weights))
    with below_autograd():
        return torch.ops.cellfuse.forward(x, states, weights, *fixed, keep)


def _backward_autograd(*arguments: Any) -> list[Tensor]:
    _refuse_transforms()
    with below_autograd():
        made: list[Tensor] = torch.ops.cellfuse.backward(*arguments)
    if torch.is_grad_enabled() and any(v.requires_grad for v in (arguments[0], *arguments[-1])):
        raise BackendError(
            "a derivative of the gradient was asked for inside torch.compile, whose kernel has first "
            "derivatives only. Call the layer outside of torch.compile, or make it with backend='eager'."
        )
    return made


def _refuse_transforms() -> None:
    if is_functorch_active() or is_forward_ad_active():
        raise BackendError(
            "the kernel inside torch.compile has no rule for torch.func's transforms and forward-mode "
            "derivatives. Make the layer with backend='eager'."
        )


for _key in ("CPU", "CUDA"):
    _library.impl("forward", _forward, _key)
    _library.impl("backward", _backward, _key)
_library.impl("forward", _forward_autograd, "Autograd")
_library.impl("backward", _backward_autograd, "Autograd")
torch.library.register_fake("cellfuse::forward", _forward_fake, lib=_library)
torch.library.register_fake("cellfuse::backward", _backward_fake, lib=_library)

forward = torch.ops.cellfuse.forward.default
