"""Rows of numbers from 0 to 255 and 256 colours as a PNG file in a data address. Needs no library."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

# Every number is a block of pixels, at least so many each way and so many across the picture: some
# programs blur what they enlarge.
_BLOCK, _ACROSS = 6, 300


def data_address(rows: Sequence[bytes], colours: Sequence[tuple[int, int, int]]) -> str:
    """The picture of one block per number."""
    across = max(_BLOCK, _ACROSS // len(rows[0]))
    wide = [bytes(level for level in row for _ in range(across)) for row in rows]
    rows = [row for row in wide for _ in range(_BLOCK)]
    return "data:image/png;base64," + base64.b64encode(png(rows, colours)).decode()


def png(rows: Sequence[bytes], colours: Sequence[tuple[int, int, int]]) -> bytes:
    """A PNG file with a palette."""
    size = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    palette = b"".join(bytes(colour) for colour in colours)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    parts = [(b"IHDR", size), (b"PLTE", palette), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
