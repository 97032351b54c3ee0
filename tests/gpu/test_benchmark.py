"""benchmarks/gpu.py on the emulator: every part of it runs, and a wrong kernel is found."""

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cellfuse.codegen.cuda.plan import Device
from cellfuse.runtime import cuda, cuda_step
from gpu.emulator.launcher import WHY_NOT, Emulator

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


class Emulated(Emulator):
    def fits(self, kernel, entry, blocks):
        return blocks <= 8


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks/gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)
    spec.loader.exec_module(module)
    # torch's own test helpers, which other tests import, forbid to set switches.
    switch = torch.backends.ContextProp.__set__.__globals__
    monkeypatch.setitem(switch, "__allow_nonbracketed_mutation_flag", True)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "_why_no_device", lambda index: "")
    monkeypatch.setattr(cuda_step, "launcher_of", lambda device: Emulated())
    small = Device((9, 0), 8, 227 * 1024, ((2, 4), (4, 2)))
    monkeypatch.setattr(cuda_step, "device_of", lambda device: small)
    cuda_step.clear()
    yield module
    cuda_step.clear()


def test_every_part_runs_on_the_emulator(script, tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    status = script.main(["--json", str(file), "--rounds", "1"], is_short=True)
    printed = capsys.readouterr().out
    assert status == 0, printed
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"check", "exchange", "time"}
    assert {line["tier"] for line in lines if line["kind"] == "check"} == set(script.TIERS)
    assert lines[0]["cell"] == "rnn"  # the tensor cores' operands
    measured = [line for line in lines if isinstance(line.get("infer us"), float)]
    assert measured
    assert all(line["infer us assumed"] > 0 for line in measured)
    assert all(line["commit"] and line["device"] == "emulator" for line in lines)
    assert "0 checks failed, 0 cases left out" in printed


def test_a_wrong_result_is_found(script, monkeypatch):
    monkeypatch.setattr(cuda_step, "launcher_of", lambda device: Wrong())
    line = script.check(script.Case("lstm", 24, 3, "fp32", 2, "one CTA"))
    assert "error" in line["wrong"]


def test_a_case_that_fails_does_not_stop_the_others(script, tmp_path, monkeypatch):
    def fail(*given):
        raise RuntimeError("broken")

    monkeypatch.setattr(script, "_loop_time", fail)
    file = tmp_path / "lines.jsonl"
    assert script.main(["--json", str(file), "--only", "exchanges"], is_short=True) == 1
    wrong = [json.loads(line)["wrong"] for line in file.read_text().splitlines()]
    assert wrong == ["RuntimeError: broken"] * len(script.exchange_ways(2))


def test_what_is_not_run_is_said(script, tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    assert script.main(["--json", str(file), "--minutes", "-1"], is_short=True) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["not run"] for line in lines} == {"out of time"}
    assert {line["kind"] for line in lines} == {"check", "exchange", "time"}
    assert f"{len(lines)} cases left out" in capsys.readouterr().out


def test_it_runs_without_llvmlite():
    test = f"{__file__}::test_a_wrong_result_is_found"
    lines = f"import sys, pytest; sys.modules['llvmlite'] = None; sys.exit(pytest.main(['-q', {test!r}]))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


class Wrong(Emulated):
    def launch(self, kernel, entry, grid, arguments, shared_bytes=None):
        super().launch(kernel, entry, grid, arguments, shared_bytes)
        names = [parameter.name for parameter in kernel.parameters]
        if "final" in names:
            ctypes.c_float.from_address(arguments[names.index("final")]).value += 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(script, capsys):
    assert script.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().out
