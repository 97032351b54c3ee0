"""Characters of the King James New Testament: predict the next one from all before it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from cellfuse.train import data, score
from cellfuse.train.model import PerStep
from cellfuse.train.splits import Text
from cellfuse.train.task import Defaults, Figure, MakeLayer, Metric, Options, Splits, Task

# Validation and test text are read as this many streams, each from the initial state.
STREAMS = 16
FILE = "kjv_new_testament.txt.xz"


@cache
def load() -> tuple[Tensor, str]:
    """The text as numbers [N], and the characters they stand for, sorted."""
    text = data.text(FILE)
    symbols = "".join(sorted(set(text)))
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    return torch.tensor([numbers[symbol] for symbol in text]), symbols


def parts(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first 90 percent, the next 5, the last 5."""
    train, valid = len(codes) * 90 // 100, len(codes) * 95 // 100
    return codes[:train], codes[train:valid], codes[valid:]


def splits(options: Options, seed: int) -> Splits:
    """Training text in windows, the other two to their last character."""
    train, valid, test = parts(load()[0])
    window = options["window"]
    return Splits(Text(train, window), Text(valid, window, STREAMS), Text(test, window, STREAMS))


def model(make_layer: MakeLayer, options: Options) -> nn.Module:
    """Embedding, layer, and an answer at every time step."""
    return PerStep(make_layer, len(load()[1]), options["embedding"])


def figures(options: Options) -> tuple[Figure, ...]:
    """Two ways of coding the text without a network."""
    codes, symbols = load()
    train, _, test = parts(codes)
    shares = torch.bincount(train, minlength=len(symbols)).double() + 1
    surprise = -(shares / shares.sum()).log2()
    packed = len(data.read(FILE)) * 8 / len(codes)
    return (
        Figure(
            float(surprise[test].mean()),
            "one by one",
            "share of each character in the training text",
        ),
        Figure(packed, "xz -9e", "size of the shipped file, the whole text"),
    )


TASK = Task(
    name="char-kjv",
    what="next character of English prose: 0.95 million characters, 63 symbols, split 90/5/5",
    source="King James Version of 1611, New Testament, public domain; Debian bible-kjv-text 4.38",
    loss=Metric("cross-entropy", "nats per character", "lower", score.nats),
    metrics=(Metric("bits per character", "", "lower", score.bits),),
    defaults=Defaults(hidden_size=256, batch_size=32, epochs=5, lr=3e-3, patience=3),
    splits=splits,
    model=model,
    figures=figures,
    options={"window": 100, "embedding": 64},
    is_causal=True,
)
