"""CUDA graphs of loops over time: one replay in place of two launches a step. Each has memory of its own.

A graph is captured when the same shape comes the second time; the few used last are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

# Graphs that a cell keeps, and the bytes that one may hold.
KEPT = 4
LARGEST = 1 << 30
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
    """A graph and its memory."""

    memory: M
    replay: Callable[[], None]


class Graphs(Generic[M]):
    """The graphs of one cell by shape. Whoever uses one holds `lock` from copying in to copying out."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._found: OrderedDict[Hashable, Captured[M]] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def is_worth(self, key: Hashable) -> bool:
        """Whether there is a graph of this shape, or the shape comes the second time."""
        if key in self._found or key in self._seen:
            return True
        self._seen[key] = None
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def get(self, key: Hashable, make: Callable[[], M], run: Callable[[M], None]) -> Captured[M]:
        """The graph of a shape, captured if there is none."""
        found = self._found.get(key)
        if found is None:
            memory = make()
            found = Captured(memory, capture(lambda: run(memory)))
            self._found[key] = found
            while len(self._found) > KEPT:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return found
