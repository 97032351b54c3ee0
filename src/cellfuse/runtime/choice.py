"""Which backend runs a case, and why the others do not. The table is in order of preference."""

from __future__ import annotations

from types import ModuleType

from cellfuse.errors import BackendError, OptionError
from cellfuse.runtime import aten, cpu, cuda, eager
from cellfuse.runtime.case import Case, Result

BACKENDS: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda, "aten": aten, "eager": eager}


def check_name(backend: str) -> None:
    """Raise OptionError unless `backend` is "auto" or a name in BACKENDS."""
    if backend != "auto" and backend not in BACKENDS:
        raise OptionError(f"backend={backend!r}: use 'auto' or one of {', '.join(BACKENDS)}")


def reasons(case: Case) -> dict[str, str]:
    """For every backend why it cannot run the case, or why "auto" passes it over; empty where neither."""
    return {name: module.why_not(case) or _why_rather_not(name, case) for name, module in BACKENDS.items()}


def _why_rather_not(name: str, case: Case) -> str:
    """Why "auto" passes over a backend that could run the case; empty if it does not."""
    module = BACKENDS[name]
    return module.why_rather_not(case) if module in (cpu, cuda) else ""


def choose(case: Case, backend: str = "auto") -> str:
    """Name of the backend that runs the case: the first that can, or the one asked for.

    Raises:
        BackendError: the one asked for cannot, or none can; says why.
    """
    if backend != "auto":
        why = BACKENDS[backend].why_not(case)
        if why:
            raise BackendError(f"backend={backend!r} cannot run this: {why}. Use backend='auto'.")
        return backend
    for name, module in BACKENDS.items():
        if not module.why_not(case) and not _why_rather_not(name, case):
            return name
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons(case).items())
    raise BackendError(f"no backend can run this: {why}")


def plan(case: Case, backend: str = "auto") -> str:
    """The backend that runs a case and, on a GPU, its kernels with the reason, in one line."""
    name = choose(case, backend)
    return f"cuda, {cuda.plan(case)}" if name == "cuda" else name


def run(case: Case, backend: str = "auto") -> Result:
    """Run a case on the chosen backend."""
    result: Result = BACKENDS[choose(case, backend)].run(case)
    return result
