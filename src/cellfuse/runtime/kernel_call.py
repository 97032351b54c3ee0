"""One call of a CPU kernel: its table of slots, its working memory, its threads.

Does not know what the buffers hold: see `fused`. Python handles signals between calls of native code, so
a long loop is run in pieces, and Ctrl-C is heard.
"""

from __future__ import annotations

import ctypes
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cellfuse.codegen.cpu.compile import Kernel
from cellfuse.runtime.case import Weights
from cellfuse.runtime.times import Times

if TYPE_CHECKING:
    from cellfuse.runtime.fused import Fused


# Seconds that Ctrl-C may have to wait, and multiplications that take less on any processor.
UNHEARD = 0.04
_QUICK = 1 << 24


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
        self.is_backward = loop == "backward"
        # Steps in one call of native code, which no signal interrupts; measured while it runs.
        self.unheard = max(1, _QUICK // (fused.work * (self.parts[0][1] - self.parts[0][0])))

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
        """Run some steps, counted in the order of computation."""
        steps = self.unheard
        while last - first > steps:
            # Backward, the last steps come first.
            piece = (last - steps, last) if self.is_backward else (first, first + steps)
            start = time.perf_counter()
            self._run(*piece)
            seconds = time.perf_counter() - start
            first, last = (first, piece[0]) if self.is_backward else (piece[1], last)
            self.unheard = steps = max(1, min(4 * steps, int(steps * UNHEARD / max(seconds, 1e-9))))
        self._run(first, last)

    def _run(self, first: int, last: int) -> None:
        """One call; threads share the sequences."""
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
        others = [_threads().submit(self._run_part, memory) for memory in tables[1:]]
        self._run_part(tables[0])
        for other in others:
            other.result()

    def _run_part(self, memory: ctypes.Array[ctypes.c_int64]) -> None:
        # A thread holds `self`, and so the buffers: after an interrupt it goes on while nobody waits for it.
        self.run_loop(ctypes.addressof(memory))


_pool: dict[int, ThreadPoolExecutor] = {}


def _threads() -> ThreadPoolExecutor:
    """Python threads, which run kernels at the same time because their calls release the lock."""
    process = os.getpid()  # a forked process has none of its parent's threads
    if process not in _pool:
        _pool[process] = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "cellfuse")
    return _pool[process]
