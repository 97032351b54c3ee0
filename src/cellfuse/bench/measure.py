"""Check, then time or weigh: every contestant of a case in one process, in turn: all meet the same noise."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from cellfuse.bench.cases import BenchCase
from cellfuse.bench.contestants import TORCH, contestants, gradients
from cellfuse.nn import Layer

PASSES = ("inference", "training")
# Twice the error of a plain run in the same precision, as for every result of this library.
ALLOWED = 2.0
# A sample is at least this long, so that the clock does not matter.
SAMPLE_SECONDS = 5e-3
# Other things than the case's cell: checked in cases of its own; a part of the work.
UNCHECKED = ("our LSTM", "our input product", "our layer without resets", "our layer without zoneout")


@dataclass(frozen=True)
class Timing:
    """What one contestant took for one pass of a case.

    Attributes:
        median, low, high: seconds a pass, median and quartiles over the rounds; in the family "memory"
            peak bytes, in "accuracy" the largest of `errors`.
        errors: relative error against float64 of each output, state and (training) gradient.
    """

    contestant: str
    median: float
    low: float
    high: float
    errors: dict[str, float]

    @property
    def error(self) -> float | None:
        """The largest one; None where nothing was compared."""
        return max(self.errors.values(), default=None)


@dataclass(frozen=True)
class Outcome:
    """One pass of a case.

    Attributes:
        backend: which of ours ran.
        timings: ours first; empty where the check failed.
        wrong: what the check found; empty if nothing.
    """

    case: BenchCase
    kind: str
    backend: str
    timings: tuple[Timing, ...]
    wrong: str = ""

    def ratio(self, other: str) -> float | None:
        """What `other` took over what ours took: above 1, ours is better."""
        taken = {timing.contestant: timing for timing in self.timings}
        if other not in taken:
            return None
        ours, theirs = taken["cellfuse"], taken[other]
        if self.case.family != "accuracy":
            return theirs.median / ours.median
        # Of the result where ours does worst.
        pairs = [(theirs.errors[key], error) for key, error in ours.errors.items()]
        return min(_at_least_eps(a, self.case) / _at_least_eps(b, self.case) for a, b in pairs)


def _at_least_eps(error: float, case: BenchCase) -> float:
    return max(error, torch.finfo(case.dtype).eps)


def measure(case: BenchCase, kind: str, *, backend: str, rounds: int) -> Outcome:
    """Check all contestants of a case against float64, then time them in turn, or weigh them.

    Args:
        kind: "inference" (forward without gradients) or "training" (forward, then the gradients of
            the input and every parameter).
        backend: of our layer; "auto" or a name.
        rounds: how often each is timed.
    """
    modules = contestants(case, backend, case.dtype)
    ours = next(module for module in modules["cellfuse"].modules() if isinstance(module, Layer))
    input = torch.randn(case.T, case.B, case.I, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    with torch.set_grad_enabled(kind == "training"):
        reasons = ours.why_not(pack(case, input[:1] if case.family == "stream" else input))
    chosen = backend if backend != "auto" else next(name for name, why in reasons.items() if not why)
    if case.family == "stream" and backend == "auto":
        chosen = "cpu"  # layer.step's own way, whatever a sequence of one step would take
    errors, wrong = check(case, kind, modules, input, ours.state_dict())
    if wrong:
        return Outcome(case, kind, chosen, (), wrong)
    if chosen == "eager" and case.cell not in TORCH:
        del modules["loop"]  # it is the same code
    runs = {name: _run(case, module, kind, input) for name, module in modules.items()}
    timings = []
    for name, samples in _samples(case, runs, errors, rounds).items():
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        timings.append(Timing(name, median, low, high, errors[name]))
    return Outcome(case, kind, chosen, tuple(timings))


def _samples(
    case: BenchCase, runs: dict[str, Callable[[], None]], errors: dict[str, dict[str, float]], rounds: int
) -> dict[str, list[float]]:
    if case.family == "memory":
        return {name: [_peak_bytes(run)] * 2 for name, run in runs.items()}
    if case.family == "accuracy":
        return {name: [max(errors[name].values())] * 2 for name in runs}
    return _interleave(runs, rounds)


def check(
    case: BenchCase, kind: str, modules: dict[str, nn.Module], input: Tensor, weights: dict[str, Tensor]
) -> tuple[dict[str, dict[str, float]], str]:
    """(errors of each contestant against the float64 loop, what is wrong with ours or "")."""
    exact = contestants(case, "eager", torch.float64, weights)["loop"]
    want = results(case, exact, kind, input.double())
    errors: dict[str, dict[str, float]] = {}
    for name, module in modules.items():
        of_module = next(module.parameters()).dtype
        got = {} if name in UNCHECKED else results(case, module, kind, input.to(of_module))
        errors[name] = {key: _distance(value, want[key]) for key, value in got.items()}
    baseline = errors.get("torch.nn", errors["loop"])
    for name in ("cellfuse", "our stepper", "our recompute"):
        for key, error in errors.get(name, {}).items():
            allowed = ALLOWED * _at_least_eps(baseline[key], case)
            if not error <= allowed:  # also where it is NaN
                return {}, f"{name}: {key}: error {error:.1e} against float64, {allowed:.1e} is allowed"
    return errors, ""


def pack(case: BenchCase, input: Tensor) -> Tensor | PackedSequence:
    """The input as the case's layers take it; packed for a ragged case."""
    return pack_padded_sequence(input, case.lengths) if case.family == "ragged" else input


