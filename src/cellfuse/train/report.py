"""What a person sees during a run: a bar on a terminal, one line per epoch everywhere."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cellfuse.train.loop import Loop
from cellfuse.train.task import Task


class Report:
    """Writes to one console; nothing if `is_quiet`, which all processes but the first are."""

    def __init__(self, console: Console, is_quiet: bool) -> None:
        """The bar appears with the first step."""
        self.console = console
        self.is_quiet = is_quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=is_quiet or not console.is_terminal,
        )
        self._bar = self._progress.add_task("epoch 1", total=None)

    def __enter__(self) -> Report:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away, also after an error."""
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line, as it is."""
        if not self.is_quiet:
            self.console.print(escape(text), highlight=False, soft_wrap=True)

    def step(self, loop: Loop, steps: int, loss: float) -> None:
        """Move the bar."""
        at = loop.position
        self._progress.update(
            self._bar,
            description=f"epoch {at.epoch + 1}  loss {loss:.4f}",
            completed=at.into_epoch,
            total=steps,
        )

    def epoch(self, loop: Loop) -> None:
        """One line about the epoch that ended."""
        at, row = loop.position, loop.position.history[-1]
        first = loop.task.metrics[0]
        text = f"epoch {row['epoch']:<5.4g} step {at.step:<6} train loss {row['train_loss']:.4f}"
        if first is not loop.task.loss:
            text += f"  valid loss {row['valid_loss']:.4f}"
        text += f"  valid {first.name} {number(row['valid_' + first.name])}  {at.seconds:.1f} s"
        self.say(text + ("  best" if at.best == len(at.history) - 1 else ""))

    def result(self, task: Task, line: dict[str, Any], out: Path) -> None:
        """The test result, the figures to compare it with, and where everything is."""
        first = task.metrics[0]
        at = f"epoch {line['best_epoch']:g} of {line['epochs']:g}"
        self.say(
            f"{task.name}: {first.name} of the test part, with the weights of {at} (lowest "
            f"validation loss, {number(line['valid']['loss'])}), {first.better} is better"
        )
        value = number(line["test"][first.name])
        self.say(f"  {value}  {line['cell']}, {line['parameters']:,} parameters, this run")
        for figure in line["figures"]:
            self.say(f"  {number(figure['value'])}  {figure['what']} ({figure['source']})")
        self.say(f"curve    {out / 'curve.png'}\nresults  {out / 'results.jsonl'}")


def number(value: float) -> str:
    """Four decimals, or three digits where that would be too few."""
    return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2e}"


def task_table(tasks: dict[str, Task]) -> Table:
    """`cellfuse train --list`."""
    table = Table(show_lines=True)
    table.add_column("task", no_wrap=True)
    table.add_column("what, data, usual recipe", ratio=3)
    table.add_column("metric of the test part, to compare with", ratio=2)
    for task in tasks.values():
        first, usual = task.metrics[0], task.defaults
        recipe = f"hidden {usual.hidden_size}, batch {usual.batch_size}, lr {usual.lr:g}"
        recipe += f", {usual.epochs} epochs" + (", bidirectional" if usual.bidirectional else "")
        recipe += "".join(f", {name}={value}" for name, value in task.options.items())
        figures = [f"{number(f.value)} {f.what}" for f in task.figures(task.options)]
        table.add_row(
            f"[bold]{task.name}[/bold]",
            escape(f"{task.what}\n{task.source}\n{recipe}"),
            escape("\n".join([f"{first.name}, {first.better} is better", *figures])),
        )
    return table
