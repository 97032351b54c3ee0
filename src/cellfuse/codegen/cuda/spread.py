"""How a whole loop is spread over a GPU: the ways that fit, in the order that a model of their time prefers.

The model counts cycles of one time step from published figures of an H100; nothing in it was measured here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cellfuse.codegen.cuda.persistent import Persistent
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


# A thread holds so many pieces of four words in registers; more would be put aside.
_IN_REGISTERS = 30
_THREADS = 256
_CLUSTERS = (2, 4, 8, 16)
_GRIDS = (2, 4, 8, 16, 32, 64, 128)
_TILES = {"fp32": (1, 2, 4, 8, 16), "tf32": (8, 16, 32), "bf16": (8, 16, 32), "fp16": (8, 16, 32)}

TIERS = {"none": "one CTA", "messages": "cluster", "write_once": "grid"}
# Cycles. Latency of an exchange and bytes per cycle that it takes in.
_EXCHANGE = {"none": (0, 1), "messages": (230, 14), "write_once": (750, 24)}
_FIXED = 300  # barriers, the sum over splits, the step itself


def spread(
    step: Step, loop: str, units: int, heads: int, precision: str, batch: int, device: Device, tier: str = ""
) -> tuple[Persistent, ...]:
    """The kernels for a loop that fit the device's registers and shared memory, the best first.

    Args:
        tier: "one CTA", "cluster" or "grid" if only this one is wanted.
    """
    found = [
        (_cycles(one, batch, device), number, one)
        for number, one in enumerate(_candidates(step, loop, units, heads, precision, batch, device))
        if not tier or tier == TIERS[one.exchange]
    ]
    return tuple(one for _, _, one in sorted(found, key=lambda each: each[:2]))


def _candidates(
    step: Step, loop: str, units: int, heads: int, precision: str, batch: int, device: Device
) -> Iterator[Persistent]:
    ways = [("none", 1)]
    if step.matrices:
        ways += [("messages", n) for n in _CLUSTERS if device.has_clusters]
        ways += [("write_once", n) for n in _GRIDS]
    for exchange, ctas in ways:
        for tile in _TILES[precision]:
            if tile > max(batch, _TILES[precision][0]):
                continue
            try:
                one = Persistent(
                    step, loop, units, heads, 1, precision, exchange, ctas, tile, _THREADS, _IN_REGISTERS
                )
            except ValueError:
                continue
            # All CTAs of a grid-wide exchange run at the same time.
            is_grid = exchange == "write_once"
            if is_grid and one.groups(batch) * ctas > device.processors:
                continue
            if one.shared_bytes <= device.shared_bytes:
                yield one


def _cycles(one: Persistent, batch: int, device: Device) -> float:
    """Of a time step of the whole batch; groups that find no processor wait for others to end."""
    weights, held = one.product.weights, one.held
    if one.precision == "fp32":
        product = weights * 4 * one.tile * one.threads / 128
    else:
        product = weights * (one.threads // 32) * (one.tile / 8) * 3.3
    product += (weights - held) * one.threads * 16 / 128
    latency, speed = _EXCHANGE[one.exchange]
    size = 2 if one.precision in ("bf16", "fp16") and not one.scatters else 4
    values = one.units * one.tile
    if one.is_backward and not one.scatters:
        values *= max(1, len(one.step.matrices))
    moved = values * size / speed if one.ctas > 1 else 0
    items = one.constants["ITEMS"] * 40
    waves = -(-one.groups(batch) * one.ctas // device.processors)
    return waves * (_FIXED + product + latency + moved + items)
