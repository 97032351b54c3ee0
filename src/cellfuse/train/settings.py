"""One run in numbers: what was asked for, completed from the task's recipe and checked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cellfuse.errors import TaskError
from cellfuse.train.task import Task

# May differ when a run is resumed: none of them changes what a step computes.
FREE = frozenset("epochs steps patience out resume checkpoint_every devices accelerator json quiet".split())


@dataclass(frozen=True)
class Settings:
    """Every option of the command with its value."""

    task: str
    cell: str
    hidden_size: int
    num_layers: int
    bidirectional: bool
    dropout: float
    proj_size: int
    batch_size: int
    epochs: int | None
    steps: int | None
    lr: float
    clip: float
    weight_decay: float
    seed: int
    patience: int
    out: Path
    resume: bool = False
    checkpoint_every: int = 0
    devices: int = 1
    accelerator: str = "cpu"
    precision: str = "32-true"
    json: bool = False
    quiet: bool = False
    options: Mapping[str, int] = field(default_factory=dict)

    def fixed(self) -> dict[str, Any]:
        """What a resumed run must repeat."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in FREE}

    def command_to_resume(self, task: Task) -> str:
        """The command that goes on with this run, without what is usual for the task."""
        usual = settings_of({"task": self.task, "cell": self.cell, "seed": self.seed}, task)
        words = ["cellfuse", "train", self.task, "--cell", self.cell]
        for entry in fields(self):
            value, flag = getattr(self, entry.name), "--" + entry.name.replace("_", "-")
            if entry.name == "options":
                words += [
                    word
                    for name, number in value.items()
                    if number != task.options[name]
                    for word in ("--set", f"{name}={number}")
                ]
            elif entry.name == "seed" or value in (None, getattr(usual, entry.name)):
                continue
            elif isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-", 1))
            else:
                words += [flag, str(value)]
        if self.seed:
            words += ["--seed", str(self.seed)]
        return shlex.join(words if self.resume else [*words, "--resume"])


def settings_of(given: Mapping[str, Any], task: Task) -> Settings:
    """The options that were given (None: not given), completed and checked.

    Raises:
        TaskError: a value is out of its range, or two options contradict each other.
    """
    values = {name: value for name, value in given.items() if value is not None}
    if "steps" in values:
        values.setdefault("epochs", None)
    values.setdefault("steps", None)
    for name, value in asdict(task.defaults).items():
        values.setdefault(name, value)
    values.setdefault("seed", 0)
    values["options"] = _options(values.get("options", ()), task)
    stem = values["cell"].rpartition(":")[2] if ".py:" in values["cell"] else values["cell"]
    values.setdefault("out", Path("runs") / f"{task.name}-{stem}-{values['seed']}")
    settings = Settings(**values)
    _check(settings, task)
    return settings


def _options(given: Any, task: Task) -> dict[str, int]:
    """`--set NAME=VALUE` over the task's own values."""
    values = dict(task.options)
    known = ", ".join(f"{name}={value}" for name, value in values.items()) or "none"
    for text in given:
        name, _, value = text.partition("=")
        if name not in values:
            raise TaskError(f"--set {text}: options of {task.name}: {known}")
        if not value.isdecimal() or int(value) < 2:
            raise TaskError(f"--set {text}: {name} is a whole number from 2 on, as {known}")
        values[name] = int(value)
    return values


def _check(settings: Settings, task: Task) -> None:
    """Refuse what has no meaning, before anything is loaded or started."""
    at_least = {
        "hidden_size": 1,
        "num_layers": 1,
        "batch_size": 1,
        "epochs": 1,
        "steps": 1,
        "devices": 1,
        "proj_size": 0,
        "clip": 0,
        "weight_decay": 0,
        "seed": 0,
        "patience": 0,
        "checkpoint_every": 0,
    }
    for name, low in at_least.items():
        value = getattr(settings, name)
        if value is not None and not low <= value < float("inf"):
            raise TaskError(f"--{name.replace('_', '-')} {value}: write a number from {low} on.")
    if not 0 < settings.lr < 1e38:  # what float32 holds
        raise TaskError(f"--lr {settings.lr}: write a number above 0, such as {task.defaults.lr}.")
    if not 0 <= settings.dropout < 1:
        raise TaskError(f"--dropout {settings.dropout}: write a share from 0 up to 1, such as 0.2.")
    if settings.dropout and settings.num_layers == 1:
        raise TaskError(
            f"--dropout {settings.dropout} acts between stacked layers and there is one. "
            "Add --num-layers 2 or leave --dropout out."
        )
    if settings.proj_size >= settings.hidden_size:
        raise TaskError(
            f"--proj-size {settings.proj_size} must be smaller than --hidden-size {settings.hidden_size}."
        )
    if settings.bidirectional and task.is_causal:
        raise TaskError(
            f"--bidirectional: in {task.name} the reverse direction would read the answer. Leave it out."
        )
    if settings.batch_size < settings.devices:
        raise TaskError(
            f"--batch-size {settings.batch_size} is the size over all devices and leaves some of "
            f"--devices {settings.devices} without data. "
            f"Write --batch-size {settings.devices} or more."
        )
