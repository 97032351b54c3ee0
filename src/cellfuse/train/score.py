"""Sums over the terms of a batch, from which losses and metrics are means."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import cross_entropy

from cellfuse.train.splits import IGNORED


def nats(answer: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits [..., classes] against class numbers [...]."""
    return cross_entropy(answer.flatten(0, -2), target.flatten(), ignore_index=IGNORED, reduction="sum")


def bits(answer: Tensor, target: Tensor) -> Tensor:
    """The same in bits."""
    return nats(answer, target) / math.log(2)


def right(answer: Tensor, target: Tensor) -> Tensor:
    """How many answers have their largest logit at the target."""
    return (answer.argmax(dim=-1) == target).sum()


def squared_error(answer: Tensor, target: Tensor) -> Tensor:
    """Squared differences of answers [B, 1] from targets [B]."""
    return (answer.squeeze(-1) - target.to(answer.dtype)).square().sum()
