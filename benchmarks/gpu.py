"""One call that checks and measures the CUDA kernels: python benchmarks/gpu.py --json FILE

Correctness is every tier and both directions against float64, twice with the same bits; CUDA graphs, streams
and devices; a soak of 2000 steps. Then the rows of the model of the kernels' time, assumed against measured,
and the table against torch.nn (cuDNN), interleaved, with cells that torch lacks. The most telling of each
come first, see `jobs`. No case starts when the time is up, and a line names each that was left out. A kernel
that traps takes the process with it: the script starts itself again behind that case. Every line of JSON has
the commit, the device, the driver and the versions; the last has the tiers and precisions that were checked,
and the targets. Exit status: 1 if a check failed, 2 without a GPU, 3 if a check was left out.

One long file, because it is carried to machines that have nothing but torch; `gpu_figures` beside it measures
the model's rows, `gpu_ahead` compiles.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import gpu_ahead
import gpu_figures

import cellfuse as cf
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cuda import compile as compiling
from cellfuse.codegen.cuda.persistent import Persistent
from cellfuse.codegen.cuda.plan import microseconds
from cellfuse.codegen.cuda.step import step_functions
from cellfuse.codegen.lower import lower
from cellfuse.errors import BackendError
from cellfuse.origin import commit
from cellfuse.runtime import cuda_driver, cuda_step

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Error that rounding the recurrent product's operands may cause, relative to the largest value.
CLOSE = {"fp32": 2e-5, "tf32": 1e-2, "bf16": 0.08, "fp16": 0.02, "fp64": 1e-10}
TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
TIERS = ("one CTA", "cluster", "grid", "per step")
DEVICE = "cuda"
# Targets: a custom cell's time over our LSTM's; seconds to compile a forward and a backward kernel.
CUSTOM, COMPILE = 1.1, 1.5


@dataclass(frozen=True)
class Case:
    """One layer at one size: T time steps, B sequences, D directions, H units and input features."""

    cell: str
    H: int
    B: int
    precision: str
    T: int = 512
    tier: str = ""
    D: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, input and output."""
        return torch.float64 if self.precision == "fp64" else DTYPES[self.precision]

    def facts(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {k: getattr(self, k) for k in ("cell", "H", "B", "T", "D", "precision")}


@contextmanager
def switches(precision: str, tier: str = "") -> Iterator[None]:
    """torch's switches for TF32, of cuDNN and of products alike, and the one tier that is wanted."""
    is_tf32, before = precision == "tf32", (torch.backends.cudnn.allow_tf32, cuda_step.TIER)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_tf32
    cuda_step.TIER = tier
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, cuda_step.TIER = before
        torch.backends.cuda.matmul.allow_tf32 = False


def options(cell: Any, H: int) -> dict[str, int]:
    """Without which a cell cannot be made."""
    made = {"proj_size": H // 2} if cell.projected else {}
    return made | ({"num_heads": 4} if cell.recurrence == "blocks" else {})


def make(case: Case, backend: str, **more: Any) -> Any:
    """A layer of the case."""
    torch.manual_seed(0)
    cell = cf.cells.find(case.cell)
    more |= {"bidirectional": case.D == 2, **options(cell, case.H)}
    layer = cell.layer(case.H, case.H, backend=backend, dtype=torch.float64, **more)
    return layer.to(DEVICE, case.dtype)


def draw(case: Case) -> Tensor:
    """The input."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(case.T, case.B, case.H, generator=generator).to(DEVICE, case.dtype)


def wave(like: Tensor) -> Tensor:
    """Numbers between -1 and 1, all different, made on the device: a capture takes nothing from the host."""
    return torch.arange(like.numel(), dtype=torch.float64, device=like.device).cos().view(like.shape)


def results(layer: Any, x: Any) -> list[Tensor]:
    """Output, final states, and gradients of the input and of every parameter; x may be packed."""
    is_packed = isinstance(x, PackedSequence)
    leaf = (x.data if is_packed else x).detach().clone().requires_grad_()
    output, states = layer(PackedSequence(leaf, *x[1:]) if is_packed else leaf)
    output = output.data if is_packed else output
    values = [output, *(states if isinstance(states, tuple) else (states,))]
    loss = sum((value.double() * wave(value)).sum() for value in values)
    grads = torch.autograd.grad(loss, [leaf, *layer.parameters()])
    return [*(value.detach() for value in values), *grads]


def distance(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest error, relative to the largest value of its tensor."""
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        scale = max(1e-3, float(b.detach().abs().max()))
        error = float((a.detach().double() - b.detach().double()).abs().max()) / scale
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


# correctness


SIZES = {"one CTA": (24, 3), "cluster": (64, 9), "grid": (128, 5), "per step": (40, 3)}


def first_cases(is_short: bool) -> Iterator[Case]:
    """How the tensor cores' operands lie, without which nothing else is right; then every tier, alone and in
    both directions."""
    T = 2 if is_short else 48
    for precision in PRECISIONS[1:]:
        yield Case("rnn", 32, 8, precision, 2, "one CTA")
    for tier, (H, B) in SIZES.items():
        H = 24 if is_short and H < 128 else H
        yield Case("lstm", H, B, "bf16", T, tier)
        yield Case("lstm", H, B, "fp32", T, tier)
        yield Case("rnn" if is_short else "gru", H, B, "fp32" if is_short else "tf32", T, tier, 2)


def soak_cases(is_short: bool, steps: int) -> Iterator[Case]:
    """Long runs, in each tier."""
    for tier, H in (("one CTA", 64), ("cluster", 256), ("grid", 512), ("per step", 256)):
        precision = "fp32" if tier == "per step" else "bf16"
        yield Case("lstm", 24 if is_short else H, 2 if is_short else 16, precision, steps, tier)


def cover_cases(is_short: bool) -> Iterator[Case]:
    """Every tier in every precision, and every cell."""
    for tier, (H, B) in SIZES.items():
        H, T = (24 if H < 128 else H, 2) if is_short else (H, 48)
        for precision in PRECISIONS:
            yield Case("lstm", H, B, precision, T, tier)
    for cell in ("mgu",) if is_short else sorted(cf.cells.CELLS):
        yield Case(cell, 48, 5, "fp64", 16, "per step")
        yield Case(cell, 48, 5, "fp32", 16, "", 2)


def more_cases() -> Iterator[Case]:
    """Every tier at the sizes it is for, and cells and precisions in it."""
    for tier, H, B in (("cluster", 256, 16), ("grid", 768, 16), ("cluster", 512, 40)):
        for D in (1, 2):
            yield Case("lstm", H, B, "bf16", 48, tier, D)
            yield Case("gru", H, B, "bf16", 48, tier, D)
    for cell in ("gru", "rnn", "slstm", "peephole_lstm"):
        for precision in PRECISIONS:
            for tier, (H, B) in SIZES.items():
                yield Case(cell, H, B, precision, 48, tier)


def check(case: Case) -> dict[str, Any]:
    """Against float64, twice."""
    with switches(case.precision, case.tier):
        layer, x = make(case, "cuda"), draw(case)
        plan = layer.plan(x)
        got, again = results(layer, x), results(layer, x)
        exact = make(replace(case, precision="fp64"), "eager")
        exact.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
        want = results(exact, x.double())
    error, is_same = distance(got, want), all(map(torch.equal, got, again))
    wrong = "" if error <= CLOSE[case.precision] else f"error {error:.2e} > {CLOSE[case.precision]:.0e}"
    wrong = wrong or ("" if is_same else "two runs differ")
    line = {**case.facts(), "tier": case.tier, "plan": plan, "error": error}
    if case.tier and tier_of(plan) != case.tier:
        line["unavailable"] = case.tier
        wrong = wrong or not_used(case.tier, plan)
    return {**line, "wrong": wrong}


def tier_of(plan: str) -> str:
    """The tier that a layer's plan names."""
    return plan.removeprefix("cuda, ").split(":")[0]


def not_used(tier: str, plan: str) -> str:
    """What is wrong where another tier ran than was asked for; only clusters are not everywhere."""
    if tier_of(plan) == tier or (tier == "cluster" and capability() < (9, 0)):
        return ""
    return f"{tier} was asked for and not used: {plan}"


def capability() -> tuple[int, int]:
    """Of the device."""
    return cuda_step.device_of(torch.device(DEVICE, 0)).capability


def _lstm(tier: str, precision: str = "fp32", H: int = 64) -> Case:
    return Case("lstm", 128 if tier == "grid" else H, 4, precision, 8, tier, 2)


def _packed(x: Tensor) -> PackedSequence:
    return pack_padded_sequence(x, [8, 6, 6, 1])


def _differ(got: list[Tensor], want: list[Tensor], close: float = 1e-4) -> str:
    far = distance(got, want)
    return "" if far <= close else f"differs by {far:.1e}"


def _streams(tier: str) -> str:
    case = _lstm(tier)
    with switches(case.precision, tier):
        layer, x = make(case, "cuda"), draw(case)
        want = results(layer, x)
        streams = [torch.cuda.Stream() for _ in range(4)]
        torch.cuda.synchronize()
        made = []
        for stream in streams * 3:
            with torch.cuda.stream(stream):
                made.append(results(layer, x))
        torch.cuda.synchronize()
        wrong = not_used(tier, layer.plan(x))
    return next(filter(None, (wrong, *(_differ(one, want) for one in made))), "")


def _user_graph(tier: str, is_packed: bool, is_warm: bool = True) -> str:
    """A training step in a user's CUDA graph, replayed on other values."""
    # Without a call before, its kernels are loaded while the capture is on: so no other test has its size.
    case = _lstm(tier, H=64 if is_warm else 72)
    with switches(case.precision, tier):
        layer, x = make(case, "cuda"), draw(case)
        fixed = _packed(x) if is_packed else x.clone()
        if is_warm:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                results(layer, fixed)
            torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = results(layer, fixed)
        (fixed.data if is_packed else fixed).mul_(0.5)
        graph.replay()
        torch.cuda.synchronize()
        return _differ(made, results(layer, fixed)) or not_used(tier, layer.plan(fixed))


def _own_graphs(tier: str) -> str:
    """Calls of one shape, of which the layer replays all but the first, give what the formula gives."""
    case = _lstm(tier, "fp64")
    with switches(case.precision, tier):
        layer, exact, x = make(case, "cuda"), make(case, "eager"), draw(case)
        exact.load_state_dict(layer.state_dict())
        for k in range(4):
            wrong = _differ(results(layer, x * (k + 1)), results(exact, x * (k + 1)), 1e-9)
            if wrong:
                return f"call {k + 1} {wrong}"
        return not_used(tier, layer.plan(x))


def _packed_input(name: str) -> str:
    case = Case(name, 64, 4, "fp32", 8, "", 2)
    with switches(case.precision):
        ours, eager, x = make(case, "cuda"), make(case, "eager"), draw(case)
        eager.load_state_dict(ours.state_dict())
        return _differ(results(ours, _packed(x)), results(eager, _packed(x)))


def _compiled(name: str) -> str:
    """As an operator in torch.compile's graph; no compiler of C or Triton is needed for that."""
    case = Case(name, 64, 4, "fp32", 8, "", 2)
    with switches(case.precision):
        one, x = make(case, "cuda"), draw(case)
        compiled = torch.compile(one, fullgraph=True, backend="aot_eager")
        return _differ(results(compiled, x), results(one, x))


def _reset_in_a_graph() -> str:
    case = _lstm("one CTA")
    layer, x = make(case, "cuda"), draw(case)
    reset = torch.zeros(case.T, case.B, dtype=torch.bool, device=DEVICE)
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            layer(x, reset=reset)
    except BackendError:
        return ""
    return "reset= in a capture raised no BackendError"


def _other_device() -> str:
    case = _lstm("")
    with switches(case.precision):
        layer, x = make(case, "cuda"), draw(case)
        want = results(layer, x)
        return _differ(results(layer.to("cuda:1"), x.to("cuda:1")), [v.to("cuda:1") for v in want])


def integration() -> dict[str, Callable[[], str]]:
    """What surrounds the kernels, by name: each says what is wrong or nothing."""
    found: dict[str, Callable[[], str]] = {}
    for tier in TIERS:
        found[f"streams, {tier}"] = lambda tier=tier: _streams(tier)
        for is_packed in (False, True):
            name = f"a user's CUDA graph, {tier}{', packed' * is_packed}"
            found[name] = lambda tier=tier, is_packed=is_packed: _user_graph(tier, is_packed)
        found[f"a user's CUDA graph without a call before, {tier}"] = lambda tier=tier: _user_graph(
            tier, False, False
        )
    found["CUDA graphs of our own, per step"] = lambda: _own_graphs("per step")
    found["resets in a CUDA graph"] = _reset_in_a_graph
    for cell in ("lstm", "layer_norm_lstm"):
        found[f"packed, {cell}"] = lambda cell=cell: _packed_input(cell)
        found[f"torch.compile, {cell}"] = lambda cell=cell: _compiled(cell)
    if DEVICE == "cuda" and torch.cuda.device_count() > 1:
        found["the second device"] = _other_device
    return found


# what the model needs


def exchange_ways(most: int) -> list[tuple[str, int]]:
    """Each exchange among up to `most` CTAs."""
    ways = [("none", 1)]
    ways += [(name, n) for name in ("messages", "cluster_barrier") for n in (2, 4, 8, 16)]
    ways += [(name, n) for name in ("write_once", "counter") for n in (2, 8, 16, 32, 64, 128)]
    return [way for way in ways if way[1] <= most]


def exchanges(exchange: str, ctas: int, steps: int) -> Iterator[dict[str, Any]]:
    """Microseconds of a time step of the simplest cell, measured and as the plan's model assumes."""
    program = lower(cf.cells.find("rnn").step)
    launcher = cuda_step.launcher_of(torch.device(DEVICE))
    device = cuda_step.device_of(torch.device(DEVICE, 0))
    for precision, batch in (("bf16", 8), ("fp32", 1)):
        H = 16 * ctas
        step, line = step_functions(program, H), {"exchange": exchange, "ctas": ctas, "H": H, "B": batch}
        line |= {"precision": precision}
        for loop in ("infer", "backward"):
            try:
                one = Persistent(step, loop, H, 1, 1, precision, exchange, ctas, batch)
                kernel = one.kernel()
                if not launcher.fits(kernel, kernel.entries[0], one.grid(batch)[0]):
                    line[f"{loop} us"] = "no room"
                    continue
            except ValueError as problem:
                line[f"{loop} us"] = str(problem)
                continue
            line[f"{loop} us"] = _loop_time(one, kernel, launcher, steps, batch)
            line[f"{loop} us assumed"] = microseconds(one, batch, device)
        yield line


def _loop_time(one: Persistent, kernel: Any, launcher: Any, steps: int, batch: int) -> float:
    """Microseconds a step of one loop, the best of five."""
    H, numbers = one.units * one.heads, one.constants
    row, rows = batch * H, steps * batch * H
    states, kept = numbers["STATES"], max(1, numbers["KEPT_COLUMNS"])
    sizes = {"products": rows * max(1, numbers["PRODUCTS"]), "output_gradient": rows, "output": rows}
    sizes |= {f"state_{k}": rows for k in range(states)} | {"kept": rows * kept}
    sizes |= {"gradients": rows * max(1, len(one.step.written)), "weights": numbers["MATRICES"] * H * H + 1}
    sizes |= dict.fromkeys(("initial", "final", "final_gradient", "initial_gradient"), states * row)
    sizes |= {"totals": max(1, len(one.step.accumulated)) * row, "constants": numbers["CONSTANTS"] + 1}
    sizes |= {"parameters": numbers["PARAMETERS"] * H + 1}
    tensors = {name: torch.rand(size, device=DEVICE) * 0.1 for name, size in sizes.items()}
    exchange = torch.empty(max(1, one.exchange_words(steps, batch)), dtype=torch.int32, device=DEVICE)
    counters = torch.empty(max(1, one.counters(batch)), dtype=torch.int32, device=DEVICE)
    given = {name: value.data_ptr() for name, value in tensors.items()}
    given |= {"exchange": exchange.data_ptr(), "counters": counters.data_ptr()}
    given |= {"steps": steps, "batch": batch, "reversed": 0}
    arguments = [given.get(parameter.name, 0) for parameter in kernel.parameters]
    taken = []
    for _ in range(6):
        exchange.fill_(-1)
        counters.zero_()
        run = lambda: launcher.launch(kernel, kernel.entries[0], one.grid(batch), arguments)  # noqa: E731
        taken.append(clock(run))
    return min(taken[1:]) / steps * 1e6


def _figures(is_short: bool) -> Iterator[dict[str, Any]]:
    """The rows of the model, assumed against measured; then the same as a table for people."""
    place = torch.device(DEVICE, 0)
    launcher, device = cuda_step.launcher_of(place), cuda_step.device_of(place)

    def loop_time(one: Persistent, steps: int, batch: int) -> float:
        return _loop_time(one, one.kernel(), launcher, steps, batch)

    count = 2 if is_short else 2000
    found = gpu_figures.Figures(
        launcher, device, place, clock, loop_time, lambda: _per_step(is_short), count, is_short
    )
    found.measure()
    lines = list(found.lines())
    print(gpu_figures.table(lines))
    yield from lines


def _per_step(is_short: bool) -> tuple[float, float]:
    """Microseconds of a time step forward and backward, step by step, in graphs of our own."""
    case = Case("lstm", 24 if is_short else 256, 16, "bf16", 2 if is_short else 256, "per step")
    with switches(case.precision, case.tier):
        runs = passes(make(case, "cuda"), draw(case))
        taken = {name: min([clock(run) for _ in range(8)][3:]) for name, run in runs.items()}
    forward, both = (taken[name] / case.T * 1e6 for name in ("forward", "forward+backward"))
    return forward, max(both - forward, 1e-9)


# time


def clock(run: Callable[[], Any]) -> float:
    """Seconds on the device, by its own events."""
    if DEVICE != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def table_cases(is_short: bool) -> list[Case]:
    """The most telling first: B = 16, then the others; TF32, bf16 and custom cells before the rest."""
    if is_short:
        return [
            Case("lstm", 8, 2, "fp32", 2),
            Case("lstm", 8, 2, "bf16", 2),
            Case("lstm", 8, 2, "fp32", 2, D=2),
            Case("mgu", 8, 2, "fp32", 2),
        ]
    sizes, found = (64, 128, 160, 192, 256, 512, 768, 1024), []
    found += [Case(c, H, 16, p) for p in ("tf32", "bf16") for H in sizes for c in TORCH]
    custom = ("mgu", "peephole_lstm", "layer_norm_lstm", "slstm", "ugrnn")
    found += [Case(c, H, 16, "bf16") for H in (256, 512) for c in custom]
    found += [Case(c, H, 16, p) for p in ("fp32", "fp16") for H in sizes for c in TORCH]
    found += [Case(c, H, 16, p, D=2) for p in ("tf32", "bf16") for H in (128, 256, 512) for c in TORCH]
    found += [Case(c, H, B, p) for p in PRECISIONS for B in (64, 1, 256) for H in sizes for c in TORCH]
    return found


def passes(layer: Any, x: Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    leaf = x.detach().clone().requires_grad_()
    wanted = [leaf, *layer.parameters()]

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def both() -> None:
        output = layer(leaf)[0]
        torch.autograd.grad(output, wanted, torch.ones_like(output))

    return {"forward": forward, "forward+backward": both}


def measure(case: Case, rounds: int) -> Iterator[dict[str, Any]]:
    """Ours and torch's in turn; for a cell that torch lacks, the eager loop."""
    with switches(case.precision):
        ours, x = make(case, "cuda"), draw(case)
        other: Any
        if case.cell in TORCH:
            kind, how = TORCH[case.cell], {"device": DEVICE, "dtype": case.dtype}
            other = kind(case.H, case.H, bidirectional=case.D == 2, **how)
            other.load_state_dict(ours.state_dict())
        else:
            other = make(case, "eager")
        plan = ours.plan(x)
        ours_passes, other_passes = passes(ours, x), passes(other, x)
        for name, run in ours_passes.items():
            runs = {"cellfuse": run, "torch": other_passes[name]}
            counts, samples = {}, {who: [] for who in runs}
            for who, one in runs.items():
                one()
                counts[who] = max(1, min(50, int(0.02 / max(clock(one), 1e-6))))
            for k in range(rounds):
                for who in list(runs)[:: 1 if k % 2 else -1]:
                    count = counts[who]
                    seconds = clock(lambda: [runs[who]() for _ in range(count)])  # noqa: B023
                    samples[who].append(seconds / count)
            medians = {who: statistics.median(values) for who, values in samples.items()}
            yield {
                **case.facts(),
                "pass": name,
                "plan": plan,
                "cellfuse us/step": medians["cellfuse"] / case.T * 1e6,
                "torch us/step": medians["torch"] / case.T * 1e6,
                "ratio": medians["torch"] / medians["cellfuse"],
                "against": "cuDNN" if case.cell in TORCH else "eager loop",
            }


def compile_time(case: Case) -> Iterator[dict[str, Any]]:
    """Seconds that the forward and the backward kernel of a case take to compile, one after the other."""
    place = torch.device(DEVICE, 0)
    _, *pair = gpu_ahead.texts_of(wanted_of(case), cuda_step.device_of(place))
    options = (f"--gpu-architecture={cuda_step.launcher_of(place).arch}", "--std=c++17")
    start = time.perf_counter()
    for text in pair:
        compiling._compile(text, options)  # past the cache
    taken = time.perf_counter() - start
    yield {**case.facts(), "tier": case.tier, "kernels": len(pair), "seconds": taken}


# all of it


@dataclass
class Tally:
    """What the last line says; a process that goes on for another is given it.

    Attributes:
        failed: checks that were wrong.
        right: checks that were not, and `checked` their precisions by tier.
        unavailable: checks whose tier this device does not have.
        ratios: cuDNN's time over ours, by pass.
        times: of our layers, microseconds a step, by cell and by the rest of the case.
        compiled: seconds of each pair of kernels.
    """

    failed: int = 0
    right: int = 0
    unavailable: int = 0
    checked: dict[str, list[str]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    compiled: list[float] = field(default_factory=list)

    def add(self, kind: str, line: dict[str, Any]) -> None:
        """Count a line."""
        is_check = kind in ("check", "integration")
        self.failed += bool(line.get("wrong"))
        if is_check and not line["wrong"]:
            self.unavailable += "unavailable" in line
            self.right += "unavailable" not in line
            if kind == "check" and "unavailable" not in line:
                known = self.checked.setdefault(tier_of(line["plan"]), [])
                known += [line["precision"]] * (line["precision"] not in known)
        if line.get("against") == "cuDNN":
            self.ratios.setdefault(line["pass"], []).append(line["ratio"])
        if kind == "time" and "ratio" in line:
            key = " ".join(f"{name}={line[name]}" for name in ("H", "B", "T", "D", "precision", "pass"))
            self.times.setdefault(line["cell"], {})[key] = line["cellfuse us/step"]
        if kind == "compile" and "seconds" in line:
            self.compiled.append(line["seconds"])

    def custom(self) -> dict[str, float]:
        """The largest time of each cell that torch lacks, over our LSTM's in the same case."""
        lstm, found = self.times.get("lstm", {}), {}
        for cell, times in self.times.items():
            ratios = [taken / lstm[key] for key, taken in times.items() if key in lstm]
            if cell not in TORCH and ratios:
                found[cell] = max(ratios)
        return found

    def targets(self) -> dict[str, Any]:
        """Each with what was measured, and whether it is met."""

        def verdict(values: list[float], limit: float) -> str:
            if not values:
                return "not measured"
            return f"{'met' if max(values) <= limit else 'missed'}: {max(values):.3g}, target {limit}"

        custom = self.custom()
        return {
            "custom cells over our LSTM": custom,
            "target, custom cells over our LSTM": verdict([*custom.values()], CUSTOM),
            "target, seconds to compile a pair": verdict(self.compiled, COMPILE),
        }


def about() -> dict[str, Any]:
    """What a result depends on besides the case."""
    found = {"commit": commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    found |= {"cellfuse": cf.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}
    found["python"] = sys.version.split()[0]
    if DEVICE != "cuda":
        return found | {"device": "emulator"}
    from cuda.bindings import driver

    properties = torch.cuda.get_device_properties(0)
    found |= {"device": properties.name, "processors": properties.multi_processor_count}
    found |= {"driver": driver.cuDriverGetVersion()[1], "cudnn": torch.backends.cudnn.version()}
    return found | {"nvidia-smi": _smi()}


def _smi() -> str:
    """The driver's release, the highest clock and the power limit, as its own tool says them."""
    ask = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as problem:
        return f"not asked: {problem}"
    return done.stdout.splitlines()[0] if done.stdout else ""


def wanted_of(case: Case) -> gpu_ahead.Wanted:
    """What its kernels depend on."""
    extra = options(cf.cells.find(case.cell), case.H)
    sizes = Sizes(case.H, extra.get("proj_size", 0), extra.get("num_heads", 1))
    return gpu_ahead.Wanted(case.cell, sizes, case.dtype, case.precision, case.B, case.D, case.tier)


def ahead_of(jobs: list[Job]) -> gpu_ahead.Ahead:
    """Begin to compile for the jobs, on most of the processors."""
    device = cuda_step.device_of(torch.device(DEVICE, 0))
    arch = cuda_step.launcher_of(torch.device(DEVICE, 0)).arch
    wanted = [wanted_of(job.case) for job in jobs if job.case]
    texts = gpu_figures.texts(False, device.processors) if any(job.kind == "figure" for job in jobs) else []
    figures = [gpu_ahead.Wanted(texts=(text,)) for text in texts]
    before = [job.kind for job in jobs]
    first = before[: before.index("figure")].count("check") if "figure" in before else len(wanted)
    workers = max(1, (os.cpu_count() or 2) - 2)
    return gpu_ahead.Ahead([*wanted[:first], *figures, *wanted[first:]], device, arch, workers)


@dataclass(frozen=True)
class Job:
    """One case of a part: what is run, and a line that names it if it is not."""

    kind: str
    facts: dict[str, Any]
    run: Callable[[], Iterator[dict[str, Any]]]
    case: Case | None = None


def jobs(args: argparse.Namespace, is_short: bool) -> list[Job]:
    """Everything that is wanted, the most telling first: when the time is up, the end is what is left out."""
    found: list[Job] = []

    def checks(cases: Iterator[Case]) -> None:
        known = {job.case for job in found if job.kind == "check"}
        for case in cases:
            if case in known:
                continue
            facts = {**case.facts(), "tier": case.tier}
            found.append(Job("check", facts, lambda case=case: iter([check(case)]), case))

    def table(cases: list[Case]) -> None:
        for case in cases:
            run = lambda case=case: measure(case, args.rounds)  # noqa: E731
            found.append(Job("time", case.facts(), run, case))

    def one(name: str, run: Callable[[], str]) -> Iterator[dict[str, Any]]:
        yield {"what": name, "wrong": run()}

    cases = table_cases(is_short)
    first = 58  # B = 16 in TF32 and bfloat16, and cells that torch lacks
    checks(first_cases(is_short))
    if not is_short:
        for name, run in integration().items():
            found.append(Job("integration", {"what": name}, lambda name=name, run=run: one(name, run)))
    checks(soak_cases(is_short, args.soak))
    checks(cover_cases(is_short))
    found.append(Job("figure", {}, lambda: _figures(is_short)))
    if not (is_short and compiling.why_not()):
        pairs = [("lstm", "grid" if is_short else "cluster"), *([] if is_short else [("gru", "grid")])]
        for cell, tier in pairs:
            case = Case(cell, 128 if is_short else 512, 16, "bf16", 512, tier)
            facts = {**case.facts(), "tier": tier}
            found.append(Job("compile", facts, lambda case=case: compile_time(case)))
    table(cases[:first])
    for exchange, ctas in exchange_ways(2 if is_short else 128):
        facts = {"exchange": exchange, "ctas": ctas}
        steps = 2 if is_short else 2000
        found.append(Job("exchange", facts, lambda e=exchange, c=ctas, s=steps: exchanges(e, c, s)))
    checks(more_cases() if not is_short else iter(()))
    table(cases[first:])
    kinds = {
        "checks": ("check", "integration"),
        "figures": ("figure", "exchange", "compile"),
        "table": ("time",),
    }
    return [job for job in found if args.only is None or job.kind in kinds[args.only]]


def is_alive() -> bool:
    """Whether the device still takes work; a kernel that trapped has ended it for this process."""
    if DEVICE != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.ones(1, device=DEVICE).item()
    except RuntimeError:
        return False
    return True


def again(arguments: list[str], first: int, end: float, tally: Tally) -> None:
    """This script in a new process, in place of this one, behind the case that ended the device."""
    print(f"the device is lost to this process; another begins with case {first}", flush=True)
    more = ["--begin", str(first), "--until", str(end), "--tally", json.dumps(asdict(tally))]
    os.execv(sys.executable, [sys.executable, __file__, *arguments, *more])


def main(arguments: list[str] | None = None, *, is_short: bool = False) -> int:
    """Run everything. `is_short`: a few small cases, as the tests do on the emulator."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--minutes", type=float, default=8, help="start no case after so many")
    parser.add_argument("--json", type=Path, help="append lines of JSON to this file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=int, default=2000, help="time steps of the long runs")
    parser.add_argument("--only", choices=("checks", "figures", "table"), help="one part")
    parser.add_argument("--begin", type=int, default=0, help="leave out so many cases")
    parser.add_argument("--until", type=float, help="start no case after this time, in seconds since 1970")
    parser.add_argument("--tally", type=json.loads, default={}, help="what was found before, as JSON")
    given = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(given)
    why = "" if is_short else cuda_driver.why_not()
    if why:
        print(f"no GPU to measure: {why}")
        return 2
    end = time.time() + args.minutes * 60 if args.until is None else args.until
    header, tally, left_out = about(), Tally(**args.tally), Counter()
    print(json.dumps(header), flush=True)

    def note(kind: str, line: dict[str, Any]) -> None:
        if "not run" not in line:
            tally.add(kind, line)
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items() if v != ""}
        text = " ".join(f"{k}={v}" for k, v in shown.items())
        print(f"{'WRONG ' if line.get('wrong') else ''}{kind} {text}", flush=True)
        if args.json:
            with args.json.open("a") as stream:
                stream.write(json.dumps({"kind": kind, **line, **header}) + "\n")

    wanted, ahead = jobs(args, is_short), None
    if not is_short:
        ahead = ahead_of(wanted[args.begin :])
    for number, job in enumerate(wanted[args.begin :], args.begin):
        if time.time() > end:
            left_out[job.kind] += 1
            note(job.kind, {**job.facts, "not run": "out of time"})
            continue
        if ahead is not None and job.kind in ("figure", "time", "exchange", "compile"):
            # Not while something is measured.
            note("compiled ahead", {"what": ahead.wait(min(60.0, (end - time.time()) / 4))})
            ahead.end()
            ahead = None
        try:
            for line in job.run():
                note(job.kind, line)
        except Exception as problem:  # noqa: BLE001
            # A case that raises is a failed check, not the end.
            note(job.kind, {**job.facts, "wrong": f"{type(problem).__name__}: {str(problem)[:400]}"})
            if not is_alive():
                if ahead is not None:
                    ahead.end()
                again(given, number + 1, end, tally)
    if ahead is not None:
        ahead.end()
    for name, values in tally.ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        text = f"geometric mean of {len(values)}: {mean:.2f}, least {min(values):.2f}"
        print(f"{name}: cuDNN's time over ours, {text}")
    count, unchecked = sum(left_out.values()), left_out["check"] + left_out["integration"]
    last = {"failed": tally.failed, "right": tally.right, "unavailable": tally.unavailable}
    last |= {"checked": tally.checked, **tally.targets(), "checks left out": unchecked}
    note("end", last | {"left out": count, **{f"left out, {k}": n for k, n in left_out.items()}})
    said = f"{tally.failed} checks failed, {tally.right} were right, {unchecked} left out"
    print(f"{said}; {count} cases left out in all")
    return 1 if tally.failed else 3 if unchecked else 0


if __name__ == "__main__":
    sys.exit(main())
