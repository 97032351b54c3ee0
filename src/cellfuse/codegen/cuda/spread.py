"""How a whole loop is spread over a GPU: the ways that fit, in the order that a model of their time prefers.

The model counts cycles of one time step from published figures of an H100; nothing in it was measured
here. A wrong figure makes a choice slower, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cellfuse.codegen.cuda.persistent import SHARED_BANDWIDTH, SYNC, Persistent, product_cycles
from cellfuse.codegen.cuda.step import Step


@dataclass(frozen=True)
class Device:
    """What a spread depends on.

    Attributes:
        processors: streaming multiprocessors; one CTA each.
        shared_bytes: of shared memory that a CTA may have.
        has_clusters: compute capability 9.0 or later.
        has_tensor_cores: for tf32 and 16-bit operands.
    """

    processors: int
    shared_bytes: int
    has_clusters: bool
    has_tensor_cores: bool = True


TIERS = {"none": "one CTA", "messages": "cluster", "write_once": "grid"}

_THREADS = 256
_CLUSTERS = (2, 4, 8, 16)
_GRIDS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_TILES = {"fp32": (1, 2, 4, 8, 16), "tf32": (8, 16, 32), "bf16": (8, 16, 32), "fp16": (8, 16, 32)}
_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}

# Cycles of a microsecond; of the step itself; of an exchange, and bytes a cycle that an SM takes in.
_CLOCK = 1900.0
_POINTWISE, _POINTWISE_BACK = 140, 60
_CLUSTER_LATENCY, _CLUSTER_BANDWIDTH = 230, 14.0
_GRID_LATENCY, _GRID_BANDWIDTH, _GRID_BANDWIDTH_ALONE = 750, 24.0, 64.0
# Microseconds of a step that is a product by cuBLAS and a kernel.
_PER_STEP = {"infer": 8.0, "forward": 8.0, "backward": 16.0}
# The model is no better than this; among equals fewer CTAs wait for each other.
_ALIKE = 1.1
# Of a thread; of which so many hold neither weights nor sums nor what the cell needs.
_REGISTERS, _REGISTERS_BESIDES = 255, 70


def spread(
    step: Step, loop: str, units: int, heads: int, precision: str, batch: int, device: Device, tier: str = ""
) -> tuple[Persistent, ...]:
    """The kernels for a loop that fit the device's registers and shared memory, the best first.

    None where a product by cuBLAS and a kernel at each step would take less time.

    Args:
        tier: "one CTA", "cluster" or "grid" if only this one is wanted, at whatever cost.
    """
    found = [
        (_cycles(one, batch, device), one)
        for one in _candidates(step, loop, units, heads, precision, batch, device)
        if (not tier or tier == TIERS[one.exchange])
    ]
    if not tier:
        found = [(cycles, one) for cycles, one in found if cycles < _PER_STEP[loop] * _CLOCK]
    if not found:
        return ()
    least = min(cycles for cycles, _ in found)
    order = sorted(
        (int(math.log(cycles / least) / math.log(_ALIKE)), one.ctas, cycles, number)
        for number, (cycles, one) in enumerate(found)
    )
    return tuple(found[number][1] for *_, number in order)


def _candidates(
    step: Step, loop: str, units: int, heads: int, precision: str, batch: int, device: Device
) -> Iterator[Persistent]:
    size = len(step.matrices) * units * units * _BYTES[precision]
    room = device.shared_bytes + _THREADS * 4 * (_REGISTERS - _REGISTERS_BESIDES)
    for exchange, ctas in _ways(step, device):
        if size / ctas > room:
            continue
        for tile in _TILES[precision]:
            if tile > max(2 * batch - 1, _TILES[precision][0]):
                continue
            try:
                one = Persistent(step, loop, units, heads, 1, precision, exchange, ctas, tile, _THREADS)
            except ValueError:
                continue
            fitted = _fitted(one, device)
            if fitted is not None and fitted.groups_at_once(device.processors) >= heads:
                yield fitted


def _ways(step: Step, device: Device) -> Iterator[tuple[str, int]]:
    yield "none", 1
    if step.matrices:
        for ctas in _CLUSTERS if device.has_clusters else ():
            yield "messages", ctas
        for ctas in _GRIDS:
            if ctas <= device.processors:
                yield "write_once", ctas
    else:
        for ctas in (2, 4, 8, 16):
            yield "none", ctas


def registers(one: Persistent) -> int:
    """About how many registers a thread needs: not less, as far as the compiler's answers are known."""
    numbers, product = one.constants, one.product
    if one.precision == "fp32":
        sums = 5 * one.tile
    else:
        sums = product.weights // max(product.parts, 1) * one.tile // 2
    each = numbers["STATES"] + numbers["PRODUCTS"] + numbers["PARAMETERS"] + 8
    if one.is_backward:
        each += numbers["LOADS"] + numbers["FACTORS"] + numbers["GRADIENTS"] + numbers["TOTALS"]
        if one.exchange == "write_once":
            each, sums = each + 4, sums + 12
    else:
        each += numbers["KEPT"]
    return _REGISTERS_BESIDES + one.held * 4 + sums + numbers["ITEMS"] * each


