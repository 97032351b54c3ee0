"""The three forms of data, cut into batches: ragged in memory, drawn on demand, one long text.

Every process walks through the same batches and takes its own part of each, so that any number of
processes trains on the same data in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from cellfuse.train.seed import generator
from cellfuse.train.task import Batch, Part

# What cross_entropy leaves out: the filling after the end of the last stream.
IGNORED = -100


def share(members: Sequence[int], part: Part) -> tuple[list[int], int]:
    """This process's members, and how many they are; one stand-in and 0 if there is none for it."""
    mine = list(members[part.rank :: part.world])
    return (mine, len(mine)) if mine else (list(members[:1]), 0)


@dataclass(frozen=True)
class Ragged:
    """Sequences [T_i, I] of different lengths with one label each; batches are PackedSequences."""

    sequences: tuple[Tensor, ...]
    labels: Tensor
    seed: int

    def steps(self, batch_size: int) -> int:
        """Number of batches in one pass; the last may be smaller."""
        return -(-len(self.sequences) // batch_size)

    def batches(
        self, batch_size: int, part: Part, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """One pass, shuffled by seed and epoch."""
        order = torch.arange(len(self.sequences))
        if epoch is not None:
            order = torch.randperm(len(order), generator=generator(self.seed, epoch))
        for members in order.split(batch_size)[start:]:
            mine, count = share(members.tolist(), part)
            packed = pack_sequence([self.sequences[i] for i in mine], enforce_sorted=False)
            yield Batch(packed, self.labels[mine], count, len(members))


@dataclass(frozen=True)
class Drawn:
    """Sequences drawn when needed: new ones in every training epoch, fixed ones otherwise.

    Attributes:
        draw: (generator, B) -> input [T, B, ...] and target [..., B].
        count: sequences in one pass.
        terms: terms of the loss per sequence.
        key: tells the draws of two splits and seeds apart.
    """

    draw: Callable[[torch.Generator, int], tuple[Tensor, Tensor]]
    count: int
    terms: int
    key: tuple[int, ...]

    def steps(self, batch_size: int) -> int:
        """Number of batches in one pass; the last may be smaller."""
        return -(-self.count // batch_size)

    def batches(
        self, batch_size: int, part: Part, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """One pass; the whole batch is drawn in every process, so that all agree on it."""
        for index in range(start, self.steps(batch_size)):
            size = min(batch_size, self.count - index * batch_size)
            input, target = self.draw(generator(*self.key, epoch or 0, index), size)
            mine, count = share(range(size), part)
            yield Batch(input[:, mine], target[..., mine], count * self.terms, size * self.terms)


@dataclass(frozen=True)
class Text:
    """One long text, read as parallel streams in windows; the state goes on from window to window.

    Attributes:
        codes: [N] character numbers.
        window: time steps per batch: how far gradients go back (truncated backpropagation).
        streams: how many parts are read side by side; 0 for the batch size.
    """

    codes: Tensor
    window: int
    streams: int = 0

    def steps(self, batch_size: int) -> int:
        """Number of windows in one pass."""
        return -(-self._length(batch_size) // self.window)

    def _length(self, batch_size: int) -> int:
        """Characters per stream: every character but the first of the text is predicted once."""
        return -(-(len(self.codes) - 1) // (self.streams or batch_size))

    def batches(
        self, batch_size: int, part: Part, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """One pass in the order of the text; `epoch` changes nothing."""
        streams, length = self.streams or batch_size, self._length(batch_size)
        filling = torch.full((streams * length - (len(self.codes) - 1),), IGNORED)
        target = torch.cat([self.codes[1:], filling]).view(streams, length).T
        input = torch.cat([self.codes[:-1], filling.clamp(min=0)]).view(streams, length).T
        columns, count = share(range(streams), part)
        for first in range(start * self.window, length, self.window):
            rows = slice(first, first + self.window)
            mine = target[rows, columns]
            yield Batch(
                input[rows, columns],
                mine,
                int((mine != IGNORED).sum()) if count else 0,
                int((target[rows] != IGNORED).sum()),
                continues=first > 0,
            )
