"""Kernels that run the whole loop over time in one launch, with the recurrent weights held on the chip.

A group of CTAs shares the weights of one direction and one head and works on a tile of sequences; it
needs no other group. Each CTA owns a slice of the units, with all gates of it, so that the step itself
is local and the states stay in float32 registers; what it gives the others is the state that the
matrices multiply (forward), or gradients (backward). `loop.cuh` is the loop, `product.cuh` the product,
`exchange.cuh` the exchange, `step.py` the cell, `share.py` how a CTA's threads divide its product.

Arrays, float32 and row-major, for T steps, B sequences, D directions, H units in a row (all heads):
    products          [T, B, D, inputs, H]   input products; the forward loop writes kept values over them
    kept              [T, B, D, kept, H]     values that the backward loop reads
    output            [T, B, D, H]           only if the output is no state
    state_k           [T, B, D, H]           state k after each step
    initial, final    [states, D, B, H]      and their gradients
    weights           [D, matrices, heads, H / heads, H / heads]
    parameters        [D, parameters, H], constants [D, numbers]
    lengths           [B] int32, or null: steps from there on leave the states as they are, in memory, too;
                      "output" there is 0, and the output gradients that come in there are not read
    output_gradient   [T, B, D, H]
    gradients         [T, B, D, written, H]  the columns `Step.written` of the program's "gradients"
    totals            [accumulated, D, B, H] the gradients `Step.accumulated`, summed over time
    exchange          `Persistent.exchange_words` 32-bit words, all ones before each launch
    counters          `Persistent.counters` 32-bit words, all zero before each launch
    first             sequence with which the launch begins; the grid says how many it works on
    reversed          bit d: direction d runs from the last step to the first
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from cellfuse.codegen.cuda.kernel import CudaKernel, Parameter
from cellfuse.codegen.cuda.share import Product, share, up
from cellfuse.codegen.cuda.spell import PRELUDE
from cellfuse.codegen.cuda.step import Step
from cellfuse.codegen.program import Place

LOOPS = ("infer", "forward", "backward")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
EXCHANGES = ("none", "cluster_barrier", "messages", "counter", "write_once")
# A product in a cluster is taken apart by the state's units at the way back; see `loop.cuh`.
CLUSTER_EXCHANGES = ("cluster_barrier", "messages")
GRID_EXCHANGES = ("counter", "write_once")


@dataclass(frozen=True)
class Persistent:
    """One kernel: a cell's loop for given sizes, spread in a given way.

    Attributes:
        step: the cell.
        loop: one of LOOPS.
        units: H / heads.
        heads, directions: of them; each with each has weights of its own.
        precision: of the operands of the product, one of PRECISIONS; sums and states are float32.
        exchange: one of EXCHANGES.
        ctas: in a group.
        tile: sequences of a group.
        threads: of a CTA.
        in_registers: pieces of weights that a thread holds in registers; the others are in shared memory.
    """

    step: Step
    loop: str
    units: int
    heads: int = 1
    directions: int = 1
    precision: str = "fp32"
    exchange: str = "none"
    ctas: int = 1
    tile: int = 1
    threads: int = 256
    in_registers: int = 32

    def __post_init__(self) -> None:
        why = self._why_not()
        if why:
            raise ValueError(why)

    def _why_not(self) -> str:
        known = ((self.loop, LOOPS), (self.precision, PRECISIONS), (self.exchange, EXCHANGES))
        for given, allowed in known:
            if given not in allowed:
                return f"{given!r} is none of {', '.join(allowed)}"
        if self.exchange == "none" and self.ctas > 1 and self.step.matrices:
            return f"{self.ctas} CTAs with a product need an exchange"
        if self.exchange != "none" and (self.ctas == 1 or not self.step.matrices):
            return f"nothing to exchange by {self.exchange}"
        if self.precision != "fp32" and self.tile % 8:
            return f"a tile of {self.tile} sequences; the tensor cores work on multiples of 8"
        if self.threads % 32 or not 32 <= self.threads <= 1024:
            return f"{self.threads} threads; a CTA has a multiple of 32, at most 1024"
        if self.is_wasteful:
            return (
                f"{self.ctas} CTAs for {self.units} units, of which {self.slice} a CTA: some would have none"
            )
        return ""

    @property
    def is_backward(self) -> bool:
        """Whether it is the loop from the last step to the first."""
        return self.loop == "backward"

    @property
    def scatters(self) -> bool:
        """Whether partial sums are sent to the owners of the units, see `loop.cuh`."""
        return self.is_backward and self.exchange in CLUSTER_EXCHANGES

    @property
    def slice(self) -> int:
        """Units of a CTA, a multiple of what a thread's piece of weights and a message need."""
        multiple = 4 if self.precision == "fp32" else 8
        return up(up(self.units, self.ctas), multiple) * multiple

    @property
    def is_wasteful(self) -> bool:
        """Whether a CTA would have no unit at all."""
        return (self.ctas - 1) * self.slice >= self.units

    @functools.cached_property
    def product(self) -> Product:
        """How the threads share the product."""
        matrices = len(self.step.matrices)
        if not matrices:
            return Product(0, 0, 1, 1, 1, 0)
        own, everything = matrices * self.slice, self.ctas * self.slice
        if self.scatters:
            rows, depth = everything, own
        elif self.is_backward:
            rows, depth = self.slice, self.ctas * own
        else:
            rows, depth = own, everything
        return share(rows, depth, self.tile, self.threads, self.precision, self.scatters)

    @property
    def held(self) -> int:
        """Pieces of weights in registers."""
        return min(self.in_registers, self.product.weights)

    @property
    def is_direct(self) -> bool:
        """Whether partial sums are sent from the accumulators, without a sum over splits."""
        return self.scatters and self.precision != "fp32" and self.product.splits == 1

    @functools.cached_property
    def constants(self) -> dict[str, int]:
        """The numbers in the text."""
        step, product, tile = self.step, self.product, self.tile
        program, matrices = step.program, len(step.matrices)
        is_exact = self.precision == "fp32"
        in_word = 2 if self.precision in ("bf16", "fp16") else 1
        row = product.parts * product.splits * 8
        row += (16 - row) % 32  # see `product.cuh`
        operand = product.parts * product.splits * tile if is_exact else tile * row
        slice_values = self.slice * (matrices if self.is_backward else 1)
        sums_row = up(product.rows, 4 if is_exact else 16) * (4 if is_exact else 16) + 4
        buffers = 2 if self.exchange in CLUSTER_EXCHANGES and not self.scatters else 1
        inbox = self.slice * (tile + 2 if self.is_direct else tile)
        sums = 0 if self.is_direct or not matrices else product.splits * tile * sums_row
        sizes = {
            "AT_SUMS": buffers * operand * 4 if matrices else 0,
            "AT_WEIGHTS": sums * 4,
            "AT_ARRIVED": (product.weights - self.held) * self.threads * 16,
            "AT_INBOX": 16,
            "SHARED_BYTES": 2 * self.ctas * inbox * 4 if self.scatters else 0,
        }
        at, places = 0, {}
        for name, size in sizes.items():
            at += up(size, 16) * 16
            places[name] = at
        columns = {name: len(buffer.columns) for name, buffer in program.buffers.items()}
        return {
            "H": self.units * self.heads,
            "HEAD_UNITS": self.units,
            "HEADS": self.heads,
            "DIRECTIONS": self.directions,
            "CTAS": self.ctas,
            "CLUSTER": self.cluster,
            "UNITS": self.slice,
            "TILE": tile,
            "THREADS": self.threads,
            "ITEMS": up(self.slice * tile, self.threads),
            "STATES": columns["states"],
            "STATE": max(step.state, 0),
            "PRODUCTS": columns["products"],
            "PARAMETERS": columns["parameters"],
            "CONSTANTS": columns["constants"],
            "MATRICES": matrices,
            "KEPT": len(program.kept),
            "KEPT_COLUMNS": columns["kept"],
            "LOADS": len(step.loads),
            "FACTORS": step.factors,
            "GRADIENTS": len(step.written),
            "TOTALS": len(step.accumulated),
            "SCATTERS": int(self.scatters),
            "IS_DIRECT": int(self.is_direct),
            "ROWS": product.rows,
            "DEPTH": product.depth,
            "ROW_THREADS": product.across,
            "ROW_WARPS": product.across,
            "SPLITS": product.splits,
            "PARTS": product.parts,
            "WEIGHTS": product.weights,
            "IN_REGISTERS": self.held,
            "SUMS_ROW": sums_row,
            "BUFFERS": buffers,
            "OPERAND_ROW": row,
            "OPERAND_WORDS": operand,
            "SLICE_CHUNKS": slice_values * tile // (4 * in_word),
            "INBOX_WORDS": inbox,
            **places,
        }

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a CTA."""
        return self.constants["SHARED_BYTES"]

    @property
    def cluster(self) -> int:
        """CTAs in a cluster."""
        return self.ctas if self.exchange in CLUSTER_EXCHANGES else 1

    def groups(self, batch: int) -> int:
        """How many groups so many sequences take."""
        return self.directions * self.heads * up(batch, self.tile)

    def grid(self, batch: int) -> tuple[int, int, int]:
        """The grid of a launch for so many sequences."""
        return (self.groups(batch) * self.ctas, 1, 1)

    def exchange_words(self, steps: int, batch: int) -> int:
        """Size of the array "exchange" for a launch."""
        if self.exchange not in GRID_EXCHANGES:
            return 0
        operands = 2 if self.exchange == "counter" else steps
        return self.groups(batch) * operands * self.ctas * self.constants["SLICE_CHUNKS"] * 4

    def counters(self, batch: int) -> int:
        """Size of the array "counters"."""
        return self.groups(batch) * 32 if self.exchange == "counter" else 0

    @property
    def states_read(self) -> tuple[str, ...]:
        """Names of the arrays of the states."""
        return tuple(f"state_{k}" for k in range(self.constants["STATES"]))

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of the kernel."""
        names = ["products", "kept", "output", *self.states_read, "initial"]
        if self.is_backward:
            names += ["output_gradient", "final_gradient", "gradients", "initial_gradient", "totals"]
        else:
            names.append("final")
        names += ["weights", "parameters", "constants", "lengths", "exchange", "counters"]
        return (
            *(Parameter(name) for name in names),
            *(Parameter(name, "int32") for name in ("steps", "batch", "first", "reversed")),
        )

    def kernel(self) -> CudaKernel:
        """The text and how it is launched; a grid-wide exchange needs all CTAs at the same time."""
        types = {"lengths": "const int*", "exchange": "u32*", "counters": "u32*"}
        types |= dict.fromkeys(("steps", "batch", "first", "reversed"), "int")
        given = [(types.get(p.name, "float*"), p.name) for p in self.parameters]
        entry = f"{self.loop}_loop"
        head = ", ".join(f"{kind} {name}" for kind, name in given)
        text = [
            PRELUDE,
            _file("device.cuh"),
            "enum { NONE, CLUSTER_BARRIER, MESSAGES, COUNTER, WRITE_ONCE };",
            f"#define IS_BACKWARD {int(self.is_backward)}",
            f"#define PRECISION {PRECISIONS.index(self.precision)}",
            f"constexpr int EXCHANGE = {self.exchange.upper()};",
            *(f"[[maybe_unused]] constexpr int {name} = {value};" for name, value in self.constants.items()),
            "DEV constexpr int ROOM(int count) { return count > 0 ? count : 1; }",
            "struct Arguments {",
            *(f"  {kind} {name};" for kind, name in given),
            "};",
            *([] if self.precision == "fp32" else [_FAST]),
            *self._cell(),
            _file("product.cuh"),
            _file("exchange.cuh"),
            _file("loop.cuh"),
            f"KERNEL void __launch_bounds__(THREADS, 1) {entry}({head}) {{",
            f"  run(Arguments{{{', '.join(name for _, name in given)}}});",
            "}",
        ]
        return CudaKernel(
            "\n".join(text) + "\n",
            (entry,),
            self.parameters,
            self.threads,
            self.shared_bytes,
            self.cluster,
            self.exchange in GRID_EXCHANGES,
        )

    def _cell(self) -> list[str]:
        """The functions that know the cell."""
        if self.is_backward:
            return [self.step.backward, *self._load_step(), *self._gradient_of()]
        which = "keep" if self.loop == "forward" else "infer"
        return [self.step.forward, f"#define cell_forward cell_{which}", *self._store_step()]

    def _store_step(self) -> list[str]:
        program, keep = self.step.program, self.loop == "forward"
        lines = [
            "DEV void store_step(const Arguments& a, i64 row, int unit, const float* state, float out, "
            "const float* kept) {"
        ]
        for k in range(self.constants["STATES"]):
            if keep or program.output == Place("after", k):
                lines.append(f"  a.state_{k}[row * H + unit] = state[{k}];")
        if program.output.buffer == "output":
            lines.append("  a.output[row * H + unit] = out;")
        if keep:
            for n, (_, place) in enumerate(program.kept):
                width = "PRODUCTS" if place.buffer == "products" else "KEPT_COLUMNS"
                lines.append(f"  a.{place.buffer}[(row * {width} + {place.column}) * H + unit] = kept[{n}];")
        return [*lines, "}"]

    def _load_step(self) -> list[str]:
        lines = [
            "DEV void load_step(const Arguments& a, i64 row, i64 before, i64 start, bool is_first, "
            "i64 state_size, int unit, float* v) {"
        ]
        for n, place in enumerate(self.step.loads):
            column = place.column
            first = f"a.initial[{column} * state_size + start]"
            texts = {
                "before": f"is_first ? {first} : a.state_{column}[before * H + unit]",
                "after": f"a.state_{column}[row * H + unit]",
                "output": "a.output[row * H + unit]",
                "products": f"a.products[(row * PRODUCTS + {column}) * H + unit]",
                "kept": f"a.kept[(row * KEPT_COLUMNS + {column}) * H + unit]",
            }
            lines.append(f"  v[{n}] = {texts[place.buffer]};")
        return [*lines, "}"]

    def _gradient_of(self) -> list[str]:
        cases = " ".join(f"matrix == {g} ? {k} :" for g, k in enumerate(self.step.recurrent))
        return [f"DEV constexpr int gradient_of(int matrix) {{ return {cases} 0; }}"]


# Where operands are rounded anyway: two more units in the last place, and half the instructions.
_FAST = """
DEV float fast_sigmoid(float a) { return __fdividef(1.0f, 1.0f + __expf(-a)); }
#define cf_sigmoid fast_sigmoid
#define cf_exp __expf
"""


@functools.cache
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text()
