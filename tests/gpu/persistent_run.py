"""Run the persistent kernels of a cell on the emulator, and the interpreted Program beside them."""

from dataclasses import dataclass, field

import numpy as np

from cellfuse.codegen.cuda.persistent import Persistent
from cellfuse.codegen.cuda.step import step_functions
from cellfuse.codegen.interpret import Run
from cellfuse.codegen.lower import lower
from codegen.kernel_runner import Memory
from gpu.emulator.launcher import Emulator


@dataclass(frozen=True)
class Case:
    """One cell, its sizes, and how it is spread over CTAs."""

    cell: object
    units: int
    steps: int = 4
    batch: int = 3
    heads: int = 1
    directions: int = 1
    precision: str = "fp32"
    exchange: str = "none"
    ctas: int = 1
    tile: int = 2
    threads: int = 64
    in_registers: int = 32
    lengths: tuple[int, ...] = ()
    is_reversed: bool = False
    at_once: int = 0  # sequences of a launch; 0: all
    seed: int = 0

    def __str__(self):
        changed = [
            f"{name}={getattr(self, name)}"
            for name, one in self.__dataclass_fields__.items()
            if name != "cell" and getattr(self, name) != one.default
        ]
        return " ".join((self.cell.name, *changed))


@dataclass
class Outcome:
    """Every result by name, as the kernels and as the reference have it."""

    got: dict = field(default_factory=dict)
    want: dict = field(default_factory=dict)

    def errors(self):
        """Relative error of each result, in the norm of all its values."""
        found = {}
        for name, want in self.want.items():
            got = self.got[name]
            assert got.shape == want.shape, f"{name}: {got.shape} instead of {want.shape}"
            size = np.linalg.norm(want) + 1e-3 * np.sqrt(want.size)
            found[name] = np.linalg.norm(got.astype(np.float64) - want) / size
        return found

    def wrong(self, tolerance):
        """The errors that are not below the tolerance, NaN included."""
        return {name: float(error) for name, error in self.errors().items() if not error < tolerance}


def same(text):
    return text


def run(case, mutate=same, loops=("forward", "backward"), schedule=0, poison=None):
    """Both, on random values.

    Args:
        mutate: changes the text of the kernels.
        loops: those before the last give outputs; the last is "backward" or None.
        schedule: seed of the order in which threads run.
        poison: (sequence, bits) of an initial state that is set to a NaN.
    """
    return _Run(case, mutate, schedule, poison).outcome(loops)


