"""Every tensor of a layer: its name, axes, sizes, bytes and what it holds. Read off the real tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from cellfuse.explain.facts import TensorFact
from cellfuse.explain.step import state_words
from cellfuse.explain.subject import Subject
from cellfuse.explain.words import Words, say
from cellfuse.slots import Slot, slots

_OWN = {"unit": "own per unit", "gate": "own per gate", "cell": "own per cell"}
_MATRICES = {"weight_ih": "W", "weight_hh": "R", "bias_ih": "b", "bias_hh": "d", "weight_hr": "W_hr"}


def tensors_of(
    layer: Any, subject: Subject, input: Any, hx: Any, output: Any, states: tuple[Tensor, ...]
) -> tuple[TensorFact, ...]:
    """Input, initial states, output, last states, then the parameters in torch's order."""
    given = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
    before = dict(zip(subject.cell.states, given, strict=True)) if given else {}
    after = "1" if subject.is_step else "n"
    key = "input packed" if subject.form == "packed" else "input"
    made = [_fact("input", "input", (*_axes(subject), "I"), input, say(key))]
    for state in before:
        words = say("initial", name=state_words(state))
        made.append(_fact(f"{state}_0", "initial", _state_axes(subject, state), before[state], words))
    if output is not None:
        features = f"D*{subject.width}" if subject.sizes["D"] > 1 else subject.width
        key = "output step" if subject.is_step else "output"
        made.append(_fact("output", "output", (*_axes(subject), features), output, say(key)))
    for state, value in zip(subject.cell.states, states, strict=True):
        key = "state step" if subject.is_step else "state"
        words = say(key, name=state_words(state))
        made.append(_fact(f"{state}_{after}", "state", _state_axes(subject, state), value, words))
    return (*made, *_parameters(layer, subject))


def _fact(
    name: str, role: str, letters: tuple[str, ...], value: Any, words: Words, rows: tuple[str, ...] = ()
) -> TensorFact:
    value = value.data if isinstance(value, PackedSequence) else value
    size = value.numel() * value.element_size()
    return TensorFact(name, role, letters, tuple(value.shape), size, *words, rows=rows)


def _axes(subject: Subject) -> tuple[str, ...]:
    """The axes of input and output before the features."""
    if subject.form == "packed":
        return ("S",)
    axes = () if subject.is_step else ("T",)
    if subject.form == "unbatched":
        return axes
    return ("B", *axes) if subject.batch_first else (*axes, "B")


def _state_axes(subject: Subject, state: str) -> tuple[str, ...]:
    stack = () if subject.is_step else ("L*D",) if subject.sizes["D"] > 1 else ("L",)
    batch = () if subject.form == "unbatched" else ("B",)
    return (*stack, *batch, subject.cell.width(state))


def _parameters(layer: Any, subject: Subject) -> list[TensorFact]:
    sizes, made = subject.sizes, []
    for k, _, suffix in subject.suffixes:
        width = sizes["D"] * sizes[subject.width] if k else sizes["I"]
        for slot in slots(
            subject.cell, width, sizes["H"],
            bias=subject.bias, proj_size=sizes["P"], num_heads=sizes["N"],
        ):  # fmt: skip
            role = "parameter" if slot.learned else "constant"
            letters, value = _letters(subject, slot, k), getattr(layer, slot.name + suffix)
            words = _meaning(subject, slot)
            made.append(_fact(slot.name + suffix, role, letters, value, words, slot.rows))
    return made


def _letters(subject: Subject, slot: Slot, layer: int) -> tuple[str, ...]:
    """The axes of a parameter: "4*H" are the rows of four gates."""
    rows = "H" if len(slot.rows) == 1 else f"{len(slot.rows)}*H"
    if slot.name == "weight_ih":
        below = f"D*{subject.width}" if subject.sizes["D"] > 1 else subject.width
        return rows, below if layer else "I"
    if slot.name == "weight_hh" and subject.cell.recurrence == "blocks":
        return rows, "H/N"
    if slot.name == "weight_hh" and subject.cell.recurrence == "dense":
        widths = {m.shape[1] for m in subject.step.of_role("matrix") if m.label != "W_hr"}
        return rows, "P" if widths == {"P"} else "H"
    if slot.name == "weight_hr":
        return "P", "H"
    if slot.rows:
        return (rows,)
    return ("H",) if slot.shape else ()


def _meaning(subject: Subject, slot: Slot) -> Words:
    own = subject.cell.parameters.get(slot.name)
    if own is None:
        return say(_MATRICES[slot.name])
    words = say(_OWN[own.per])
    return words if slot.learned else say("constant", what=words)
