"""A run on disk: written whole or not at all, and read back only if it fits.

The file is torch's own format with its SHA-256 behind it: torch.load does not mind, and does not
see a changed byte in a tensor by itself. It holds tensors, numbers and text only, so that reading
one never runs code.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from cellfuse.errors import TaskError

NAME = "checkpoint.pt"
FORMAT = 1
# What torch.load and two look-ups raise on bytes that are no checkpoint.
UNREADABLE = (RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError, UnpicklingError)


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a new file beside the old one, then put it in its place in one move."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    raw = buffer.getvalue()
    draft = path.with_name(path.name + ".new")
    with draft.open("wb") as file:
        file.write(raw + hashlib.sha256(raw).digest())
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def load(path: Path, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of a run with these fixed settings.

    Raises:
        TaskError: there is no file, it is damaged, or it belongs to another run.
    """
    if not path.is_file():
        raise TaskError(f"--resume: there is no {path}. Leave --resume out to start a new run.")
    try:
        content = _read(path)
        found, theirs = content["format"], content["fixed"]
    except UNREADABLE as error:
        raise TaskError(
            f"{path} cannot be read as a checkpoint, it is damaged or something else "
            f"({type(error).__name__}). Delete it and start a new run, or write another --out."
        ) from error
    if found != FORMAT:
        raise TaskError(f"{path} has checkpoint format {found}, this version reads {FORMAT}.")
    for name in sorted({*theirs, *fixed}):
        if theirs.get(name) != fixed.get(name):
            raise TaskError(_difference(path, name, theirs.get(name), fixed.get(name)))
    return content


def _read(path: Path) -> dict[str, Any]:
    whole = path.read_bytes()
    raw, checksum = whole[:-32], whole[-32:]
    if hashlib.sha256(raw).digest() != checksum:
        raise ValueError("the checksum does not fit")
    content: dict[str, Any] = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    return content


def _difference(path: Path, name: str, theirs: Any, ours: Any) -> str:
    if name == "equation":
        return (
            f"{path} was made with another equation of this cell: its file, or cellfuse, has "
            "changed. Restore it, or start a new run with another --out."
        )
    flag = "--set" if name == "options" else "--" + name.replace("_", "-")
    return (
        f"{path} was made with {flag} {theirs}, this run asks for {flag} {ours}. Give the value it "
        "was made with, or start a new run with another --out."
    )
