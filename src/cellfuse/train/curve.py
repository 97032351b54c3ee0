"""The learning curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from cellfuse.train.task import Metric, Task

# Okabe and Ito 2008: told apart by colour-blind readers, too.
TRAIN, VALID, TEST, OTHERS = "#0072B2", "#D55E00", "#009E73", "#555555"
FILE = "curve.png"


def draw(task: Task, history: list[dict[str, float]], line: dict[str, Any], path: Path) -> None:
    """Loss of both parts above, the first metric below with the figures to compare it with.

    Where the metric is the loss itself there is one panel.
    """
    first = task.metrics[0]
    is_one = first is task.loss
    figure = Figure(figsize=(8.5, 4.2 if is_one else 6.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1 if is_one else 2, 1, sharex=True, squeeze=False)[:, 0]
    epochs = [row["epoch"] for row in history]
    _line(
        panels[0],
        epochs,
        [row["train_loss"] for row in history],
        TRAIN,
        "train (mean of the epoch)",
    )
    _line(panels[0], epochs, [row["valid_loss"] for row in history], VALID, "validation")
    _label(panels[0], task.loss, "loss: ")
    if not is_one:
        _line(panels[1], epochs, [row[f"valid_{first.name}"] for row in history], VALID, "validation")
        _label(panels[1], first, "")
    _result(panels[-1], line)
    for panel in panels:
        panel.axvline(line["best_epoch"], color=TEST, linewidth=1, linestyle=":", zorder=1)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panels[0].set_title(
        f"{task.name} with {line['cell']}", loc="left", pad=22, fontsize=13, fontweight="bold"
    )
    panels[0].annotate(
        _facts(line),
        (0, 1),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color=OTHERS,
    )
    figure.savefig(path, metadata={"Software": "cellfuse"})


def _line(panel: Axes, epochs: list[float], values: list[float], color: str, label: str) -> None:
    panel.plot(epochs, values, color=color, linewidth=1.8, label=label, marker="o", markersize=2.5)


def _label(panel: Axes, metric: Metric, before: str) -> None:
    unit = f"\n({metric.unit})" if metric.unit else ""
    panel.set_ylabel(f"{before}{metric.name}{unit}")
    if metric.is_log:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(_plain)
        panel.yaxis.set_minor_formatter(NullFormatter())


def _plain(value: float, position: float) -> str:
    return f"{value:g}"


def _result(panel: Axes, line: dict[str, Any]) -> None:
    """The test value at the epoch it was measured at, and a dashed line for each figure."""
    value = line["test"][line["metric"]]
    panel.plot(
        line["best_epoch"],
        value,
        "*",
        color=TEST,
        markersize=13,
        label=f"test {value:.4g}",
        zorder=5,
    )
    for figure, dashes in zip(line["figures"], DASHES * len(line["figures"]), strict=False):
        panel.axhline(
            figure["value"],
            color=OTHERS,
            linewidth=1.2,
            linestyle=dashes,
            label=f"{figure['what']} {figure['value']:.4g}",
        )


DASHES = ["--", "-.", ":", (0, (6, 2, 1, 2, 1, 2))]


def _facts(line: dict[str, Any]) -> str:
    facts = [f"hidden {line['hidden_size']}", f"{line['parameters']:,} parameters"]
    if line["num_layers"] > 1:
        facts.insert(1, f"{line['num_layers']} layers")
    if line["bidirectional"]:
        facts.insert(1, "bidirectional")
    facts += [
        f"seed {line['seed']}",
        f"{line['seconds']:.0f} s",
        f"best epoch {line['best_epoch']:g}",
    ]
    return ", ".join(facts)
