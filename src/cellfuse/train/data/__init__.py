"""The data files shipped with the package. README.md says what they are and how they were made."""

from __future__ import annotations

import hashlib
import io
import lzma
from importlib.resources import files

import numpy as np

from cellfuse.errors import TaskError

# SHA-256 of each file: `scripts/make_train_data.py` gives the same bytes again.
CHECKSUMS = {
    "japanese_vowels.npz": "db79ee7c442a10a1d55c632ac6fdab05f7e7b96a5a3965e526ee106dde61da08",
    "kjv_new_testament.txt.xz": "3d7aaf486eacffda31dfd5c1d7de810dc532c825bdb1c4f78e6dbc72977a3656",
}


def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    with np.load(io.BytesIO(read(name)), allow_pickle=False) as stored:
        return dict(stored)


def text(name: str) -> str:
    """The text of an .xz file."""
    return lzma.decompress(read(name)).decode("ascii")


def read(name: str) -> bytes:
    """The bytes of a shipped file, checked.

    Raises:
        TaskError: they are not the ones that were shipped.
    """
    raw = files(__name__).joinpath(name).read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != CHECKSUMS[name]:
        raise TaskError(
            f"{name}: the file is damaged (SHA-256 {found[:12]}..., expected "
            f"{CHECKSUMS[name][:12]}...). Install cellfuse again."
        )
    return raw
