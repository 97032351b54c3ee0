"""What stands around the recurrent layer: one answer per sequence, or one per time step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from cellfuse.train.task import MakeLayer


class PerSequence(nn.Module):
    """One answer for a whole sequence, from the output where each direction has read all of it."""

    def __init__(self, make_layer: MakeLayer, input_size: int, answers: int) -> None:
        """`answers`: size of the answer."""
        super().__init__()
        self.layer = make_layer(input_size)
        self.readout = nn.Linear(self.layer.output_size, answers)

    def forward(self, input: Tensor | PackedSequence, state: None = None) -> tuple[Tensor, None]:
        """[T, B, I] or packed -> [B, answers]. Keeps no state between batches."""
        output, _ = self.layer(input)
        if isinstance(output, PackedSequence):
            output, lengths = pad_packed_sequence(output)
        else:
            lengths = torch.full((output.size(1),), output.size(0))
        rows = torch.arange(output.size(1), device=output.device)
        ends = output[lengths.to(output.device) - 1, rows]
        if self.layer.num_directions == 2:
            # The reverse direction has read everything at t = 0.
            forward, reverse = ends.chunk(2, dim=-1)[0], output[0].chunk(2, dim=-1)[1]
            ends = torch.cat([forward, reverse], dim=-1)
        return self.readout(ends), None


class PerStep(nn.Module):
    """One answer for every time step of a sequence of numbers, through a learned embedding."""

    def __init__(self, make_layer: MakeLayer, symbols: int, embedding: int) -> None:
        """`symbols`: how many numbers there are, in and out; `embedding`: features of each."""
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.layer = make_layer(embedding)
        self.readout = nn.Linear(self.layer.output_size, symbols)

    def forward(self, input: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """[T, B] -> [T, B, symbols], and the layer's state after the last time step."""
        output, state = self.layer(self.embedding(input), state)
        return self.readout(output), state
