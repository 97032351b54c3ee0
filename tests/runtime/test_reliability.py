"""What can go wrong around a kernel: foreign memory, forks, chance. See also test_poison and test_memory."""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cellfuse as cf
from codegen import kernel_runner, test_cpu
from compare import OPTIONS

CELLS = sorted(cf.cells.CELLS)
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)


def layer_of(name, H=13, **options):
    options = OPTIONS.get(name, {}) | options
    heads = {"num_heads": 1} if "num_heads" in options else {}
    return cf.cells.find(name).layer(7, H, backend="cpu", **(options | heads))


def run_and_differentiate(layer, x):
    x = x.detach().clone().requires_grad_()
    output, states = layer(x)
    states = states if isinstance(states, tuple) else (states,)
    loss = output.square().sum() + sum(state.sum() for state in states)
    return [output, *states, *torch.autograd.grad(loss, [x, *layer.parameters()])]


@pytest.mark.parametrize("name", CELLS)
def test_the_same_input_gives_the_same_bits(name):
    layer, x = layer_of(name, num_layers=2, bidirectional=True), torch.randn(9, 5, 7)
    first = run_and_differentiate(layer, x)
    for _ in range(10):
        _ = torch.full((100_000,), float("nan"))  # other memory, with other contents
        assert all(torch.equal(a, b) for a, b in zip(run_and_differentiate(layer, x), first, strict=True))


def guarded(shape, dtype, at_the_end):
    """An array that touches a page that cannot be read or written: the one behind it, or before it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = -(-max(size, 1) // PAGE) + 2
    memory = mmap.mmap(-1, pages * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages - 1):
        assert libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
    offset = (pages - 1) * PAGE - size if at_the_end else PAGE
    array = np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)
    assert array.ctypes.data == start + offset
    return array


class GuardPages(kernel_runner.Memory):
    """Every buffer between pages without access; a kernel that leaves one is killed."""

    at_the_end = True

    def array(self, *shape, fill=np.nan):
        array = guarded(shape, self.dtype, self.at_the_end)
        array[...] = fill
        return array


def run_between_guard_pages(at_the_end):
    """For a process of its own: all cells at odd sizes, forward and backward."""
    GuardPages.at_the_end = at_the_end
    kernel_runner.Memory = GuardPages
    for name in ("rnn", "gru", "lstm", "mgu", "layer_norm_lstm", "indrnn", "mingru", "focus", "tangled"):
        for H, T, B in ((1, 1, 1), (5, 3, 2), (17, 2, 3), (33, 2, 13)):
            test_cpu.compare(name, H, T, B, test_cpu.WIDEST.name, 32)
    print("whole")


def in_a_process(code):
    here = Path(__file__).parents[1]
    source = Path(cf.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(source)])}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=500
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
@pytest.mark.parametrize("at_the_end", [True, False])
def test_kernels_stay_inside_their_buffers(at_the_end):
    code = "from runtime.test_reliability import run_between_guard_pages as run; "
    done = in_a_process(f"{code}run({at_the_end})")
    assert done.stdout.strip() == "whole", f"status {done.returncode}: {done.stderr[-2000:]}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
@pytest.mark.parametrize(("at_the_end", "index"), [(True, 4), (False, -1)])
def test_a_guard_page_kills(at_the_end, index):
    """One number behind or before the buffer, by its address."""
    code = (
        "import ctypes; from runtime.test_reliability import guarded\n"
        f"array = guarded((4,), 'float32', {at_the_end})\n"
        f"ctypes.c_float.from_address(array.ctypes.data + 4 * {index}).value = 1.0\n"
    )
    assert in_a_process(code).returncode == -signal.SIGSEGV


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_can_go_on():
    layer, x = layer_of("gru"), torch.randn(4, 3, 7)
    want = run_and_differentiate(layer, x)
    child = os.fork()
    if child == 0:
        try:
            got = run_and_differentiate(layer, x)
            fresh = layer_of("mgu", H=9)(x)[0].isfinite().all()  # compiled in the child
            os._exit(0 if fresh and all(map(torch.equal, got, want)) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
