"""The eager backend: a Python loop over time in plain torch. Any cell, device, dtype, derivative.

The input product is made once for all time steps, before the loop. Slow next to a fused kernel: it is
the correctness baseline and the fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cellfuse.runtime import aten
from cellfuse.runtime.case import Case, Result, Weights
from cellfuse.runtime.torch_text import Product, torch_step

States = tuple[Tensor, ...]
# (input products and masks of one time step, states) -> (output, new states)
Step = Callable[[States, States], tuple[Tensor, States]]


def why_not(case: Case) -> str:
    """The eager backend takes every case but recompute=True."""
    if case.must_recompute:
        return "recompute=True: autograd keeps every value of the formula"
    return ""


def run(case: Case) -> Result:
    """Run the stack: layer by layer, direction by direction, step by step."""
    dtype = autocast_dtype(case)
    if dtype is None:
        return _run(case)
    with torch.autocast(case.input.device.type, enabled=False):
        return _run(cast(case, dtype))


def autocast_dtype(case: Case) -> torch.dtype | None:
    """The precision in which autocast wants the whole cell computed; None: it casts nothing, or parts.

    float64 is never cast, as everywhere in torch. A cell of torch's does what torch's layer does; any other
    cell is computed in the low precision throughout, output and states included.
    """
    device_type = case.input.device.type
    if not torch.is_autocast_enabled(device_type) or case.input.dtype == torch.float64:
        return None
    if case.cell.aten and not aten.casts_all(case):
        return None
    return torch.get_autocast_dtype(device_type)


def cast(case: Case, dtype: torch.dtype) -> Case:
    """The case with its tensors in another precision."""

    def low(value: Tensor) -> Tensor:
        return value if value.dtype == torch.float64 else value.to(dtype)

    return replace(
        case,
        input=low(case.input),
        states=tuple(low(state) for state in case.states),
        weights=tuple({k: low(v) for k, v in w.items()} for w in case.weights),
    )


def _run(case: Case) -> Result:
    value, finals = case.input, []
    sizes = None if case.batch_sizes is None else case.batch_sizes.tolist()
    for layer in range(case.num_layers):
        outputs = []
        for direction in range(case.num_directions):
            k = layer * case.num_directions + direction
            states = tuple(state[k] for state in case.states)
            output, final = run_direction(case, case.weights[k], value, states, direction == 1, sizes)
            outputs.append(output)
            finals.append(final)
        value = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if case.dropout and layer < case.num_layers - 1:
            value = F.dropout(value, case.dropout, training=True)
    return value, tuple(torch.stack(each) for each in zip(*finals, strict=True))


def run_direction(
    case: Case,
    weights: Weights,
    value: Tensor,
    states: States,
    is_reverse: bool,
    sizes: list[int] | None,
) -> tuple[Tensor, States]:
    """One direction of one layer; of the case's tensors none is used."""
    step = make_step(case, weights)
    rows = input_products(case, weights, value), *(weights[m.label] for m in case.step.of_role("mask"))
    if sizes is None:
        return _over_time(step, rows, states, is_reverse, case)
    return _over_packed(step, list(zip(*(row.split(sizes) for row in rows), strict=True)), states, is_reverse)


def input_products(case: Case, weights: Weights, value: Tensor) -> Tensor:
    """W x + b of every gate with an input part, [..., G*H]; no columns if no gate has one."""
    if not case.cell.input_gates:
        return value[..., :0]
    return F.linear(value, weights["weight_ih"], weights.get("bias_ih"))


# Roles of the leaves whose values depend on the time step or on which sequences are alive.
_MOVING = ("input product", "state", "mask", "lasting mask")


def make_step(case: Case, weights: Weights) -> Step:
    """The function of one time step with its weights cut up once, before the loop."""
    cell, made = case.cell, torch_step(case.step)
    fixed = _leaf_values(case, weights)
    joined = [part for product in made.products for part in _rows(case, weights, product)]
    size = _sizes(case, weights)
    num_gates = len(cell.input_gates)
    moving = {leaf.label for role in _MOVING for leaf in case.step.of_role(role)}
    wanted = [label for label in made.inputs if label not in moving]
    constants = [fixed[label] for label in wanted]
    lasting = [weights[mask.label] for mask in case.step.of_role("lasting mask")]

    def step(rows: States, values: States) -> tuple[Tensor, States]:
        products, *masks = rows
        gates = products.chunk(num_gates, -1) if num_gates else ()
        # Packed sequences are sorted, so that those still alive are the first.
        alive = [mask[: values[0].shape[0]] for mask in lasting]
        output, *new = made.function(*gates, *values, *constants, *alive, *masks, *joined, size)
        return output, tuple(new)

    return step


