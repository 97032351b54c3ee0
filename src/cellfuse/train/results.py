"""One run as one line of JSON: what was asked, what came out, and with which versions."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cellfuse
from cellfuse.origin import commit
from cellfuse.train.loop import Loop

FILE = "results.jsonl"


def line(loop: Loop, test: dict[str, float], parameters: int, device: str) -> dict[str, Any]:
    """The results of a finished run.

    `test` and `valid` hold the loss and each metric, both of the weights of `best_epoch`.
    """
    at, settings, task = loop.position, loop.settings, loop.task
    best = at.history[at.best]
    return {
        "task": task.name,
        "cell": settings.cell,
        "parameters": parameters,
        "test": test,
        "valid": {name[6:]: value for name, value in best.items() if name.startswith("valid_")},
        "train_loss": best["train_loss"],
        "metric": task.metrics[0].name,
        "better": task.metrics[0].better,
        "figures": [asdict(figure) for figure in task.figures(settings.options)],
        "best_epoch": best["epoch"],
        "epochs": at.history[-1]["epoch"],
        "steps": at.step,
        "seconds": round(at.seconds, 3),
        "seed": settings.seed,
        "hidden_size": settings.hidden_size,
        "num_layers": settings.num_layers,
        "bidirectional": settings.bidirectional,
        "dropout": settings.dropout,
        "proj_size": settings.proj_size,
        "batch_size": settings.batch_size,
        "lr": settings.lr,
        "clip": settings.clip,
        "weight_decay": settings.weight_decay,
        "patience": settings.patience,
        "options": dict(settings.options),
        "device": device,
        "devices": loop.fabric.world_size,
        "precision": settings.precision,
        "versions": {
            "cellfuse": cellfuse.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "lightning-fabric", "numpy")},
        },
        "commit": commit(),
    }


def append(out: Path, found: dict[str, Any]) -> None:
    """Add the line to the run's file."""
    with (out / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
