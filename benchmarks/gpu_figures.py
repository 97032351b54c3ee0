"""Measures the rows of cellfuse.codegen.cuda.figures; benchmarks/gpu.py prints them beside what is assumed.

Small kernels time one thing each. The rest comes from the loops themselves: what their time has beyond the
other rows, by least squares. Rows that neither can tell are listed with the reason. Times nothing itself:
`clock` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cellfuse as cf
from cellfuse.codegen.cuda import persistent
from cellfuse.codegen.cuda.figures import FIGURES, value_of
from cellfuse.codegen.cuda.kernel import CudaKernel, Parameter
from cellfuse.codegen.cuda.persistent import Persistent
from cellfuse.codegen.cuda.plan import Device, microseconds
from cellfuse.codegen.cuda.step import step_functions
from cellfuse.codegen.lower import lower

# Dependent multiply-adds take so many cycles each on every GPU since Volta.
FMA_CYCLES = 4
NOT_MEASURED = {
    "split": "no two kernels differ in it alone",
    "sums": "no two kernels differ in it alone",
}

_TEXT = """
KERNEL void __launch_bounds__(256, 1) repeat_fma(float* out, int count) {
  float x = out[0], y = out[1], z = out[2];
  for (int i = 0; i < count; i++) {
#pragma unroll
    for (int k = 0; k < 16; k++) x = x * y + z;
  }
  out[threadIdx.x] = x;
}
KERNEL void __launch_bounds__(256, 1) repeat_sync(float* out, int count) {
  for (int i = 0; i < count; i++) {
#pragma unroll
    for (int k = 0; k < 8; k++) __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}
KERNEL void __launch_bounds__(256, 1) repeat_shared(float* out, int count) {
  uint4* memory = (uint4*)shared_memory();
  u32 at[8], sum = 0;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    at[k] = k * 256 + threadIdx.x;
    memory[at[k]] = make_uint4(at[k], 1u, 2u, 3u);
  }
  __syncthreads();
  for (int i = 0; i < count; i++) {
#pragma unroll
    for (int k = 0; k < 8; k++) {
      const uint4 v = memory[at[k]];
      at[k] = v.x;
      sum ^= v.y + v.z + v.w;
    }
  }
  out[threadIdx.x] = (float)sum;
}
template <int CHAINS>
DEV void multiply_tiles(float* out, int count) {
  float sums[CHAINS][4];
  u32 a[4];
#pragma unroll
  for (int k = 0; k < 4; k++) a[k] = pack_bf16(out[k], 0.0f);
#pragma unroll
  for (int c = 0; c < CHAINS; c++)
#pragma unroll
    for (int k = 0; k < 4; k++) sums[c][k] = 0.0f;
  for (int i = 0; i < count; i++) {
#pragma unroll
    for (int c = 0; c < CHAINS; c++) mma_bf16(sums[c], a, a[0], a[1]);
  }
  float total = 0.0f;
#pragma unroll
  for (int c = 0; c < CHAINS; c++) total += sums[c][0];
  out[threadIdx.x] = total;
}
KERNEL void __launch_bounds__(256, 1) repeat_mma(float* out, int count) {
  multiply_tiles<4>(out, count);
}
KERNEL void __launch_bounds__(256, 1) repeat_mma_latency(float* out, int count) {
  multiply_tiles<1>(out, count);
}
"""
_DEVICE = Path(persistent.__file__).with_name("device.cuh")
_ENTRIES = tuple(f"repeat_{what}" for what in ("fma", "sync", "shared", "mma", "mma_latency"))
_THREADS = {"repeat_fma": 32, "repeat_mma_latency": 32}


def small_kernel(entry: str) -> CudaKernel:
    """A kernel that repeats one thing `count` times."""
    parameters = (Parameter("out"), Parameter("count", "int32"))
    threads, shared = _THREADS.get(entry, 256), 32 << 10 if entry == "repeat_shared" else 0
    return CudaKernel(_DEVICE.read_text() + _TEXT, _ENTRIES, parameters, threads, shared)


@dataclass(frozen=True)
class Loop:
    """A loop whose time tells a row; H = 16 units for each CTA unless given."""

    cell: str
    loop: str
    precision: str
    exchange: str
    ctas: int
    tile: int
    units: int
    batch: int = 0

    def kernel(self) -> Persistent:
        """The loop's kernel; raises ValueError where there is none."""
        step = step_functions(lower(cf.cells.find(self.cell).step), self.units)
        given = (self.units, 1, 1, self.precision, self.exchange, self.ctas, self.tile)
        return Persistent(step, self.loop, *given)

    @property
    def sequences(self) -> int:
        """Of a launch."""
        return self.batch or self.tile


