"""Japanese vowels: which of nine speakers said this? Real, ragged and small."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from cellfuse.train import data, score
from cellfuse.train.model import PerSequence
from cellfuse.train.seed import generator
from cellfuse.train.splits import Ragged
from cellfuse.train.task import Defaults, Figure, MakeLayer, Metric, Options, Splits, Task

FEATURES, SPEAKERS = 12, 9
# Of the 30 training utterances of each speaker, this many decide when to stop.
VALID_PER_SPEAKER = 6


@cache
def load() -> tuple[tuple[Tensor, ...], Tensor, int]:
    """The 640 series [T, 12] as published, their speakers 0 to 8, and how many are for training."""
    stored = data.arrays("japanese_vowels.npz")
    values = torch.from_numpy(stored["millionths"].T.copy()) / 1e6
    series = values.to(torch.float32).split(stored["lengths"].tolist())
    speakers = torch.from_numpy(stored["speakers"].astype("int64")) - 1
    return series, speakers, int(stored["counts"][0])


def splits(options: Options, seed: int) -> Splits:
    """The usual 270 and 370; 54 of the 270, equally many of each speaker, are the validation part.

    Features are scaled to mean 0 and deviation 1 of the remaining 216.
    """
    series, speakers, count = load()
    train: list[int] = []
    valid: list[int] = []
    for speaker in range(SPEAKERS):
        own = (speakers[:count] == speaker).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=generator(seed, speaker, 0))]
        valid += own[:VALID_PER_SPEAKER].tolist()
        train += own[VALID_PER_SPEAKER:].tolist()
    frames = torch.cat([series[i] for i in train])
    deviation, mean = torch.std_mean(frames, dim=0)

    def part(members: list[int]) -> Ragged:
        scaled = tuple((series[i] - mean) / deviation for i in members)
        return Ragged(scaled, speakers[members], seed)

    return Splits(part(train), part(valid), part(list(range(count, len(series)))))


def model(make_layer: MakeLayer, options: Options) -> nn.Module:
    """The layer, read out at the ends of each utterance."""
    return PerSequence(make_layer, FEATURES, SPEAKERS)


PAPER = "Kudo, Toyama, Shimbo 1999, Pattern Recognition Letters 20(11-13), and the UCI description"

TASK = Task(
    name="japanese-vowels",
    what="which of 9 speakers said /ae/? 12 features, 7 to 29 time steps, 270 + 370 utterances",
    source="UCI Machine Learning Repository, data set 128, CC BY 4.0",
    loss=Metric("cross-entropy", "nats per utterance", "lower", score.nats, is_log=True),
    metrics=(Metric("accuracy", "fraction right", "higher", score.right),),
    defaults=Defaults(hidden_size=100, batch_size=16, epochs=30, lr=3e-3, bidirectional=True, patience=8),
    splits=splits,
    model=model,
    figures=lambda options: (
        Figure(0.941, "passing-through regions", PAPER),
        Figure(0.962, "hidden Markov model, 5 states", PAPER),
    ),
)
