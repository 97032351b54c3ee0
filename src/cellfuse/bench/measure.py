"""Check, then time: every contestant of a case in one process, in turn, so that all meet the same noise."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Timing:
    """One contestant's time for one pass of a case.

    Attributes:
        median, low, high: seconds a pass: median and quartiles over the rounds.
        error: largest relative error against float64, of outputs, states and (training) gradients.
    """

    contestant: str
    median: float
    low: float
    high: float
    error: float


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
        """Time of `other` over ours: above 1, ours is faster."""
        times = {timing.contestant: timing.median for timing in self.timings}
        return times[other] / times["cellfuse"] if other in times else None


def measure(case: BenchCase, kind: str, *, backend: str, rounds: int) -> Outcome:
    """Check all contestants of a case against float64, then time them in turn.

    Args:
        kind: "inference" (forward without gradients) or "training" (forward, then the gradients of
            the input and every parameter).
        backend: of our layer; "auto" or a name.
        rounds: how often each is timed.
    """
    modules = contestants(case, backend, torch.float32)
    ours = next(module for module in modules["cellfuse"].modules() if isinstance(module, Layer))
    input = torch.randn(case.T, case.B, case.I, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(kind == "training"):
        reasons = ours.why_not(pack(case, input[:1] if case.form == "stream" else input))
    chosen = backend if backend != "auto" else next(name for name, why in reasons.items() if not why)
    errors, wrong = check(case, kind, modules, input, ours.state_dict())
    if wrong:
        return Outcome(case, kind, chosen, (), wrong)
    if chosen == "eager" and case.cell not in TORCH:
        del modules["loop"]  # it is the same code
    runs = {name: _run(case, module, kind, input) for name, module in modules.items()}
    times = _interleave(runs, rounds)
    timings = []
    for name, samples in times.items():
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        timings.append(Timing(name, median, low, high, errors[name]))
    return Outcome(case, kind, chosen, tuple(timings))


def check(
    case: BenchCase, kind: str, modules: dict[str, nn.Module], input: Tensor, weights: dict[str, Tensor]
) -> tuple[dict[str, float], str]:
    """(error of each contestant against the float64 loop, what is wrong with ours or "")."""
    exact = contestants(case, "eager", torch.float64, weights)["loop"]
    want = results(case, exact, kind, input.double())
    errors: dict[str, dict[str, float]] = {}
    for name, module in modules.items():
        got = results(case, module, kind, input)
        errors[name] = {key: _distance(value, want[key]) for key, value in got.items()}
    baseline = errors.get("torch.nn", errors["loop"])
    for key, error in errors["cellfuse"].items():
        allowed = ALLOWED * max(baseline[key], torch.finfo(torch.float32).eps)
        if not error <= allowed:  # also where it is NaN
            return {}, f"{key}: error {error:.1e} against float64, {allowed:.1e} is allowed"
    return {name: max(each.values()) for name, each in errors.items()}, ""


def pack(case: BenchCase, input: Tensor) -> Tensor | PackedSequence:
    """The input as the case's layers take it; packed for a ragged case."""
    return pack_padded_sequence(input, case.lengths) if case.form == "ragged" else input


def results(case: BenchCase, module: nn.Module, kind: str, input: Tensor) -> dict[str, Tensor]:
    """Everything one pass gives, by name."""
    input = input.detach().clone().requires_grad_(kind == "training")
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
    leaf = input.detach().clone().requires_grad_(kind == "training")
    given, wanted = pack(case, leaf), [leaf, *module.parameters()]
    with torch.no_grad():
        seed = torch.ones_like(_values(module(given)[0]))

    def infer() -> None:
        with torch.no_grad():
            module(given)

    def train() -> None:
        output, _ = module(given)
        torch.autograd.grad(_values(output), wanted, seed, allow_unused=True, retain_graph=case.form != "")

    return train if kind == "training" else infer


def _values(output: Tensor | PackedSequence) -> Tensor:
    return output.data if isinstance(output, PackedSequence) else output


def _interleave(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds a run, `rounds` samples each, one contestant after the other."""
    counts = {}
    for name, run in runs.items():
        run()  # memory, caches, compilation
        counts[name] = max(1, round(SAMPLE_SECONDS / max(_seconds(run, 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs.items())
    for _ in range(rounds):
        for name, run in order:
            times[name].append(_seconds(run, counts[name]))
        order.append(order.pop(0))  # each comes after each of the others equally often
    return times


def _seconds(run: Callable[[], None], count: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(count):
        run()
    return (time.perf_counter_ns() - start) / 1e9 / count