def loops(is_short: bool, processors: int) -> dict[str, list[Loop]]:
    """The loops of each group of rows."""
    found: dict[str, list[Loop]] = {"pointwise": [], "pointwise_back": [], "loop": []}
    for tile in (8, 16) if is_short else (8, 16, 32):
        found["pointwise"].append(Loop("lstm", "infer", "bf16", "none", 1, tile, 32))
        found["pointwise_back"].append(Loop("lstm", "backward", "bf16", "none", 1, tile, 32))
    found["loop"] = [Loop("indrnn", "infer", "fp32", "none", 1, tile, 64) for tile in (1, 4)]
    sizes = ((2, 8), (2, 16)) if is_short else ((2, 8), (4, 8), (8, 8), (8, 32), (16, 8), (16, 32))
    for ctas, tile in sizes:
        found.setdefault("cluster", []).append(
            Loop("rnn", "infer", "bf16", "messages", ctas, tile, 16 * ctas)
        )
        back = Loop("rnn", "backward", "bf16", "messages", ctas, tile, 16 * ctas)
        found.setdefault("inbox", []).append(back)
    sizes = ((2, 8), (2, 16)) if is_short else ((8, 8), (16, 8), (24, 8), (32, 8), (32, 16))
    for ctas, tile in sizes:
        found.setdefault("grid", []).append(Loop("rnn", "infer", "bf16", "write_once", ctas, tile, 16 * ctas))
    ctas = 2 if is_short else 32
    batch = processors // ctas * 8
    found["busy"] = [Loop("rnn", "infer", "bf16", "write_once", ctas, 8, 16 * ctas, batch)]
    return found


