"""Compiled kernels on disk, so that a program's second start does not compile. Knows no backend.

The folder is $CELLFUSE_CACHE, or cellfuse in the user's cache folder; CELLFUSE_CACHE= (empty) turns it off.
Files are machine code: a folder that others own or can write to, or could put another in its place, is not
used, with a warning, nor is such a file; one that is not what was written is replaced, with a warning.
At most 256 MB stay.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_FORM = b"seal of key and code"  # of a file: one of another form is another file
_UNDER_WAY = ".part"
_LONG = 600  # seconds that nobody takes to write a file
_DAY = 86400  # a file in use is marked so at most this often
_MOST = 256 * 2**20  # bytes of all files
_LENGTH = hashlib.sha256().digest_size
_warned: set[str] = set()


def folder() -> Path | None:
    """The folder, made if it does not exist; None if there is none to be trusted."""
    given = os.environ.get("CELLFUSE_CACHE")
    if given == "":
        return None
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(given).expanduser() if given else Path(base) / "cellfuse"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve()  # what is checked is what is used, wherever a link leads later
        why = _fault(path)
    except (OSError, RuntimeError):  # no folder can be made, or nobody knows where home is
        return None
    if why is None:
        return path
    text = (
        f"kernels are not kept in {path}, because {why}: make it yours alone (chmod 700), "
        "or set CELLFUSE_CACHE to a folder that is, or to nothing"
    )
    if text not in _warned:
        _warned.add(text)
        _warn(text)
    return None


def _warn(text: str) -> None:
    """A warning that is never an error, because what was compiled is right."""
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    except RuntimeWarning:
        print(f"cellfuse: {text}", file=sys.stderr)  # noqa: T201


def _fault(path: Path) -> str | None:
    """Why a folder, with no links in its path, is not to be trusted; None if it is."""
    if not hasattr(os, "getuid"):
        return None
    for place in (path, *path.parents):
        status = place.stat()
        if status.st_uid != os.getuid() and (place == path or status.st_uid != 0):
            return f"{place} belongs to somebody else"
        others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if place != path and _is_private(status):
            others &= ~stat.S_IWGRP
        is_sticky = place != path and status.st_mode & stat.S_ISVTX
        if others and not is_sticky:
            return f"others can write to {place}"
    return None


def _is_private(status: os.stat_result) -> bool:
    """Whether a folder's group is the user's alone, by the convention that it has the user's number."""
    return status.st_uid == status.st_gid == os.getuid()


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
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > _DAY:
                    os.utime(file)
            return found[_LENGTH:]
    code = compile()
    _write(file, _seal(key.digest(), code) + code)
    if found:
        _warn(f"{file} was damaged and is compiled again")
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
        _prune(file)
    except OSError:
        return


def _sweep(where: Path) -> None:
    """Remove what processes that were killed have left half written."""
    for file in where.glob(f"*{_UNDER_WAY}"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > _LONG:
                file.unlink()


def _prune(new: Path) -> None:
    """Remove the files longest out of use, but not the new one, until no more than _MOST bytes are left."""
    found = []
    for file in new.parent.glob("*.o"):
        with suppress(OSError):  # another process was faster
            status = file.lstat()
            found.append((file == new, status.st_mtime, status.st_size, file))
    size = sum(entry[2] for entry in found)
    for is_new, _, length, file in sorted(found):
        if size <= _MOST or is_new:
            return
        with suppress(OSError):
            file.unlink()
        size -= length
