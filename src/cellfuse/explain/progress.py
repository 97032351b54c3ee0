"""How far a long explanation is: nothing for two seconds, then a line on the terminal, written over."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from cellfuse.explain.words import LANGUAGES, say

# Called with what is being done now, such as ("statement", 3, 12).
Watch = Callable[[str, int, int], None]

# Seconds before the first line, and between two of them on a terminal and in a file.
_FIRST, _TERMINAL, _FILE = 2.0, 0.2, 10.0


class Progress:
    """A Watch that writes to `stream`; standard error if None."""

    def __init__(self, lang: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._place, self._stream, self._clock = LANGUAGES.index(lang), stream or sys.stderr, clock
        self._next = clock() + _FIRST
        self._written = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say it, unless it is too early or the last line is fresh."""
        if self._clock() < self._next:
            return
        is_terminal = self._stream.isatty()
        self._next = self._clock() + (_TERMINAL if is_terminal else _FILE)
        text = say(f"progress {what}", done=done, total=total)[self._place]
        if is_terminal:
            self._stream.write(f"\r{text:<{self._written}}")
            self._written = len(text)
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._written:
            self._stream.write("\r" + " " * (2 * self._written) + "\r")
            self._stream.flush()
