"""llvmlite's binding, imported when it is first used: the CUDA kernels run on machines without it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cellfuse.errors import BackendError


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)  # Python's own questions about a module
    return getattr(_binding(), name)


@lru_cache(maxsize=1)
def _binding() -> Any:
    try:
        import llvmlite.binding
    except ImportError as problem:
        raise BackendError(
            f"CPU kernels need llvmlite, which cannot be imported here ({problem}); pip install llvmlite, "
            "or write backend='eager', which runs without it"
        ) from problem
    return llvmlite.binding