class Figures:
    """Measures rows one after the other, those first that others need.

    Args:
        launcher: of the device.
        clock: seconds of a call on the device.
        loop_time: microseconds of a step of a kernel: (kernel, steps, sequences).
        count: repetitions of a small kernel; steps of a loop.
        per_step: microseconds of a step forward and backward, step by step.
    """

    def __init__(
        self,
        launcher: Any,
        device: Device,
        place: torch.device,
        clock: Callable[[Callable[[], Any]], float],
        loop_time: Callable[[Persistent, int, int], float],
        per_step: Callable[[], tuple[float, float]],
        count: int,
        is_short: bool = False,
    ) -> None:
        self.launcher, self.device, self.place, self.clock = launcher, device, place, clock
        self.loop_time, self.per_step, self.count, self.is_short = loop_time, per_step, count, is_short
        self.found: dict[str, float] = {}
        self.why: dict[str, str] = dict(NOT_MEASURED)

    def value(self, name: str) -> float:
        """As measured; as assumed where that has not been possible."""
        return self.found.get(name, value_of(name))

    def measure(self) -> None:
        """All that can be."""
        parts: dict[str, Callable[[], dict[str, float]]] = {
            "clock": lambda: {"clock": FMA_CYCLES * 16 / self._each("repeat_fma")},
            "sync": lambda: {"sync": self._each("repeat_sync") * self.value("clock") / 8},
            "shared_bandwidth": lambda: {
                "shared_bandwidth": 256 * 8 * 16 / (self._each("repeat_shared") * self.value("clock"))
            },
            # Two warps for each scheduler, with four each.
            "mma": lambda: {"mma": self._each("repeat_mma") * self.value("clock") / 8},
            "mma_latency": lambda: {"mma_latency": self._each("repeat_mma_latency") * self.value("clock")},
            "per_step per_step_back": lambda: dict(
                zip(("per_step", "per_step_back"), self.per_step(), strict=True)
            ),
        }
        given = loops(self.is_short, self.device.processors)
        for rows, name in (
            ("pointwise", "pointwise"),
            ("pointwise_back", "pointwise_back"),
            ("loop", "loop"),
            ("cluster_latency cluster_bandwidth", "cluster"),
            ("inbox", "inbox"),
            ("grid_latency grid_bandwidth_alone", "grid"),
            ("grid_bandwidth", "busy"),
        ):
            parts[rows] = lambda rows=rows, name=name: self._fit(rows.split(), given[name])
        for rows, part in parts.items():
            try:
                self.found |= part()
            except Exception as problem:  # noqa: BLE001
                self.why |= dict.fromkeys(rows.split(), f"{type(problem).__name__}: {str(problem)[:200]}")

    def _each(self, entry: str) -> float:
        """Microseconds of one repetition in a small kernel; launching it does not count."""
        kernel, out = small_kernel(entry), torch.full((256,), 0.5, device=self.place)

        def run(count: int) -> float:
            given = [out.data_ptr(), count]
            return min(
                self.clock(lambda: self.launcher.launch(kernel, entry, (1, 1, 1), given)) for _ in range(5)
            )

        count = 10 * self.count
        run(count)
        return max(run(2 * count) - run(count), 1e-12) / count * 1e6

    def _fit(self, rows: list[str], given: list[Loop]) -> dict[str, float]:
        """The rows that explain the time of these loops best, with all other rows as they are."""
        clock = self.value("clock")
        left, right = [], []
        for one in given:
            try:
                kernel = one.kernel()
            except ValueError:
                continue
            text = kernel.kernel()
            if (text.cluster > 1 or text.is_cooperative) and not self.launcher.fits(
                text, text.entries[0], kernel.grid(one.sequences)[0]
            ):
                continue
            cycles = self.loop_time(kernel, self.count, one.sequences) * clock

            def model(row: str | None, kernel: Persistent = kernel, one: Loop = one) -> float:
                """Cycles with `row` counted once, and no other of the rows."""
                zero = {name: float("inf") if FIGURES[name].unit == "bytes/cycle" else 0.0 for name in rows}
                if row:
                    zero[row] = 1.0
                if "grid_bandwidth_alone" in rows:  # which of the two is narrower is known here
                    zero["grid_bandwidth"] = float("inf")
                if rows == ["grid_bandwidth"]:
                    zero["grid_bandwidth_alone"] = float("inf")
                of = lambda name: zero.get(name, self.value(name))  # noqa: E731
                return microseconds(kernel, one.sequences, self.device, of) * clock

            rest = model(None)
            left.append([model(row) - rest for row in rows])
            right.append(cycles - rest)
        if len(left) < len(rows):
            raise ValueError(f"{len(left)} of {len(given)} loops run here, too few")
        solved = np.linalg.lstsq(np.array(left), np.array(right), rcond=None)[0]
        made = {}
        for row, value in zip(rows, solved, strict=True):
            is_width = FIGURES[row].unit == "bytes/cycle"
            if value <= 0:
                self.why[row] = f"the loops' times leave {value:.3g} for it"
            else:
                made[row] = float(1 / value if is_width else value)
        return made

    def lines(self) -> Iterator[dict[str, Any]]:
        """One for each row: assumed, measured, their ratio, or why there is none."""
        for name, figure in FIGURES.items():
            line = {"figure": name, "unit": figure.unit, "assumed": figure.value, "basis": figure.basis}
            measured = self.found.get(name)
            if measured is None:
                yield {**line, "not measured": self.why.get(name, "it was not tried")}
            else:
                yield {**line, "measured": measured, "ratio": measured / figure.value}


def table(lines: list[dict[str, Any]]) -> str:
    """The lines for people."""
    head = f"{'figure':22}{'unit':>14}{'assumed':>10}{'measured':>10}{'ratio':>8}"
    rows = [head]
    for line in lines:
        start = f"{line['figure']:22}{line['unit']:>14}{line['assumed']:>10.4g}"
        if "measured" in line:
            rows.append(f"{start}{line['measured']:>10.4g}{line['ratio']:>8.2f}")
        else:
            rows.append(f"{start}  not measured: {line['not measured']}")
    return "\n".join(rows)


def texts(is_short: bool, processors: int) -> list[str]:
    """The kernels' texts, to be compiled ahead."""
    found = [small_kernel("repeat_fma").text]
    for each in loops(is_short, processors).values():
        for one in each:
            try:
                found.append(one.kernel().kernel().text)
            except ValueError:
                continue
    return found
