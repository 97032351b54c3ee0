"""`cellfuse explain | train | bench`: picks the subcommand. What each does stands in its own folder."""

from __future__ import annotations

import argparse
import importlib
import sys

from cellfuse import __version__
from cellfuse.errors import CellfuseError

# name -> (module with add_arguments and run, one line of help)
COMMANDS = {
    "explain": (
        "cellfuse.explain.command",
        "what a layer computes: equations, shapes, what is where",
    ),
    "train": ("cellfuse.train.command", "train a cell on a task with known results"),
    "bench": ("cellfuse.bench.command", "time a cell against torch.nn and a hand-written loop"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        0 done, 1 a result is bad, 2 wrong use, 130 interrupted.
    """
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="cellfuse", description="Recurrent cells on PyTorch: explain, train, bench."
    )
    parser.add_argument("--version", action="version", version=f"cellfuse {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((a for a in arguments if a in COMMANDS), "")
    for name, (module, help_text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_text)
        if name == chosen:
            command = _load(module)
            command.add_arguments(subparser)
    args = parser.parse_args(arguments)
    try:
        return int(command.run(args))
    except CellfuseError as error:
        if args.traceback:
            raise
        sys.stderr.write(f"cellfuse {chosen}: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _load(module: str):  # type: ignore[no-untyped-def]
    """Import a subcommand; a missing extra is named."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name in ("rich", "matplotlib", "lightning_fabric"):
            sys.stderr.write(f"cellfuse: {error.name} is missing. pip install 'cellfuse[train]'\n")
            raise SystemExit(2) from None
        raise
