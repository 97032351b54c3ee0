"""Which kernels run one direction of a layer on a GPU, with the reason: a Plan, and what it makes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from cellfuse.cell import Cell
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cuda.persistent import LOOPS, Persistent
from cellfuse.codegen.cuda.spread import TIERS, Device, spread
from cellfuse.codegen.cuda.step import step_functions, why_no_step
from cellfuse.codegen.lower import lower
from cellfuse.codegen.program import Program
from cellfuse.runtime.cuda_driver import Driver, driver_of
from cellfuse.runtime.per_step import PerStep
from cellfuse.runtime.precision import is_tf32
from cellfuse.runtime.whole_loop import WholeLoop

Runner = PerStep | WholeLoop
_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Plan:
    """How a layer's time steps run on a GPU.

    Attributes:
        tier: "one CTA", "cluster" or "grid": one kernel for the whole loop, the recurrent weights spread
            over so much of the device; "per step": a product by cuBLAS and a kernel, step by step.
        reason: why, in words.
        spread: the kernel of each loop; empty per step.
    """

    tier: str
    reason: str
    spread: tuple[tuple[str, Persistent], ...] = ()

    def __str__(self) -> str:
        return f"{self.tier}: {self.reason}"


@dataclass(frozen=True)
class Wanted:
    """What a plan is made for.

    Attributes:
        cell, has_bias, sizes, dtype: of the layer.
        batch: sequences.
        tf32: whether float32 products may be made in TF32.
        tier: one of Plan.tier if only this one is wanted; tests and measurements ask for it.
    """

    cell: Cell
    has_bias: bool
    sizes: Sizes
    dtype: torch.dtype
    batch: int
    tf32: bool
    tier: str = ""

    @property
    def precision(self) -> str:
        """Of the recurrent product's operands, as `Persistent` names it."""
        return _PRECISIONS.get(self.dtype, "tf32" if self.tf32 else "fp32")


# One of Plan.tier: no other is taken. For measurements and tests.
TIER = ""


def wanted(cell: Cell, has_bias: bool, sizes: Sizes, dtype: torch.dtype, batch: int) -> Wanted:
    """With torch's switches as they are now."""
    return Wanted(cell, has_bias, sizes, dtype, batch, dtype == torch.float32 and is_tf32(cell), TIER)


@lru_cache(maxsize=1024)
def plan(want: Wanted, device: torch.device) -> Plan:
    """The plan of a case."""
    if want.tier == "per step":
        return Plan("per step", "it was asked for")
    why = _why_per_step(want)
    if why:
        return Plan("per step", why)
    step = step_functions(_program(want), want.sizes.hidden)
    heads = want.sizes.heads if step.is_blocks else 1
    units, at = want.sizes.hidden // heads, device_of(device)
    launcher, found = launcher_of(device), {}
    for loop in LOOPS:
        ways = spread(step, loop, units, heads, want.precision, want.batch, at, want.tier)
        found[loop] = next((one for one in ways if _has_room(one, want.batch, launcher)), None)
    chosen = tuple((loop, one) for loop, one in found.items() if one is not None)
    # In float32 both ways leave the same for the backward loop.
    is_enough = "forward" in dict(chosen) and want.dtype == torch.float32
    if len(chosen) < len(LOOPS) and not is_enough:
        where = f"the {want.tier} tier" if want.tier else "registers and shared memory"
        return Plan("per step", f"the recurrent weights in {want.precision} do not fit {where}")
    return Plan(TIERS[dict(chosen)["forward"].exchange], _described(dict(chosen)), chosen)


def _has_room(one: Persistent, batch: int, launcher: Driver) -> bool:
    """Whether CTAs that wait for each other can run at the same time; compiles the kernel."""
    kernel = one.kernel()
    if one.cluster == 1 and not kernel.is_cooperative:
        return True
    return launcher.fits(kernel, kernel.entries[0], one.grid(batch)[0])


def _why_per_step(want: Wanted) -> str:
    if want.dtype == torch.float64:
        return "kernels of the whole loop compute in float32"
    return why_no_step(_program(want))


def _program(want: Wanted) -> Program:
    return lower(want.cell.step if want.has_bias else want.cell.step_without_bias)


def _described(spread: dict[str, Persistent]) -> str:
    parts = [
        f"{_described_one(spread[loop])} {loop}" if loop in spread else f"per step {loop}"
        for loop in ("forward", "backward")
    ]
    return f"whole loop in one kernel, {spread['forward'].precision}, {'; '.join(parts)}"


def _described_one(one: Persistent) -> str:
    way = {"one CTA": "a CTA", "cluster": f"a cluster of {one.ctas} CTAs", "grid": f"{one.ctas} CTAs"}
    return f"{way[TIERS[one.exchange]]} for {one.tile} sequences"


def launcher_of(device: torch.device) -> Driver:
    """The launcher of a device."""
    return driver_of(torch.cuda.current_device() if device.index is None else device.index)


@lru_cache(maxsize=64)
def device_of(device: torch.device) -> Device:
    """What a spread depends on."""
    found = torch.cuda.get_device_properties(device)
    return Device(
        processors=found.multi_processor_count,
        shared_bytes=found.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        has_clusters=found.major >= 9,
    )


@lru_cache(maxsize=256)
def per_step(
    cell: Cell,
    has_bias: bool,
    sizes: Sizes,
    dtype: torch.dtype,
    device: torch.device,
    recompute: bool = False,
) -> PerStep:
    """The step-by-step runner of a cell on a device; kernels live as long as the process."""
    return PerStep(cell, has_bias, sizes, dtype, launcher_of(device), recompute)


@lru_cache(maxsize=1024)
def runner(want: Wanted, device: torch.device) -> Runner:
    """What runs a case by its plan."""
    around = per_step(want.cell, want.has_bias, want.sizes, want.dtype, device)
    made = plan(want, device)
    if not made.spread:
        return around
    step = dict(made.spread)["forward"].step
    return WholeLoop(around, step, dict(made.spread), launcher_of(device))


def clear() -> None:
    """Forget plans and runners, as tests do."""
    for each in (plan, runner, per_step):
        each.cache_clear()
