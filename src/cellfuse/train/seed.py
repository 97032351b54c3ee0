"""Random numbers that depend on a key alone: the same in every process and after a resume."""

from __future__ import annotations

import numpy as np
import torch


def number(*key: int) -> int:
    """A 63-bit seed for this key; other keys, also longer ones, give unrelated ones."""
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*key: int) -> torch.Generator:
    """A fresh generator on the CPU for this key."""
    return torch.Generator().manual_seed(number(*key))
