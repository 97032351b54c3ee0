"""`cellfuse bench`: its options, what it prints while it runs, the lines of JSON."""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellfuse.errors import OptionError

DESCRIPTION = """\
Time cells against torch.nn and a hand-written loop: same weights, same input, one process, in turn,
median. Each case is checked against float64 first; a wrong one is not timed. Ratios are the other's
time over ours: above 1, cellfuse is faster.

Families of cases: 'lstm/*' and the like (plain sequences), 'ragged/*' (packed), 'stream/*' (a time step a
call), 'custom/*' (cells a user could write), 'linear/*' (no recurrent matrix), 'bf16/*', 'memory/*' (peak
bytes), 'accuracy/*' (errors at T = 1000). The machine's own limits are measured first and stand in every
line of JSON as "roof"."""


# Whom we are compared with: "torch.nn cell" is the one-step module, "our ..." other ways of our own.
OTHERS = (
    *("torch.nn", "torch.nn cell", "loop"),
    *("our stepper", "our LSTM", "our input product", "our float32", "our recompute"),
    "our layer without resets",
    "our layer without zoneout",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help="names or patterns such as 'gru/*' (lstm, gru, rnn)")
    add("--list", action="store_true", help="print the names of all cases and exit")
    add("--pass", dest="kind", choices=("inference", "training", "both"), default="both", help="(both)")
    add("--backend", default="auto", help="of our layer: auto, or one by name (auto)")
    add("--rounds", type=_at_least(2), default=15, metavar="N", help="samples of each contestant (15)")
    add("--threads", type=_at_least(1), default=1, metavar="N", help="torch's threads (1)")
    add("--json", type=Path, metavar="FILE", help="append one line of JSON per case and pass")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: a whole number from {least} on")
        return int(text)

    return number


def _check_file(path: Path) -> None:
    """Make the file now, not after minutes of measuring.

    Raises:
        OptionError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise OptionError(f"--json {path} cannot be written: {error.strerror}") from None


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Returns:
        0, or 1 if a case was wrong.
    """
    import torch
    from rich.console import Console

    from cellfuse.bench.cases import CASES, HEART, select
    from cellfuse.bench.measure import PASSES, measure
    from cellfuse.bench.roof import measure_roof
    from cellfuse.runtime import choice

    console = Console(highlight=False)
    if args.list:
        console.print("\n".join(CASES))
        return 0
    choice.check_name(args.backend)
    if args.json:
        _check_file(args.json)
    chosen = select(args.cases or [f"{cell}/*" for cell in HEART])
    kinds = PASSES if args.kind == "both" else (args.kind,)
    work = [(case, kind) for case in chosen for kind in case.passes if kind in kinds]
    torch.set_num_threads(args.threads)
    facts = about(args.threads)
    console.print(f"{facts['processor']}, {args.threads} thread(s), torch {facts['torch']}")
    facts["roof"] = measure_roof(args.threads)
    console.print(_roof(facts["roof"]), soft_wrap=True)
    outcomes = []
    with console.status("") as status:
        for number, (case, kind) in enumerate(work):
            status.update(f"{number + 1} of {len(work)}: {case.name} {kind}")
            outcome = measure(case, kind, backend=args.backend, rounds=args.rounds)
            outcomes.append(outcome)
            console.print(row(outcome), soft_wrap=True)
            if args.json:
                with args.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line(outcome) | facts) + "\n")
    for text in summary(outcomes):
        console.print(text, soft_wrap=True)
    return int(any(outcome.wrong for outcome in outcomes))


def line(outcome: Any) -> dict[str, Any]:
    """One outcome as the facts of a JSON line; times in seconds, of the family "memory" bytes."""
    return {
        "case": outcome.case.name,
        "pass": outcome.kind,
        "backend": outcome.backend,
        "wrong": outcome.wrong,
        "times": {
            t.contestant: {"median": t.median, "quartiles": [t.low, t.high], "error": t.error}
            for t in outcome.timings
        },
        "ratios": {other: r for other in OTHERS if (r := outcome.ratio(other)) is not None},
    }


def row(outcome: Any) -> str:
    """What is printed of one outcome: our figure, and the others' over ours."""
    head = f"{outcome.case.name:<34} {outcome.kind:<9} {outcome.backend:<5}"
    if outcome.wrong:
        return f"{head} [red]WRONG[/red] {outcome.wrong}"
    ours = _figure(outcome, outcome.timings[0])
    ratios = [(other, outcome.ratio(other)) for other in OTHERS]
    return f"{head} {ours:>13}   " + ", ".join(f"{other} {r:.3g}" for other, r in ratios if r is not None)


def _figure(outcome: Any, timing: Any) -> str:
    """A contestant's figure with its unit."""
    family, value = outcome.case.family, timing.median
    if family == "memory":
        return f"{value / 2**20:.3g} MiB"
    if family == "accuracy":
        return f"error {value:.1e}"
    if family == "stream":
        return f"{value / outcome.case.T * 1e6:.3g} us/step"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value * 1e3:.0f} ms"


def summary(outcomes: list[Any]) -> list[str]:
    """The geometric means of the ratios, and how many are below 1."""
    text = []
    for other in OTHERS:
        ratios = [r for o in outcomes if o.case.is_timed and (r := o.ratio(other)) is not None]
        if ratios and not other.startswith("our"):
            slower = sum(r < 1 for r in ratios)
            text.append(
                f"{other}'s time over ours: geometric mean {_mean(ratios):.3g} of {len(ratios)}, "
                f"below 1: {slower}"
            )
    return text


def _roof(roof: dict[str, Any]) -> str:
    read = ", ".join(f"{name} {rate:.0f}" for name, rate in roof["read"].items())
    products = f"torch.mm {roof['sgemm']:.0f}, in bfloat16 {roof['bf16 gemm']:.0f}"
    return f"multiply-adds {roof['fma']:.0f} GFLOP/s ({products}); reading GB/s: {read}"


def _mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def about(threads: int) -> dict[str, Any]:
    """What a result depends on besides the case."""
    import torch

    import cellfuse
    from cellfuse.origin import commit, processor

    return {
        "cellfuse": cellfuse.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": threads,
        "date": time.strftime("%Y-%m-%d"),
    }
