"""The few private names of torch that cellfuse needs, each with a test in tests/test_private.py."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad

_T = TypeVar("_T")


def is_functorch_active() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp) is running."""
    return bool(torch._C._are_functorch_transforms_active())


def is_batched(value: torch.Tensor) -> bool:
    """Whether a tensor stands for several, as autograd.grad(is_grads_batched=True) makes them."""
    functorch = torch._C._functorch
    return bool(functorch.is_batchedtensor(value) or functorch.is_legacy_batchedtensor(value))


def similarity(values: Sequence[torch.Tensor]) -> Callable[..., bool]:
    """A quick function of as many tensors: whether each is like the one given here, which is not kept.

    In type, dtype, device, shape, strides, whether it requires a gradient, and in what torch dispatches on: a
    negated view, or the same tensor in a mode such as autocast or inference mode, is not alike.
    """
    made = torch._C._dynamo.guards.TensorGuards(*values, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    check: Callable[..., bool] = made.check
    return check


def constant_in_graphs(function: Callable[..., _T]) -> Callable[..., _T]:
    """Decorates what torch.compile is to call while it traces, and to take the result for a constant.

    torch.compiler.assume_constant_result does no more, but loads torch's whole compiler, more than a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_forward_ad_active() -> bool:
    """Whether a forward-mode level of torch.autograd.forward_ad is open."""
    return bool(forward_ad._current_level >= 0)


def torch_operator(name: str):  # type: ignore[no-untyped-def]
    """torch's own recurrent operator, as torch.nn calls it: lstm, gru, rnn_tanh, rnn_relu."""
    return getattr(torch._VF, name)


def is_any_autocast_enabled() -> bool:
    """Whether autocast is on for any device type."""
    return bool(torch._C._is_any_autocast_enabled())


def has_onednn_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor (AVX-512 with bf16 or AMX)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


# Asked once, because torch.compile could not look into the question.
_QUICK = {
    torch.bfloat16: torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported(),
    torch.float16: torch.cpu._is_amx_fp16_supported(),
}


def is_quick_in(dtype: torch.dtype) -> bool:
    """Whether the processor, and torch, multiply a dtype faster than float32: AMX, AVX-512 with bf16."""
    return _QUICK.get(dtype, False)


@lru_cache
def has_onednn_float16(is_autocast: bool) -> bool:
    """Whether torch's LSTM runs in float16 on this processor, tried once on a tiny one.

    What torch says of oneDNN and float16 is about matrix products; its LSTM wants more.
    """
    dtype = torch.float32 if is_autocast else torch.float16
    x, h, weight = (torch.zeros(s, dtype=dtype, device="cpu") for s in ((1, 1, 1), (1, 1, 1), (4, 1)))
    try:
        for needs_grad in (False, True):
            with (
                torch.set_grad_enabled(needs_grad),
                torch.autocast("cpu", torch.float16, enabled=is_autocast, cache_enabled=False),
            ):
                weights = [weight.clone().requires_grad_(needs_grad) for _ in range(2)]
                output = torch.lstm(x, (h, h), weights, False, 1, 0.0, needs_grad, False, False)[0]
            if needs_grad:
                output.float().sum().backward()
    except RuntimeError:
        return False
    return True


def is_dispatch_mode_active() -> bool:
    """Whether a torch dispatch mode (fake tensors, flop counters) is running."""
    return bool(torch._C._len_torch_dispatch_stack())


def has_global_hooks() -> bool:
    """Whether hooks for all modules are registered."""
    return bool(torch.nn.modules.module._has_any_global_hook())


def below_autograd() -> Any:
    """A context in which operators are called without their autograd kernels."""
    return torch._C._AutoDispatchBelowAutograd()


class OpenMP:
    """torch's own OpenMP library, whose threads run our kernels, too: a pool beside it would slow torch."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._parallel = library.GOMP_parallel
        self._parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None
        names = (library.omp_get_thread_num, library.omp_get_num_threads)
        self._queries = [ctypes.cast(name, ctypes.c_void_p).value or 0 for name in names]

    def run(self, function: int, call: int, threads: int) -> None:
        """Run function(data) in some threads, or in fewer if no more are granted; data begins with `call`."""
        data = (ctypes.c_int64 * 3)(call, *self._queries)
        self._parallel(function, ctypes.addressof(data), threads, 0)


_process = os.getpid()


@lru_cache(maxsize=1)
def _openmp() -> OpenMP | None:
    folder = Path(torch.__file__).parent / "lib"
    for pattern in ("libgomp*.so*", "libomp*.so*", "libiomp5*", "libomp*.dylib"):
        for file in sorted(folder.glob(pattern)):
            try:
                return OpenMP(ctypes.CDLL(str(file)))
            except (OSError, AttributeError):
                continue
    return None


def openmp() -> OpenMP | None:
    """torch's OpenMP library; None where there is none that can be called.

    Nor in a process that was forked after torch was loaded: it has none of the library's threads, which the
    library does not know.
    """
    return _openmp() if os.getpid() == _process else None
