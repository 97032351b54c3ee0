"""benchmarks/gpu.py on the emulator: every part of it runs, and a wrong kernel is found."""

import argparse
import ctypes
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cellfuse.codegen.cuda import compile as compiling
from cellfuse.codegen.cuda.figures import BASES, FIGURES
from cellfuse.codegen.cuda.plan import Device
from cellfuse.runtime import cuda, cuda_step
from gpu.emulator.launcher import WHY_NOT, Emulator

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
NO_NVRTC = compiling.why_not()
KINDS_WITH_NVRTC = set() if NO_NVRTC else {"compile"}


class Emulated(Emulator):
    arch = "sm_90"

    def fits(self, kernel, entry, blocks):
        return blocks <= 8


def load(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks/gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(module)
    # torch's own test helpers, which other tests import, forbid to set switches.
    switch = torch.backends.ContextProp.__set__.__globals__
    monkeypatch.setitem(switch, "__allow_nonbracketed_mutation_flag", True)
    return module


@pytest.fixture
def script(monkeypatch):
    module = load(monkeypatch)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "_why_no_device", lambda index: "")
    monkeypatch.setattr(cuda_step, "launcher_of", lambda device: Emulated())
    small = Device((9, 0), 8, 227 * 1024, ((2, 4), (4, 2)))
    monkeypatch.setattr(cuda_step, "device_of", lambda device: small)
    cuda_step.clear()
    yield module
    cuda_step.clear()


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_part_runs_on_the_emulator(script, tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    status = script.main(["--json", str(file), "--rounds", "1", "--soak", "5"], is_short=True)
    printed = capsys.readouterr().out
    assert status == 0, printed
    lines = lines_of(file)
    assert {line["kind"] for line in lines} == {
        "check",
        "exchange",
        "figure",
        "time",
        "end",
    } | KINDS_WITH_NVRTC
    checks = [line for line in lines if line["kind"] == "check"]
    assert {(line["tier"], line["D"]) for line in checks} >= {(t, D) for t in script.TIERS for D in (1, 2)}
    assert {line["tier"] for line in checks if line["T"] == 5} == set(script.TIERS)
    assert not [line for line in checks if "unavailable" in line]
    assert lines[0]["cell"] == "rnn"  # the tensor cores' operands
    measured = [line for line in lines if isinstance(line.get("infer us"), float)]
    assert measured
    assert all(line["infer us assumed"] > 0 for line in measured)
    assert all(line["commit"] and line["device"] == "emulator" and line["torch"] for line in lines)
    assert f"0 checks failed, {len(checks)} were right, 0 left out; 0 cases left out in all" in printed
    end = lines[-1]
    assert {
        tier: set(end["checked"][tier]) >= {*script.PRECISIONS} for tier in script.TIERS
    } == dict.fromkeys(script.TIERS, True)
    assert end["custom cells over our LSTM"].keys() == {"mgu"}
    assert end["target, custom cells over our LSTM"].split(":")[0] in ("met", "missed")
    assert (end["target, seconds to compile a pair"] == "not measured") == bool(NO_NVRTC)


def test_a_wrong_result_is_found(script, monkeypatch):
    monkeypatch.setattr(cuda_step, "launcher_of", lambda device: Wrong())
    line = script.check(script.Case("lstm", 24, 3, "fp32", 2, "one CTA"))
    assert "error" in line["wrong"]


def test_a_case_that_fails_does_not_stop_the_others(script, tmp_path, monkeypatch):
    def fail(*given):
        raise RuntimeError("broken")

    monkeypatch.setattr(script, "exchanges", fail)
    file = tmp_path / "lines.jsonl"
    assert script.main(["--json", str(file), "--only", "figures"], is_short=True) == 1
    wrong = [line["wrong"] for line in lines_of(file) if line["kind"] == "exchange"]
    assert wrong == ["RuntimeError: broken"] * len(script.exchange_ways(2))


def test_what_is_not_run_is_said(script, tmp_path, capsys):
    """And is no success, if it is a check."""
    file = tmp_path / "lines.jsonl"
    assert script.main(["--minutes", "-1", "--only", "table"], is_short=True) == 0
    assert script.main(["--json", str(file), "--minutes", "-1"], is_short=True) == 3
    *lines, end = lines_of(file)
    assert {line["not run"] for line in lines} == {"out of time"}
    assert Counter(line["kind"] for line in lines) == {
        kind.removeprefix("left out, "): n for kind, n in end.items() if kind.startswith("left out, ")
    }
    assert end["left out"] == len(lines)
    assert end["checks left out"] == sum(line["kind"] == "check" for line in lines) > 0
    assert end["checked"] == {}
    assert end["right"] == 0
    assert f"{len(lines)} cases left out" in capsys.readouterr().out


class NoRoom(Emulated):
    def fits(self, kernel, entry, blocks):
        return False


@pytest.mark.parametrize(("tier", "capability"), [("cluster", (9, 0)), ("grid", (9, 0)), ("grid", (8, 0))])
def test_another_tier_than_was_asked_for_is_wrong(script, monkeypatch, tier, capability):
    monkeypatch.setattr(cuda_step, "launcher_of", lambda device: NoRoom())
    device = Device(capability, 8, 227 * 1024, ((2, 4), (4, 2)) if capability >= (9, 0) else ())
    monkeypatch.setattr(cuda_step, "device_of", lambda device_: device)
    (case, *_) = (case for case in script.first_cases(True) if case.tier == tier)
    assert f"{tier} was asked for and not used" in script.check(case)["wrong"]


def test_clusters_are_not_everywhere(script, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_step, "device_of", lambda device: Device((8, 0), 8, 160 * 1024, ()))
    file, only = tmp_path / "lines.jsonl", [*script.first_cases(True)]
    monkeypatch.setattr(script, "soak_cases", lambda *given: iter(()))
    monkeypatch.setattr(script, "cover_cases", lambda *given: iter(()))
    assert script.main(["--json", str(file), "--only", "checks"], is_short=True) == 0
    end = lines_of(file)[-1]
    assert end["unavailable"] == sum(case.tier == "cluster" for case in only)
    assert end["right"] == len(only) - end["unavailable"]
    assert "cluster" not in end["checked"]


def test_targets_are_met_or_missed(script):
    tally, facts = script.Tally(), {"H": 8, "B": 2, "T": 2, "D": 1, "precision": "bf16", "pass": "forward"}
    assert [*tally.targets().values()] == [{}, "not measured", "not measured"]

    def add(cell, taken, **other):
        line = {**facts, **other, "cell": cell, "cellfuse us/step": taken, "ratio": 1.0}
        tally.add("time", line)

    for cell, taken in (("lstm", 2.0), ("mgu", 2.1), ("gru", 9.0)):
        add(cell, taken)
    add("mgu", 50.0, H=16)  # our LSTM was not measured there
    tally.add("compile", {"seconds": 1.2})
    assert tally.targets() == {
        "custom cells over our LSTM": {"mgu": 1.05},
        "target, custom cells over our LSTM": "met: 1.05, target 1.1",
        "target, seconds to compile a pair": "met: 1.2, target 1.5",
    }
    tally = script.Tally(**json.loads(json.dumps(asdict(tally))))
    add("slstm", 3.0)
    tally.add("compile", {"seconds": 2.0})
    assert tally.targets() == {
        "custom cells over our LSTM": {"mgu": 1.05, "slstm": 1.5},
        "target, custom cells over our LSTM": "missed: 1.5, target 1.1",
        "target, seconds to compile a pair": "missed: 2, target 1.5",
    }


def test_a_lost_device_is_left_behind(script, tmp_path, monkeypatch):
    """A kernel that traps ends the device for the process: another goes on behind the case."""

    class Replaced(Exception):
        """In place of os.execv, which does not return."""

    def execv(program, words):
        assert program == words[0] == sys.executable
        assert Path(words[1]) == ROOT / "benchmarks/gpu.py"
        begun.append(words[2:])
        raise Replaced

    begun, file, check = [], tmp_path / "lines.jsonl", script.check
    monkeypatch.setattr(script.os, "execv", execv)
    monkeypatch.setattr(script, "is_alive", lambda: False)
    monkeypatch.setattr(script, "check", lambda case: 1 / 0 if case.precision == "bf16" else check(case))
    given = ["--json", str(file), "--only", "checks", "--soak", "3"]
    with pytest.raises(Replaced):
        script.main(given, is_short=True)
    for _ in range(40):
        try:
            script.main(begun[-1], is_short=True)
        except Replaced:
            continue
        break
    lines = lines_of(file)
    wanted = script.jobs(argparse.Namespace(rounds=1, soak=3, only="checks"), True)
    assert [line["tier"] for line in lines[:-1]] == [job.facts["tier"] for job in wanted]
    failed = sum(job.case.precision == "bf16" for job in wanted)
    assert lines[-1]["failed"] == failed == len(begun)
    assert lines[-1]["right"] == len(wanted) - failed
    assert lines[-1]["checked"].keys() == {*script.TIERS}


def test_the_most_telling_comes_first(script, monkeypatch):
    monkeypatch.setattr(script, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    args = argparse.Namespace(rounds=1, soak=2000, only=None)
    wanted = script.jobs(args, False)
    kinds = [job.kind for job in wanted]
    assert kinds.index("check") < kinds.index("integration") < kinds.index("figure") < kinds.index("time")
    early = [job.case for job in wanted[: kinds.index("time")] if job.case]
    assert {(case.tier, case.D) for case in early} >= {(t, D) for t in script.TIERS for D in (1, 2)}
    assert {case.tier for case in early if case.T == 2000} == set(script.TIERS)
    checked = {(case.tier, case.precision) for case in early}
    assert checked >= {(t, p) for t in script.TIERS for p in script.PRECISIONS}
    cells = {*script.cf.cells.CELLS}
    assert {case.cell for case in early if case.precision == "fp64" and case.D == 1} == cells
    assert {case.cell for case in early if not case.tier and case.D == 2} == cells
    timed = [job.case for job in wanted if job.kind == "time"]
    assert {case.D for case in timed} == {1, 2}
    assert all(case.B == 16 and case.precision in ("tf32", "bf16") for case in timed[:48])
    names = {job.facts["what"] for job in wanted if job.kind == "integration"}
    assert names == set(script.integration())
    assert len(wanted) == len({str(job.facts) + job.kind for job in wanted})


@pytest.mark.parametrize("tier", ["one CTA", "cluster", "grid", "per step"])
def test_a_long_run(script, tier):
    (case,) = (case for case in script.soak_cases(True, 2000) if case.tier == tier)
    line = script.check(case)
    assert not line["wrong"], line
    assert line["plan"].startswith(f"cuda, {tier}")
    assert line["T"] == 2000


@pytest.mark.parametrize("name", ["packed, lstm", "packed, layer_norm_lstm", "torch.compile, lstm"])
def test_what_surrounds_the_kernels(script, name):
    assert script.integration()[name]() == ""


@pytest.mark.parametrize("name", ["torch.compile, lstm", "packed, lstm"])
def test_what_surrounds_wrong_kernels_is_found(script, monkeypatch, name):
    monkeypatch.setattr(cuda_step, "launcher_of", lambda device: WrongTwice())
    assert "differs" in script.integration()[name]()


# on a GPU that is not there


def integration_names():
    """Those that need streams and graphs."""
    for tier in ("one CTA", "cluster", "grid", "per step"):
        yield f"streams, {tier}"
        yield f"a user's CUDA graph, {tier}"
        yield f"a user's CUDA graph, {tier}, packed"
        yield f"a user's CUDA graph without a call before, {tier}"
    yield "CUDA graphs of our own, per step"
    yield "resets in a CUDA graph"
    yield "the second device"


@pytest.fixture
def on_gpu(monkeypatch):
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    from runtime.fake_gpu import Gpu

    module, gpu = load(monkeypatch), Gpu(real)
    gpu.takes_uploads_for_users = True
    whole = module._lstm
    monkeypatch.setattr(module, "_lstm", lambda tier, *given, **how: smaller(whole(tier, *given, **how)))
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with gpu.watched(monkeypatch):
        yield module
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def smaller(case):
    """Quick on the emulator; sizes that differ stay different."""
    return replace(case, H=24 if case.H == 72 else 16)


@pytest.mark.parametrize("name", [*integration_names()])
def test_graphs_streams_and_devices(on_gpu, name):
    assert on_gpu.integration()[name]() == ""


def test_no_part_of_the_integration_is_untested(on_gpu):
    tested = {*integration_names(), "packed, lstm", "packed, layer_norm_lstm", "torch.compile, lstm"}
    assert {*on_gpu.integration()} == tested | {"torch.compile, layer_norm_lstm"}


# compiling ahead


CASES = (
    ("lstm", 24, 3, "fp32", 2, "one CTA"),
    ("gru", 32, 8, "bf16", 2, "cluster", 2),
    ("mgu", 8, 2, "fp32", 2),
    ("rnn", 24, 3, "fp64", 2, "per step"),
    ("slstm", 16, 2, "tf32", 2),
)


@pytest.mark.skipif(bool(NO_NVRTC), reason=NO_NVRTC)
def test_kernels_are_compiled_ahead(script, monkeypatch):
    """What a check of the case launches is in the cache by then."""
    cases = [script.Case(*given) for given in CASES]
    monkeypatch.setattr(script.os, "cpu_count", lambda: 3)
    ahead = script.ahead_of([script.Job("check", {}, None, case) for case in cases])
    try:
        said = ahead.wait(200)
    finally:
        ahead.end()
    assert "cases" in said
    assert "for 5 of 5" in said

    def compile_now(*given):
        raise AssertionError("it was not compiled ahead")

    class Compiling(Emulated):
        def launch(self, kernel, entry, grid, arguments, shared_bytes=None):
            assert compiling.compile(kernel.text, self.arch).code
            super().launch(kernel, entry, grid, arguments, shared_bytes)

        def fits(self, kernel, entry, blocks):
            return bool(compiling.compile(kernel.text, self.arch).code)

    monkeypatch.setattr(compiling, "_compile", compile_now)
    monkeypatch.setattr(cuda_step, "launcher_of", lambda device: Compiling())
    for case in cases:
        assert not script.check(case)["wrong"]


@pytest.mark.skipif(bool(NO_NVRTC), reason=NO_NVRTC)
def test_what_fails_or_is_late_while_compiling_ahead_is_said(script):
    wanted = [script.gpu_ahead.Wanted(texts=("no kernel",))]
    ahead = script.gpu_ahead.Ahead(wanted, cuda_step.device_of(None), "sm_90", 1)
    try:
        assert "0 of 1 cases; 1 failed: NVRTC does not take this text" in ahead.wait(200)
        ahead.made.append(Future())
        assert "0 of 2 cases" in ahead.wait(0)
    finally:
        ahead.end()


@pytest.mark.skipif(bool(NO_NVRTC), reason=NO_NVRTC)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_small_kernels_compile(script, arch):
    found = compiling.compile(script.gpu_figures.small_kernel("repeat_fma").text, arch)
    assert set(found.stats) == set(script.gpu_figures._ENTRIES)
    assert not any(each.spilled for each in found.stats.values())


# the model's figures


def test_every_figure_has_a_unit_and_a_source():
    for name, figure in FIGURES.items():
        assert figure.name == name
        assert figure.value > 0
        assert figure.basis in BASES
        assert figure.unit in ("cycles", "bytes/cycle", "cycles/us", "us")
        assert len(figure.source) > 10
        assert len(figure.what) > 10


def test_the_model_has_no_other_constants(script):
    """Each row changes the time that the model predicts for some kernel, or stands in its text."""
    used = set()

    def of(name):
        used.add(name)
        return FIGURES[name].value

    for group in script.gpu_figures.loops(False, 132).values():
        for one in group:
            script.microseconds(one.kernel(), one.sequences, Device((9, 0), 132, 227 << 10), of)
    source = (ROOT / "src/cellfuse/codegen/cuda/plan.py").read_text()
    source += (ROOT / "src/cellfuse/codegen/cuda/share.py").read_text()
    used |= {name for name in FIGURES if f'value_of("{name}")' in source}
    assert used == set(FIGURES)


def test_the_table_covers_all_figures(script, capsys):
    lines = list(script._figures(True))
    assert [line["figure"] for line in lines] == list(FIGURES)
    measured = {line["figure"] for line in lines if "measured" in line}
    assert measured >= {"clock", "sync", "shared_bandwidth", "mma", "mma_latency", "per_step", "pointwise"}
    for line in lines:
        if "measured" in line:
            assert line["ratio"] == pytest.approx(line["measured"] / line["assumed"])
        else:
            assert line["not measured"] != "it was not tried"
    printed = capsys.readouterr().out
    assert all(name in printed for name in FIGURES)


def test_figures_are_found_again(script, monkeypatch):
    """On a device that behaves as the model says, with other figures than are assumed."""
    true = {name: figure.value * (1.3 + k / 40) for k, (name, figure) in enumerate(FIGURES.items())}
    for name in ("mma", "mma_latency", "split", "sums", "shared_bandwidth"):
        true[name] = FIGURES[name].value  # parts of the product's time, which is not fitted
    device, gpu_figures = Device((9, 0), 132, 227 << 10), script.gpu_figures

    def loop_time(kernel, steps, batch):
        return script.microseconds(kernel, batch, device, true.get)

    units = {"fma": 4 * 16, "sync": 8 * true["sync"], "shared": 256 * 8 * 16 / true["shared_bandwidth"]}
    units |= {"mma": 8 * true["mma"], "mma_latency": true["mma_latency"]}
    launched = []

    def launch(kernel, entry, grid, arguments):
        launched.append(3e-6 + units[entry.removeprefix("repeat_")] / true["clock"] * arguments[1] / 1e6)

    def clock(run):
        run()
        return launched.pop()

    launcher = SimpleNamespace(launch=launch, fits=lambda *given: True)
    per_step = lambda: (true["per_step"], true["per_step_back"])  # noqa: E731
    given = (launcher, device, torch.device("cpu"), clock, loop_time, per_step, 1000)
    found = gpu_figures.Figures(*given)
    found.measure()
    assert set(found.why) == set(gpu_figures.NOT_MEASURED)
    for name, value in found.found.items():
        assert value == pytest.approx(true[name], rel=1e-3), name
    assert set(found.found) | set(found.why) == set(FIGURES)


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


class WrongTwice(Wrong):
    """Not the same twice."""

    count = 0

    def launch(self, kernel, entry, grid, arguments, shared_bytes=None):
        super().launch(kernel, entry, grid, arguments, shared_bytes)
        names = [parameter.name for parameter in kernel.parameters]
        if "final" in names:
            WrongTwice.count += 1
            ctypes.c_float.from_address(arguments[names.index("final")]).value += WrongTwice.count


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(script, capsys):
    assert script.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().out
