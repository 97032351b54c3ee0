"""CUDA graphs of loops over time: one replay in place of two launches a step. Each has memory of its own.

A graph is captured when the same shape comes the second time, if there is room for its memory. Only graphs
out of use for long make room for others: shapes that come in turn are not captured again and again.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch

# Graphs that a cell keeps, and the bytes that all graphs may hold on a device of unknown memory, or of any.
KEPT = 64
UNKNOWN = 1 << 30
MOST = 24 << 30
# A graph that was not used in so many uses of graphs makes room for others.
IDLE = 512
# A shape that found no room asks again after so many calls.
_RETRY = 64
# Shapes that are remembered to have come once.
_REMEMBERED = 256

M = TypeVar("M")


def is_capturing(device: torch.device) -> bool:
    """Whether the caller is capturing work on this device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def can_capture(device: torch.device) -> bool:
    """Whether work on a device can be captured: not on a CPU, nor where the caller is capturing already."""
    return device.type == "cuda" and not is_capturing(device)


def stream_of(device: torch.device) -> int:
    """The number of torch's current stream: graphs share their memory with nothing on another stream."""
    return int(torch.cuda.current_stream(device).cuda_stream)


@lru_cache(maxsize=64)
def room(device: torch.device) -> int:
    """Bytes that all graphs may hold on a device: a quarter of its memory."""
    if not torch.cuda.is_available():
        return UNKNOWN  # an emulator's
    return min(MOST, torch.cuda.get_device_properties(device).total_memory // 4)


def free(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if not torch.cuda.is_available():
        return UNKNOWN
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def capture(run: Callable[[], None]) -> Callable[[], None]:
    """What runs the same work again, on the same memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # loads what it needs
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        run()
    return graph.replay


@dataclass
class Captured(Generic[M]):
    """A graph and its memory, with the bytes of it; `used` counts the uses of all graphs."""

    memory: M
    replay: Callable[[], None]
    bytes: int
    device: torch.device
    used: int


class Graphs(Generic[M]):
    """The graphs of one cell by shape. Whoever uses one holds `lock` from copying in to copying out."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._found: dict[Hashable, Captured[M]] = {}
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        with _capturing:
            _all.add(self)

    def is_worth(self, key: Hashable) -> bool:
        """Whether there is a graph of this shape, or the shape comes again and was not refused lately."""
        if key in self._found:
            return True
        wait = self._seen.get(key)
        if wait is None:
            self._seen[key] = 0
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        elif wait > 0:
            self._seen[key] = wait - 1
        return wait == 0

    def get(
        self,
        key: Hashable,
        size: int,
        device: torch.device,
        make: Callable[[], M],
        run: Callable[[M], None],
    ) -> Captured[M] | None:
        """The graph of a shape, captured if there is none; None without room for its `size` bytes."""
        found, now = self._found.get(key), next(_uses)
        if found is None:
            with _capturing:
                if not self._has_room(size, device, now):
                    self._seen[key] = _RETRY
                    return None
                memory = make()
                found = Captured(memory, capture(lambda: run(memory)), size, device, now)
                self._found[key] = found
        found.used = now
        return found

    def _has_room(self, size: int, device: torch.device, now: int) -> bool:
        """Whether there is room for one more graph, after those that were not used for long have gone."""
        if size > room(device):
            return False
        while len(self._found) >= KEPT:
            if not self._drop_oldest(device, now):
                return False
        while size + sum(graphs.held(device) for graphs in _all) > room(device):
            # Not one that another thread works with.
            if not any(graphs._dropped_by(self, device, now) for graphs in _all):
                return False
        return 2 * size <= free(device)

    def held(self, device: torch.device) -> int:
        """Bytes of all graphs on a device."""
        return sum(one.bytes for one in self._found.values() if one.device == device)

    def _dropped_by(self, other: Graphs[M], device: torch.device, now: int) -> bool:
        """Whether a graph was dropped to make room for one of others."""
        if self is other:
            return self._drop_oldest(device, now)
        if not self.lock.acquire(blocking=False):
            return False
        try:
            return self._drop_oldest(device, now)
        finally:
            self.lock.release()

    def _drop_oldest(self, device: torch.device, now: int) -> bool:
        """Drop the graph of a device that was used last longest ago, if that is long ago."""
        idle = [(one.used, key) for key, one in self._found.items() if one.device == device]
        used, key = min(idle, default=(now, None), key=lambda pair: pair[0])
        if now - used <= IDLE:
            return False
        del self._found[key]
        return True


# All that there are, one lock for who captures or drops, and the uses of graphs.
_all: weakref.WeakSet[Graphs[Any]] = weakref.WeakSet()
_capturing = threading.Lock()
_uses = itertools.count()
