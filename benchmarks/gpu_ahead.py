"""Compiles the kernels that benchmarks/gpu.py will need, in other processes, while it checks the first ones.

Planning and writing a kernel takes as long as a small check, so that is done there, too. No process here uses
the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context

import torch

import cellfuse as cf
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cuda import plan as spreading
from cellfuse.codegen.cuda.compile import compile
from cellfuse.codegen.cuda.layout import cuda_layout
from cellfuse.codegen.cuda.plan import Device
from cellfuse.codegen.cuda.pointwise import pointwise
from cellfuse.codegen.lower import lower
from cellfuse.runtime import cuda_step


@dataclass(frozen=True)
class Wanted:
    """What the kernels of a layer depend on; `texts` are kernels that are written already."""

    cell: str = ""
    sizes: Sizes | None = None
    dtype: torch.dtype = torch.float32
    precision: str = ""
    batch: int = 0
    directions: int = 1
    tier: str = ""
    texts: tuple[str, ...] = ()


def texts_of(want: Wanted, device: Device) -> list[str]:
    """The kernels' texts, if all that the plan asks for finds room."""
    if want.sizes is None:
        return list(want.texts)
    cell, sizes, texts = cf.cells.find(want.cell), want.sizes, []
    program = lower(cell.step)
    is_blocks = any(len(leaf.shape) == 3 for leaf in program.step.of_role("matrix"))
    heads = sizes.heads if is_blocks else 1
    if want.tier != "per step":
        for directions in range(1, want.directions + 1):  # one alone is planned first
            found = spreading.plan(
                program,
                sizes.hidden // heads,
                heads=heads,
                directions=directions,
                batch=want.batch,
                precision=want.precision,
                device=device,
                exchange=cuda_step.EXCHANGES.get(want.tier, ""),
            )
            kernels = (found.infer, found.forward, found.backward)
            texts += [one.kernel().text for one in kernels if one is not None]
    if texts:
        return texts
    layout = cuda_layout(program, sizes, 64 if want.dtype == torch.float64 else 32)
    return [pointwise(layout, str(want.dtype).removeprefix("torch.")).kernel.text]


def _compile(want: Wanted, device: Device, arch: str) -> int:
    texts = texts_of(want, device)
    for text in texts:
        compile(text, arch)
    return len(texts)


class Ahead:
    """The processes; what is not ready is compiled when it is needed. The first wanted comes first."""

    def __init__(self, wanted: Sequence[Wanted], device: Device, arch: str, workers: int) -> None:
        self.pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        self.made: list[Future] = [
            self.pool.submit(_compile, want, device, arch) for want in dict.fromkeys(wanted)
        ]

    def wait(self, seconds: float) -> str:
        """Give it so long at most; says how far it came."""
        done, _ = wait(self.made, max(0.0, seconds))
        failed = [one.exception() for one in done if one.exception() is not None]
        count = sum(one.result() for one in done if one.exception() is None)
        said = f"{count} kernels compiled ahead for {len(done) - len(failed)} of {len(self.made)} cases"
        return said + (f"; {len(failed)} failed: {str(failed[0])[:200]}" if failed else "")

    def end(self) -> None:
        """Start no other."""
        self.pool.shutdown(wait=False, cancel_futures=True)
