"""Ctrl-C and SIGTERM as a wish to stop: noted here, obeyed by the loop at the next step edge."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Catches both signals while it is open, and passes them on to processes this one started.

    Attributes:
        signal: number of the first signal that came, or 0.
    """

    def __init__(self) -> None:
        """Nothing is caught before `with`."""
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Catch. Outside the main thread Python has no signal handlers, and nothing is caught."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)
