"""Whether float32 products on a GPU may be made in TF32, by torch's switches.

torch.nn's layers follow `torch.backends.cudnn.rnn` (TF32 unless switched off), other products
`torch.backends.cuda.matmul` (float32 unless switched on). So do ours: a cell that torch has follows the
first, any other the second, as the formula does in plain torch.

The switch of products is one for the process. Threads that need the same setting use it together, those that
need the other wait.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cellfuse.cell import Cell


class _Switch:
    """Torch's switch of float32 products, with the threads that rely on it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.threads: Counter[int] = Counter()
        self.setting = False  # TF32, while there are threads
        self.users = "ieee"  # the setting of whoever uses torch, while there are threads
        self.older: bool | None = None  # the same by the older switch; None if ours is no other
        self.waiting = 0
        self.turn = 0

    def enter(self, tf32: bool) -> None:
        """Wait until the switch is as wished, or can be set so. Who comes later waits longer."""
        me = threading.get_ident()
        with self.changed:
            if me in self.threads:
                if tf32 != self.setting:
                    raise RuntimeError("one thread wants float32 products in TF32 and not in TF32 at once")
            elif self.threads and (tf32 != self.setting or self.waiting):
                turn, self.waiting = self.turn, self.waiting + 1
                try:
                    self.changed.wait_for(
                        lambda: not self.threads or (self.turn != turn and self.setting == tf32)
                    )
                finally:
                    self.waiting -= 1
            if not self.threads:
                self._set(tf32)
            self.threads[me] += 1

    def _set(self, tf32: bool) -> None:
        matmul = torch.backends.cuda.matmul
        self.turn, self.setting, self.users, self.older = self.turn + 1, tf32, matmul.fp32_precision, None
        if (self.users == "tf32") == tf32:
            return
        # The older switch sets both; read alone it raises where a user has set the newer one.
        try:
            self.older = matmul.allow_tf32
        except RuntimeError:
            self.older = self.users != "tf32"
        matmul.allow_tf32 = tf32

    def leave(self) -> None:
        """The last thread sets what was set before."""
        me, matmul = threading.get_ident(), torch.backends.cuda.matmul
        with self.changed:
            self.threads[me] -= 1
            if self.threads[me]:
                return
            del self.threads[me]
            if self.threads:
                return
            if self.older is not None:
                matmul.allow_tf32 = self.older
                if matmul.fp32_precision != self.users:
                    matmul.fp32_precision = self.users
            self.changed.notify_all()

    def is_tf32(self) -> bool:
        """Whether a user has set TF32."""
        with self.changed:
            return bool((self.users if self.threads else torch.backends.cuda.matmul.fp32_precision) == "tf32")


_switch = _Switch()


def is_tf32(cell: Cell) -> bool:
    """Whether a cell's products may be made in TF32."""
    rnn: Any = torch.backends.cudnn.rnn
    return bool(rnn.fp32_precision == "tf32") if cell.aten else _switch.is_tf32()


def product_switches(cell: Cell) -> Hashable:
    """All switches of torch that a product is chosen by: a captured one keeps what was set."""
    matmul = torch.backends.cuda.matmul
    return (
        is_tf32(cell),
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_fp16_accumulation,
    )


@contextmanager
def matmul_in(tf32: bool) -> Iterator[None]:
    """Make torch's float32 products on a GPU in TF32, or not, for a while."""
    _switch.enter(tf32)
    try:
        yield
    finally:
        _switch.leave()
