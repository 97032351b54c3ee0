"""One call of a CPU kernel: the tables it reads, its working memory, its threads.

The threads are those of torch's OpenMP library; without one, and in a forked process, there is one thread.
A `Session` is what calls of the same sizes have in common; a call only fills in addresses, one by one or all
by `Session.point`. Does not know what the buffers hold: see `fused`.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from cellfuse.codegen.cpu.compile import Driver
from cellfuse.codegen.cpu.driver import CALL, COPY, PLACE
from cellfuse.errors import InputError
from cellfuse.runtime.columns import Use
from cellfuse.runtime.once import Once
from cellfuse.runtime.private import openmp

if TYPE_CHECKING:
    from cellfuse.runtime.fused import Fused

Result = TypeVar("Result")
Copy = tuple[int, int, int, int, int, int]  # see COPY
AT = {name: slot for slot, name in enumerate(CALL)}
_COPIES = AT["copies_before"]  # followed by copies_after
_INSIDE = 16  # place of the counter of meetings inside of the loop
# Seconds that Ctrl-C may have to wait, and multiplications that take less on any processor.
UNHEARD = 0.04
_QUICK = 1 << 24
# Bytes of working memory that sessions may hold between calls.
_HELD = 1 << 26
_MOST = 256  # sessions, the same

_drivers: Once[Driver] = Once()
_NAMED = 56  # bits of the offset from a named tensor


def named(tensor: int) -> int:
    """Stands for where tensor number `tensor` of a call begins, in entries that `Session.point` fills in.

    No address is so large, and to it may be added.
    """
    return tensor + 1 << _NAMED


def check_pointers(pointers: Sequence[int]) -> None:
    """Raise InputError if a weight, which has numbers, has no memory."""
    if 0 in pointers:
        raise InputError("a weight has no memory: its storage was freed or resized to nothing")


def laid_out(parts: Mapping[str, int], size: int) -> tuple[dict[str, int], int]:
    """Where parts of so many numbers, of `size` bytes each, begin in one memory, in cache lines of their own;
    and where the last ends. In numbers."""
    line, places, total = 64 // size, {}, 0
    for name, numbers in parts.items():
        places[name] = total
        total += -(-numbers // line) * line
    return places, total


class Session:
    """Tables and working memory for calls of one kernel with the same sizes; one call at a time.

    Attributes:
        key: of the sizes, in `SESSIONS`.
        outers: the table of the products after the loop; widths: numbers in a row of each result.

    Args:
        name: "forward" or "backward", of the driver's function.
        working: numbers of working memory by the name of their slot in the kernel's table, or in the
            driver's with a leading "*".
        threads: how many share the work.
    """

    def __init__(
        self,
        fused: Fused,
        name: str,
        working: Mapping[str, int],
        copies: int,
        biases: int,
        threads: int,
    ) -> None:
        size, layout = fused.size, fused.layout
        self.key: object = None
        self.fused, self.name, self.threads = fused, name, threads
        self.slots, self.strides, self.size = layout.slots, layout.strides, size
        kind = layout.bits, layout.target
        self.driver = _drivers.get(kind, lambda: Driver(*kind))
        self.table = (ctypes.c_int64 * len(layout.slots))()
        self.call = (ctypes.c_int64 * len(CALL))()
        self._run, self._address = self.driver.run[name], ctypes.addressof(self.call)
        self.copies = (ctypes.c_int64 * (len(COPY) * copies))()
        self.biases = (ctypes.c_int64 * biases)()
        self.widths: list[int] = []
        self.outers: ctypes.Array[ctypes.c_int64] = (ctypes.c_int64 * 0)()
        self._arrived = (ctypes.c_int64 * 32)()  # two counters in cache lines of their own
        self._places = self._tensors = (ctypes.c_int64 * 0)()
        self._starts: Tensor | None = None
        self._tables = (ctypes.c_int64 * (len(layout.slots) * threads))()
        self.places, total = laid_out(working, size)
        self.memory = torch.empty(total + 16, dtype=fused.dtype, device="cpu")
        self.bytes = total * size
        base = self.memory.data_ptr() + 63 & -64
        self.first = (base - self.memory.data_ptr()) // size
        for key, place in self.places.items():
            if key.startswith("*"):
                self.call[AT[key[1:]]] = base + place * size
            elif key in self.slots:
                self.table[self.slots[key]] = base + place * size
        self.set(
            arrived=ctypes.addressof(self._arrived),
            arrived_inside=ctypes.addressof(self._arrived) + 8 * _INSIDE,
            table=ctypes.addressof(self.table),
            table_size=len(self.table),
            tables=ctypes.addressof(self._tables),
            copies=ctypes.addressof(self.copies),
            biases=ctypes.addressof(self.biases),
            scratch_slot=self.slots["scratch"],
            products_slot=self.slots["products"],
            gradients_slot=self.slots["gradients"],
        )

    def set(self, **values: int) -> None:
        """Entries of the driver's table."""
        call = self.call
        for name, value in values.items():
            call[AT[name]] = value

    def memory_of(self, key: str, numbers: int) -> Tensor:
        """A part of the working memory, of these calls only."""
        return self.memory.narrow(0, self.first + self.places[key], numbers)

    def address_of(self, key: str) -> int:
        """Where a part of the working memory begins."""
        return self.memory.data_ptr() + (self.first + self.places[key]) * self.size

    def give(self, name: str, tensor: Tensor) -> None:
        """Point a slot to a tensor that holds all rows."""
        self.table[self.slots[name]] = tensor.data_ptr()

    def give_state(self, k: int, slabs: int, initial: int, mask: int) -> None:
        """Point to a state's slabs and to its initial value."""
        first = self.slots[f"states.{k}"]  # followed by initial.k and mask.k
        self.table[first : first + 3] = [slabs, initial, mask]

    def set_starts(self, starts: Tensor) -> None:
        """Point to the row of each time step."""
        self._starts = starts  # lives as long as this
        pointer = starts.data_ptr()
        self.table[self.slots["starts"]] = pointer
        self.call[AT["starts"]] = pointer

    def bind(self, use: Use, pointer: int, shape: torch.Size) -> None:
        """Point to a weight, which is dense."""
        check_pointers((pointer,))
        row = self.size * (shape[1:].numel() if len(shape) > 1 else 1)
        for slot, first in use.slots:
            self.table[slot] = pointer + first * row
        for place, first in use.biases:
            self.biases[place] = pointer + first * self.size
        if use.is_input:
            self.call[AT["weight"]] = pointer

    def copy(self, before: Sequence[Copy], after: Sequence[Copy]) -> None:
        """What is copied before and after the loop, in this order."""
        self.call[_COPIES] = len(before)
        self.call[_COPIES + 1] = len(after)
        values: list[Any] = [value for copy in (*before, *after) for value in copy]
        self.copies[: len(values)] = values

    def find_named(self, count: int) -> None:
        """Note all entries that are counted from one of `count` named tensors, for `point`."""
        places: list[Any] = []
        for table in (self.table, self.call, self.copies, self.biases, self.outers):
            at = ctypes.addressof(table)
            for k, value in enumerate(table):
                if value >> _NAMED > 0:
                    tensor = (value >> _NAMED) - 1
                    places += at + 8 * k, tensor, value - named(tensor)
        self._places, self._tensors = (ctypes.c_int64 * len(places))(*places), (ctypes.c_int64 * count)()
        self.set(
            places=ctypes.addressof(self._places),
            place_count=len(places) // len(PLACE),
            tensors=ctypes.addressof(self._tensors),
        )

    def point(self, tensors: list[Any]) -> None:
        """Say where the named tensors begin, in their order; 0 for one that is not there."""
        self._tensors[:] = tensors
        self.driver.point(self._address)

    def plan(self, steps: int, chunk: int, work: int, is_worth_threads: bool) -> None:
        """What a run does.

        Args:
            steps: T.
            chunk: time steps between the loop and the products around it.
            work: multiplications in all.
            is_worth_threads: whether another thread is worth waking for another call.
        """
        self.steps, self.chunk, self.is_worth_threads = steps, chunk, is_worth_threads
        # Steps in one call of native code, which no signal interrupts; measured while it runs.
        self.unheard = max(chunk, _QUICK * steps // max(work, 1) // chunk * chunk)
        self.set(steps=steps, chunk=chunk, first=0, last=steps, is_begin=1, is_end=1)

    def run(self) -> None:
        """Run all time steps, in pieces so short that Ctrl-C is heard."""
        _in_pieces([self], self._enter)

    def piece(self, done: int, size: int) -> None:
        """The next native call is for `size` time steps after `done` of them."""
        first, last = done, done + size
        if self.name == "backward":
            first, last = self.steps - last, self.steps - first
        self.set(first=first, last=last, is_begin=done == 0, is_end=done + size == self.steps)

    def _enter(self) -> None:
        library = openmp() if self.threads > 1 else None
        if library is None:
            self._run(self._address, 0, 1)
            return
        self._arrived[0] = self._arrived[_INSIDE] = 0
        library.run(self.driver.enter[self.name], self._address, self.threads)

    def run_beside(self, other: Session) -> None:
        """Run this and another call of as many time steps, each in half of the threads."""
        library = openmp() if self.is_worth_threads and other.is_worth_threads else None
        if library is None:
            self.run()
            other.run()
            return
        calls = (ctypes.c_int64 * 2)(self._address, other._address)

        def enter() -> None:
            for session in (self, other):
                session._arrived[0] = session._arrived[_INSIDE] = 0
            address = ctypes.addressof(calls)
            library.run(self.driver.enter_both[self.name], address, self.threads + other.threads)

        _in_pieces([self, other], enter)


def copied(to: int, source: int, size: int) -> Copy:
    """A copy of so many bytes that stand together."""
    return to, source, size, 1, 0, 0


def copied_rows(to: int, source: int, size: int, rows: int, to_step: int, from_step: int) -> Copy:
    """A copy of rows of so many bytes; as one if they stand together."""
    if size == to_step == from_step:
        return to, source, size * rows, 1, 0, 0
    return to, source, size, rows, to_step, from_step


def _in_pieces(sessions: Sequence[Session], enter: Callable[[], None]) -> None:
    """Call `enter` for all time steps of some sessions, a piece at a time."""
    steps, unheard = sessions[0].steps, min(session.unheard for session in sessions)
    if unheard >= steps:
        enter()
        return
    chunk = max(session.chunk for session in sessions)
    done = 0
    try:
        while done < steps:
            size = min(unheard, steps - done)
            for session in sessions:
                session.piece(done, size)
            start = time.perf_counter()
            enter()
            seconds = time.perf_counter() - start
            done += size
            fitting = int(size * UNHEARD / max(seconds, 1e-9))
            unheard = max(chunk, min(4 * size, fitting) // chunk * chunk)
    finally:
        for session in sessions:
            session.unheard = unheard
            session.piece(0, steps)


def run_all(calls: Sequence[Generator[Session, None, Result]]) -> list[Result]:
    """What one or two calls return, side by side where there are threads for it.

    A call yields its session when that is ready, and goes on when it has run.
    """
    run_sessions([next(call) for call in calls])
    return [_result(call) for call in calls]


def run_sessions(sessions: Sequence[Session]) -> None:
    """Run one, or two side by side where there are threads for it."""
    if len(sessions) == 2:
        sessions[0].run_beside(sessions[1])
    else:
        sessions[0].run()


def _result(call: Generator[Session, None, Result]) -> Result:
    try:
        next(call)
    except StopIteration as end:
        made: Result = end.value
        return made
    raise AssertionError("a call has one session")


class Sessions:
    """Sessions between calls, by key, the last used ones; any thread may take one."""

    def __init__(self) -> None:
        self._free: dict[object, list[Session]] = {}  # the last given back stand last
        self._held = self._count = 0
        self._lock = threading.Lock()

    def take(self, key: object) -> Session | None:
        """A free session, which is no one else's until it is given back."""
        with self._lock:
            kept = self._free.get(key)
            if kept is None:
                return None
            session = kept.pop()
            if not kept:
                del self._free[key]
            self._count_in(session, -1)
            return session

    def give_back(self, session: Session) -> None:
        """Keep a session for later; the longest unused ones are dropped if all hold too much."""
        if session.bytes > _HELD // 2:
            return
        with self._lock:
            kept = self._free.pop(session.key, [])
            kept.append(session)
            self._free[session.key] = kept
            self._count_in(session, 1)
            while self._held > _HELD or self._count > _MOST:
                key, oldest = next(iter(self._free.items()))
                self._count_in(oldest.pop(0), -1)
                if not oldest:
                    del self._free[key]

    def _count_in(self, session: Session, by: int) -> None:
        self._count += by
        self._held += by * session.bytes

    def kept(self) -> list[Session]:
        """Those that are free."""
        with self._lock:
            return [session for each in self._free.values() for session in each]

    def renew(self) -> None:
        """Begin anew, in a forked process."""
        self.__init__()  # type: ignore[misc]

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._free.clear()
            self._held = self._count = 0


SESSIONS = Sessions()
if hasattr(os, "register_at_fork"):  # another thread of the parent may hold the lock
    os.register_at_fork(after_in_child=SESSIONS.renew)
