"""Memory, files and maps do not grow with use; where memory is short an error says so, and then all works."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

import cellfuse as cf
from cellfuse.runtime import fused
from cellfuse.runtime.kernel_call import SESSIONS
from cellfuse.runtime.once import Once
from runtime.test_poison import all_of, layer_of

PROC = Path("/proc/self")
pytestmark = pytest.mark.skipif(not (PROC / "statm").exists(), reason="needs /proc")
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes():
    gc.collect()
    return int((PROC / "statm").read_text().split()[1]) * PAGE - SESSIONS._held


def open_things():
    """Files and maps of this process."""
    return len(list((PROC / "fd").iterdir())), len((PROC / "maps").read_text().splitlines())


def assert_steady(work, warm, count, most):
    """Fail if work(k) for k from warm to count makes the process grow by more than `most` bytes."""
    for k in range(warm):
        work(k)
    before, (files, maps) = resident_bytes(), open_things()
    for k in range(warm, count):
        work(k)
    grown, (files_now, maps_now) = resident_bytes() - before, open_things()
    assert grown < most, f"{grown / 1024:.0f} KiB more"
    assert files_now <= files
    assert maps_now <= maps + 20


@pytest.mark.parametrize("count", [2500, pytest.param(12_000, marks=pytest.mark.slow)])
def test_calls_leave_nothing_behind(count):
    layers = [layer_of("lstm", 16, 32), layer_of("lstm", 7, 13, num_layers=2)]

    def work(k):
        layer = layers[k % 2]
        all_of(layer, torch.randn(3 + k % 7, 1 + k % 5, layer.input_size))

    assert_steady(work, 3000, 3000 + count, 4 << 20)  # up and down by 2 MB, also over 12,000 calls


def test_layers_leave_nothing_behind():
    def work(k):
        layer = layer_of("lstm", 16, 32)
        all_of(layer, torch.randn(5, 3, 16))
        with torch.no_grad():
            layer.step(torch.randn(3, 16))

    assert_steady(work, 1000, 3000, 16 << 20)  # their weights are 50 MB; the allocator's own moves some


def test_shapes_leave_nothing_behind():
    layers = [layer_of("lstm", 16, 32), layer_of("gru_reset_before", 7, 13, bidirectional=True)]

    def work(k):
        for layer in layers:
            all_of(layer, torch.randn(1 + k % 40, 25 - k // 40 % 25, layer.input_size))

    SESSIONS.clear()
    assert_steady(work, 1000, 2000, 16 << 20)  # all of them once, then again: up and down by 6 MB
    kept = SESSIONS.kept()
    assert len(kept) == SESSIONS._count <= 256
    assert sum(session.bytes for session in kept) == SESSIONS._held < 1 << 26
    assert all(len(layer._quick.sizes) <= 64 for layer in layers)


def use_a_cell(k):
    """A cell of its own, once forward; what knows its kernel."""

    @cf.cell(gates="a", states="h", source="none: a cell of the tests")
    def own(gate, h):
        return h + torch.tanh(gate.a) * (k + 1)

    layer = own.layer(4, 8, backend="cpu")
    with torch.no_grad():
        layer(torch.randn(2, 1, 4))
    return own


def use_cells(count, most):
    made = []
    for k in range(count):
        own = use_a_cell(k)
        made.append(weakref.ref(fused._fused._made[next(reversed(fused._fused._made))]))
        assert made[-1]().program is not None
        del own
    SESSIONS.clear()
    gc.collect()
    alive = sum(ref() is not None for ref in made)
    assert len(fused._fused._made) <= most
    assert alive <= most


def test_kernels_of_many_cells_are_let_go(monkeypatch):
    monkeypatch.setattr(fused, "_fused", Once(6))
    use_cells(20, 6)


@pytest.mark.slow
def test_kernels_of_three_hundred_cells_are_let_go():
    use_cells(300, 256)
    before, (_, maps) = resident_bytes(), open_things()
    use_cells(100, 256)
    assert resident_bytes() - before < 32 << 20
    assert open_things()[1] < maps + 50


SHORT = """
import resource, sys
import torch
import cellfuse as cf

torch.set_num_threads(1)
layer = getattr(cf, sys.argv[1])(16, 32, num_layers=int(sys.argv[2]), backend="cpu")
small, large = torch.randn(5, 3, 16), torch.randn(3000, 64, 16)

def all_of(x):
    output, _ = layer(x)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), list(layer.parameters()))]

def infer(x):
    with torch.no_grad():
        return [layer(x)[0]]

want = [*all_of(small), *infer(small)]
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
raised = 0
for extra in (0, 10, 30, 80, 200, 800):
    for work in (all_of, infer):
        resource.setrlimit(resource.RLIMIT_AS, (size + (extra << 20), -1))
        try:
            work(large)
        except (MemoryError, RuntimeError):
            raised += 1
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        assert all(map(torch.equal, [*all_of(small), *infer(small)], want)), extra
print("raised", raised)
"""


@pytest.mark.parametrize(("name", "layers"), [("LSTM", 1), ("GRU", 2)])
def test_too_little_memory_is_an_error_and_the_next_call_is_right(name, layers):
    command = [sys.executable, "-c", SHORT, name, str(layers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    assert 3 < int(done.stdout.split()[-1]) < 12  # some had enough
