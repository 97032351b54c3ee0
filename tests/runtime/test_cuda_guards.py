"""A kernel of a step writes the rows of its time step and nothing else, and reads nothing that nobody wrote.

Every tensor of a run stands between guard values. All of it, what a step leaves over, too, is filled with NaN
in one run and with a number in another, whose results must be the same to the last bit.
"""

import pytest
import torch

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime.per_step import PerStep
from gpu.emulator.launcher import Emulator
from runtime.emulated import emulated, pair, results
from runtime.test_cuda_per_step import CELLS, compare, options_of

pytestmark = emulated
NAMES = ["gru", "indrnn", "layer_norm_lstm", "lstm", "mingru", "projected_lstm", "rnn", "slstm"]
GUARD = 37  # numbers before and after each tensor
LENGTHS = [(1,), (2, 2, 2), (5,), (1, 1, 1), (5, 2, 1)]
SIZES = [
    (1, torch.float64),
    (1, torch.float16),
    (5, torch.float32),
    (5, torch.float16),
    (13, torch.float64),
    (13, torch.bfloat16),
]
# Blocks go over the units more than once; 256 threads that wait for each other take the emulator long.
LARGE = pytest.param(302, torch.float32, marks=pytest.mark.slow)
SCRATCH = ("_temp", "_numbers", "gathered")


class Watching(Emulator):
    """Compares all memory before and after each launch."""

    def __init__(self, fill):
        super().__init__()
        self.fill, self.memory, self.layout, self.wholes = fill, None, None, []

    def guarded(self, value):
        """A tensor of the same form between guards."""
        size = value.numel()
        whole = value.new_full((size + 2 * GUARD,), self.fill)
        self.wholes.append(whole)
        return whole[GUARD : GUARD + size].view(value.shape)

    def writable(self, kernel, arguments):
        """The addresses that a launch may write to, as pairs of first and last + 1."""
        rows, *pointers = arguments
        buffers, layout = self.layout.program.buffers, self.layout
        for parameter, pointer in zip(kernel.parameters[1:], pointers, strict=True):
            name = parameter.name
            tensor = self.memory.tensors.get(name)
            if name.startswith("after_"):
                slab = self.memory.slabs[int(name.removeprefix("after_"))]
                yield pointer, pointer + rows * slab.shape[-1] * slab.element_size()
            elif name == "gathered" and tensor is not None:
                yield pointer, pointer + tensor.numel() * tensor.element_size()
            elif name in buffers and tensor is not None and buffers[name].rows in ("time", "batch"):
                yield pointer, pointer + rows * layout.strides[name] * tensor.element_size()

    def launch(self, kernel, entry, grid, arguments, shared_bytes=None):
        if entry.endswith("_0"):
            for name, tensor in self.memory.tensors.items():
                if name.endswith(SCRATCH) and self.layout_rows(name) != "time":
                    tensor.fill_(self.fill)
        before = [whole.clone() for whole in self.wholes]
        super().launch(kernel, entry, grid, arguments, shared_bytes)
        allowed = list(self.writable(kernel, arguments))
        for old, whole in zip(before, self.wholes, strict=True):
            changed = (
                old.view(torch.uint8) != whole.view(torch.uint8)
            ).nonzero().flatten() + whole.data_ptr()
            for first, last in allowed:
                changed = changed[(changed < first) | (changed >= last)]
            assert not len(changed), f"{entry} wrote outside of its rows, {len(changed)} bytes"

    def layout_rows(self, name):
        found = self.layout.program.buffers.get(name)
        return found.rows if found else "batch"


class Guarded(PerStep):
    """Its memory stands between guards and is filled with the launcher's value."""

    def memory(self, loop, times, like, kept=None):
        made = super().memory(loop, times, like, kept)
        theirs = () if kept is None else kept.buffers
        for name in made.tensors.keys() - set(theirs):
            made.tensors[name] = self.launcher.guarded(made.tensors[name])
        if kept is None:
            made.slabs = [self.launcher.guarded(slab) for slab in made.slabs]
        return made

    def run(self, memory, loop, times):
        self.launcher.memory, self.launcher.layout = memory, self.layout
        super().run(memory, loop, times)

    def _multiply(self, one, matrix, memory, states, first, rows, result):
        result.fill_(self.launcher.fill)
        super()._multiply(one, matrix, memory, states, first, rows, result)


def check(name, H, dtype, lengths, is_reverse=False, *, bias=True, recompute=False):
    cell = CELLS[name]
    H = max(H, 2) if cell.projected else H  # the projection is smaller
    options = options_of(cell, H)
    sizes = Sizes(H, options.get("proj_size", 0), options.get("num_heads", 1))
    made = []
    for fill in (float("nan"), 3.0):
        fused = Guarded(cell, bias, sizes, dtype, Watching(fill), recompute)
        made.append(
            compare(
                name, dtype, lengths, H, is_reverse, bias=bias, recompute=recompute, factor=3, fused=fused
            )
        )
        assert fused.launcher.wholes
    for a, b in zip(*made, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("H", "dtype"), [*SIZES, LARGE])
@pytest.mark.parametrize("name", [*NAMES, "focus", "leaky"])
def test_only_what_was_written_is_read_and_only_own_rows_are_written(name, H, dtype):
    for lengths in LENGTHS:
        check(name, H, dtype, lengths)
    check(name, H, dtype, (5, 2, 1), is_reverse=True)
    check(name, H, dtype, (2, 2, 2), is_reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_so_it_is_without_biases_and_with_recomputation(name):
    check(name, 5, torch.float64, (3, 1), bias=False)
    check(name, 5, torch.float64, (3, 1), recompute=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_empty_input(name, dtype, device):
    ours, eager = pair(name, 3, 6, dtype=dtype, bidirectional=True)
    for T, B in ((0, 2), (3, 0), (0, 0)):
        x = torch.randn(T, B, 3).to(dtype)
        assert ours.plan(x).startswith("cuda, no kernel")
        for a, b in zip(results(ours, x), results(eager, x), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
