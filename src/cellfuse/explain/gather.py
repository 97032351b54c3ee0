"""Collect the facts about a layer: run a copy of it once and read everything off."""

from __future__ import annotations

import copy
import locale
import os
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from cellfuse.cell import Cell
from cellfuse.errors import InputError
from cellfuse.explain.claims import claims_of
from cellfuse.explain.counts import counts_of
from cellfuse.explain.facts import Claim, Explanation, ModelExplanation, TensorFact
from cellfuse.graph.equations import equations
from cellfuse.nn import Layer, OneStep, convert
from cellfuse.nn.convert import TABLE

LANGUAGES = ("en", "zh")


def explain(
    layer: nn.Module | Cell,
    input: Tensor | PackedSequence | None = None,
    hx: Any = None,
    *,
    seq_len: int = 5,
    batch: int = 3,
    lang: str | None = None,
) -> Explanation | ModelExplanation:
    """Say what a recurrent layer computes and what each tensor that goes in or comes out is.

    Args:
        layer: a cellfuse layer, a torch.nn.RNN/GRU/LSTM, one of their one-step cells, or a model that
            holds some. It is not changed.
        input: [T, B, I] as the layer takes it, unbatched or packed too; every statement is then checked
            on it. None: sizes only, checked on random numbers.
        hx: initial states, as the layer takes them.
        seq_len, batch: T and B where no input is given.
        lang: "en" or "zh"; the locale's if None.

    Returns:
        An Explanation, or a ModelExplanation for a model. `print` it.

    Raises:
        InputError: there is no recurrent layer in it, or lang is unknown.
    """
    lang = lang or default_language()
    if lang not in LANGUAGES:
        raise InputError(f"lang={lang!r}: use one of {', '.join(LANGUAGES)}")
    if isinstance(layer, Cell):
        raise InputError(f"explain takes a layer; write explain({layer.name}.layer(input_size, hidden_size))")
    recurrent = (Layer, OneStep, *TABLE)
    if not isinstance(layer, recurrent):
        return _explain_model(layer, recurrent, seq_len, batch, lang)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return _explain_layer(_as_layer(layer), input, hx, seq_len, batch, lang, repr(layer))


