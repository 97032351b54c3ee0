"""The adding problem: add the two marked numbers of a long sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cellfuse.train import score
from cellfuse.train.model import PerSequence
from cellfuse.train.splits import Drawn
from cellfuse.train.task import Defaults, Figure, MakeLayer, Metric, Options, Splits, Task

# Published mean squared errors by length.
BAI_SOURCE = "Bai, Kolter, Koltun 2018, arXiv:1803.01271, table 1"
BAI = {600: {"LSTM": 0.164, "GRU": 5.3e-5, "RNN": 0.177}}


def draw(generator: torch.Generator, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Input [T, B, 2]: a number in [0, 1) and a mark, 1 once in each half. Target [B]: the sum."""
    numbers = torch.rand(length, count, generator=generator, dtype=torch.float32)
    half = length // 2
    first = torch.randint(0, half, (1, count), generator=generator)
    second = torch.randint(half, length, (1, count), generator=generator)
    marks = torch.zeros_like(numbers).scatter_(0, first, 1.0).scatter_(0, second, 1.0)
    return torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(dim=0)


def splits(options: Options, seed: int) -> Splits:
    """5,000 new sequences an epoch; 1,000 fixed ones for validation and 1,000 for the test."""

    def part(number: int, count: int) -> Drawn:
        return Drawn(lambda g, n: draw(g, n, options["length"]), count, 1, (seed, number))

    return Splits(part(0, 5000), part(1, 1000), part(2, 1000))


def model(make_layer: MakeLayer, options: Options) -> nn.Module:
    """The layer, read out at the end."""
    return PerSequence(make_layer, 2, 1)


def figures(options: Options) -> tuple[Figure, ...]:
    """What an answer without memory reaches, and published values where the length is theirs."""
    published = BAI.get(options["length"], {})
    return (
        Figure(1 / 6, "always answering 1 (no memory)", "2 times the variance 1/12 of a number"),
        *(
            Figure(value, f"{cell}, length {options['length']}", BAI_SOURCE)
            for cell, value in published.items()
        ),
    )


ERROR = Metric("mean squared error", "", "lower", score.squared_error, is_log=True)

TASK = Task(
    name="adding",
    what="add the two marked numbers of a sequence: a test of long memory",
    source="generated; Hochreiter and Schmidhuber 1997, one mark in each half",
    loss=ERROR,
    metrics=(ERROR,),
    defaults=Defaults(hidden_size=64, batch_size=50, epochs=20, lr=3e-3),
    splits=splits,
    model=model,
    figures=figures,
    options={"length": 100},
)
