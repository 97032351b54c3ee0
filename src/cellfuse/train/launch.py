"""One run from settings to results: devices and processes, model, loop, test, files."""

from __future__ import annotations

import json
import logging
import os
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from cellfuse import cells
from cellfuse.errors import CellfuseError, TaskError
from cellfuse.graph.show import show
from cellfuse.train import checkpoint, curve, results, tasks
from cellfuse.train.cell import check_projection
from cellfuse.train.loop import Loop, Position, detached
from cellfuse.train.report import Report
from cellfuse.train.seed import number
from cellfuse.train.settings import Settings
from cellfuse.train.stop import Stop

# It announces precision and every process it starts; the results line holds the same facts.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


def launch(settings: Settings) -> int:
    """Run it on its devices; return the exit status: 0, or 128 + the signal that stopped it.

    Raises:
        CellfuseError: something asked for cannot be had, or training diverged.
    """
    check_projection(cells.find(settings.cell), settings.proj_size)
    accelerator = _accelerator(settings)
    _check_out(settings)
    if settings.resume:
        _read_checkpoint(settings)  # refuse what cannot be resumed before any process starts
    # ddp_spawn rather than ddp: the processes run this function and not the whole command again, so
    # that a run can start from anywhere.
    strategy = "ddp_spawn" if settings.devices > 1 else "auto"
    fabric = Fabric(
        accelerator=accelerator,
        devices=settings.devices,
        strategy=strategy,
        precision=settings.precision,  # type: ignore[arg-type]  # the command allows three
    )
    # Every process catches signals for itself; the one that started them passes its own on.
    with Stop() if settings.devices > 1 else nullcontext():
        # partial, because Fabric rebuilds the arguments it is given, and Settings is frozen.
        status, error = fabric.launch(partial(_work, settings=settings))
    if error is not None:
        raise error
    return int(status)


def _accelerator(settings: Settings) -> str:
    """The device kind, with an error where it is missing."""
    count = torch.cuda.device_count() if settings.accelerator != "cpu" else 0
    if settings.accelerator == "cuda" and not count:
        raise TaskError(
            "--accelerator cuda: torch finds no CUDA device here. Write --accelerator cpu, or auto."
        )
    if 0 < count < settings.devices:
        raise TaskError(
            f"--devices {settings.devices}: torch finds {count} CUDA device(s). "
            f"Write --devices {count}, or --accelerator cpu."
        )
    return "cuda" if count else "cpu"


def _check_out(settings: Settings) -> None:
    """A run never overwrites another."""
    path = settings.out / checkpoint.NAME
    if path.exists() and not settings.resume:
        raise TaskError(
            f"{settings.out} holds a run already. Add --resume to go on with it, or write another "
            "--out, or delete the folder."
        )
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TaskError(f"--out {settings.out} cannot be made a folder: {error.strerror}.") from error


def _work(fabric: Fabric, settings: Settings) -> tuple[int, CellfuseError | None]:
    """What every process does. Errors are returned, because a process cannot raise in another."""
    failure: CellfuseError | None = None
    status = 1
    with Stop() as stop:
        try:
            status = _train(fabric, settings, stop)
        except CellfuseError as error:
            # Its traceback would keep the model and its connections until the interpreter ends, when
            # gloo aborts a process that still has them.
            failure = error.with_traceback(None)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return status, failure


