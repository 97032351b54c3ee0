"""Whole calls of layers on memory between pages that may not be touched.

Every tensor's memory, every part of a call's working memory and every table of addresses ends, or begins, at
such a page: whoever reads or writes beyond it is killed by the system. What is left of other pages holds
marks, which are looked at afterwards. Memory that torch leaves as it was is NaN; memory that was given back
is there no more. Not for layers under torch.compile or torch.func.
"""

import bisect
import ctypes
import math
import mmap
import weakref
from contextlib import ExitStack, contextmanager
from itertools import count
from types import SimpleNamespace
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from cellfuse.runtime import aten, cpu, fused, kernel_call, step, times, trained, whole

PAGE = mmap.PAGESIZE
EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
BROKEN = []  # what was found of marks
_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def up(size, unit=PAGE):
    return -(-size // unit) * unit


class Memory(mmap.mmap):
    """Bytes between two guards.

    Attributes:
        first: where they begin in this map; address: where they begin.
    """

    marks = ()

    def __new__(cls, size, is_at_end):
        self = super().__new__(cls, -1, up(size) + 2 * PAGE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self))
        self.first = PAGE + (up(size) - size) * is_at_end
        self.address = self.base + self.first
        return self

    def seal(self, used):
        """Guard all pages, and mark all bytes of others, but for the bytes used: pairs of start and stop."""
        used = [(self.first + start, self.first + stop) for start, stop in used if start < stop]
        self.marks = []
        for start, stop in zip([0, *(b for _, b in used)], [*(a for a, _ in used), len(self)], strict=True):
            first, last = up(start), stop // PAGE * PAGE
            if first < last and _protect(self.base + first, last - first, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
            self.marks += [(start, first), (last, stop)] if first < last else [(start, stop)]
        for start, stop in self.marks:
            self[start:stop] = b"\xa5" * (stop - start)

    def check(self):
        if any(self[start:stop] != b"\xa5" * (stop - start) for start, stop in self.marks):
            BROKEN.append(f"written beside a used part of {len(self)} bytes")

    def __del__(self):
        self.check()


class Guarded(TorchDispatchMode):
    """Gives tensors that torch makes such memory.

    Args:
        is_at_end: whether each stands before its guard, else behind it.

    Attributes:
        calls: of kernels so far.
    """

    def __init__(self, is_at_end):
        super().__init__()
        self.is_at_end, self.serial, self.calls = is_at_end, count(1), 0
        self.alive = weakref.WeakValueDictionary()  # Memory by address
        self.parts = {}  # where the parts of memory of so many bytes stand

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if any(each.alias_info for each in func._schema.returns):
            return made
        is_empty = func.overloadpacket.__name__ in EMPTY
        return tree_map_only(torch.Tensor, lambda value: self.moved(value, is_empty), made)

    def moved(self, value, is_empty):
        """The tensor, in guarded memory."""
        storage = value.untyped_storage()
        size, source = storage.nbytes(), storage.data_ptr()
        if value.device.type != "cpu" or not size or source in self.alive:
            return value
        parts = self.parts.get(size)
        memory = self.memory(size, self.is_at_end and parts is None)
        if is_empty:
            memory[memory.first : memory.first + size] = b"\xff" * size  # NaN
        else:
            ctypes.memmove(memory.address, source, size)
        memory.seal(parts or [(0, size)])
        flat = torch.frombuffer(
            memory, dtype=value.dtype, count=size // value.element_size(), offset=memory.first
        )
        assert flat.data_ptr() == memory.address
        return flat.as_strided(value.shape, value.stride(), value.storage_offset())

    def memory(self, size, is_at_end):
        made = Memory(size, is_at_end)
        self.alive[made.address] = made
        return made

    def laid_out(self, parts, size):
        """As kernel_call.laid_out, with a guard after each part; whoever makes this memory makes it so."""
        places, used, total = {}, [], 0
        for name, numbers in parts.items():
            start = total + (up(numbers * size) - up(numbers * size, 64)) * self.is_at_end
            places[name] = start // size
            used.append((start, start + numbers * size))
            total += up(numbers * size) + PAGE
        total += 64 * next(self.serial)  # no two are alike
        for rest in (0, 16 * size):  # a session aligns it
            self.parts[total + rest] = used
        return places, total // size

    def words(self, length):
        """As ctypes.c_int64 * length."""

        def make(*values):
            memory = self.memory(8 * length, self.is_at_end)
            made = (ctypes.c_int64 * length).from_buffer(memory, memory.first)
            made[: len(values)] = values
            memory.seal([(0, 8 * length)])
            return made

        return make

    def check_addresses(self, tables, functions=()):
        """Fail if a call is given memory without guards."""
        places = sorted((memory.base, memory.base + len(memory)) for memory in self.alive.values())
        for table in tables:
            for k, value in enumerate(table):
                if value > 1 << 32 and value not in functions:
                    at = bisect.bisect(places, (value, math.inf)) - 1
                    assert places[at][0] <= value < places[at][1], f"entry {k} of {len(table)} is not guarded"
        self.calls += 1

    def check_session(self, session):
        """The same of a call that is about to run."""
        tables = session.table, session.call, session.copies, session.outers, session.biases
        self.check_addresses(tables, [session.call[kernel_call.AT[name]] for name in ("run", "pack")])

    def check(self):
        """Fail if a mark was written."""
        for memory in list(self.alive.values()):
            memory.check()
        found, BROKEN[:] = list(BROKEN), []
        assert not found, found[0]


class _Words:
    def __init__(self, mode):
        self.mode = mode

    def __mul__(self, length):
        return self.mode.words(length)


def forget():
    """What calls of layers keep for the next ones."""
    kernel_call.SESSIONS.clear()
    times.equal_times.cache_clear()


@contextmanager
def guarded(is_at_end):
    """All that torch makes in here stands in such memory, as what calls of layers do made in here."""
    mode, patched = Guarded(is_at_end), mock.patch.object
    words = SimpleNamespace(**vars(ctypes) | {"c_int64": _Words(mode)})
    run, run_step = kernel_call.run_sessions, step.Step.run

    def checked(sessions):
        for session in sessions:
            mode.check_session(session)
        run(sessions)

    def checked_step(self, *given):
        made = run_step(self, *given)
        mode.check_addresses(self.tables)
        return made

    forget()
    with ExitStack() as stack:
        for module in (aten, cpu, step):  # the kernels' reads are to be seen, not the operations
            stack.enter_context(patched(module, "is_dispatch_mode_active", lambda: False))
        for module in (kernel_call, step, trained):
            stack.enter_context(patched(module, "laid_out", mode.laid_out))
        for module in (kernel_call, step, fused):
            stack.enter_context(patched(module, "ctypes", words))
        for module in (kernel_call, trained, whole):
            stack.enter_context(patched(module, "run_sessions", checked))
        stack.enter_context(patched(step.Step, "run", checked_step))
        with mode:
            yield mode
        mode.check()
    forget()
