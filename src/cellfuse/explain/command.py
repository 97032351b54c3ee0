"""`cellfuse explain`: the explanation of a layer that is described by options."""

from __future__ import annotations

import argparse
import json
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from cellfuse.cells import CELLS, find
from cellfuse.codegen.cpu.emit import LOOPS, emit
from cellfuse.codegen.cpu.layout import Layout, Sizes
from cellfuse.codegen.cpu.target import host
from cellfuse.codegen.lower import lower
from cellfuse.codegen.program import show as show_program
from cellfuse.errors import OptionError
from cellfuse.explain.facts import Explanation
from cellfuse.explain.gather import explain
from cellfuse.explain.picture import PICTURES
from cellfuse.explain.progress import Progress
from cellfuse.explain.words import LANGUAGES, default_language
from cellfuse.graph.backward import backward
from cellfuse.graph.graph import Graph
from cellfuse.graph.show import show
from cellfuse.nn import GRU, LSTM, RNN
from cellfuse.runtime.torch_text import torch_step


def _llvm(step: Graph, args: argparse.Namespace) -> str:
    sizes = Sizes(args.hidden_size, args.proj_size, args.num_heads)
    return emit(Layout(lower(step), sizes, 32, host()), LOOPS).text.rstrip("\n")


# The stages from a cell's equation to its kernel, each by its printed form.
_STAGES: dict[str, Callable[[Graph, argparse.Namespace], str]] = {
    "graph": lambda step, _: show(step),
    "backward": lambda step, _: show(backward(step)),
    "torch": lambda step, _: torch_step(step).text.rstrip("\n"),
    "program": lambda step, _: show_program(lower(step)),
    "llvm": _llvm,
}
NAMED = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the layer and of the text."""
    add = parser.add_argument
    names = ", ".join(sorted(CELLS))
    add("cell", metavar="CELL", help=f"file.py:name for a cell of your own, or one of {names}")
    add("--input-size", type=int, default=10, metavar="I")
    add("--hidden-size", type=int, default=20, metavar="H")
    add("--num-layers", type=int, default=1, metavar="L")
    add("--bidirectional", action="store_true")
    add("--batch-first", action="store_true")
    add("--no-bias", action="store_true")
    add("--dropout", type=float, default=0.0, metavar="P")
    add("--proj-size", type=int, default=0, metavar="P")
    add("--num-heads", type=int, default=1, metavar="N", help="for cells with heads")
    add("--seq-len", type=int, default=5, metavar="T")
    add("--batch", type=int, default=3, metavar="B")
    add("--unbatched", action="store_true", help="one sequence [T, I] without a batch axis")
    add("--lengths", type=int, nargs="+", metavar="T", help="packed sequences of these lengths")
    add("--lang", choices=LANGUAGES, help="language of the text; the locale's by default")
    add("--picture", choices=tuple(PICTURES), help="draw this instead of the text; needs --out")
    add("--out", metavar="FILE", help="where the picture goes, .svg or .png")
    add("--html", metavar="FILE", help="write the page, one file that needs no network")
    add("--open", action="store_true", help="show the page in the browser")
    add("--json", action="store_true", help="the facts as JSON instead of text")
    add("--show", choices=tuple(_STAGES), help="print a compiler stage instead")


def run(args: argparse.Namespace) -> int:
    """Print the explanation, or a stage of the compiler.

    Raises:
        CellfuseError: there is no such cell, or an option is not allowed.
    """
    cell = find(args.cell)
    if bool(args.picture) != bool(args.out):
        raise OptionError("--picture and --out belong together, such as --picture stack --out stack.svg")
    if args.open and not args.html:
        raise OptionError("--open shows the page: write --html FILE, too")
    if args.show:
        return _write(_STAGES[args.show](cell.step_without_bias if args.no_bias else cell.step, args))
    options = {"num_layers": args.num_layers, "bidirectional": args.bidirectional}
    options |= {"batch_first": args.batch_first, "bias": not args.no_bias, "dropout": args.dropout}
    options |= {"proj_size": args.proj_size}
    if args.cell in NAMED and args.num_heads == 1:
        layer = NAMED[args.cell](args.input_size, args.hidden_size, **options)
    else:
        layer = cell.layer(args.input_size, args.hidden_size, num_heads=args.num_heads, **options)
    input = _input(args)
    progress = Progress(args.lang or default_language())
    facts = explain(layer, input, seq_len=args.seq_len, batch=args.batch, lang=args.lang, watch=progress)
    progress.close()
    assert isinstance(facts, Explanation)
    facts = replace(facts, was_given_input=False)  # the numbers are ours
    if args.picture:
        return _write(f"wrote {facts.picture(args.picture).save(args.out)}")
    if args.html:
        file = facts.save(args.html)
        if args.open:
            webbrowser.open(file.resolve().as_uri())
        return _write(f"wrote {file}")
    if args.json:
        return _write(json.dumps(facts.to_dict(), ensure_ascii=False, indent=1))
    return _write(facts.text())


def _input(args: argparse.Namespace) -> Any:
    """What the options say of the input: None for a batch, a shape, or packed random numbers."""
    if args.lengths is None:
        return (args.seq_len, args.input_size) if args.unbatched else None
    if args.unbatched or min(args.lengths) < 1:
        raise OptionError(f"--lengths {args.lengths}: needs lengths of at least 1, and no --unbatched")
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(max(args.lengths), len(args.lengths), args.input_size, generator=generator)
    return pack_padded_sequence(values, args.lengths, enforce_sorted=False)


# What stands for a sign that the terminal's encoding lacks.
_PLAIN = {"σ": "sigmoid", "⊙": "*", "→": "->", "←": "<-", "↑": "^", "′": "'", "−": "-", "…": "..."}
_PLAIN |= {"√": "sqrt", "Σ": "sum", "∞": "inf", "≤": "<=", "≥": ">=", "≠": "!=", "ᵀ": ".T", "ₖ": ""}


def _write(text: str) -> int:
    encoding = sys.stdout.encoding or "utf-8"
    for sign, plain in _PLAIN.items():
        if not _can_write(sign, encoding):
            text = text.replace(sign, plain)
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    return 0


def _can_write(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
