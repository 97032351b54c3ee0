"""Packed input on a GPU: how long its sequences are, and where its rows stand among those of all steps.

While a CUDA graph is captured nothing may be copied from the host, as a replay would read there again: then
the numbers come as arguments of small kernels, one for each length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellfuse.runtime import graphs
from cellfuse.runtime.times import Times


def on_device(times: Times, like: Tensor) -> tuple[Tensor, Tensor]:
    """(length of each sequence [B], int32; position of each row in [T, B])."""
    assert times.batch_sizes is not None
    if graphs.is_capturing(like.device):
        return _captured(times, times.batch_sizes.tolist(), like)
    sequences = torch.arange(times.batch, device="cpu")
    lengths = (times.batch_sizes.unsqueeze(0) > sequences.unsqueeze(1)).sum(1)
    return lengths.to(like.device, torch.int32), times.alive().to(like.device)


def _captured(times: Times, sizes: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
    lengths = like.new_zeros(times.batch, dtype=torch.int32)
    for t, size in enumerate(sizes):
        if t + 1 == times.steps or sizes[t + 1] < size:
            lengths[:size].clamp_(min=t + 1)
    steps = torch.arange(times.steps, dtype=torch.int32, device=like.device)
    is_over = (steps.unsqueeze(1) >= lengths).flatten()
    return lengths, is_over.to(torch.uint8).argsort(stable=True)[: int(times.starts[-1])]
