"""How the threads of a CTA share the product of its step, by the cycles that each way takes.

Knows neither the cell nor the exchange; `product.cuh` is the product.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from cellfuse.codegen.cuda.figures import value_of


@dataclass(frozen=True)
class Product:
    """How the threads of a CTA share its product.

    Attributes:
        rows, depth: of the CTA's block of weights.
        across: threads (or warps) side by side along the rows.
        splits: ... along the depth, whose sums are added up after.
        parts: values (or tiles) of the depth that one of them has.
        weights: pieces of four 32-bit words that a thread holds.
    """

    rows: int
    depth: int
    across: int
    splits: int
    parts: int
    weights: int


def up(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@functools.lru_cache(maxsize=4096)
def share(rows: int, depth: int, tile: int, threads: int, precision: str, scatters: bool) -> Product:
    """The cheapest way to share a product, by the cycles that the parts of the SM are busy with it."""
    is_exact = precision == "fp32"
    rows_each, depth_each = (4, 1) if is_exact else (16, 8 if precision == "tf32" else 16)
    workers, warps = threads if is_exact else threads // 32, threads // 32
    groups, length = up(rows, rows_each), up(depth, depth_each)
    found = []
    for each in range(up(groups, workers), groups + 1):
        across = up(groups, each)
        if up(groups, across) != each:
            continue
        for wanted in range(1, min(workers // across, length) + 1):
            parts = up(length, wanted)
            splits = up(length, parts)
            if splits != wanted:
                continue
            product = Product(rows, depth, across, splits, parts, each * parts)
            cycles = product_cycles(product, tile, warps, is_exact)
            if not (scatters and splits == 1 and not is_exact):  # else no sums in shared memory
                cycles += SYNC if scatters else 0
                cycles += 2 * splits * tile * rows * 4 / SHARED_BANDWIDTH + SPLIT * splits
            found.append((cycles, splits, product))
    return min(found, key=lambda option: option[:2])[2]


SHARED_BANDWIDTH, SYNC, SPLIT = value_of("shared_bandwidth"), value_of("sync"), value_of("split")
MMA, MMA_LATENCY = value_of("mma"), value_of("mma_latency")


def product_cycles(product: Product, tile: int, warps: int, is_exact: bool) -> float:
    """Of a product, without the sum over splits."""
    if is_exact:
        multiply_adds = product.weights * 4 * tile * warps / 4
        return max(multiply_adds, product.weights * up(tile, 4) * warps)
    columns = tile // 8
    issue = product.weights * columns * MMA * warps / 4
    return max(issue, product.parts * MMA_LATENCY, product.parts * columns * 256 * warps / SHARED_BANDWIDTH)
