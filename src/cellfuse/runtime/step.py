"""One time step of a stack of layers by one call of a kernel for each layer, with memory made before.

The kernel reads weights where they stand, at every call: nothing of theirs is kept that could go stale.
Without autograd.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cellfuse.codegen.cpu.layout import OF_USER
from cellfuse.runtime.fused import Fused
from cellfuse.runtime.kernel_call import check_pointers, laid_out
from cellfuse.runtime.private import (
    is_any_autocast_enabled,
    is_dispatch_mode_active,
    is_forward_ad_active,
    is_functorch_active,
    similarity,
)


def is_of_memory(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor is numbers of this dtype in the CPU's memory, with any strides."""
    return (
        (type(value) is Tensor or type(value) is torch.nn.Parameter)
        and value.dtype is dtype
        and value.is_cpu
        and value.layout is torch.strided
        and not value.is_neg()
        and not value._is_zerotensor()
    )


def is_plain(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether those numbers are dense."""
    return is_of_memory(value, dtype) and value.is_contiguous()


def is_mode_active() -> bool:
    """Whether torch is doing something else than computing: compiling, tracing, transforming, autocast."""
    return (
        torch.compiler.is_compiling()
        or is_functorch_active()
        or is_forward_ad_active()
        or is_any_autocast_enabled()
        or is_dispatch_mode_active()
        or torch.jit.is_tracing()
    )


class Step:
    """The calls for one batch size; not for several threads at a time.

    Args:
        initial: the initial states, [L, B, width] each or, without a batch, [L, width].
        count: layers.
        input_size: of the first layer.
        names: of the weights of a layer.
    """

    def __init__(
        self, fused: Fused, initial: Sequence[Tensor], count: int, input_size: int, names: Sequence[str]
    ) -> None:
        is_batched = initial[0].dim() == 3
        batch = initial[0].shape[1] if is_batched else 1
        self.kernel, layout, size = fused.step_kernel(), fused.layout, fused.size
        slots, program, columns = layout.step_slots, layout.program, fused.columns
        self.dtype, self.batch = fused.dtype, batch
        self.widths = [columns.units(shape) for shape in fused.shapes]
        self.output_width = columns.units(columns.shape(program.output))
        sizes = {name: layout.strides[name] * batch for name in ("products", "infer_temp", "infer_numbers")}
        sizes |= {name: layout.strides[name] for name in ("parameters", "constants")}
        sizes["bias"], sizes["scratch"] = layout.strides["products"], self.kernel.scratch
        sizes["output"] = layout.strides.get("output", 0) * batch
        sizes["gathered"] = self.kernel.gathered * batch
        for k, width in enumerate(fused.widths):
            sizes |= {f"padded {which}.{k}": width * batch for which in ("before", "after")}
        sizes["between"] = self.output_width * batch * 2
        sizes["no bias"] = layout.sizes.hidden * max(1, len(program.inputs))
        places, total = laid_out(sizes, size)
        self.memory = torch.zeros(total + 16, dtype=self.dtype, device="cpu")
        base = self.memory.data_ptr() + 63 & -64
        at = {name: base + place * size for name, place in places.items()}
        self.tables = [(ctypes.c_int64 * len(slots))() for _ in range(count)]
        self.addresses = [ctypes.addressof(table) for table in self.tables]
        between = [at["between"], at["between"] + self.output_width * batch * size]
        for k, table in enumerate(self.tables):
            for name, address in at.items():
                if name in slots:
                    table[slots[name]] = address
            table[slots["batch"]] = batch
            table[slots["input_size"]] = input_size if k == 0 else self.output_width
            table[slots["bias_ih"]] = at["no bias"]
            table[slots["y"]] = between[k & 1]
            if k:
                table[slots["input"]] = between[1 - (k & 1)]
        self._input, self._y = slots["input"], slots["y"]
        self._before = [slots[f"before.{k}"] for k in range(len(self.widths))]
        self._after = [slots[f"after.{k}"] for k in range(len(self.widths))]
        self._strides = [batch * width * size for width in self.widths]
        leaves = [leaf.label for leaf in program.step.inputs if leaf.role in OF_USER]
        leaves += [label for label, _ in program.moved]
        uses: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
        for label in dict.fromkeys(leaves):
            name, first, _ = columns.sources[label]
            uses[name].append((slots[label], first))
        for name in ("weight_ih", "bias_ih"):
            if name in uses and program.inputs:
                uses[name].append((slots[name], 0))
        # Of each weight of each layer: its table, and what of it is pointed to.
        self._uses = [(table, uses[name]) for table in self.tables for name in names]
        self._bound: list[int] = []  # where the weights stand
        self._are_alike: Callable[..., bool] | None = None  # to the last plain input and states
        self.initial = [value.clone() for value in initial]
        self._shapes = [value.shape for value in initial]
        lead = [batch] if is_batched else []
        self._output = torch.empty([*lead, self.output_width], dtype=self.dtype, device="cpu")

    def bind(self, weights: Sequence[Tensor]) -> None:
        """Read the weights of all layers from these tensors, which are plain and have the right shapes."""
        pointers = [value.data_ptr() for value in weights]
        if pointers == self._bound:
            return
        check_pointers(pointers)
        self._bound = []
        for value, pointer, (table, uses) in zip(weights, pointers, self._uses, strict=True):
            row = value.stride(0) * value.element_size() if value.dim() else 0
            for slot, first in uses:
                table[slot] = pointer + first * row
        self._bound = pointers  # last, because an interrupt may come anywhere

    def states(self, x: Tensor, given: Any, is_grad: bool) -> Sequence[Tensor] | None:
        """A user's states as one tensor each, the initial ones for None; None if they or the input, which has
        the right shape, do not fit, need a gradient or are not plain."""
        if given is None:
            given = self.initial
        elif type(given) is Tensor:
            given = (given,)
        elif not isinstance(given, tuple | list):
            return None
        if len(given) != len(self._shapes):
            return None
        if self._are_alike is not None and self._are_alike(x, *given):
            return given
        requires_grad = x.requires_grad
        for value, shape in zip((x, *given), (x.shape, *self._shapes), strict=True):
            if not is_plain(value, self.dtype) or value.shape != shape:
                return None
            requires_grad |= value.requires_grad
        if requires_grad:
            return None if is_grad else given
        self._are_alike = similarity((x, *given))
        return given

    def run(
        self, x: Tensor, before: Sequence[Tensor], after: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """(y, states after the step) from x and the states before, all plain; new tensors unless given."""
        y = torch.empty_like(self._output)
        if after is None:
            after = [torch.empty_like(value) for value in self.initial]
        tables = self.tables
        tables[0][self._input] = x.data_ptr()
        tables[-1][self._y] = y.data_ptr()
        for k, stride in enumerate(self._strides):
            slot_before, slot_after = self._before[k], self._after[k]
            source, target = before[k].data_ptr(), after[k].data_ptr()
            for table in tables:
                table[slot_before], table[slot_after] = source, target
                source += stride
                target += stride
        run = self.kernel.run
        for address in self.addresses:
            run(address)
        return y, after
