"""What a backend is asked to do: one cell over a stack of layers and directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from cellfuse.cell import Cell
from cellfuse.graph.graph import Graph

# One layer and direction's parameters: weight_ih, weight_hh, bias_ih, bias_hh, weight_hr and the
# cell's own, without the suffix of layer and direction. Absent ones are missing.
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One call of a layer.

    Attributes:
        cell: the cell.
        has_bias: whether the layer was made with bias=True.
        hidden_size, proj_size, num_heads: sizes of the axes H, P (0: none) and N.
        num_layers, num_directions: the stack; entry k = layer * num_directions + direction.
        dropout: probability between layers, already 0 outside of training.
        weights: one entry per layer and direction.
        input: [T, B, I], or [N, I] where `batch_sizes` is given.
        states: per state [L*D, B, H] (P for the projected one).
        batch_sizes: for packed input, how many sequences are alive at each time step.
        recompute: keep only states for the backward pass.
    """

    cell: Cell
    has_bias: bool
    hidden_size: int
    proj_size: int
    num_heads: int
    num_layers: int
    num_directions: int
    dropout: float
    weights: tuple[Weights, ...]
    input: torch.Tensor
    states: tuple[torch.Tensor, ...]
    batch_sizes: torch.Tensor | None = None
    recompute: bool = False

    @property
    def must_recompute(self) -> bool:
        """Whether there will be a backward pass, and it is to make everything but states again."""
        is_wanted = self.recompute and torch.is_grad_enabled()
        return is_wanted and any(value.requires_grad for value in self.values())

    @property
    def step(self) -> Graph:
        """The graph of one time step, with or without biases."""
        return self.cell.step if self.has_bias else self.cell.step_without_bias

    def values(self) -> list[torch.Tensor]:
        """Every tensor."""
        made = [self.input, *self.states]
        for weights in self.weights:
            made += weights.values()
        return made

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor, with a name for messages."""
        yield "the input", self.input
        yield from zip((f"state {name}" for name in self.cell.states), self.states, strict=True)
        for weights in self.weights:
            yield from weights.items()


# output as `Case.input`, and the final states as `Case.states`
Result = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
