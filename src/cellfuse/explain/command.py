"""`cellfuse explain`: the explanation of a layer that is described by options."""

from __future__ import annotations

import argparse
import json
import sys

import torch

from cellfuse.cells import CELLS
from cellfuse.errors import CellError
from cellfuse.explain.gather import LANGUAGES, explain
from cellfuse.graph.backward import backward
from cellfuse.graph.show import show
from cellfuse.nn import GRU, LSTM, RNN
from cellfuse.runtime.torch_text import torch_step

NAMED = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the layer and of the text."""
    add = parser.add_argument
    add("cell", help=f"one of {', '.join(sorted(CELLS))}")
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
    add("--lang", choices=LANGUAGES, help="language of the text; the locale's by default")
    add("--json", action="store_true", help="the facts as JSON instead of text")
    add("--show", choices=("graph", "backward", "torch"), help="print a compiler stage instead")


def run(args: argparse.Namespace) -> int:
    """Print the explanation."""
    if args.cell not in CELLS:
        raise CellError(f"no cell is called {args.cell!r}; there are {', '.join(sorted(CELLS))}")
    cell = CELLS[args.cell]
    if args.show:
        stages = {"graph": lambda: show(cell.step), "backward": lambda: show(backward(cell.step))}
        stages["torch"] = lambda: torch_step(cell.step).text
        return _write(stages[args.show]())
    options = {"num_layers": args.num_layers, "bidirectional": args.bidirectional}
    options |= {"batch_first": args.batch_first, "bias": not args.no_bias, "dropout": args.dropout}
    options |= {"proj_size": args.proj_size}
    if args.cell in NAMED and args.num_heads == 1:
        layer = NAMED[args.cell](args.input_size, args.hidden_size, **options)
    else:
        layer = cell.layer(args.input_size, args.hidden_size, num_heads=args.num_heads, **options)
    input = torch.zeros(args.seq_len, args.input_size) if args.unbatched else None
    facts = explain(layer, input, seq_len=args.seq_len, batch=args.batch, lang=args.lang)
    if args.json:
        return _write(json.dumps(facts.to_dict(), ensure_ascii=False, indent=1))  # type: ignore[union-attr]
    return _write(facts.text())


# Where the terminal's encoding lacks a sign.
_PLAIN = {
    "σ": "sigmoid",
    "⊙": "*",
    "→": "->",
    "←": "<-",
    "↑": "^",
    "′": "'",
    "−": "-",
    "…": "..",
    "√": "sqrt",
}


def _write(text: str) -> int:
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for sign, plain in _PLAIN.items():
            text = text.replace(sign, plain)
        text = text.encode(encoding, "replace").decode(encoding)
    sys.stdout.write(text + "\n")
    return 0
