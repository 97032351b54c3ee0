"""`cellfuse bench`: its options, the table, the lines of JSON."""

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
time over ours: above 1, cellfuse is faster."""


# Whom we are compared with; "torch.nn cell" is the one-step module, for streams only.
OTHERS = ("torch.nn", "torch.nn cell", "loop")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help="names or patterns such as 'gru/*' (lstm, gru and rnn)")
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
    from cellfuse.runtime import choice

    console = Console()
    if args.list:
        console.print("\n".join(CASES), highlight=False)
        return 0
    choice.check_name(args.backend)
    if args.json:
        _check_file(args.json)
    chosen = select(args.cases or [f"{cell}/*" for cell in HEART])
    kinds = PASSES if args.kind == "both" else (args.kind,)
    torch.set_num_threads(args.threads)
    facts = about(args.threads)
    console.print(f"{facts['processor']}, {args.threads} thread(s), torch {facts['torch']}", highlight=False)
    outcomes = []
    with console.status("") as status:
        for number, case in enumerate(chosen):
            for kind in kinds:
                if case.form == "stream" and kind == "training":
                    continue
                status.update(f"{number + 1} of {len(chosen)}: {case.name} {kind}")
                outcome = measure(case, kind, backend=args.backend, rounds=args.rounds)
                outcomes.append(outcome)
                if args.json:
                    with args.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line(outcome) | facts) + "\n")
    console.print(table(outcomes))
    return int(any(outcome.wrong for outcome in outcomes))


def line(outcome: Any) -> dict[str, Any]:
    """One outcome as the facts of a JSON line; times in seconds."""
    return {
        "case": outcome.case.name,
        "pass": outcome.kind,
        "backend": outcome.backend,
        "wrong": outcome.wrong,
        "times": {
            t.contestant: {"median": t.median, "quartiles": [t.low, t.high], "error": t.error}
            for t in outcome.timings
        },
        "ratios": {other: outcome.ratio(other) for other in OTHERS if outcome.ratio(other)},
    }


def table(outcomes: list[Any]) -> Any:
    """Everything that was measured, with the geometric means of the ratios last."""
    from rich.table import Table

    made = Table(
        box=None,
        title="milliseconds; t/o: torch.nn's time / ours, c: its one-step cell, l: loop",
        padding=(0, 1, 0, 0),
    )
    for name in ("case", "pass", "backend"):
        made.add_column(name, no_wrap=True)
    for name in ("ours", "torch", "loop", "t/o", "c/o", "l/o"):
        made.add_column(name, justify="right", no_wrap=True)
    for outcome in outcomes:
        head = (outcome.case.name, outcome.kind[:5], outcome.backend)
        if outcome.wrong:
            made.add_row(*head, f"[red]WRONG[/red] {outcome.wrong}")
            continue
        times = {timing.contestant: _milliseconds(timing.median) for timing in outcome.timings}
        cells = [times.get(name, "") for name in ("cellfuse", "torch.nn", "loop")]
        made.add_row(*head, *cells, *(_ratio(outcome.ratio(other)) for other in OTHERS))
    means = [_ratio(_mean([o.ratio(other) for o in outcomes])) for other in OTHERS]
    made.add_section()
    made.add_row("geometric mean", "", "", "", "", "", *means)
    return made


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _mean(values: list[float | None]) -> float | None:
    logs = [math.log(value) for value in values if value]
    return math.exp(sum(logs) / len(logs)) if logs else None


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
