"""What is explained: the settings of a recurrent module and the form of its input. Runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from cellfuse.cell import Cell
from cellfuse.errors import InputError
from cellfuse.graph.graph import Graph
from cellfuse.nn import Layer, OneStep
from cellfuse.nn.convert import TABLE


@dataclass(frozen=True)
class Subject:
    """A recurrent module of torch.nn or ours, with the sizes of one call of it.

    Attributes:
        title: how it prints.
        cell: the cell it runs.
        is_step: a module for one time step (LSTMCell) rather than a layer over time.
        form: "batched", "unbatched" or "packed".
        sizes: T, B, S, I, H, P, N, L, D; see `facts.Explanation`.
        lengths: of the sequences of packed input.
        bias, batch_first, dropout: as in torch.nn.
        has_hx: whether initial states were given.
    """

    title: str
    cell: Cell
    is_step: bool
    form: str
    sizes: dict[str, int]
    lengths: tuple[int, ...]
    bias: bool
    batch_first: bool
    dropout: float
    has_hx: bool

    @property
    def step(self) -> Graph:
        """The graph of one time step."""
        return self.cell.step if self.bias else self.cell.step_without_bias

    @property
    def width(self) -> str:
        """Letter of the features of one direction's output."""
        return "P" if self.sizes["P"] else "H"

    @property
    def output_states(self) -> tuple[str, ...]:
        """The states whose new value is the output; none if the output is something else."""
        output, *news = self.step.results
        return tuple(s for s, new in zip(self.cell.states, news, strict=True) if new is output)

    @property
    def suffixes(self) -> list[tuple[int, int, str]]:
        """(layer, direction, how the names of its parameters end)."""
        if self.is_step:
            return [(0, 0, "")]
        ways = ("", "_reverse")[: self.sizes["D"]]
        return [(k, d, f"_l{k}{way}") for k in range(self.sizes["L"]) for d, way in enumerate(ways)]


def is_recurrent(module: nn.Module) -> bool:
    """Whether `explain` knows what the module computes: a class of the user's own may do anything."""
    known: Any = next((c for c in (*TABLE, Layer, OneStep) if isinstance(module, c)), None)
    return known is not None and getattr(type(module), "forward", None) is known.forward


def cell_of(module: Any) -> Cell:
    """The cell that a recurrent module runs."""
    if isinstance(module, Layer | OneStep):
        return module.cell
    plain = parametrize.type_before_parametrizations(module)
    base = next(c for c in plain.__mro__ if c in TABLE)
    return TABLE[base][1](module)  # type: ignore[no-any-return]


def subject_of(module: Any, input: Tensor | PackedSequence, has_hx: bool) -> Subject:
    """The settings of a module and of one call of it.

    Raises:
        InputError: there is no number in the input.
    """
    is_step = isinstance(module, OneStep | nn.RNNCellBase)
    data = input.data if isinstance(input, PackedSequence) else input
    if not data.numel():
        raise InputError(f"explain: the input is {list(data.shape)}, so there is nothing to show")
    form, (T, B), lengths = _form(module, input, is_step)
    sizes = {"T": T, "B": B, "S": sum(lengths) or T * B}
    sizes |= {"I": module.input_size, "H": module.hidden_size, "P": getattr(module, "proj_size", 0)}
    sizes |= {"N": getattr(module, "num_heads", 1), "L": getattr(module, "num_layers", 1)}
    sizes |= {"D": 2 if getattr(module, "bidirectional", False) else 1}
    return Subject(
        title=f"{module._get_name()}({module.extra_repr()})",
        cell=module._cell_of(False) if isinstance(module, Layer) else cell_of(module),
        is_step=is_step,
        form=form,
        sizes=sizes,
        lengths=lengths,
        bias=bool(module.bias),
        batch_first=bool(getattr(module, "batch_first", False)),
        dropout=float(getattr(module, "dropout", 0.0)),
        has_hx=has_hx,
    )


def _form(
    module: Any, input: Tensor | PackedSequence, is_step: bool
) -> tuple[str, tuple[int, int], tuple[int, ...]]:
    """The form of an input, (T, B), and the lengths of packed sequences in the user's order."""
    if isinstance(input, PackedSequence):
        alive = input.batch_sizes
        lengths = (alive.unsqueeze(1) > torch.arange(int(alive[0]))).sum(0)
        if input.unsorted_indices is not None:
            lengths = lengths[input.unsorted_indices.cpu()]
        return "packed", (len(alive), int(alive[0])), tuple(lengths.tolist())
    if is_step:
        return ("batched", (1, len(input)), ()) if input.dim() == 2 else ("unbatched", (1, 1), ())
    if input.dim() == 2:
        return "unbatched", (input.size(0), 1), ()
    T, B = (input.size(1), input.size(0)) if module.batch_first else (input.size(0), input.size(1))
    return "batched", (T, B), ()
