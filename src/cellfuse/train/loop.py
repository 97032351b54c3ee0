"""The training loop: batches to gradients to weights, until there is a reason to stop.

Knows no task, no file format and no way of starting processes. The gradient of a step is that of
the mean over the whole batch, however it is shared out: each process sums its own terms and divides
by the number of terms in all processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cellfuse.errors import TaskError
from cellfuse.train.settings import Settings
from cellfuse.train.stop import Stop
from cellfuse.train.task import Metric, Part, Split, Splits, Task


class DivergenceError(TaskError):
    """The loss or the gradient is no longer a number."""


@dataclass
class Position:
    """How far a run has come: all that a checkpoint holds besides weights and optimiser.

    Attributes:
        epoch: passes through the training data that are complete.
        into_epoch: batches done in the pass after them.
        step: updates of the weights so far.
        loss_sum, loss_count: the training loss of the unfinished pass.
        history: one row per validation: epoch, step, train_loss, valid_loss, metrics, seconds.
        best: number of the row with the lowest validation loss; -1 before the first.
        best_weights: the weights of that row.
        seconds: time trained, over all resumed runs.
    """

    epoch: int = 0
    into_epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: int = -1
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Loop:
    """One run.

    Attributes:
        fabric: devices, precision and the sums over processes.
        model, optimizer: as `Fabric.setup` returns them.
        task, splits, settings: what is trained on what.
        position: where to start; moves on.
        stop: the wish to stop early.
        save: writes a checkpoint; called in every process.
        on_step, on_epoch: tell the user.
        state: the layer's state between two batches of one text.
    """

    fabric: Fabric
    model: nn.Module
    optimizer: Any
    task: Task
    splits: Splits
    settings: Settings
    position: Position
    stop: Stop
    save: Callable[[Loop], None]
    on_step: Callable[[Loop, int, float], None]
    on_epoch: Callable[[Loop], None]
    state: Any = None

    @property
    def part(self) -> Part:
        """This process among the others."""
        return Part(self.fabric.global_rank, self.fabric.world_size)

    def run(self) -> int:
        """Train to the end; return 0, or the number of the signal that ended it sooner.

        Raises:
            DivergenceError: the loss is infinite or not a number.
        """
        signal = 0
        while not signal and not self.is_done():
            signal, is_inside_epoch = self._one_pass()
            if not is_inside_epoch:
                self._validate()
                self.on_epoch(self)
            self.save(self)
        if not signal and not self.position.history:
            self._validate()  # resumed inside the first epoch, with a --steps that is over already
        return signal

    def is_done(self) -> bool:
        """Whether the last epoch or step has been reached, or patience is at its end."""
        at, settings = self.position, self.settings
        if settings.patience and len(at.history) - 1 - at.best >= settings.patience:
            return True
        if settings.steps is not None:
            return at.step >= settings.steps
        return settings.epochs is not None and at.epoch >= settings.epochs

    def _one_pass(self) -> tuple[int, bool]:
        """Train to the end of the epoch or to the last step, or until a signal.

        Returns the signal, or 0, and whether it came before that end.
        """
        at, settings, train = self.position, self.settings, self.splits.train
        steps = train.steps(settings.batch_size)
        self.model.train()
        for batch in train.batches(settings.batch_size, self.part, at.epoch, at.into_epoch):
            began = time.perf_counter()
            answer, state = self.model(
                self.fabric.to_device(batch.input), self.state if batch.continues else None
            )
            self.state = detached(state)
            loss_sum = self._total(self.task.loss, answer, batch.target, batch.count)
            # Fabric takes the mean over processes: times world_size makes it the sum.
            self.fabric.backward(loss_sum * (self.fabric.world_size / batch.total))
            loss, signal = self._agree(float(loss_sum.detach()) / batch.total, self.stop.signal)
            norm = math.inf
            if math.isfinite(loss):
                norm = self._clip()
            if not math.isfinite(norm):
                raise DivergenceError(self._divergence(loss))
            self.optimizer.step()
            self.optimizer.zero_grad()
            at.step += 1
            at.into_epoch += 1
            at.loss_sum += loss * batch.total
            at.loss_count += batch.total
            at.seconds += time.perf_counter() - began
            self.on_step(self, steps, loss)
            if at.into_epoch == steps:
                at.epoch, at.into_epoch = at.epoch + 1, 0
                return signal, False
            if settings.steps is not None and at.step >= settings.steps:
                return signal, False
            if signal:
                return signal, True
            if settings.checkpoint_every and at.step % settings.checkpoint_every == 0:
                self.save(self)
        raise AssertionError("a split yields as many batches as its steps() says")

    def _clip(self) -> float:
        """Limit the norm of the gradient; return what it was. `--clip 0` measures only."""
        norm = self.fabric.clip_gradients(
            self.model,
            self.optimizer,
            max_norm=self.settings.clip or math.inf,
            error_if_nonfinite=False,
        )
        return float(norm) if norm is not None else 0.0

    def _validate(self) -> None:
        """Add a row to the history and keep the weights if they are the best so far."""
        at = self.position
        began = time.perf_counter()
        found = self.evaluate(self.splits.valid)
        at.seconds += time.perf_counter() - began
        steps = self.splits.train.steps(self.settings.batch_size)
        row = {
            "epoch": at.epoch + at.into_epoch / steps,
            "step": at.step,
            "train_loss": at.loss_sum / at.loss_count,
            **{f"valid_{name}": value for name, value in found.items()},
            "seconds": at.seconds,
        }
        if not at.into_epoch:
            at.loss_sum, at.loss_count = 0.0, 0
        at.history.append(row)
        if at.best < 0 or row["valid_loss"] < at.history[at.best]["valid_loss"]:
            at.best = len(at.history) - 1
            weights = self.model.state_dict()
            at.best_weights = {name: value.cpu().clone() for name, value in weights.items()}

    def evaluate(self, split: Split) -> dict[str, float]:
        """Loss and metrics of the weights as they are, over all of a split and all processes.

        Raises:
            DivergenceError: the loss is infinite or not a number.
        """
        self.model.eval()
        metrics = (self.task.loss, *self.task.metrics)
        sums = torch.zeros(len(metrics), dtype=torch.float64)
        count, state = 0, None
        with torch.no_grad():
            for batch in split.batches(self.settings.batch_size, self.part):
                answer, state = self.model(
                    self.fabric.to_device(batch.input), state if batch.continues else None
                )
                for index, metric in enumerate(metrics):
                    sums[index] += float(self._total(metric, answer, batch.target, batch.count))
                count += batch.total
        means = self._gathered(sums).sum(dim=0) / count
        names = ["loss", *(metric.name for metric in self.task.metrics)]
        found = dict(zip(names, means.tolist(), strict=True))
        if not math.isfinite(found["loss"]):
            raise DivergenceError(self._divergence(found["loss"]))
        return found

    def _total(self, metric: Metric, answer: Tensor, target: Tensor, count: int) -> Tensor:
        """Sum of a metric over this process's terms; 0, with a gradient of 0, for a stand-in."""
        total = metric.total(answer, self.fabric.to_device(target))
        return total if count else total * 0

    def _agree(self, loss: float, signal: int) -> tuple[float, int]:
        """The loss summed over the processes, and the signal that any of them got."""
        all_of_them = self._gathered(torch.tensor([loss, signal], dtype=torch.float64))
        return float(all_of_them[:, 0].sum()), int(all_of_them[:, 1].max())

    def _gathered(self, values: Tensor) -> Tensor:
        """[processes, ...]: the same order, so the same sums, in every process."""
        if self.fabric.world_size == 1:
            return values[None]
        # Not Fabric.all_gather: it calls a function that torch 2.13 warns of at every call.
        own = values.to(self.fabric.device)
        found = [torch.empty_like(own) for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather(found, own)
        return torch.stack(found).cpu()

    def _divergence(self, loss: float) -> str:
        at, settings = self.position, self.settings
        clip = "--clip 1" if not settings.clip else f"--clip {settings.clip / 4:g}"
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is infinite"
        return (
            f"{what} after step {at.step} (epoch {at.epoch + 1}), so training cannot go on. "
            f"Try a smaller step, --lr {settings.lr / 4:g} (it was {settings.lr:g}), or {clip}, "
            "in a new --out."
        )


def detached(state: Any) -> Any:
    """The same state without its history, so that gradients end at the window's edge."""
    if isinstance(state, Tensor):
        return state.detach()
    return tuple(detached(part) for part in state) if state is not None else None
