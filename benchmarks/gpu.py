"""One call that checks and measures the CUDA kernels: python benchmarks/gpu.py --json FILE

First correctness: every tier against float64, twice with the same bits, a soak of 2000 steps, streams and
CUDA graphs. Then what the model of the kernels' time needs: a time step by each exchange. Then the table
against torch.nn (cuDNN), interleaved, and cells that torch lacks. It starts no case when the time is up and
says how many were left out; the most telling come first. Every line of JSON has the commit, the device, the
driver and the versions. Exit status: 1 if a check failed, 2 without a GPU.

One long file, because it is carried to machines that have nothing but torch.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import cellfuse as cf
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cuda.compile import compile
from cellfuse.codegen.cuda.persistent import Persistent
from cellfuse.codegen.cuda.plan import microseconds
from cellfuse.codegen.cuda.step import step_functions
from cellfuse.codegen.lower import lower
from cellfuse.origin import commit
from cellfuse.runtime import cuda_driver, cuda_step

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Error that rounding the recurrent product's operands may cause, relative to the largest value.
CLOSE = {"fp32": 2e-5, "tf32": 1e-2, "bf16": 0.08, "fp16": 0.02, "fp64": 1e-10}
TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
TIERS = ("one CTA", "cluster", "grid", "per step")
DEVICE = "cuda"


@dataclass(frozen=True)
class Case:
    """One layer at one size: T time steps, B sequences, H units and input features."""

    cell: str
    H: int
    B: int
    precision: str
    T: int = 512
    tier: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, input and output."""
        return torch.float64 if self.precision == "fp64" else DTYPES[self.precision]

    def facts(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {k: getattr(self, k) for k in ("cell", "H", "B", "T", "precision")}


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
    layer = cell.layer(case.H, case.H, backend=backend, dtype=torch.float64, **options(cell, case.H), **more)
    return layer.to(DEVICE, case.dtype)


def draw(case: Case) -> Tensor:
    """The input."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(case.T, case.B, case.H, generator=generator).to(DEVICE, case.dtype)


def results(layer: Any, x: Tensor) -> list[Tensor]:
    """Output, final states, and gradients of the input and of every parameter."""
    x = x.detach().clone().requires_grad_()
    output, states = layer(x)
    values = [output, *(states if isinstance(states, tuple) else (states,))]
    generator = torch.Generator().manual_seed(2)
    grads = [torch.randn(v.shape, generator=generator).to(v.device, v.dtype) for v in values]
    return [*values, *torch.autograd.grad(values, [x, *layer.parameters()], grads)]


def distance(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest error, relative to the largest value of its tensor."""
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        scale = max(1e-3, float(b.detach().abs().max()))
        error = float((a.detach().double() - b.detach().double()).abs().max()) / scale
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


# correctness


def check_cases(is_short: bool) -> Iterator[Case]:
    """Every tier, small and at the sizes it is for; the long run last."""
    T = 2 if is_short else 48
    for precision in PRECISIONS[1:]:  # how the tensor cores' operands lie: nothing else is right without
        yield Case("rnn", 32, 8, precision, 2, "one CTA")
    for cell in ("lstm", "gru", "rnn", "slstm", "peephole_lstm"):
        for precision in PRECISIONS:
            for tier, H, B in (("one CTA", 24, 3), ("cluster", 64, 9), ("grid", 128, 5), ("per step", 40, 3)):
                if not is_short or (cell == "lstm" and precision in ("fp32", "bf16")):
                    yield Case(cell, 24 if is_short and H < 128 else H, B, precision, T, tier)
    if is_short:
        return
    for tier, H, B in (("cluster", 256, 16), ("grid", 768, 16), ("cluster", 512, 40)):
        yield Case("lstm", H, B, "bf16", T, tier)
        yield Case("gru", H, B, "bf16", T, tier)
    for cell in sorted(cf.cells.CELLS):
        yield Case(cell, 48, 5, "fp64", 16, "per step")
        yield Case(cell, 48, 5, "fp32", 16)
    for tier, H in (("one CTA", 64), ("cluster", 256), ("grid", 512), ("per step", 256)):
        yield Case("lstm", H, 16, "fp32" if tier == "per step" else "bf16", 2000, tier)


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
    if not wrong and case.tier and not plan.startswith(f"cuda, {case.tier}"):
        plan += " (this tier was not available)"
    return {**case.facts(), "tier": case.tier, "plan": plan, "error": error, "wrong": wrong}


def integration() -> Iterator[dict[str, Any]]:
    """CUDA graphs, streams, packed sequences, torch.compile; each with what is wrong or nothing."""
    case = Case("lstm", 128, 8, "bf16", 64)
    layer, x = make(case, "cuda"), draw(case)
    with torch.no_grad():
        want = layer(x)[0]
        yield {"what": "streams", "wrong": _streams(layer, x, want)}
        for tier in ("", "per step"):
            with switches(case.precision, tier):
                yield {"what": f"cuda graph {tier}", "wrong": _graph(layer, x)}
    for name in ("lstm", "layer_norm_lstm"):
        one = make(Case(name, 64, 4, "fp32", 8), "cuda", bidirectional=True)
        y = draw(Case(name, 64, 4, "fp32", 8))
        same = distance(results(torch.compile(one, fullgraph=True), y), results(one, y))
        yield {"what": f"torch.compile {name}", "wrong": "" if same < 1e-5 else f"differs by {same:.1e}"}
        packed = torch.nn.utils.rnn.pack_padded_sequence(y, [8, 6, 6, 1])
        eager = make(Case(name, 64, 4, "fp32", 8), "eager", bidirectional=True)
        a, b = one(packed)[0].data, eager(packed)[0].data
        same = distance([a], [b])
        yield {"what": f"packed {name}", "wrong": "" if same < 1e-2 else f"differs by {same:.1e}"}


def _streams(layer: Any, x: Tensor, want: Tensor) -> str:
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    made = []
    for stream in streams * 4:
        with torch.cuda.stream(stream):
            made.append(layer(x)[0])
    torch.cuda.synchronize()
    return "" if all(torch.equal(one, want) for one in made) else "results differ between streams"


def _graph(layer: Any, x: Tensor) -> str:
    want, fixed = layer(x * 0.5)[0], x.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        layer(fixed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer(fixed)[0]
    fixed.copy_(x * 0.5)
    graph.replay()
    torch.cuda.synchronize()
    return "" if torch.equal(output, want) else "a replayed graph gives something else"


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
    H = one.units * one.heads
    sizes = {"products": steps * batch * H, "output_gradient": steps * batch * H, "weights": H * H}
    sizes |= {f"state_{k}": steps * batch * H for k in range(one.constants["STATES"])}
    sizes |= {"gradients": steps * batch * len(one.step.written) * H}
    sizes |= dict.fromkeys(("initial", "final", "final_gradient", "initial_gradient"), batch * H)
    sizes |= {"totals": max(1, len(one.step.accumulated)) * batch * H}
    sizes |= {"kept": steps * batch * H * max(1, one.constants["KEPT_COLUMNS"])}
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
    """The most telling first: B = 16, then the others; TF32 and bf16 before the rest."""
    if is_short:
        return [Case("lstm", 8, 2, "bf16", 2), Case("mgu", 8, 2, "fp32", 2)]
    sizes, found = (64, 128, 160, 192, 256, 512, 768, 1024), []
    for batches, precisions in (((16,), ("tf32", "bf16")), ((16,), ("fp32", "fp16"))):
        found += [Case(c, H, B, p) for p in precisions for B in batches for H in sizes for c in TORCH]
    custom = ("mgu", "peephole_lstm", "layer_norm_lstm", "slstm", "ugrnn")
    found += [Case(c, H, 16, "bf16") for H in (256, 512) for c in custom]
    found += [Case(c, H, B, p) for p in PRECISIONS for B in (64, 1, 256) for H in sizes for c in TORCH]
    return found


def passes(layer: Any, x: Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    leaf = x.detach().clone().requires_grad_()
    wanted, given = [leaf, *layer.parameters()], torch.ones_like(x)

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def both() -> None:
        output = layer(leaf)[0]
        torch.autograd.grad(output, wanted, given[..., : output.shape[-1]])

    return {"forward": forward, "forward+backward": both}


def measure(case: Case, rounds: int) -> Iterator[dict[str, Any]]:
    """Ours and torch's in turn; for a cell that torch lacks, the eager loop."""
    with switches(case.precision):
        ours, x = make(case, "cuda"), draw(case)
        other: Any
        if case.cell in TORCH:
            other = TORCH[case.cell](case.H, case.H, device=DEVICE, dtype=case.dtype)
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


# all of it


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
    return found | {"driver": driver.cuDriverGetVersion()[1], "cudnn": torch.backends.cudnn.version()}


def texts_of(case: Case) -> list[str]:
    """The kernels' texts that a case needs."""
    cell = cf.cells.find(case.cell)
    extra = options(cell, case.H)
    sizes = Sizes(case.H, extra.get("proj_size", 0), extra.get("num_heads", 1))
    want = cuda_step.Wanted(cell, True, sizes, case.dtype, case.B, case.precision == "tf32", case.tier)
    device = torch.device(DEVICE, 0)
    around = cuda_step.per_step(cell, True, sizes, case.dtype, device)
    spread = cuda_step.plan(want, device).spread
    return [one.kernel().text for _, one in spread] or [around.pointwise.kernel.text]


def compile_ahead(cases: list[Case], seconds: float) -> None:
    """Fill the cache of compiled kernels, many at a time; what is not ready is compiled when it is needed."""
    texts = list(dict.fromkeys(text for case in cases for text in texts_of(case)))
    arch = cuda_step.launcher_of(torch.device(DEVICE, 0)).arch
    pool = ProcessPoolExecutor(mp_context=get_context("spawn"))
    for text in texts:
        pool.submit(compile, text, arch)
    end = time.time() + seconds
    while pool._pending_work_items and time.time() < end:
        time.sleep(0.1)
    pool.shutdown(wait=False, cancel_futures=True)


def main(arguments: list[str] | None = None, *, is_short: bool = False) -> int:
    """Run everything. `is_short`: a few small cases, as the tests do on the emulator."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--minutes", type=float, default=8, help="start no case after so many")
    parser.add_argument("--json", type=Path, help="append lines of JSON to this file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("checks", "exchanges", "table"), help="one part")
    args = parser.parse_args(arguments)
    why = "" if is_short else cuda_driver.why_not()
    if why:
        print(f"no GPU to measure: {why}")
        return 2
    end, header, failed = time.time() + args.minutes * 60, about(), 0
    print(json.dumps(header))

    def note(kind: str, line: dict[str, Any]) -> None:
        nonlocal failed
        failed += bool(line.get("wrong"))
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items() if v != ""}
        text = " ".join(f"{k}={v}" for k, v in shown.items())
        print(f"{'WRONG ' if line.get('wrong') else ''}{kind} {text}", flush=True)
        if args.json:
            with args.json.open("a") as stream:
                stream.write(json.dumps({"kind": kind, **line, **header}) + "\n")

    def guarded(kind: str, lines: Callable[[], Iterator[dict[str, Any]]], facts: dict[str, Any]) -> None:
        """A case that raises is a failed check, not the end."""
        try:
            for line in lines():
                note(kind, line)
        except Exception as problem:  # noqa: BLE001
            note(kind, {**facts, "wrong": f"{type(problem).__name__}: {str(problem)[:400]}"})

    left_out = 0

    def within_time(kind: str, facts: dict[str, Any]) -> bool:
        """Whether a case may start; a line says of one that may not."""
        nonlocal left_out
        is_late = time.time() > end
        left_out += is_late
        if is_late:
            note(kind, {**facts, "not run": "out of time"})
        return not is_late

    if args.only in (None, "checks"):
        for case in check_cases(is_short):
            facts = {**case.facts(), "tier": case.tier}
            if within_time("check", facts):
                guarded("check", lambda: iter([check(case)]), facts)  # noqa: B023
        if not is_short and within_time("integration", {}):
            guarded("integration", integration, {})
    if args.only in (None, "exchanges"):
        for exchange, ctas in exchange_ways(2 if is_short else 128):
            facts = {"exchange": exchange, "ctas": ctas}
            if within_time("exchange", facts):
                guarded("exchange", lambda: exchanges(exchange, ctas, 2 if is_short else 2000), facts)  # noqa: B023
    ratios: dict[str, list[float]] = {}
    if args.only in (None, "table"):
        cases = table_cases(is_short)
        if not is_short:
            compile_ahead(cases, min(90.0, max(0.0, end - time.time()) / 3))
        for case in cases:
            if not within_time("time", case.facts()):
                continue

            def lines() -> Iterator[dict[str, Any]]:
                for line in measure(case, args.rounds):  # noqa: B023
                    if line["against"] == "cuDNN":
                        ratios.setdefault(line["pass"], []).append(line["ratio"])
                    yield line

            guarded("time", lines, case.facts())
    for name, values in ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        text = f"geometric mean of {len(values)}: {mean:.2f}, least {min(values):.2f}"
        print(f"{name}: cuDNN's time over ours, {text}")
    print(f"{failed} checks failed, {left_out} cases left out")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
