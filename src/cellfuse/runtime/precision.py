"""Whether float32 products on a GPU may be made in TF32, by torch's switches.

torch.nn's layers follow `torch.backends.cudnn.rnn` (TF32 unless switched off), other products
`torch.backends.cuda.matmul` (float32 unless switched on). So do ours: a cell that torch has follows the
first, any other the second, as the formula does in plain torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cellfuse.cell import Cell


def is_tf32(cell: Cell) -> bool:
    """Whether a cell's products may be made in TF32."""
    switch = torch.backends.cudnn.rnn if cell.aten else torch.backends.cuda.matmul
    return bool(switch.fp32_precision == "tf32")


@contextmanager
def matmul_in(tf32: bool) -> Iterator[None]:
    """Make torch's float32 products on a GPU in TF32, or not, for a while."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if (before == "tf32") == tf32:
        yield
        return
    # The older switch sets both; read alone it raises where a user has set the newer one.
    try:
        older = matmul.allow_tf32
    except RuntimeError:
        older = before != "tf32"
    matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32 = older
        if matmul.fp32_precision != before:
            matmul.fp32_precision = before
