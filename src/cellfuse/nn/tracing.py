"""torch.fx: our modules are leaves of a traced graph, as torch.nn's are by the name of their package.

Not the tracing of a cell's equation: see `cellfuse.graph.trace`.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from cellfuse.errors import InputError


def leaf(module: nn.Module, *arguments: Any) -> Any:
    """The node that calls `module` in the graph being traced; None if none of the arguments is traced."""
    # Hooks of the module have run on the proxy by now, and run again when the graph is called.
    proxy = next((p for p in map(_proxy, arguments) if p is not None), None)
    if proxy is None:
        return None
    path = proxy.tracer.path_of_module(module)
    if not path:
        raise InputError(
            f"{module._get_name()}: torch.fx cannot trace a recurrent layer itself, only call it from a "
            "traced model. Write torch.fx.symbolic_trace(torch.nn.Sequential(layer))."
        )
    given = arguments[: 1 + max(i for i, a in enumerate(arguments) if a is not None)]
    return proxy.tracer.create_proxy("call_module", path, given, {})


def _proxy(argument: Any) -> Any:
    """The proxy that an argument is, or holds as one of its states."""
    fx = sys.modules.get("torch.fx")  # nobody has a proxy who has not imported it
    if fx is None or argument is None:
        return None
    if isinstance(argument, fx.Proxy):
        return argument
    if isinstance(argument, tuple | list):
        return next((value for value in argument if isinstance(value, fx.Proxy)), None)
    return None
