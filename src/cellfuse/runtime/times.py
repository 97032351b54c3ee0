"""The time steps of one call: where each one's rows stand, which come first, who is still alive."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cellfuse.errors import ShapeError


@dataclass(frozen=True)
class Times:
    """The time steps of one call.

    Attributes:
        starts: row of each time step in [N, ...] tensors, and N at the end: [T + 1], int64.
        batch: B, sequences at the start.
        is_reverse: the last time step is computed first.
        batch_sizes: for packed input, the sequences alive at each time step.
    """

    starts: Tensor
    batch: int
    is_reverse: bool
    batch_sizes: Tensor | None = None

    @property
    def steps(self) -> int:
        """T."""
        return len(self.starts) - 1

    def rows(self, first: int, last: int) -> tuple[int, int]:
        """First row and end of the steps from `first` to `last`, counted in the order of computation."""
        if self.is_reverse:
            first, last = self.steps - last, self.steps - first
        if self.batch_sizes is None:
            return first * self.batch, last * self.batch
        return int(self.starts[first]), int(self.starts[last])

    def alive(self) -> Tensor:
        """For packed input the position of each row in [T, B]."""
        assert self.batch_sizes is not None
        rows = torch.arange(self.batch, device="cpu").expand(self.steps, -1)
        return (rows < self.batch_sizes.unsqueeze(1)).flatten().nonzero().squeeze(1)


def packed_times(batch_sizes: Tensor, rows: int, batch: int, is_reverse: bool) -> Times:
    """The time steps of packed input.

    Raises:
        ShapeError: the sizes do not belong to so many rows and sequences; kernels believe them.
    """
    sizes = batch_sizes
    is_right = sizes.dtype == torch.int64 and sizes.device.type == "cpu" and sizes.dim() == 1
    is_right = is_right and len(sizes) > 0 and int(sizes[0]) == batch and int(sizes.sum()) == rows
    if not is_right or int(sizes[-1]) < 1 or bool((sizes[1:] > sizes[:-1]).any()):
        text = sizes.tolist() if len(sizes) < 10 else f"{sizes[:10].tolist()}..."
        raise ShapeError(
            f"PackedSequence: batch_sizes {text} must fall from {batch} to 1 or more and add up to {rows} "
            "rows. Make it with torch.nn.utils.rnn.pack_padded_sequence or pack_sequence."
        )
    return Times(F.pad(sizes.cumsum(0), (1, 0)), batch, is_reverse, sizes)


@lru_cache(maxsize=64)
def starts(steps: int, batch: int) -> Tensor:
    """`Times.starts` of sequences of equal length."""
    return torch.arange(steps + 1, device="cpu") * batch