def default_language() -> str:
    """ "zh" where the locale is Chinese, else "en"."""
    names = [os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG")]
    name = next((name for name in names if name), "") or (locale.getlocale()[0] or "")
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"


def _explain_model(
    model: nn.Module, recurrent: tuple, seq_len: int, batch: int, lang: str
) -> ModelExplanation:
    found, others = [], []
    for name, module in model.named_modules():
        if isinstance(module, recurrent):
            found.append((name, explain(module, seq_len=seq_len, batch=batch, lang=lang)))
        elif not list(module.children()) and name:
            others.append(f"{name} ({type(module).__name__})")
    if not found:
        raise InputError(
            f"{type(model).__name__} holds no recurrent layer; explain takes cellfuse's layers, "
            "torch.nn.RNN, GRU, LSTM and their cells"
        )
    return ModelExplanation(tuple(found), tuple(others), lang)  # type: ignore[arg-type]


def _as_layer(module: nn.Module) -> Layer:
    """Our layer with the same weights; the user's module stays as it is."""
    ours = convert(copy.deepcopy(module), report=None).eval()
    if isinstance(ours, Layer):
        return ours
    assert isinstance(ours, OneStep)
    layer = Layer(
        ours.cell, ours.input_size, ours.hidden_size, bias=ours.bias, proj_size=ours.proj_size,
        num_heads=ours.num_heads, dtype=next(ours.parameters()).dtype,
    )  # fmt: skip
    layer.load_state_dict({f"{key}_l0": value for key, value in ours.state_dict().items()})
    return layer.eval()


def _explain_layer(
    layer: Layer, input: Any, hx: Any, seq_len: int, batch: int, lang: str, title: str
) -> Explanation:
    like = next(layer.parameters(), torch.zeros(()))
    given = input is not None
    if input is None:
        if seq_len < 1 or batch < 1:
            raise InputError(f"seq_len={seq_len}, batch={batch}: both must be at least 1")
        shape = (batch, seq_len) if layer.batch_first else (seq_len, batch)
        device = "cpu" if like.device.type == "meta" else like.device
        layer = layer.to_empty(device=device) if like.device.type == "meta" else layer
        generator = torch.Generator(device=device).manual_seed(0)
        input = torch.randn(*shape, layer.input_size, generator=generator, device=device).to(like.dtype)
        if like.device.type == "meta":
            layer.reset_parameters()
    output, finals = layer(input, hx)
    finals = finals if isinstance(finals, tuple) else (finals,)
    T, B = _lengths(layer, input)
    sizes = {"T": T, "B": B, "I": layer.input_size, "H": layer.hidden_size, "P": layer.proj_size}
    sizes |= {"L": layer.num_layers, "D": layer.num_directions}
    form = "packed" if isinstance(input, PackedSequence) else "unbatched" if input.dim() == 2 else "batched"
    values = {"layer": layer, "input": input, "output": output, "torch": torch, **sizes}
    values |= {f"{s}_n": value for s, value in zip(layer.cell.states, finals, strict=True)}
    if isinstance(input, PackedSequence):
        values["padded"], values["lengths"] = pad_packed_sequence(output, batch_first=False)  # type: ignore[arg-type]
    claims = tuple(_checked(claim, values) for claim in claims_of(layer, form))
    return Explanation(
        title=title,
        cell=layer.cell.name,
        source=layer.cell.source,
        deviation=layer.cell.deviation,
        sizes=sizes,
        gates=_gate_meanings(layer.cell),
        equations=tuple(equations(layer.cell.step if layer.bias else layer.cell.step_without_bias)),
        wiring=tuple(wiring(layer.num_layers, layer.num_directions)),
        tensors=tuple(_tensors(layer, input, output, finals, form)),
        claims=claims,
        counts=tuple(counts_of(layer, T, B, like.element_size())),
        states=layer.cell.states,
        options={
            "batch_first": layer.batch_first,
            "dropout": layer.dropout,
            "form": form,
            "bias": layer.bias,
        },
        was_given_input=given,
        lang=lang,
    )


def _lengths(layer: Layer, input: Any) -> tuple[int, int]:
    """T and B of an input."""
    if isinstance(input, PackedSequence):
        return len(input.batch_sizes), int(input.batch_sizes[0])
    if input.dim() == 2:
        return input.size(0), 1
    return (input.size(1), input.size(0)) if layer.batch_first else (input.size(0), input.size(1))


def _checked(claim: Claim, values: dict[str, Any]) -> Claim:
    """The claim with its truth on these tensors."""
    holds = bool(eval(claim.code, {"__builtins__": {"all": all, "range": range}, **values}))
    return Claim(claim.key, claim.code, claim.en, claim.zh, holds)


def _gate_meanings(cell: Cell) -> tuple[tuple[str, str], ...]:
    """(gate, meaning) pairs from a docstring such as "... r: reset, z: update, n: candidate." """
    text = " ".join((cell.function.__doc__ or "").split())
    found = re.findall(r"\b(\w+): ([^,:.;]+)", text)
    return tuple((gate, meaning.strip()) for gate, meaning in found if gate in cell.gates)


def wiring(num_layers: int, num_directions: int) -> list[tuple[str, str]]:
    """Every arrow of the map: input, cells by layer and direction, states k = layer * D + direction."""
    arrows = []
    for layer in range(num_layers):
        for direction in range(num_directions):
            here = f"c/{layer}/{direction}"
            below = [f"c/{layer - 1}/{d}" for d in range(num_directions)] if layer else ["in/0"]
            arrows += [(source, here) for source in below]
            arrows += [(here, here), (here, f"h/{layer * num_directions + direction}")]
            if layer == num_layers - 1:
                arrows.append((here, "out"))
    return arrows


def _tensors(
    layer: Layer, input: Any, output: Any, finals: tuple[Tensor, ...], form: str
) -> list[TensorFact]:
    features = "D*P" if layer.proj_size else "D*H"
    axes = {"packed": ("N",), "unbatched": ("T",), "batched": ("B", "T") if layer.batch_first else ("T", "B")}
    data = {"input": input, "output": output}
    if form == "packed":
        data = {name: value.data for name, value in data.items()}
    facts = [
        _fact("input", (*axes[form], "I"), data["input"], "the sequences", "输入序列"),
        _fact(
            "output", (*axes[form], features), data["output"],
            "the last layer's output at every time step", "最后一层在每个时间步的输出",
        ),
    ]  # fmt: skip
    words = {"h": ("hidden state", "隐状态 h"), "c": ("cell state", "细胞状态（记忆元）c")}
    for state, value in zip(layer.cell.states, finals, strict=True):
        en, zh = words.get(state, (f"state {state}", f"状态 {state}"))
        letters = ("L*D", *(() if form == "unbatched" else ("B",)), layer.cell.width(state))
        facts.append(
            _fact(
                f"{state}_n", letters, value,
                f"the {en} of every layer after its last step", f"每一层走完最后一步后的{zh}",
            )
        )  # fmt: skip
    for block in layer._blocks():
        suffix, slots = block.suffix, block.slots
        for slot in slots:
            rows = " ".join(slot.rows) if slot.rows else ""
            en = f"rows by gate: {rows}" if rows else "of the cell"
            zh = f"按门分块的行：{rows}" if rows else "细胞自己的参数"
            letters = tuple(str(size) for size in slot.shape)
            facts.append(_fact(slot.name + suffix, letters, getattr(layer, slot.name + suffix), en, zh))
    return facts


def _fact(name: str, letters: tuple[str, ...], value: Tensor, en: str, zh: str) -> TensorFact:
    size = value.numel() * value.element_size()
    return TensorFact(name, letters, tuple(value.shape), size, en, zh)
