"""What takes long to make and is made once, whichever threads ask for it; a bounded number is kept.

It is made in a thread of its own: whoever waits for it can be interrupted, the making goes on, and the next
call finds it. A process is not forked meanwhile, because the child would inherit locks that nobody opens.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")

# One for all, so that a fork has one lock to hold.
_changed = threading.Condition()
_making: set[int] = set()  # threads


class Once(Generic[Value]):
    """Values by key.

    Args:
        most: how many are kept; the oldest goes first, and lives on where it is in use.
    """

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._made: dict[Any, Value] = {}
        self._coming: dict[Any, Future[Value]] = {}

    def get(self, key: Any, make: Callable[[], Value]) -> Value:
        """The value of a key, made by `make` if there is none; its exception is everybody's who waits."""
        found = self._made.get(key)
        if found is not None:
            return found
        mine: Future[Value] = Future()
        # The thread itself says that the value is coming: this one may be interrupted anywhere.
        thread = threading.Thread(target=self._run, args=(key, make, mine), name="cellfuse compile")
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is about to end
            self._run(key, make, mine)
        return mine.result()

    def _run(self, key: Any, make: Callable[[], Value], mine: Future[Value]) -> None:
        with _changed:
            found, other = self._made.get(key), self._coming.get(key)
            if found is None and other is None:
                self._coming[key] = mine
                _making.add(threading.get_ident())
        if found is not None:
            mine.set_result(found)
        elif other is not None:
            _copy(other, mine)
        else:
            self._make(key, make, mine)

    def _make(self, key: Any, make: Callable[[], Value], mine: Future[Value]) -> None:
        value, error = None, None
        try:
            value = make()
        except BaseException as raised:  # noqa: BLE001 - handed on
            error = raised
        with _changed:
            _making.discard(threading.get_ident())
            self._coming.pop(key, None)
            if value is not None:
                self._made[key] = value
                while len(self._made) > self._most:
                    del self._made[next(iter(self._made))]
            _changed.notify_all()
        if error is None:
            mine.set_result(value)  # type: ignore[arg-type]
        else:
            mine.set_exception(error)


def _copy(source: Future[Value], target: Future[Value]) -> None:
    try:
        target.set_result(source.result())
    except BaseException as error:  # noqa: BLE001 - handed on
        target.set_exception(error)


def _before_fork() -> None:
    _changed.acquire()
    while _making - {threading.get_ident()}:
        _changed.wait()


def _after_fork() -> None:
    _changed.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
