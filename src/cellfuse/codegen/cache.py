"""Compiled kernels on disk, so that a program's second start does not compile. Knows no backend.

The folder is $CELLFUSE_CACHE, or cellfuse in the user's cache folder; CELLFUSE_CACHE= (empty) turns it off.
Files are machine code: a folder or file that others own or can write to is not used, and a file that is not
what was written is replaced, with a warning.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_FORM = b"seal of key and code"  # of a file: one of another form is another file
_UNDER_WAY = ".part"
_LONG = 600  # seconds that nobody takes to write a file
_LENGTH = hashlib.sha256().digest_size


def folder() -> Path | None:
    """The folder, made if it does not exist; None if there is none to be trusted."""
    given = os.environ.get("CELLFUSE_CACHE")
    if given == "":
        return None
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(given) if given else Path(base) / "cellfuse"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path if _is_mine(path.stat()) else None
    except (OSError, RuntimeError):  # no folder can be made, or nobody knows where home is
        return None


def _is_mine(status: os.stat_result) -> bool:
    """Whether nobody else can have written it."""
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        return False
    return not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(file: Path) -> bytes:
    """What stands in a file; nothing if it is not there, a link, a pipe, or may be somebody else's."""
    # As they are called where there are such things.
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | flags), "rb") as stream:
            status = os.fstat(stream.fileno())
            return stream.read() if stat.S_ISREG(status.st_mode) and _is_mine(status) else b""
    except OSError:
        return b""


def load(parts: tuple[str, ...], compile: Callable[[], bytes]) -> bytes:
    """What `compile` returns, from disk if it was compiled before from the same `parts`."""
    where = folder()
    if where is None:
        return compile()
    key = hashlib.sha256(_FORM)
    for part in parts:
        key.update(f"{len(part)}:".encode() + part.encode())
    file = where / f"{key.hexdigest()}.o"
    found = _read(file)
    if found:
        if _seal(key.digest(), found[_LENGTH:]) == found[:_LENGTH]:
            return found[_LENGTH:]
        warnings.warn(f"{file} was damaged and is compiled again", RuntimeWarning, stacklevel=2)
    code = compile()
    _write(file, _seal(key.digest(), code) + code)
    return code


def _seal(key: bytes, code: bytes) -> bytes:
    """Of the code under its own name: a whole file in another's place is no less wrong."""
    return hashlib.sha256(key + code).digest()


def _write(file: Path, content: bytes) -> None:
    """All or nothing, because other processes read; a full disk is no reason to fail."""
    try:
        _sweep(file.parent)
        handle, name = tempfile.mkstemp(_UNDER_WAY, dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(name, file)
        except OSError:
            os.unlink(name)
    except OSError:
        return


def _sweep(where: Path) -> None:
    """Remove what processes that were killed have left half written."""
    for file in where.glob(f"*{_UNDER_WAY}"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > _LONG:
                file.unlink()
