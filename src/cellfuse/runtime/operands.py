"""What the operators are given, checked, because kernels believe it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cellfuse.errors import ShapeError
from cellfuse.runtime.direction import Direction, batch_of
from cellfuse.slots import slots


def check(
    direction: Direction,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
) -> None:
    """Raise ShapeError unless all fit x in shape, dtype and device, and have memory."""
    cell, sizes = direction.cell, direction.sizes
    counts = len(states), len(weights)
    if counts != (len(cell.states), len(direction.names)):
        raise ShapeError(
            f"cellfuse operator: {counts[0]} states and {counts[1]} weights, expected "
            f"{len(cell.states)} ({', '.join(cell.states)}) and {len(direction.names)} "
            f"({', '.join(direction.names)})"
        )
    if x.dim() != (3 if batch_sizes is None else 2):
        raise ShapeError(f"cellfuse operator: x is {list(x.shape)}, expected [T, B, I], or [N, I] if packed")
    columns = direction.kernel(x).columns
    width = {"H": sizes.hidden, "P": sizes.projected, "N": sizes.hidden // sizes.heads}
    batch = x.shape[1] if batch_sizes is None else batch_of(states)
    wanted = {
        slot.name: list(slot.shape)
        for slot in slots(
            cell,
            x.shape[-1],
            sizes.hidden,
            bias=direction.has_bias,
            proj_size=sizes.projected,
            num_heads=sizes.heads,
        )
    }
    for name, place in columns.masks.items():
        lead = [batch] if columns.program.buffers[place.buffer].rows == "batch" else list(x.shape[:-1])
        wanted[name] = [*lead, width[columns.shape(place)[0]]]
    if sorted(direction.names) != sorted(wanted):
        raise ShapeError(
            f"cellfuse operator: the weights are named {', '.join(direction.names)}, expected "
            f"{', '.join(wanted)}"
        )
    named = [("x", x, list(x.shape))]
    for letter, value, shape in zip(cell.states, states, direction.kernel(x).shapes, strict=True):
        named.append((f"state {letter}", value, [batch, width[shape[0]]]))
    for name, value in zip(direction.names, weights, strict=True):
        named.append((name, value, wanted[name]))
    for text, value, expected in named:
        _check_one(text, value, expected, x, x.dtype)


def check_backward(
    direction: Direction,
    values: Sequence[Tensor],
    batch_sizes: Tensor | None,
    gradients: Sequence[Tensor],
    kept: Sequence[Tensor],
) -> None:
    """Raise ShapeError unless gradients and kept values are like the results of `forward`."""
    promised = direction.shapes(values, batch_sizes, True)
    given, count = [*gradients, *kept], 1 + len(direction.cell.states)
    if len(gradients) != count or len(given) != len(promised):
        raise ShapeError(
            f"cellfuse operator: {len(gradients)} gradients and {len(kept)} kept values, expected {count} "
            f"and {len(promised) - count}"
        )
    for k, (value, (shape, dtype)) in enumerate(zip(given, promised, strict=True)):
        name = f"gradient {k}" if k < count else f"kept value {k - count}"
        _check_one(name, value, list(shape), values[0], dtype)


def _check_one(name: str, value: Tensor, shape: list[int], x: Tensor, dtype: object) -> None:
    if list(value.shape) != shape or value.dtype != dtype or value.device != x.device:
        raise ShapeError(
            f"cellfuse operator: {name} is {list(value.shape)} {value.dtype} on {value.device}, expected "
            f"{shape} {dtype} on {x.device}"
        )
    if value.numel() and not value.data_ptr():
        raise ShapeError(f"cellfuse operator: {name} has no memory: its storage was freed")