def _train(fabric: Fabric, settings: Settings, stop: Stop) -> int:
    """Build everything, train, test the best weights, and write the results."""
    task, cell = tasks.find(settings.task), cells.find(settings.cell)
    is_first = fabric.global_rank == 0
    console = Console(stderr=settings.json)
    torch.manual_seed(settings.seed)
    model = task.model(lambda features: _layer(cell, features, settings), settings.options)
    parameters = sum(weight.numel() for weight in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    # From here on random numbers are for dropout, which processes draw for different sequences.
    torch.manual_seed(number(settings.seed, fabric.global_rank))
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    # Fabric converts what the model answers to the default type: it has to be the precision's.
    answer_type = fabric.strategy.precision.tensor_init_context()
    with Report(console, settings.quiet or not is_first) as report, answer_type:
        loop = Loop(
            fabric,
            wrapped,
            wrapped_optimizer,
            task,
            task.splits(settings.options, settings.seed),
            settings,
            Position(),
            stop,
            lambda loop: _save(loop, model, optimizer),
            report.step,
            report.epoch,
        )
        if settings.resume:
            _restore(loop, model, optimizer)
            report.say(f"resumed after epoch {loop.position.epoch}, step {loop.position.step}")
        signal = loop.run()
        if signal:
            if is_first:
                _tell_how_to_go_on(loop, signal)
            return 128 + signal
        model.load_state_dict(loop.position.best_weights)
        test = loop.evaluate(loop.splits.test)
        if is_first:
            found = results.line(loop, test, parameters, _device_name(fabric))
            results.append(settings.out, found)
            curve.draw(task, loop.position.history, found, settings.out / curve.FILE)
            report.result(task, found, settings.out)
            if settings.json:
                Console().print_json(json.dumps(found), indent=None)
    return 0


def _layer(cell: Any, features: int, settings: Settings) -> nn.Module:
    made: nn.Module = cell.layer(
        features,
        settings.hidden_size,
        num_layers=settings.num_layers,
        dropout=settings.dropout,
        bidirectional=settings.bidirectional,
        proj_size=settings.proj_size,
    )
    return made


def _fixed(settings: Settings) -> dict[str, Any]:
    """What a resumed run must repeat, in types that `weights_only` loading allows."""
    equation = show(cells.find(settings.cell).step)
    return {**settings.fixed(), "options": dict(settings.options), "equation": equation}


def _read_checkpoint(settings: Settings) -> dict[str, Any]:
    """The checkpoint of this run.

    Raises:
        TaskError: it does not fit the settings, or the number of processes differs and what each of
            them had is needed.
    """
    content = checkpoint.load(settings.out / checkpoint.NAME, _fixed(settings))
    everyone = content["processes"]
    is_needed = settings.dropout > 0 or everyone[0]["state"] is not None
    if len(everyone) != settings.devices and is_needed:
        raise TaskError(
            f"the checkpoint is of {len(everyone)} process(es), each with its own random numbers "
            f"and layer state, and this run has {settings.devices}. "
            f"Write --devices {len(everyone)}."
        )
    return content


def _save(loop: Loop, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint: the first process writes, all give what only they have."""
    own = {
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state() if loop.fabric.device.type == "cuda" else None,
        "state": loop.state if loop.position.into_epoch else None,
    }
    everyone: list[Any] = [own]
    if loop.fabric.world_size > 1:
        everyone = [None] * loop.fabric.world_size
        torch.distributed.all_gather_object(everyone, own)
    if loop.fabric.global_rank == 0:
        content = {
            "fixed": _fixed(loop.settings),
            "position": {**vars(loop.position)},
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "processes": everyone,
        }
        checkpoint.save(loop.settings.out / checkpoint.NAME, content)
    loop.fabric.barrier()


def _restore(loop: Loop, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Go back to where the checkpoint was written."""
    content = _read_checkpoint(loop.settings)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    loop.position = Position(**content["position"])
    if loop.fabric.global_rank < len(content["processes"]):
        own = content["processes"][loop.fabric.global_rank]
        torch.set_rng_state(own["random"])
        if own["random_cuda"] is not None and loop.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(own["random_cuda"])
        loop.state = loop.fabric.to_device(detached(own["state"]))


def _tell_how_to_go_on(loop: Loop, number: int) -> None:
    name = {2: "SIGINT (Ctrl-C)", 15: "SIGTERM"}[number]
    Console(stderr=True).print(
        f"Stopped by {name} after step {loop.position.step}. Everything is in "
        f"{loop.settings.out / checkpoint.NAME}; go on with\n"
        f"{loop.settings.command_to_resume(loop.task)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _device_name(fabric: Fabric) -> str:
    if fabric.device.type == "cuda":
        return str(torch.cuda.get_device_name(fabric.device))
    return f"cpu, {torch.get_num_threads()} of {os.cpu_count()} threads"
