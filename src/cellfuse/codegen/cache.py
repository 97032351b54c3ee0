"""Compiled kernels on disk, so that a program's second start does not compile. Knows no backend.

The folder is $CELLFUSE_CACHE, or cellfuse in the user's cache folder; CELLFUSE_CACHE= (empty) turns it off.
Files are machine code: a folder that others can write to is not used, and a file that is not what was
written is replaced, with a warning.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

_FORM = b"seal of key and code"  # of a file: one of another form is another file
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
        status = path.stat()
    except (OSError, RuntimeError):  # no folder can be made, or nobody knows where home is
        return None
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        return None
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return path


def load(parts: tuple[str, ...], compile: Callable[[], bytes]) -> bytes:
    """What `compile` returns, from disk if it was compiled before from the same `parts`."""
    where = folder()
    if where is None:
        return compile()
    key = hashlib.sha256(_FORM)
    for part in parts:
        key.update(f"{len(part)}:".encode() + part.encode())
    file = where / f"{key.hexdigest()}.o"
    try:
        found = file.read_bytes()
    except OSError:
        found = b""
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
        handle, name = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(name, file)
        except OSError:
            os.unlink(name)
    except OSError:
        return
