"""What this machine can do at best, measured in the same run as the cases it limits.

A loop of multiply-adds in registers, a loop that only reads, and torch's matrix product.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from cellfuse.codegen.cpu.compile import load_functions
from cellfuse.codegen.cpu.target import host
from cellfuse.codegen.cpu.text import Code, Module

CHAINS = 12  # independent sums: more than latency times units of any processor known, fewer than registers
ROUNDS = 5
DRAM_BYTES = 256 << 20
READ_BYTES = 1 << 30  # in all, so that starting a thread does not matter
MATRIX = 1024


def measure_roof(threads: int) -> dict[str, Any]:
    """Rates with `threads` threads at once.

    Returns:
        fma: 1e9 operations a second (an addition or multiplication each) at full vector width.
        read: 1e9 bytes a second from each cache that the system names, and from memory ("DRAM"); each
            thread reads memory of its own.
        sgemm, bf16 gemm: 1e9 operations a second of torch.mm on square matrices.
    """
    target = host()
    functions = load_functions(_text(target.bytes // 4), target, ("spin", "read"))
    with ThreadPoolExecutor(threads) as pool:

        def together(calls: list[Callable[[], Any]]) -> float:
            best = float("inf")
            for _ in range(ROUNDS):
                start = time.perf_counter()
                for done in [pool.submit(call) for call in calls]:
                    done.result()
                best = min(best, time.perf_counter() - start)
            return best

        count = 10_000_000
        out = [(ctypes.c_float * 256)() for _ in range(threads)]
        spins = [_call(functions["spin"], ctypes.addressof(o), 0, count) for o in out]
        fma = threads * count * CHAINS * target.bytes // 4 * 2 / together(spins) / 1e9
        read = {}
        for name, size in _levels().items():
            buffers = [torch.zeros(size // 4) for _ in range(threads)]
            repeats = max(1, READ_BYTES // size)
            calls = [
                _call(functions["read"], ctypes.addressof(o), b.data_ptr(), size // 4, repeats)
                for o, b in zip(out, buffers, strict=True)
            ]
            read[name] = round(threads * size * repeats / together(calls) / 1e9, 1)
    return {
        "fma": round(fma, 1),
        "read": read,
        "sgemm": _product_rate(torch.float32),
        "bf16 gemm": _product_rate(torch.bfloat16),
    }


def _call(function: Any, *values: int) -> Callable[[], None]:
    table = (ctypes.c_int64 * len(values))(*values)
    return lambda: function(ctypes.addressof(table))


def _levels() -> dict[str, int]:
    """Bytes to read, by where they fit: half of each data cache, and more than any cache a core can fill."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((folder / n).read_text().strip() for n in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}"] = min(int(size[:-1]) * 1024 // 2, 16 << 20) & -8192
    found = found or {"L1": 16 << 10}
    return found | {"DRAM": DRAM_BYTES}


def _product_rate(dtype: torch.dtype) -> float:
    a, b = (torch.ones(MATRIX, MATRIX, dtype=dtype) for _ in range(2))
    out = torch.mm(a, b)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return round(2 * MATRIX**3 / best / 1e9, 1)


def _text(lanes: int) -> str:
    """spin(out, -, count): chains of multiply-adds. read(out, from, numbers, repeats): sums of all."""
    module = Module(32, lanes)
    code = Code(module)
    out, count = (code.slot("%table", k, type) for k, type in ((0, "ptr"), (2, "i64")))
    factor = code.load(out)  # not known to the compiler
    sums = [(code.vector, code.constant(float(k))) for k in range(CHAINS)]
    with code.loop(0, count, 1, sums) as loop:
        loop.next = [code.fma(value, factor, factor) for value in loop.values]
    _store_all(code, loop.results, out)
    code.define("spin", ("ptr %table",), "")

    code = Code(module)
    out, source = (code.slot("%table", k, "ptr") for k in (0, 1))
    numbers, repeats = (code.slot("%table", k, "i64") for k in (2, 3))
    sums = [(code.vector, code.constant(0.0))] * 8
    with code.loop(0, repeats, 1, sums) as outer:
        carried = [(code.vector, value) for value in outer.values]
        with code.loop(0, numbers, 16 * lanes, carried) as loop:
            values, base = loop.values, code.at(source, loop.index)
            for half in (0, 8):
                at = [code.at(base, (half + k) * lanes) for k in range(8)]
                values = [code.binary("fadd", v, code.load(a)) for v, a in zip(values, at, strict=True)]
            loop.next = values
        outer.next = loop.results
    _store_all(code, outer.results, out)
    code.define("read", ("ptr %table",), "")
    return str(module)


def _store_all(code: Code, values: list[str], out: str) -> None:
    for k, value in enumerate(values):
        code.store(value, out, k * code.lanes)