def results(case: BenchCase, module: nn.Module, kind: str, input: Tensor) -> dict[str, Tensor]:
    """Everything one pass gives, by name."""
    input = input.detach().clone().requires_grad_(kind == "training")
    torch.manual_seed(4)  # the same masks for everyone, in every precision
    with torch.set_grad_enabled(kind == "training"):
        output, states = module(pack(case, input))
        output = _values(output)
        states = states if isinstance(states, tuple) else (states,)
        found = {"output": output, **{f"state {k}": state for k, state in enumerate(states)}}
        if kind == "training":
            loss = _weighted_sum(list(found.values()))
            found |= {f"gradient of {k}": v for k, v in gradients(module, loss, input).items()}
    return {name: value.detach() for name, value in found.items()}


def _weighted_sum(values: list[Tensor]) -> Tensor:
    """A loss that every element of every result takes part in, each by its own weight."""
    draw = torch.Generator().manual_seed(2)
    weights = (torch.randn(value.shape, generator=draw).to(value.dtype) for value in values)
    return torch.stack([(v * w).sum() for v, w in zip(values, weights, strict=True)]).sum()


def _distance(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def _run(case: BenchCase, module: nn.Module, kind: str, input: Tensor) -> Callable[[], None]:
    """One pass to be timed."""
    input = input.to(next(module.parameters()).dtype)
    leaf = input.detach().clone().requires_grad_(kind == "training")
    given, wanted = pack(case, leaf), [leaf, *module.parameters()]
    again = case.family == "ragged"  # the packing, which is not timed, is part of the graph
    with torch.no_grad():
        seed = torch.ones_like(_values(module(given)[0]))

    def infer() -> None:
        with torch.no_grad():
            module(given)

    def train() -> None:
        output, _ = module(given)
        torch.autograd.grad(_values(output), wanted, seed, allow_unused=True, retain_graph=again)

    return train if kind == "training" else infer


def _peak_bytes(run: Callable[[], None]) -> int:
    """The most memory that torch's allocator had lent out at one time during a pass, less that before it.

    Not counted: what libraries allocate for themselves, as oneDNN does for some of its work.
    """
    run()  # compilation, caches
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p:
        run()
    now = most = 0
    events = p.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _values(output: Tensor | PackedSequence) -> Tensor:
    return output.data if isinstance(output, PackedSequence) else output


def _interleave(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds a run, `rounds` samples each, one contestant after the other."""
    counts = {}
    for name, run in runs.items():
        run()  # memory, caches, compilation
        counts[name] = max(1, round(SAMPLE_SECONDS / max(_seconds(run, 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, chance = list(runs.items()), random.Random(0)
    for _ in range(rounds):
        chance.shuffle(order)  # in a fixed order each would find what the same other leaves in the caches
        for name, run in order:
            times[name].append(_seconds(run, counts[name]))
    return times


def _seconds(run: Callable[[], None], count: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(count):
        run()
    return (time.perf_counter_ns() - start) / 1e9 / count
