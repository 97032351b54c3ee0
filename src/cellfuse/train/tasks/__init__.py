"""The tasks, one file each. The folder is the registry: every file defines one `TASK`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from cellfuse.errors import TaskError
from cellfuse.train.task import Task

TASKS: dict[str, Task] = {}

for _module in pkgutil.iter_modules(__path__):
    _task: Task = importlib.import_module(f"{__name__}.{_module.name}").TASK
    TASKS[_task.name] = _task


def find(name: str) -> Task:
    """The task of this name.

    Raises:
        TaskError: there is none; the message lists the nearest names.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3) or sorted(TASKS)
        raise TaskError(
            f"no task is called {name!r}; did you mean {' or '.join(near)}? "
            "`cellfuse train --list` shows all of them."
        )
    return TASKS[name]