def _fitted(one: Persistent, device: Device) -> Persistent | None:
    """With as many weights in registers as fit, the others in shared memory; None if those do not fit."""
    without = replace(one, in_registers=0)
    held = min((_REGISTERS - registers(without)) // 4, one.product.weights)
    if held < 0 or without.shared_bytes - held * one.threads * 16 > device.shared_bytes:
        return None
    return replace(one, in_registers=held)


def _cycles(one: Persistent, batch: int, device: Device) -> float:
    """Of a time step of the whole batch; groups that find no processor wait for others to end."""
    product, tile, numbers = one.product, one.tile, one.constants
    waves = math.ceil(one.groups(batch) / one.groups_at_once(device.processors))
    cycles = float((_POINTWISE_BACK if one.is_backward else _POINTWISE) * numbers["ITEMS"])
    if not one.step.matrices:
        return waves * (cycles + 100)
    cycles += product_cycles(product, tile, one.threads // 32, one.precision == "fp32") + 2 * SYNC
    cycles += (product.weights - one.held) * one.threads * 16 / SHARED_BANDWIDTH
    if not one.is_direct:
        cycles += 2 * product.splits * tile * product.rows * 4 / SHARED_BANDWIDTH + 60
    operand = one.ctas * numbers["SLICE_CHUNKS"] * 16
    if one.exchange == "messages":
        sent = one.ctas * one.slice * tile * 4 if one.scatters else operand
        cycles += _CLUSTER_LATENCY + sent / _CLUSTER_BANDWIDTH + (4 * one.ctas if one.scatters else 0)
    elif one.exchange == "write_once":
        busy = min(one.groups(batch) * one.ctas, device.processors) / device.processors
        cycles += _GRID_LATENCY + operand / min(_GRID_BANDWIDTH / busy, _GRID_BANDWIDTH_ALONE)
    return waves * cycles


def described(one: Persistent) -> str:
    """In words: who works on how many sequences, and where the weights are."""
    who = {"none": "one CTA", "messages": f"a cluster of {one.ctas} CTAs"}.get(
        one.exchange, f"{one.ctas} CTAs"
    )
    if one.exchange == "none" and one.ctas > 1:
        who = f"{one.ctas} CTAs that need nothing of each other"
    text = f"{who} for {one.tile} sequence{'s' * (one.tile != 1)}"
    if not one.step.matrices:
        return text
    each = one.threads * 16 // 1024
    held, rest = one.held * each, (one.product.weights - one.held) * each
    return f"{text}, {held} KB of R in registers" + (f", {rest} KB in shared memory" if rest else "")
