"""How a cell's loop is spread over a GPU: which tier, how many CTAs, what is held where; with the reason.

Tier a: the recurrent weights of a direction are held by one CTA, or by a cluster that exchanges by messages.
Tier b: they are spread over many CTAs that exchange through memory written once.
Tier c: a product by cuBLAS and a kernel at each time step; for everything else.
The choice is the least time that a model predicts, from the rows of `figures`; a wrong one makes a choice
slower, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cellfuse.codegen.cuda.figures import value_of
from cellfuse.codegen.cuda.persistent import Persistent
from cellfuse.codegen.cuda.share import product_cycles
from cellfuse.codegen.cuda.step import step_functions, why_no_step
from cellfuse.codegen.program import Program


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of a GPU.

    Attributes:
        capability: compute capability, (9, 0) for an H100.
        processors: SMs.
        shared_bytes: of dynamic shared memory that a CTA may ask for.
        clusters: how many clusters of a size run at the same time, by size; empty without clusters.
    """

    capability: tuple[int, int]
    processors: int
    shared_bytes: int
    clusters: tuple[tuple[int, int], ...] = ()

    @property
    def arch(self) -> str:
        """The name NVRTC has for it."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


# As the manufacturer lists them; the driver's own answers are better where there is one.
H100 = Device((9, 0), 132, 227 << 10, ((2, 66), (4, 32), (8, 16), (16, 7)))
A100 = Device((8, 0), 108, 163 << 10)
B200 = Device((10, 0), 148, 227 << 10, ((2, 74), (4, 36), (8, 16), (16, 8)))
RTX5090 = Device((12, 0), 170, 99 << 10, ((2, 84), (4, 40), (8, 20)))


@dataclass(frozen=True)
class Plan:
    """How one cell runs.

    Attributes:
        tier: "a", "b" or "c".
        reason: why, in words.
        forward, backward: the kernels; None in tier c. Inference has the form of `forward`.
        at_once: sequences that one launch may work on: CTAs that wait for each other must all run.
        microseconds: the model's guess for one step forward and backward.
    """

    tier: str
    reason: str
    forward: Persistent | None = None
    backward: Persistent | None = None
    at_once: int = 0
    microseconds: tuple[float, float] = (0.0, 0.0)

    @property
    def infer(self) -> Persistent | None:
        """The forward kernel that keeps nothing."""
        return None if self.forward is None else replace(self.forward, loop="infer")


# A step of tier c, forward and backward.
PER_STEP = value_of("per_step"), value_of("per_step_back")
# Registers of a thread that are no weights and no sums, and how many it may have.
REGISTERS_FOR_THE_REST, REGISTERS = 100, 255

THREADS = 256
BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}


def plan(
    program: Program,
    units: int,
    *,
    heads: int = 1,
    directions: int = 1,
    batch: int = 1,
    precision: str = "fp32",
    device: Device = H100,
    exchange: str = "",
) -> Plan:
    """The plan for a program.

    Args:
        units: H / heads.
        directions: that run in one launch.
        precision: of the product's operands: "fp32", "tf32", "bf16", "fp16"; "fp64" is tier c.
        exchange: of `persistent.EXCHANGES` if only this one is wanted, however long it takes.
    """
    if precision not in BYTES:
        return Plan("c", f"tier c: kernels of the whole loop have no {precision}")
    why = why_no_step(program)
    if why:
        return Plan("c", f"tier c: {why}")
    try:
        step = step_functions(program, units * heads)
    except ValueError as problem:
        return Plan("c", f"tier c: {problem}")
    found: list[tuple[float, int, Plan]] = []
    too_large: list[Persistent] = []
    size = len(step.matrices) * units * units * BYTES[precision]
    for ctas, way in _spreads(device, bool(step.matrices), units):
        if exchange not in ("", way):
            continue
        if size / ctas > device.shared_bytes + THREADS * 4 * (REGISTERS - REGISTERS_FOR_THE_REST):
            continue
        for tile in _tiles(precision, batch):
            given = (units, heads, directions, precision, way, ctas, tile, THREADS)
            try:
                forward, backward = (
                    _filled(Persistent(step, loop, *given)) for loop in ("forward", "backward")
                )
            except ValueError:
                continue
            larger = max(forward, backward, key=lambda kernel: kernel.shared_bytes)
            if larger.shared_bytes > device.shared_bytes:
                too_large.append(larger)
                continue
            at_once = _groups_at_once(forward, device) // (heads * directions) * tile
            if not at_once:
                continue
            waves = math.ceil(batch / at_once)
            times = tuple(waves * microseconds(kernel, batch, device) for kernel in (forward, backward))
            tier = "b" if way == "write_once" else "a"
            made = Plan(tier, "", forward, backward, at_once, (times[0], times[1]))
            found.append((sum(times), ctas, made))
    if not found and too_large:
        return Plan("c", f"tier c: {_why_no_room(too_large, device)}")
    if not found:
        return Plan("c", f"tier c: {_why_too_large(step.matrices, units, precision, device)}")
    least = min(found, key=lambda option: option[:2])[0]
    # The model is no better than this, and fewer CTAs wait for each other less often than it says.
    best = min((o for o in found if o[0] <= 1.1 * least), key=lambda option: (option[1], option[0]))[2]
    if sum(best.microseconds) >= sum(PER_STEP) and not exchange:
        guess = f"{sum(best.microseconds):.0f} us a step, cuBLAS and a kernel about {sum(PER_STEP):.0f}"
        return Plan("c", f"tier c: the weights fit, but H={units * heads}, B={batch} would take {guess}")
    return replace(best, reason=_reason(best, batch))


def _spreads(device: Device, has_product: bool, units: int) -> Iterator[tuple[int, str]]:
    yield 1, "none"
    if not has_product:
        for ctas in (2, 4, 8, 16):
            if ctas * 32 <= units:
                yield ctas, "none"
        return
    for ctas, _ in device.clusters:
        yield ctas, "messages"
    for ctas in (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        if ctas <= device.processors:
            yield ctas, "write_once"


def _tiles(precision: str, batch: int) -> tuple[int, ...]:
    sizes = (1, 2, 4, 8, 16) if precision == "fp32" else (8, 16, 32)
    return tuple(tile for tile in sizes if tile < 2 * batch or tile == sizes[0])


def _groups_at_once(kernel: Persistent, device: Device) -> int:
    """How many groups the GPU runs at the same time; 0 if none."""
    if kernel.cluster > 1:
        return dict(device.clusters).get(kernel.ctas, 0)
    return device.processors // kernel.ctas


def registers(kernel: Persistent) -> int:
    """About how many registers a thread needs."""
    sums = 4 * kernel.tile * (1 if kernel.precision == "fp32" else 0)
    if kernel.precision == "fp32":
        sums += kernel.tile
    else:
        sums += kernel.product.weights // max(kernel.product.parts, 1) * kernel.tile // 8 * 4
    items = kernel.constants["ITEMS"]
    step = kernel.constants["LOADS"] + kernel.constants["FACTORS"] + kernel.constants["GRADIENTS"]
    state = kernel.constants["STATES"] + kernel.constants["PRODUCTS"] + kernel.constants["PARAMETERS"] + 8
    each = state + (step + kernel.constants["TOTALS"] if kernel.is_backward else kernel.constants["KEPT"])
    if kernel.exchange == "write_once" and kernel.is_backward:
        each += 4
        sums += 28
    elif kernel.exchange != "none" and not kernel.is_backward and items > 4:
        sums += 24 + 4 * (items - 4)  # the addresses of its chunks stay in registers, too
    return REGISTERS_FOR_THE_REST - 30 + kernel.held * 4 + sums + items * each


def _filled(kernel: Persistent) -> Persistent:
    """The kernel with as many weights in registers as fit, the others in shared memory.

    Raises:
        ValueError: not even the rest fits the registers.
    """
    chunks = kernel.constants["SLICE_CHUNKS"] * kernel.ctas
    if kernel.exchange == "write_once" and kernel.constants["ITEMS"] > 4 and chunks > 8 * kernel.threads:
        raise ValueError("it spills however few weights are in registers")  # as compiled for sm_80 and sm_90
    room = REGISTERS - registers(replace(kernel, in_registers=0))
    if room < 0:
        raise ValueError(f"{-room} registers too many")
    return replace(kernel, in_registers=min(room // 4, kernel.product.weights))


def microseconds(
    kernel: Persistent, batch: int, device: Device, of: Callable[[str], float] = value_of
) -> float:
    """The model of one step: product, sums, the cell, exchange.

    Args:
        of: the value of a figure that is no part of a product.
    """
    tile, product, warps = kernel.tile, kernel.product, kernel.threads // 32
    is_exact = kernel.precision == "fp32"
    cell = of("pointwise_back" if kernel.is_backward else "pointwise") * kernel.constants["ITEMS"]
    if not kernel.step.matrices:
        return (cell + of("loop")) / of("clock")
    cycles = product_cycles(product, tile, warps, is_exact) + cell + 2 * of("sync")
    cycles += (product.weights - kernel.held) * kernel.threads * 16 / of("shared_bandwidth")
    if not kernel.is_direct:
        cycles += 2 * product.splits * tile * product.rows * 4 / of("shared_bandwidth") + of("sums")
    if kernel.scatters:
        cycles += of("inbox") * kernel.ctas
    if kernel.exchange == "messages":
        cycles += of("cluster_latency") + exchanged_bytes(kernel) / of("cluster_bandwidth")
    elif kernel.exchange == "write_once":
        busy = min(kernel.groups(batch) * kernel.ctas, device.processors) / device.processors
        width = min(of("grid_bandwidth") / busy, of("grid_bandwidth_alone"))
        cycles += of("grid_latency") + exchanged_bytes(kernel) / width
    return cycles / of("clock")


def exchanged_bytes(kernel: Persistent) -> int:
    """What a CTA is given at each step."""
    if kernel.scatters:
        return kernel.ctas * kernel.slice * kernel.tile * 4
    return kernel.ctas * kernel.constants["SLICE_CHUNKS"] * 16


def _why_no_room(too_large: list[Persistent], device: Device) -> str:
    """In numbers, by the way that lacks the least."""
    best = min(too_large, key=lambda kernel: (kernel.shared_bytes, kernel.ctas))
    operand, each = best.constants["AT_SUMS"], best.threads * 16
    held, rest = best.held * each, (best.product.weights - best.held) * each
    sums = best.shared_bytes - operand - rest
    return (
        f"none of {len(too_large)} ways to hold H={best.units * best.heads} in {best.precision} fits; "
        f"the nearest is {best.ctas} CTAs for {best.tile} sequences: beside {_bytes(held)} of weights in "
        f"registers the {best.loop} loop needs {_bytes(best.shared_bytes)} of shared memory ({_bytes(rest)} "
        f"weights, {_bytes(operand)} operand, {_bytes(sums)} sums), a CTA has {_bytes(device.shared_bytes)}"
    )


def _why_too_large(matrices: tuple[str, ...], units: int, precision: str, device: Device) -> str:
    size = len(matrices) * units * units * BYTES[precision]
    room = f"{device.processors * 224 // 1024} MB in registers and shared memory"
    there = f"{device.processors} CTAs hold about {room}"
    return (
        f"H={units} in {precision} has {_bytes(size)} of recurrent weights or too large an operand; {there}"
    )


def _bytes(size: float) -> str:
    return f"{size / (1 << 20):.1f} MB" if size >= 1 << 20 else f"{size / 1024:.0f} KB"


def _reason(found: Plan, batch: int) -> str:
    forward, backward = found.forward, found.backward
    assert forward is not None
    assert backward is not None
    if forward.ctas == 1 or not forward.step.matrices:
        who = "one CTA" if forward.ctas == 1 else f"{forward.ctas} CTAs that need nothing of each other"
    elif found.tier == "a":
        who = f"a cluster of {forward.ctas}, st.async"
    else:
        who = f"{forward.ctas} CTAs, memory written once"
    groups, waves = forward.groups(batch), math.ceil(batch / found.at_once)
    parts = [f"tier {found.tier}: {who}"]
    if forward.step.matrices:
        parts.append(f"forward {_where(forward)}, backward {_where(backward)} a CTA")
    group = f"{groups} group{'s' * (groups != 1)} of {forward.tile} sequence{'s' * (forward.tile != 1)}"
    parts.append(group + (f" in {waves} waves" if waves > 1 else ""))
    parts.append(f"about {found.microseconds[0]:.2f} + {found.microseconds[1]:.2f} us a step")
    return "; ".join(parts)


def _where(kernel: Persistent) -> str:
    each = kernel.threads * 16
    held, rest = kernel.held * each, (kernel.product.weights - kernel.held) * each
    text = f"{_bytes(held)} of weights in registers"
    return text + (f" and {_bytes(rest)} in shared memory" if rest else "")
