"""Run a CPU kernel on NumPy buffers with guard values around them, every output NaN at the start."""

import numpy as np

from cellfuse.codegen.cpu.compile import Kernel
from cellfuse.codegen.cpu.layout import Layout, Sizes
from cellfuse.graph.masks import MASKS

GUARD = 64
MARK = -12345.5


class Memory:
    """Arrays in one piece of memory each, between guards."""

    def __init__(self, dtype):
        self.dtype, self.all = dtype, []

    def array(self, *shape, fill=np.nan):
        size = int(np.prod(shape))
        whole = np.full(size + 2 * GUARD, MARK, self.dtype)
        inner = whole[GUARD : GUARD + size].reshape(shape)
        inner[...] = fill
        self.all.append((whole, size))
        return inner

    def check(self):
        for whole, size in self.all:
            assert (whole[:GUARD] == MARK).all(), "written before a buffer"
            assert (whole[GUARD + size :] == MARK).all(), "written behind a buffer"


class KernelRun:
    """As cellfuse.codegen.interpret.Run, on a kernel."""

    def __init__(self, kernel: Kernel, products, states, fixed, steps, is_reverse=False):
        self.kernel, self.layout = kernel, kernel.layout
        self.program, layout = self.layout.program, self.layout
        self.steps, self.batch = steps, len(states[0])
        dtype = {32: np.float32, 64: np.float64}[layout.bits]
        self.memory = memory = Memory(dtype)
        self.buffers = {}
        rows = {"time": (steps, self.batch), "batch": (self.batch,), "once": ()}
        for name, buffer in self.program.buffers.items():
            if name != "states":
                self.buffers[name] = memory.array(*rows[buffer.rows], layout.strides[name])
        self.states, self.initial = [], []
        for state, value in zip(self.program.step.of_role("state"), states, strict=True):
            width = layout.width(state.shape)
            self.states.append(memory.array(steps, self.batch, width))
            self.initial.append(memory.array(self.batch, width))
            self.put(self.initial[-1], value, state.shape)
        for k, value in enumerate(products):
            self.put(self.column("products", k), value, ("H",))
        for expr, place in self.program.infer.places.items():
            if place.buffer in ("parameters", "constants") or expr.role in MASKS:
                self.put(self.column(place.buffer, place.column), fixed[expr.label], expr.shape)
        self.matrices = {}
        for leaf in self.program.step.of_role("matrix"):
            self.matrices[leaf.label] = memory.array(*np.shape(fixed[leaf.label]))
            self.matrices[leaf.label][...] = fixed[leaf.label]
        emitted = kernel.emitted
        self.starts = np.arange(steps + 1, dtype=np.int64) * self.batch
        slots = dict.fromkeys(layout.slots, 0)
        slots |= {"first": 0, "last": steps, "batch": self.batch, "last_row": self.batch}
        slots |= {"origin": steps - 1, "direction": -1} if is_reverse else {"origin": 0, "direction": 1}
        self.keep = [memory.array(max(n, 1)) for n in emitted.weights.values()]
        for name, array in zip(emitted.weights, self.keep, strict=True):
            slots[f"{name}_weights"] = array.ctypes.data
        self.work = memory.array(emitted.scratch + 1), memory.array(self.batch * emitted.gathered + 1)
        slots |= {"scratch": self.work[0].ctypes.data, "gathered": self.work[1].ctypes.data}
        slots |= {name: array.ctypes.data for name, array in self.buffers.items()}
        slots |= {label: array.ctypes.data for label, array in self.matrices.items()}
        slots["starts"] = self.starts.ctypes.data
        for k, (slabs, initial) in enumerate(zip(self.states, self.initial, strict=True)):
            slots |= {f"states.{k}": slabs.ctypes.data, f"initial.{k}": initial.ctypes.data, f"mask.{k}": -1}
        self.slots = slots
        self.is_reverse = is_reverse

    def column(self, name, k):
        at = self.layout.offset(name, k)
        shape = self.program.buffers[name].columns[k]
        return self.buffers[name][..., at : at + self.layout.width(shape)]

    def put(self, target, value, shape):
        if not shape:
            target[..., 0] = value
            return
        groups, units = self.layout.groups(shape[0]), self.layout.units(shape[0])
        parts = target.reshape(*target.shape[:-1], groups, -1)
        assert np.shares_memory(parts, target)
        parts[..., :units] = np.asarray(value).reshape(*np.shape(value)[:-1], groups, units)

    def get(self, source, shape):
        if not shape:
            return source
        groups, units = self.layout.groups(shape[0]), self.layout.units(shape[0])
        parts = source.reshape(*source.shape[:-1], groups, -1)[..., :units]
        return parts.reshape(*source.shape[:-1], groups * units)

    def call(self, name):
        table = np.array([self.slots[n] for n in self.layout.slots], np.int64)
        self.kernel.pack[name](table.ctypes.data)
        cut = self.batch // 2  # as two threads would, one after the other
        for first, last in ((0, cut), (cut, self.batch)):
            table[self.layout.slots["first_row"]], table[self.layout.slots["last_row"]] = first, last
            self.kernel.run[name](table.ctypes.data)
        self.memory.check()

    def forward(self, keep=True):
        self.call("forward" if keep else "infer")
        leaves = self.program.step.of_role("state")
        states = [self.get(s, leaf.shape) for s, leaf in zip(self.states, leaves, strict=True)]
        place = self.program.output
        if place.buffer == "after":
            output = states[place.column]
        else:
            shape = self.program.buffers["output"].columns[0]
            output = self.get(self.buffers["output"], shape)
        return output, [s[0 if self.is_reverse else -1] for s in states]

    def backward(self, output_gradient, state_gradients):
        shape = self.program.buffers["output_gradient"].columns[0]
        self.put(self.buffers["output_gradient"], output_gradient, shape)
        leaves = self.program.step.of_role("state")
        for k, (leaf, value) in enumerate(zip(leaves, state_gradients, strict=True)):
            self.put(self.column("carry", k), value, leaf.shape)
        self.call("backward")
        found = {}
        for name in ("gradients", "gradient_numbers"):
            for k, shape in enumerate(self.program.buffers[name].columns):
                found[name, k] = self.get(self.column(name, k), shape)
        for k, leaf in enumerate(leaves):
            found["carry", k] = self.get(self.column("carry", k), leaf.shape)
        return found


def layout_of(program, sizes: Sizes, dtype, target):
    return Layout(program, sizes, {np.float32: 32, np.float64: 64}[dtype], target)