class _Run:
    def __init__(self, case, mutate, schedule, poison):
        self.case, self.mutate, self.schedule, self.poison = case, mutate, schedule, poison
        self.program = lower(case.cell.step)
        self.H = case.units * case.heads
        self.step = step_functions(self.program, self.H)
        self.memory = Memory(np.float32)
        self.arrays = {}
        self.draw()

    def draw(self):
        """Random values of everything that goes in."""
        case = self.case
        rng = np.random.default_rng(case.seed)
        T, B, D, H = case.steps, case.batch, case.directions, self.H
        program = self.program
        K, N = case.units, case.heads
        axes = {"H": H, "N": N, "K": K}
        self.fixed = [
            {
                leaf.label: _float32(
                    rng.uniform(-1, 1, tuple(axes[a] for a in leaf.shape))
                    / (1 if len(leaf.shape) < 2 else K**0.5)
                )
                for leaf in program.step.inputs
                if leaf.role not in ("input product", "state")
            }
            | {bias: np.zeros(H) for bias, _ in program.moved}
            for _ in range(D)
        ]
        S = len(program.step.of_role("state"))
        self.products = _float32(rng.normal(size=(T, B, D, len(program.inputs), H)))
        self.initial = _float32(rng.uniform(0.5, 1, (S, D, B, H)))
        self.output_gradient = _float32(rng.normal(size=(T, B, D, H)))
        self.final_gradient = _float32(rng.normal(size=(S, D, B, H)))
        self.lengths = np.array(case.lengths or [T] * B, np.int32)
        self.reversed = 0b10 if D == 2 else int(case.is_reversed)

    def is_backwards(self, d):
        return bool(self.reversed >> d & 1)

    def kernel(self, loop, **changes):
        case = self.case
        names = ("units", "heads", "directions", "precision", "exchange", "ctas", "tile", "threads")
        given = {name: getattr(case, name) for name in (*names, "in_registers")} | changes
        return Persistent(self.step, loop, **given)

    def give(self, name, *shape, values=None):
        self.arrays[name] = self.memory.array(*shape)
        if values is not None:
            self.arrays[name][...] = values

    def launch(self, loop, **changes):
        case = self.case
        p = self.kernel(loop, **changes)
        at_once = case.at_once or case.batch
        for first in range(0, case.batch, at_once):
            self.launch_some(p, first, min(at_once, case.batch - first))

    def launch_some(self, p, first, batch):
        case = self.case
        words = p.exchange_words(case.steps, batch)
        counters = np.zeros(p.counters(batch) + 1, np.uint32)
        # A 16-byte boundary, as every allocation of a device has.
        given = {name: array.ctypes.data for name, array in self.arrays.items()}
        whole = np.full(words + 68, 0xFFFFFFFF, np.uint32)
        offset = (-whole.ctypes.data // 4) % 4
        whole[offset + words :] = 0x12345678
        given |= {"exchange": whole[offset:].ctypes.data, "counters": counters.ctypes.data}
        given |= {"lengths": self.lengths.ctypes.data if case.lengths else 0}
        given |= {"steps": case.steps, "batch": case.batch, "first": first, "reversed": self.reversed}
        kernel = p.kernel()
        object.__setattr__(kernel, "text", self.mutate(kernel.text))
        arguments = [given.get(parameter.name, 0) for parameter in kernel.parameters]
        Emulator(self.schedule).launch(kernel, kernel.entries[0], p.grid(batch), arguments)
        assert (whole[offset + words :] == 0x12345678).all(), "written behind the exchange"
        self.memory.check()

    def outcome(self, loops):
        case, program, step = self.case, self.program, self.step
        T, B, D, H = case.steps, case.batch, case.directions, self.H
        S = len(program.step.of_role("state"))
        columns = {name: buffer.columns for name, buffer in program.buffers.items()}
        self.give("initial", S, D, B, H, values=self.initial)
        if self.poison:
            self.arrays["initial"].view(np.uint32)[:, :, self.poison[0]] = self.poison[1]
        matrices = [
            [self.fixed[d][label].reshape(case.heads, case.units, case.units) for label in step.matrices]
            for d in range(D)
        ]
        self.give(
            "weights",
            D,
            len(step.matrices),
            case.heads,
            case.units,
            case.units,
            values=np.array(matrices).reshape(D, len(step.matrices), case.heads, case.units, case.units),
        )
        for name in ("parameters", "constants"):
            places = sorted((p.column, e.label) for e, p in program.infer.places.items() if p.buffer == name)
            places += sorted(
                (p.column, e.label) for e, p in program.backward.places.items() if p.buffer == name
            )
            labels = dict(places)
            values = [
                [
                    np.broadcast_to(self.fixed[d][labels[k]], (H,) if name == "parameters" else ())
                    for k in range(len(columns[name]))
                ]
                for d in range(D)
            ]
            self.give(
                name,
                D,
                len(columns[name]),
                *([H] if name == "parameters" else []),
                values=np.array(values).reshape(
                    D, len(columns[name]), *([H] if name == "parameters" else [])
                ),
            )
        outcome = Outcome()
        for loop in loops[:-1]:
            self.give("products", *self.products.shape, values=self.products)
            self.give("kept", T, B, D, len(columns["kept"]), H)
            self.give("output", T, B, D, H)
            for k in range(S):
                self.give(f"state_{k}", T, B, D, H)
            self.give("final", S, D, B, H)
            self.launch(loop)
            place = program.output
            output = self.arrays[f"state_{place.column}" if place.buffer == "after" else "output"]
            outcome.got[f"{loop} output"] = self._masked(output)
            outcome.got[f"{loop} final"] = self.arrays["final"].copy()
        if loops[-1] is None:
            return outcome
        self.give("output_gradient", T, B, D, H, values=self.output_gradient)
        self.give("final_gradient", S, D, B, H, values=self.final_gradient)
        self.give("gradients", T, B, D, len(step.written), H)
        self.give("initial_gradient", S, D, B, H)
        self.give("totals", len(step.accumulated), D, B, H)
        self.launch("backward")
        outcome.got["gradients"] = self.arrays["gradients"].copy()
        outcome.got["initial gradient"] = self.arrays["initial_gradient"].copy()
        totals = self.arrays["totals"].sum(2)
        for k, place in enumerate(step.accumulated):
            outcome.got[f"total {place}"] = totals[k] if place.buffer == "gradients" else totals[k].sum(-1)
        self._reference(outcome, loops)
        return outcome

    def _masked(self, value):
        steps = np.arange(self.case.steps)[:, None] < self.lengths
        return np.where(steps[..., None, None], value, 0.0)

    def _reference(self, outcome, loops):
        """The interpreted Program, direction by direction and sequence by sequence."""
        case, program, step = self.case, self.program, self.step
        T, B, D, H = case.steps, case.batch, case.directions, self.H
        S = len(program.step.of_role("state"))
        output, final = np.zeros((T, B, D, H)), self.initial.astype(np.float64)
        gradients = np.zeros((T, B, D, len(step.written), H))
        initial = self.final_gradient.astype(np.float64)
        totals = [np.zeros((D, H) if place.buffer == "gradients" else D) for place in step.accumulated]
        for d in range(D):
            for length in sorted(set(self.lengths.tolist()) - {0}):
                some = np.flatnonzero(self.lengths == length)
                turn = slice(None, None, -1) if self.is_backwards(d) else slice(None)
                products = [self.products[:length, some, d, q][turn] for q in range(len(program.inputs))]
                states = [self.initial[k, d, some] for k in range(S)]
                one = Run(program, products, states, self.fixed[d], {"H": H}, length)
                made, finals = one.forward()
                output[:length, some, d] = made[turn]
                one.backward(
                    self.output_gradient[:length, some, d][turn],
                    [self.final_gradient[k, d, some] for k in range(S)],
                )
                for k in range(S):
                    final[k, d, some] = finals[k]
                    initial[k, d, some] = one.memory["carry"][k]
                for k, column in enumerate(step.written):
                    gradients[:length, some, d, k] = one.memory["gradients"][column][turn]
                for k, place in enumerate(step.accumulated):
                    value = one.memory[place.buffer][place.column].sum((0, 1))
                    totals[k][d] += value if place.buffer == "gradients" else value[0]
        for loop in loops[:-1]:
            outcome.want |= {f"{loop} output": output, f"{loop} final": final}
        outcome.want |= {"gradients": gradients, "initial gradient": initial}
        outcome.want |= {
            f"total {place}": total for place, total in zip(step.accumulated, totals, strict=True)
        }


def _float32(values):
    return values.astype(np.float32).astype(np.float64)
