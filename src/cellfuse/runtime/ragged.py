"""Packed input on a GPU: how long its sequences are, and where its rows stand among those of all steps.

While a CUDA graph is captured nothing may be copied from the host, as a replay would read there again: then
the numbers come as arguments of small kernels, a few for each length.
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
    device, batch = like.device, times.batch
    lengths, places, first = like.new_zeros(batch, dtype=torch.int32), [], 0
    for t, size in enumerate(sizes):
        if t + 1 == times.steps or sizes[t + 1] < size:
            lengths[:size].clamp_(min=t + 1)
            rows = torch.arange(first, t + 1, device=device).unsqueeze(1) * batch
            places.append((rows + torch.arange(size, device=device)).flatten())
            first = t + 1
    return lengths, torch.cat(places)
