"""The equations, run step by step with the weights of one layer and direction. No backend's code is used.

Claims compare the layer with it: which weights, which order, which direction ends where.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from cellfuse.explain.progress import Watch
from cellfuse.explain.subject import Subject
from cellfuse.graph.equations import rows
from cellfuse.graph.expr import Expr
from cellfuse.graph.graph import Graph
from cellfuse.runtime.torch_text import stacked_function

# How many sequences and units of the values inside the step are kept.
_SEQUENCES, _UNITS = 8, 64


class ByHand:
    """`by_hand(what, layer, direction)`: last value of a state, or "output" over time.

    Results have the layer's own axes: states [B, H], output [T, B, H], batch first or without a batch as
    the layer's are; for packed input the output is padded, with zeros after the end. Float32 at least.
    """

    def __init__(
        self,
        subject: Subject,
        layer: Any,
        input: Tensor | PackedSequence,
        hx: Any,
        watch: Watch | None = None,
    ) -> None:
        self._subject, self._module = subject, layer
        self._watch = watch
        self._input, self._lengths = _time_first(subject, input)
        self._hx = None if hx is None else hx if isinstance(hx, tuple) else (hx,)
        self._known: dict[tuple, tuple[Tensor, dict[str, Tensor]]] = {}
        self.inner = inner_values(subject.step)
        self._seen: dict[int, dict[str, Tensor]] = {}

    def __call__(self, what: str, layer: int, direction: int, ih: str = "", hh: str = "") -> Tensor:
        """ih, hh: the gates whose rows follow one another in weight_ih and weight_hh; the cell's own order
        if left out."""
        subject = self._subject
        outputs, finals = self._run(layer, ih, hh)
        if what != "output":
            final = finals[what][direction]
            return final[0] if subject.form == "unbatched" else final
        output = outputs[direction]
        if subject.is_step:
            output = output[0]
            return output[0] if subject.form == "unbatched" else output
        if subject.form == "unbatched":
            return output[:, 0]
        return output.transpose(0, 1) if subject.batch_first and subject.form == "batched" else output

    def seen(self, layer: int, direction: int) -> dict[str, Tensor]:
        """The named values inside the step, [T, some sequences, some units] each, in the order of time."""
        self._run(layer, "", "")
        return {name: value[direction] for name, value in self._seen[layer].items()}

    @property
    def lengths(self) -> Tensor:
        """Valid steps of every sequence."""
        return self._lengths

    def _run(self, layer: int, ih: str, hh: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs [D, T, B, width] and last states [D, B, width] of a layer."""
        cell = self._subject.cell
        ih = "" if ih == " ".join(cell.input_gates) else ih
        hh = "" if hh == " ".join(cell.recurrent_gates) else hh
        if (layer, ih, hh) not in self._known:
            self._known[layer, ih, hh] = self._over_time(layer, ih, hh)
        return self._known[layer, ih, hh]

    @torch.inference_mode()  # a tenth less time for thousands of small calls
    def _over_time(self, layer: int, ih: str, hh: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Both directions side by side: half as many calls, of which there are thousands."""
        subject, (T, B, D) = self._subject, (self._subject.sizes[letter] for letter in "TBD")
        below = torch.cat(self._run(layer - 1, "", "")[0].unbind(0), -1) if layer else self._input
        ways = torch.stack([below, self._backwards(below)][:D])
        leaves = self._leaves(layer, ih, hh)
        gates = [leaf.label.removesuffix(".x") for leaf in subject.step.of_role("input product")]
        products = {}
        for gate in gates:
            product = torch.matmul(ways.flatten(1, 2), leaves[f"W {gate}"].mT)
            product = product + leaves[f"b {gate}"] if f"b {gate}" in leaves else product
            products[f"{gate}.x"] = product.unflatten(1, (T, B)).unbind(1)
        states = self._initial(layer)
        labels = [leaf.label for leaf in subject.step.inputs]
        given: list[Any] = [leaves.get(label) for label in labels]
        moving = [(place, products[label]) for place, label in enumerate(labels) if label in products]
        carried = {state: labels.index(state) for state in states if state in labels}
        axes = {axis: ways.new_tensor(subject.sizes[axis]) for axis in "HP"}
        step = stacked_function(_with_results(subject.step, self.inner))
        is_ragged, is_kept = bool((self._lengths < T).any()), self._is_kept(layer) and not ih and not hh
        outputs, seen = [], []
        for t in range(T):
            if self._watch:
                self._watch("step", layer * T + t + 1, subject.sizes["L"] * T)
            for place, product in moving:
                given[place] = product[t]
            for state, place in carried.items():
                given[place] = states[state]
            output, *new = step(*given, axes)
            if is_kept:
                seen.append([value[..., :_SEQUENCES, :_UNITS] for value in new[len(states) :]])
            new = [_filled(value, D, B) for value in new[: len(states)]]
            output = _filled(output, D, B)
            if is_ragged:
                is_valid = (t < self._lengths).unsqueeze(1)
                output = torch.where(is_valid, output, 0.0)
                pairs = zip(new, states.values(), strict=True)
                new = [torch.where(is_valid, after, before) for after, before in pairs]
            outputs.append(output)
            states = dict(zip(states, new, strict=True))
        if is_kept:
            self._seen[layer] = self._in_time(seen)
        return self._turned(torch.stack(outputs, 1)), states

    def _is_kept(self, layer: int) -> bool:
        """Values inside the first and the last layer are kept."""
        return layer in (0, self._subject.sizes["L"] - 1)

    def _in_time(self, seen: list[list[Tensor]]) -> dict[str, Tensor]:
        B, D = min(self._subject.sizes["B"], _SEQUENCES), self._subject.sizes["D"]
        made = {}
        for name, values in zip(self.inner, zip(*seen, strict=True), strict=True):
            made[name] = self._turned(torch.stack([_filled(value, D, B) for value in values], 1))
        return made

    def _turned(self, value: Tensor) -> Tensor:
        """[D, T, ...] in the order of time: the reverse direction ran from each sequence's end."""
        return torch.stack([value[0], *(self._backwards(way) for way in value[1:])])

    def _backwards(self, value: Tensor) -> Tensor:
        """Every sequence from its own end; padding stays where it is."""
        t = torch.arange(len(value), device=value.device).unsqueeze(1)
        lengths = self._lengths[: value.shape[1]]
        index = torch.where(t < lengths, lengths - 1 - t, t)
        return value.gather(0, index.unsqueeze(-1).expand_as(value))

    def _initial(self, layer: int) -> dict[str, Tensor]:
        """The states before a layer's first time step, [D, B, width]: entries layer * D + direction."""
        subject, made = self._subject, {}
        B, D = subject.sizes["B"], subject.sizes["D"]
        for place, state in enumerate(subject.cell.states):
            shape = (D, B, subject.sizes[subject.cell.width(state)])
            if self._hx is None:
                value = float(subject.cell.initial.get(state, 0.0))  # type: ignore[arg-type]
                made[state] = self._input.new_full(shape, value)
            else:
                given = self._hx[place]
                given = given if subject.is_step else given[layer * D : (layer + 1) * D]
                made[state] = _at_least_float32(given).reshape(shape)
        return made

    def _leaves(self, layer: int, ih: str, hh: str) -> dict[str, Tensor]:
        """The weights of both directions, one above the other; parameters with an axis for the batch."""
        suffixes = [suffix for k, _, suffix in self._subject.suffixes if k == layer]
        ways = [_leaves(self._subject, self._module, suffix, ih, hh) for suffix in suffixes]
        made = {name: torch.stack([way[name] for way in ways]) for name in ways[0]}
        axes = {1: (slice(None), None, None), 2: (slice(None), None)}
        return {name: value[axes.get(value.dim(), ...)] for name, value in made.items()}


def inner_values(step: Graph) -> dict[str, Expr]:
    """The values of a step that have a name, by it: the user's, the new states and the output."""
    named = [(row.left, row.expr) for row in rows(step)]
    return {name: expr for name, expr in named if len(expr.shape) == 1 and not expr.is_truth}


def _filled(value: Tensor, directions: int, batch: int) -> Tensor:
    """A value that does not depend on the input, for every direction and sequence."""
    is_full = value.dim() == 3 and value.shape[0] == directions and value.shape[1] == batch
    return value if is_full else value.expand(directions, batch, -1)


def _with_results(step: Graph, more: dict[str, Expr]) -> Graph:
    """The step with further results."""
    return Graph(step.name, step.inputs, (*step.outputs, *more.items()), step.names)


def _at_least_float32(value: Tensor) -> Tensor:
    return value.detach() if value.dtype == torch.float64 else value.detach().float()


def _time_first(subject: Subject, input: Tensor | PackedSequence) -> tuple[Tensor, Tensor]:
    """The input as [T, B, I], padded, and the lengths [B]."""
    if isinstance(input, PackedSequence):
        padded, lengths = pad_packed_sequence(input)  # type: ignore[arg-type]
        return _at_least_float32(padded), lengths.to(padded.device)
    T, B = subject.sizes["T"], subject.sizes["B"]
    if not subject.is_step and subject.batch_first and subject.form == "batched":
        input = input.transpose(0, 1)
    value = _at_least_float32(input).reshape(T, B, subject.sizes["I"])
    return value, torch.full((B,), T, device=value.device)


def _leaves(subject: Subject, layer: Any, suffix: str, ih: str, hh: str) -> dict[str, Tensor]:
    """Every weight of one layer and direction by its name in the equations, and each gate's W and b."""
    cell, H, N = subject.cell, subject.sizes["H"], subject.sizes["N"]
    into, back = ih.split() or list(cell.input_gates), hh.split() or list(cell.recurrent_gates)

    def value(name: str) -> Tensor | None:
        found = getattr(layer, name + suffix, None)
        return None if found is None else _at_least_float32(found)

    def rows(name: str, gates: list[str]) -> list[tuple[str, Tensor]]:
        found = value(name)
        return [] if found is None else list(zip(gates, found.split(H), strict=True))

    made = {f"W {gate}": part for gate, part in rows("weight_ih", into)}
    made |= {f"b {gate}": part for gate, part in rows("bias_ih", into)}
    made |= {f"{gate}.b": part for gate, part in rows("bias_hh", back)}
    for gate, part in rows("weight_hh", back):
        made[f"R_{gate}"] = part.reshape(N, H // N, H // N) if cell.recurrence == "blocks" else part
    for name, parameter in cell.parameters.items():
        if parameter.per == "gate":
            made |= {f"{name}.{gate}": part for gate, part in rows(name, list(cell.gates))}
        elif (found := value(name)) is not None:
            made[name] = found
    projection = value("weight_hr") if cell.projected else None
    return made if projection is None else made | {"W_hr": projection}
