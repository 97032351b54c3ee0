"""The time steps of one call: where each one's rows stand, which come first, who is still alive."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Times:
    """The time steps of one call.

    Attributes:
        starts: row of each time step in [N, ...] tensors, and N at the end: [T + 1], int64.
        steps: T.
        batch: B, sequences at the start.
        is_reverse: the last time step is computed first.
        batch_sizes: for packed input, the sequences alive at each time step.
    """

    starts: Tensor
    steps: int
    batch: int
    is_reverse: bool
    batch_sizes: Tensor | None = None

    def alive(self) -> Tensor:
        """For packed input the position of each row in [T, B]."""
        assert self.batch_sizes is not None
        rows = torch.arange(self.batch, device="cpu").expand(self.steps, -1)
        return (rows < self.batch_sizes.unsqueeze(1)).flatten().nonzero().squeeze(1)


@lru_cache(maxsize=64)
def equal_times(steps: int, batch: int, is_reverse: bool) -> Times:
    """Of sequences of equal length."""
    return Times(torch.arange(steps + 1, device="cpu") * batch, steps, batch, is_reverse)
