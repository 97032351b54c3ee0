"""Copy memory: repeat ten symbols after a long pause."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cellfuse.train import score
from cellfuse.train.model import PerStep
from cellfuse.train.splits import Drawn
from cellfuse.train.task import Defaults, Figure, MakeLayer, Metric, Options, Splits, Task

SYMBOLS, LENGTH = 8, 10
BLANK, GO = SYMBOLS, SYMBOLS + 1
# Published losses by delay.
BAI_SOURCE = "Bai, Kolter, Koltun 2018, arXiv:1803.01271, table 1"
BAI = {1000: {"LSTM": 0.0204, "GRU": 0.0197, "RNN": 0.0202}}


def draw(generator: torch.Generator, count: int, delay: int) -> tuple[Tensor, Tensor]:
    """Input [delay + 20, B]: ten symbols, blanks, the sign to go, ten blanks.

    Target [delay + 20, B]: blanks, then the ten symbols.
    """
    symbols = torch.randint(0, SYMBOLS, (LENGTH, count), generator=generator)
    input = torch.full((delay + 2 * LENGTH, count), BLANK)
    target = input.clone()
    input[:LENGTH] = symbols
    input[LENGTH + delay - 1] = GO
    target[LENGTH + delay :] = symbols
    return input, target


def splits(options: Options, seed: int) -> Splits:
    """5,000 new sequences an epoch; 1,000 fixed ones for validation and 1,000 for the test."""
    delay = options["delay"]

    def part(number: int, count: int) -> Drawn:
        terms = delay + 2 * LENGTH
        return Drawn(lambda g, n: draw(g, n, delay), count, terms, (seed, number))

    return Splits(part(0, 5000), part(1, 1000), part(2, 1000))


def model(make_layer: MakeLayer, options: Options) -> nn.Module:
    """Embedding, layer, and an answer at every time step."""
    return PerStep(make_layer, SYMBOLS + 2, SYMBOLS + 2)


def recalled(answer: Tensor, target: Tensor) -> Tensor:
    """Right answers among the last ten, scaled so that the mean over time steps is a fraction."""
    hits = score.right(answer[-LENGTH:], target[-LENGTH:])
    return hits * (len(target) / LENGTH)


def figures(options: Options) -> tuple[Figure, ...]:
    """What guessing the ten symbols gives, and published values where the delay is theirs."""
    delay = options["delay"]
    return (
        Figure(
            LENGTH * math.log(SYMBOLS) / (delay + 2 * LENGTH),
            "blanks, then guessing (no memory)",
            "10 ln 8 / (delay + 20), Arjovsky et al. 2016, arXiv:1511.06464",
        ),
        *(Figure(value, f"{cell}, delay {delay}", BAI_SOURCE) for cell, value in BAI.get(delay, {}).items()),
    )


LOSS = Metric("cross-entropy", "nats per time step", "lower", score.nats, is_log=True)

TASK = Task(
    name="copy-memory",
    what="repeat ten symbols after a delay: a test of how much a state can hold",
    source="generated; Arjovsky, Shah, Bengio 2016, arXiv:1511.06464",
    loss=LOSS,
    metrics=(LOSS, Metric("symbols recalled", "fraction right", "higher", recalled)),
    defaults=Defaults(hidden_size=128, batch_size=50, epochs=40, lr=3e-3),
    splits=splits,
    model=model,
    figures=figures,
    options={"delay": 50},
)