def _rows(case: Case, weights: Weights, product: Product) -> tuple[Tensor, Tensor | None]:
    """The rows of weight_hh and bias_hh that a joined product multiplies by."""
    places = [case.cell.recurrent_gates.index(gate) for gate in product.gates]
    rows = _gate_rows(weights["weight_hh"], places, case.hidden_size)
    bias = _gate_rows(weights["bias_hh"], places, case.hidden_size) if product.has_bias else None
    return rows, bias


def _gate_rows(packed: Tensor, places: Sequence[int], hidden_size: int) -> Tensor:
    """The rows of some gates; a view where they are neighbours."""
    if list(places) == list(range(places[0], places[0] + len(places))):
        return packed.narrow(0, places[0] * hidden_size, len(places) * hidden_size)
    return torch.cat([packed.narrow(0, p * hidden_size, hidden_size) for p in places])


def _leaf_values(case: Case, weights: Weights) -> dict[str, Tensor]:
    """Every leaf that stays the same over time, by its label in the graph."""
    cell, H = case.cell, case.hidden_size
    values: dict[str, Tensor] = {}
    for place, gate in enumerate(cell.recurrent_gates):
        rows = weights["weight_hh"].narrow(0, place * H, H)
        if cell.recurrence == "blocks":
            rows = rows.reshape(case.num_heads, H // case.num_heads, -1)
        values[f"R_{gate}"] = rows
        if "bias_hh" in weights:
            values[f"{gate}.b"] = weights["bias_hh"].narrow(0, place * H, H)
    if "weight_hr" in weights:
        values["W_hr"] = weights["weight_hr"]
    for name, parameter in cell.parameters.items():
        if name in weights and parameter.per == "gate":
            parts = weights[name].chunk(len(cell.gates))
            values.update((f"{name}.{g}", p) for g, p in zip(cell.gates, parts, strict=True))
        elif name in weights:
            values[name] = weights[name]
    return values


def _sizes(case: Case, weights: Weights) -> dict[str, Tensor]:
    """The number of units of each axis, for graphs that read it."""
    like = next(iter(weights.values()), case.input)
    return {"H": like.new_tensor(case.hidden_size), "P": like.new_tensor(case.proj_size)}


def _over_time(
    step: Step, rows: States, states: States, is_reverse: bool, case: Case
) -> tuple[Tensor, States]:
    """Equal lengths: rows are products [T, B, G*H] and masks [T, B, H]."""
    outputs = []
    each = list(zip(*(row.unbind(0) for row in rows), strict=True))
    for row in reversed(each) if is_reverse else each:
        output, states = step(row, states)
        outputs.append(output)
    if not outputs:
        width = case.proj_size or case.hidden_size
        # Autocast may give results another dtype than the states have: the one of a step of no sequences.
        none = tuple(row.new_empty(0, row.shape[-1]) for row in rows)
        like, made = step(none, tuple(s[:0] for s in states))
        # Made from the input, so that an empty output can be differentiated like any other.
        output = rows[0].sum(-1, keepdim=True).expand(0, states[0].shape[0], width)
        pairs = zip(states, made, strict=True)
        return output.to(like.dtype), tuple(state.to(new.dtype) for state, new in pairs)
    return torch.stack(outputs[::-1] if is_reverse else outputs), states


def _over_packed(
    step: Step, rows: Sequence[States], states: States, is_reverse: bool
) -> tuple[Tensor, States]:
    """Packed: at each time step only the first so many sequences, longest first, are alive."""
    outputs = []
    if is_reverse:
        alive = tuple(state[: len(rows[-1][0])] for state in states)
        for row in reversed(rows):
            start, stop = len(alive[0]), len(row[0])
            if stop > start:  # sequences that end here begin their way back
                joining = (state[start:stop] for state in states)
                alive = tuple(torch.cat(pair) for pair in zip(alive, joining, strict=True))
            output, alive = step(row, alive)
            outputs.append(output)
        return torch.cat(outputs[::-1]), alive
    ended: list[States] = []
    for row in rows:
        count = len(row[0])
        if count < len(states[0]):
            ended.append(tuple(state[count:] for state in states))
            states = tuple(state[:count] for state in states)
        output, states = step(row, states)
        outputs.append(output)
    parts = [states, *reversed(ended)]
    return torch.cat(outputs), tuple(torch.cat(each) for each in zip(*parts, strict=True))
