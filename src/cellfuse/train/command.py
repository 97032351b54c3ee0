"""`cellfuse train`: its options, and what it returns to the shell.

Imports nothing heavy before it runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

EXTRAS = ("lightning_fabric", "rich", "matplotlib")

DESCRIPTION = """\
Train a recurrent cell on a known task and compare it with published figures. Writes into --out:
checkpoint.pt (to resume, with the best weights), results.jsonl (one line of JSON), curve.png."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option. One that is not given has the value of the task's recipe."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("task", nargs="?", metavar="TASK", help="name of a task, see --list")
    add("--list", action="store_true", help="show the tasks and exit")
    add("--cell", metavar="CELL", help="name of a cell, or file.py:name for one of your own")
    model = parser.add_argument_group("layer").add_argument
    model("--hidden-size", type=int, metavar="H", help="hidden units")
    model("--num-layers", type=int, metavar="L", help="stacked layers")
    model("--bidirectional", action=argparse.BooleanOptionalAction, help="both directions")
    model("--dropout", type=float, metavar="P", help="share dropped between stacked layers")
    model("--proj-size", type=int, metavar="P", help="size of the projected state; 0 for none")
    training = parser.add_argument_group("training").add_argument
    training("--batch-size", type=int, metavar="B", help="sequences per step, over all devices")
    length = parser.add_mutually_exclusive_group().add_argument
    length("--epochs", type=int, metavar="N", help="passes through the training data")
    length("--steps", type=int, metavar="N", help="updates of the weights, instead of --epochs")
    training("--lr", type=float, metavar="X", help="step size of AdamW")
    training("--clip", type=float, metavar="X", help="largest norm of the gradient; 0 for no limit")
    training("--weight-decay", type=float, metavar="X", help="weight decay of AdamW")
    training(
        "--patience",
        type=int,
        metavar="N",
        help="stop after N epochs without a lower validation loss; 0 for never",
    )
    training("--seed", type=int, metavar="N", help="start weights, order, validation part (0)")
    training("--set", action="append", dest="options", metavar="NAME=N", help="a task's own option")
    files = parser.add_argument_group("files").add_argument
    files("--out", metavar="DIR", help="folder of the run (runs/TASK-CELL-SEED)")
    files("--resume", action="store_true", help="go on with the run in --out")
    files(
        "--checkpoint-every",
        type=int,
        metavar="N",
        help="save every N steps, not only after each epoch",
    )
    machine = parser.add_argument_group("machine").add_argument
    machine("--accelerator", choices=("auto", "cpu", "cuda"), default="cpu", help="kind of device (cpu)")
    machine("--devices", type=int, metavar="N", help="how many; a process each (1)")
    machine("--precision", choices=("32-true", "bf16-mixed", "64-true"), help="of the numbers (32-true)")
    output = parser.add_argument_group("output").add_argument
    output(
        "--json",
        action="store_true",
        help="the results line on standard output, all else on standard error",
    )
    output("--quiet", action="store_true", help="no progress and no summary")


def run(args: argparse.Namespace) -> int:
    """Do what the options say.

    Returns:
        0 done, 1 training diverged, 130 or 143 stopped by SIGINT or SIGTERM.

    Raises:
        CellfuseError: something asked for does not exist or cannot be had.
    """
    from dataclasses import fields
    from importlib.util import find_spec
    from pathlib import Path

    from cellfuse.errors import TaskError

    missing = [name for name in EXTRAS if find_spec(name) is None]
    if missing:
        raise TaskError(f"training needs {', '.join(missing)}. Write: pip install 'cellfuse[train]'")
    from cellfuse.train import tasks

    if args.list:
        from rich.console import Console

        from cellfuse.train.report import task_table

        Console().print(task_table(tasks.TASKS))
        return 0
    from cellfuse.train.launch import launch
    from cellfuse.train.loop import DivergenceError
    from cellfuse.train.settings import Settings, settings_of

    if args.task is None:
        raise TaskError("which task? `cellfuse train --list` shows them.")
    task = tasks.find(args.task)
    if args.cell is None:
        raise TaskError(f"which cell? Write, for example: cellfuse train {args.task} --cell gru")
    given: dict[str, Any] = {entry.name: getattr(args, entry.name) for entry in fields(Settings)}
    given["out"] = Path(args.out) if args.out is not None else None
    try:
        return launch(settings_of(given, task))
    except DivergenceError as error:
        sys.stderr.write(f"cellfuse train: {error}\n")
        return 1
