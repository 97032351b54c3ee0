"""What a task is: data, a model around the layer, how it is scored, and figures to compare with.

Knows no training: see `loop`. A task is one file in `tasks/` that defines `TASK`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# Values of `--set NAME=VALUE`, by name.
Options = Mapping[str, int]
# Makes the recurrent layer the user asked for, for an input of this many features.
MakeLayer = Callable[[int], Any]


@dataclass(frozen=True)
class Part:
    """Which of `world` processes this one is. One alone: rank 0 of 1."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Batch:
    """One process's part of one batch.

    Attributes:
        input: [T, B, I], [T, B] whole numbers, or a PackedSequence.
        target: what the loss compares the model's answer with.
        count: terms of the loss in this part. 0 if the batch has too few sequences to give this
            process any: then `input` is a stand-in that keeps the processes in step.
        total: terms of the loss in the whole batch, over all processes.
        continues: whether the layer goes on from the state the batch before left.
    """

    input: Tensor | PackedSequence
    target: Tensor
    count: int
    total: int
    continues: bool = False


class Split(Protocol):
    """The training, validation or test part of a task's data."""

    def steps(self, batch_size: int) -> int:
        """Number of batches in one pass."""

    def batches(
        self, batch_size: int, part: Part, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """One pass from batch `start` on; `epoch` decides order or draw, None is the fixed one."""


@dataclass(frozen=True)
class Splits:
    """The three parts of a task's data."""

    train: Split
    valid: Split
    test: Split


@dataclass(frozen=True)
class Metric:
    """A number that says how good a model is.

    Attributes:
        name: "accuracy".
        unit: what follows the number, such as "bits per character"; "" for a fraction.
        better: "higher" or "lower".
        total: (the model's answer, target) -> sum over the terms of the batch.
        is_log: whether a picture shows it on a logarithmic axis.
    """

    name: str
    unit: str
    better: str
    total: Callable[[Tensor, Tensor], Tensor]
    is_log: bool = False


@dataclass(frozen=True)
class Figure:
    """A value of the first metric to compare with, and where it stands."""

    value: float
    what: str
    source: str


@dataclass(frozen=True)
class Defaults:
    """A recipe that reaches the task's band in a short run; each is an option of the command."""

    hidden_size: int
    batch_size: int
    epochs: int
    lr: float
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    proj_size: int = 0
    clip: float = 1.0
    weight_decay: float = 0.0
    patience: int = 0


@dataclass(frozen=True)
class Task:
    """A task: one row of `cellfuse train --list`.

    Attributes:
        name: as the command takes it.
        what: one line.
        source: where the data are from, with licence; or the paper that defines the generator.
        loss: what is minimised and, on the validation part, decides which epoch is best.
        metrics: what is reported; `figures` are values of the first.
        defaults: see `Defaults`.
        splits: (options, seed) -> the data.
        model: (make_layer, options) -> a module with forward(input, state) -> (answer, new state).
        figures: options -> published values and baselines.
        options: what `--set` takes, with the usual values.
        is_causal: True refuses a bidirectional layer, which would read the answer.
    """

    name: str
    what: str
    source: str
    loss: Metric
    metrics: tuple[Metric, ...]
    defaults: Defaults
    splits: Callable[[Options, int], Splits]
    model: Callable[[MakeLayer, Options], nn.Module]
    figures: Callable[[Options], tuple[Figure, ...]]
    options: Options = field(default_factory=dict)
    is_causal: bool = False
