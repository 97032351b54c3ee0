"""Fixtures of the tests of the runtime."""

import pytest
import torch

from cellfuse.codegen.cuda.plan import H100
from cellfuse.nn import quick
from cellfuse.runtime import cuda, cuda_step
from cellfuse.runtime.kernel_call import SESSIONS
from cellfuse.runtime.private import openmp
from runtime.emulated import Emulated, Noted


@pytest.fixture
def device(monkeypatch):
    """The CPU taken for a GPU."""
    cuda_step.clear()
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "_why_no_device", lambda index: "")
    monkeypatch.setattr(cuda_step, "launcher_of", lambda device: Emulated())
    monkeypatch.setattr(cuda_step, "device_of", lambda device: H100)
    monkeypatch.setattr(cuda_step, "TIER", "per step")
    yield
    cuda_step.clear()


@pytest.fixture(params=["quick", "general"])
def way(request, monkeypatch):
    """The way of calls on the CPU: by what was made for these sizes before, or by what does every case."""
    if request.param == "general":
        monkeypatch.setattr(quick, "sequence", lambda *_: None)
    return request.param


@pytest.fixture
def threads(monkeypatch):
    """A function that sets their number; they share anything, however little, and chunks have few rows."""
    if openmp() is None:
        pytest.skip("torch has no OpenMP library that can be called")
    for name, value in (("_WORTH", 1), ("_WORTH_MEETING", 1), ("CHUNK", 1 << 10), ("ROWS", 20)):
        monkeypatch.setattr(f"cellfuse.runtime.fused.{name}", value)
    SESSIONS.clear()
    yield torch.set_num_threads
    torch.set_num_threads(1)
    SESSIONS.clear()


@pytest.fixture
def launcher(device, monkeypatch):
    """What runs the kernels."""
    made = Noted()
    monkeypatch.setattr(cuda_step, "launcher_of", lambda device: made)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    return made
