"""Which kernels run one direction of a layer on a GPU, with the reason: a Plan, and what it makes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from cellfuse.cell import Cell
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cuda.kernel import Launcher
from cellfuse.runtime.cuda_driver import driver_of
from cellfuse.runtime.per_step import PerStep


@dataclass(frozen=True)
class Plan:
    """How a layer's time steps run on a GPU.

    Attributes:
        tier: "per step": a product by cuBLAS and one kernel, time step by time step.
        reason: why.
    """

    tier: str
    reason: str

    def __str__(self) -> str:
        return f"{self.tier}: {self.reason}"


def plan(cell: Cell, sizes: Sizes, dtype: torch.dtype) -> Plan:
    """The plan of a case."""
    return Plan("per step", "the kernels for it take any cell, size and dtype")


def launcher_of(device: torch.device) -> Launcher:
    """The launcher of a device."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return driver_of(index)


@lru_cache(maxsize=256)
def runner_of(
    cell: Cell,
    has_bias: bool,
    sizes: Sizes,
    dtype: torch.dtype,
    device: torch.device,
    recompute: bool = False,
) -> PerStep:
    """The compiled step of a cell on a device; kernels live as long as the process."""
    return PerStep(cell, has_bias, sizes, dtype, launcher_of(device), recompute)
