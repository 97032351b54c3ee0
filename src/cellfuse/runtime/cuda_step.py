"""Which kernels run one direction of a layer on a GPU, with the reason: a Plan, and what it makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from cellfuse.cell import Cell
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cuda import plan as spreading
from cellfuse.codegen.cuda.persistent import Persistent
from cellfuse.codegen.cuda.plan import Device
from cellfuse.codegen.lower import lower
from cellfuse.runtime.cuda_driver import Driver, driver_of
from cellfuse.runtime.per_step import PerStep
from cellfuse.runtime.precision import is_tf32
from cellfuse.runtime.whole_loop import WholeLoop

Runner = PerStep | WholeLoop
# How the CTAs of each tier give each other the state.
EXCHANGES = {"one CTA": "none", "cluster": "messages", "grid": "write_once"}
_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Plan:
    """How a layer's time steps run on a GPU.

    Attributes:
        tier: "one CTA", "cluster" or "grid": one kernel for the whole loop, the recurrent weights spread
            over so much of the device; "per step": a product by cuBLAS and a kernel, step by step;
            "no kernel" for empty input.
        reason: why, in words.
        spread: the kernel of each loop; empty per step.
        at_once: sequences that one launch may work on.
        microseconds: of a time step forward and backward, by a model.
    """

    tier: str
    reason: str
    spread: tuple[tuple[str, Persistent], ...] = ()
    at_once: int = 0
    microseconds: float = 0.0

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
        directions: of the layer, in one launch if that is possible and not slower.
    """

    cell: Cell
    has_bias: bool
    sizes: Sizes
    dtype: torch.dtype
    batch: int
    tf32: bool
    tier: str = ""
    directions: int = 1

    @property
    def precision(self) -> str:
        """Of the recurrent product's operands, as `Persistent` names it."""
        return _PRECISIONS.get(self.dtype, "tf32" if self.tf32 else "fp32")


# Why directions run one after the other, step by step.
STEPS = "each of their steps is a launch"
# One of Plan.tier: no other is taken. For measurements and tests.
TIER = ""


def wanted(
    cell: Cell, has_bias: bool, sizes: Sizes, dtype: torch.dtype, batch: int, directions: int = 1
) -> Wanted:
    """With torch's switches as they are now."""
    tf32 = dtype == torch.float32 and is_tf32(cell)
    return Wanted(cell, has_bias, sizes, dtype, batch, tf32, TIER, directions)


@lru_cache(maxsize=1024)
def plan(want: Wanted, device: torch.device) -> Plan:
    """The plan of a case."""
    if want.directions == 1:
        return _plan(want, device)
    alone = plan(replace(want, directions=1), device)
    if not alone.spread:
        return in_turn(alone, STEPS)
    both = _plan(replace(want, tier=alone.tier), device)
    if not both.spread:
        each = max(one.grid(1)[0] for _, one in alone.spread)
        why = f"{want.directions} x {each} CTAs do not find room on this device at the same time"
    elif both.microseconds > want.directions * alone.microseconds:
        why = f"in one launch they would take about {both.microseconds:.2f} us a step"
    else:
        return replace(both, reason=f"{both.reason}; both directions in one launch")
    return in_turn(alone, why)


def in_turn(alone: Plan, why: str) -> Plan:
    """The plan of one direction, for directions of which one waits for the other."""
    return replace(alone, reason=f"{alone.reason}; directions one after the other ({why})")


def _plan(want: Wanted, device: torch.device) -> Plan:
    if want.tier == "per step":
        return Plan("per step", "it was asked for")
    precision = "fp64" if want.dtype == torch.float64 else want.precision
    program = lower(want.cell.step if want.has_bias else want.cell.step_without_bias)
    is_blocks = any(len(leaf.shape) == 3 for leaf in program.step.of_role("matrix"))
    heads, at = want.sizes.heads if is_blocks else 1, device_of(device)
    launcher = launcher_of(device)
    while True:
        found = spreading.plan(
            program,
            want.sizes.hidden // heads,
            heads=heads,
            directions=want.directions,
            batch=want.batch,
            precision=precision,
            device=at,
            exchange=EXCHANGES.get(want.tier, ""),
        )
        reason = found.reason.removeprefix(f"tier {found.tier}: ")
        if found.forward is None or found.infer is None or found.backward is None:
            return Plan("per step", reason)
        loops = {"infer": found.infer, "forward": found.forward, "backward": found.backward}
        lost = next((one for one in loops.values() if not _has_room(one, found.at_once, launcher)), None)
        if lost is None:
            exchange = found.forward.exchange
            tier = next(name for name, each in EXCHANGES.items() if each == exchange)
            text, guess = f"{precision}, {reason}", sum(found.microseconds)
            return Plan(tier, text, tuple(loops.items()), found.at_once, guess)
        if lost.cluster == 1:
            return Plan("per step", f"{lost.ctas} CTAs do not find room on this device at the same time")
        clusters = tuple(pair for pair in at.clusters if pair[0] != lost.cluster)
        at = replace(at, clusters=clusters)


def _has_room(one: Persistent, batch: int, launcher: Driver) -> bool:
    """Whether CTAs that wait for each other can run at the same time; compiles the kernel."""
    kernel = one.kernel()
    if one.cluster == 1 and not kernel.is_cooperative:
        return True
    return launcher.fits(kernel, kernel.entries[0], one.grid(batch)[0])


def launcher_of(device: torch.device) -> Driver:
    """The launcher of a device."""
    return driver_of(torch.cuda.current_device() if device.index is None else device.index)


@lru_cache(maxsize=64)
def device_of(device: torch.device) -> Device:
    """What a spread depends on."""
    found = torch.cuda.get_device_properties(device)
    count, largest = found.multi_processor_count, {9: 16, 10: 16}.get(found.major, 8)
    sizes = tuple(size for size in (2, 4, 8, 16) if found.major >= 9 and size <= largest)
    return Device(
        capability=(found.major, found.minor),
        processors=count,
        shared_bytes=found.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        # A guess: processors come in groups of about 16, not all of them whole.
        clusters=tuple((size, max(1, count // size - (size == 16))) for size in sizes),
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
    """What runs a case by its plan: `directions` of them in one launch, or one."""
    made = plan(want, device)
    if want.directions > 1 and not (made.spread and made.spread[0][1].directions > 1):
        return runner(replace(want, directions=1), device)
    around = per_step(want.cell, want.has_bias, want.sizes, want.dtype, device)
    if not made.spread:
        return around
    return WholeLoop(around, dict(made.spread), made.at_once, launcher_of(device))


def clear() -> None:
    """Forget plans and runners, as tests do."""
    for each in (plan, runner, per_step):
        each.cache_clear()
