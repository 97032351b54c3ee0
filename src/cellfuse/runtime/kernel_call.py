"""One call of a CPU kernel: its table of slots, its working memory, its threads.

Does not know what the buffers hold: see `fused`.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cellfuse.codegen.cpu.compile import Kernel
from cellfuse.runtime.case import Weights
from cellfuse.runtime.times import Times

if TYPE_CHECKING:
    from cellfuse.runtime.fused import Fused


class KernelCall:
    """The table of slots of one call, and the tensors it points to."""

    def __init__(
        self, fused: Fused, kernel: Kernel, loop: str, times: Times, weights: Weights, like: Tensor
    ) -> None:
        self.run_loop, self.size, layout = kernel.run[loop], fused.size, fused.layout
        self.slots, self.strides = layout.slots, layout.strides
        self.tensors: dict[str, Tensor] = {}
        self.table = table = [0] * len(layout.slots)
        slots = self.slots
        table[slots["origin"]] = times.steps - 1 if times.is_reverse else 0
        table[slots["direction"]] = -1 if times.is_reverse else 1
        table[slots["batch"]] = times.batch
        table[slots["starts"]] = times.starts.data_ptr()
        columns = fused.columns
        if columns.parameters:
            parts = [columns.spread(columns.leaf(weights, n), ("H",)) for n in columns.parameters]
            self.give("parameters", torch.cat(parts) if len(parts) > 1 else parts[0].contiguous())
        if columns.constants:
            self.give("constants", torch.stack([columns.leaf(weights, n) for n in columns.constants]))
        for label in columns.matrices:
            name, first, _ = columns.sources[label]
            matrix = self.tensors.get(name)
            if matrix is None:
                matrix = self.tensors[name] = weights[name].contiguous()
            table[slots[label]] = matrix.data_ptr() + first * matrix.stride(0) * self.size
        places, total = fused.working_memory(kernel, loop, times.batch)
        self.work = like.new_empty(total)
        base = self.work.data_ptr() + 63 & -64
        for slot, offset in places:
            table[slot] = base + offset
        self.memory = (ctypes.c_int64 * len(table))()
        self.address = ctypes.addressof(self.memory)
        self.memory[:] = table  # type: ignore[assignment]
        kernel.pack[loop](self.address)
        self.scratch = kernel.emitted.scratch * self.size
        self.parts = fused.parts(times)

    def give(self, name: str, tensor: Tensor, first_row: int = 0) -> None:
        """Point a slot to a tensor whose first row is the given one of the whole sequence."""
        self.tensors[name] = tensor
        self.table[self.slots[name]] = tensor.data_ptr() - first_row * self.strides[name] * self.size

    def give_state(self, k: int, slabs: Tensor, initial: Tensor, mask: int) -> None:
        """Point to a state's slabs and to its initial value."""
        self.tensors[f"states.{k}"], self.tensors[f"initial.{k}"] = slabs, initial
        first = self.slots[f"states.{k}"]  # followed by initial.k and mask.k
        self.table[first : first + 3] = slabs.data_ptr(), initial.data_ptr(), mask

    def run(self, first: int, last: int) -> None:
        """Run some steps, counted in the order of computation; threads share the sequences."""
        table = self.table
        table[0], table[1] = first, last
        if len(self.parts) == 1:
            table[2], table[3] = self.parts[0]
            self.memory[:] = table  # type: ignore[assignment]
            self.run_loop(self.address)
            return
        tables = []
        for thread, part in enumerate(self.parts):
            table[2], table[3] = part
            memory = (ctypes.c_int64 * len(table))(*table)
            memory[self.slots["scratch"]] += thread * self.scratch
            tables.append(memory)
        others = [_threads().submit(self.run_loop, ctypes.addressof(memory)) for memory in tables[1:]]
        self.run_loop(ctypes.addressof(tables[0]))
        for other in others:
            other.result()


_pool: dict[int, ThreadPoolExecutor] = {}


def _threads() -> ThreadPoolExecutor:
    """Python threads, which run kernels at the same time because their calls release the lock."""
    process = os.getpid()  # a forked process has none of its parent's threads
    if process not in _pool:
        _pool[process] = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "cellfuse")
    return _pool[process]
