"""`explain`: run a stand-in of a layer once and collect the facts about it; or of every layer in a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from cellfuse.cell import Cell
from cellfuse.errors import InputError, OptionError
from cellfuse.explain.cell_graph import cell_graph
from cellfuse.explain.claims import claims_of
from cellfuse.explain.counts import counts_of
from cellfuse.explain.evaluate import evaluate, in_double, names_of, result_of, stand_in
from cellfuse.explain.facts import Explanation, ModelExplanation, Other
from cellfuse.explain.memory import memory_of
from cellfuse.explain.progress import Watch
from cellfuse.explain.step import code_of, equations_of, gate_meanings
from cellfuse.explain.subject import is_recurrent, subject_of
from cellfuse.explain.tensors import tensors_of
from cellfuse.explain.values import traces_of
from cellfuse.explain.wiring import wiring
from cellfuse.explain.words import LANGUAGES, default_language
from cellfuse.nn import OneStep

KNOWN = "cellfuse's layers, torch.nn.RNN, GRU, LSTM and their one-step cells, and models that hold some"


def explain(
    layer: nn.Module | Cell,
    input: Any = None,
    hx: Any = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    seq_len: int = 5,
    batch: int = 3,
    lang: str | None = None,
    watch: Watch | None = None,
) -> Explanation | ModelExplanation:
    """Say what a recurrent layer computes and what each tensor that goes in or comes out is.

    Args:
        layer: a cellfuse layer, a torch.nn.RNN/GRU/LSTM, one of their one-step cells, or a model that
            holds some. It is not changed and, except for a copy of a model, not called.
        input: [T, B, I] as the layer takes it, unbatched or packed too; every statement is then checked
            on it. Or a shape, such as (5, 3, 10). For a model what its forward takes, a tuple for
            several arguments. None: sizes only. Without tensors, random numbers are used.
        hx: initial states, as the layer takes them.
        lengths: valid time steps of each sequence of a padded input; it is packed with them.
        seq_len, batch: T and B where no input is given.
        lang: "en" or "zh"; the locale's if None.
        watch: called with ("step" or "statement", done, total) while it works.

    Returns:
        An Explanation, or a ModelExplanation for a model. `print` it.

    Raises:
        InputError: there is no recurrent layer in it, or the input does not fit.
        OptionError: a size or language that is not allowed.
    """
    lang = lang or default_language()
    if lang not in LANGUAGES:
        raise OptionError(f"explain: lang={lang!r}; use one of {', '.join(LANGUAGES)}")
    for name, size in (("seq_len", seq_len), ("batch", batch)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(f"explain: {name} must be a whole number of at least 1, got {size!r}")
    if isinstance(layer, Cell):
        raise InputError(
            f"explain takes a layer, not a cell; write explain({layer.name}.layer(input_size, hidden_size))"
        )
    if not isinstance(layer, nn.Module):
        raise InputError(f"explain takes {KNOWN}; got {type(layer).__name__}")
    if lengths is not None:
        input = _packed(layer, input, lengths)
    if is_recurrent(layer):
        return _explain_layer(layer, input, hx, (seq_len, batch), lang, watch)
    return _explain_model(layer, input, hx, (seq_len, batch), lang, watch)


def _explain_layer(
    module: nn.Module, input: Any, hx: Any, sizes: tuple[int, int], lang: str, watch: Watch | None
) -> Explanation:
    is_given = isinstance(input, Tensor | PackedSequence)
    with _quietly(module):
        layer = _materialised(module)
        if not is_given:
            input = _random(layer, input, sizes)
        input, hx = _usable(input), _usable(tuple(hx) if isinstance(hx, list) else hx)
        output, states = result_of(layer, input, hx)
        subject = subject_of(layer, input, hx is not None)
        tensors = tensors_of(layer, subject, input, hx, output, states)
        names = names_of(layer, subject, input, hx, (output, states), watch)
        claims = evaluate(claims_of(subject, tensors), names, watch)
        if any(claim.holds is False and not claim.is_generic for claim in claims):
            # A layer with large weights makes the last bit's rounding large after many time steps.
            again = evaluate(list(claims), in_double(layer, subject, input, hx), watch)
            pairs = zip(claims, again, strict=True)
            claims = tuple(old if old.holds or old.is_generic else new for old, new in pairs)
        memory = memory_of(layer, subject, input, hx)
    data = input.data if isinstance(input, PackedSequence) else input
    return Explanation(
        title=subject.title,
        kind="step" if subject.is_step else "layer",
        form=subject.form,
        cell=subject.cell.name,
        source=subject.cell.source,
        deviation=subject.cell.deviation,
        states=subject.cell.states,
        output_states=subject.output_states,
        sizes=subject.sizes,
        lengths=subject.lengths,
        gates=gate_meanings(subject.cell),
        equations=equations_of(subject),
        graph=cell_graph(subject),
        code=code_of(subject.cell),
        wiring=tuple(wiring(subject.sizes["L"], subject.sizes["D"])),
        tensors=tensors,
        claims=claims,
        counts=tuple(counts_of(subject, tensors, data.element_size())),
        options={
            "bias": subject.bias,
            "batch_first": subject.batch_first,
            "dropout": subject.dropout,
            "has_hx": subject.has_hx,
            "dtype": str(data.dtype).removeprefix("torch."),
        },
        memory=memory,
        was_given_input=is_given,
        trace=traces_of(subject, names["by_hand"], claims),
        lang=lang,
    )


def _packed(layer: nn.Module, input: Any, lengths: Tensor | Sequence[int]) -> PackedSequence:
    """The valid steps of padded input; random numbers if there is none.

    Raises:
        InputError: no layer over time, no padded tensor, or lengths that do not fit it.
    """
    if not is_recurrent(layer) or isinstance(layer, OneStep | nn.RNNCellBase):
        raise InputError("explain: lengths= belongs to a layer over time, not to a model or one-step module")
    known = [int(n) for n in lengths]
    first = bool(layer.batch_first)
    if input is None and known:
        size = (len(known), max(known)) if first else (max(known), len(known))
        input = _random(layer, (*size, layer.input_size), size)
    is_padded = isinstance(input, Tensor) and input.dim() == 3
    B, T = (input.shape[:2] if first else input.shape[1::-1]) if is_padded else (0, 0)
    if not known or len(known) != B or min(known) < 1 or max(known) > T:
        given = list(input.shape) if isinstance(input, Tensor) else type(input).__name__
        raise InputError(
            f"explain: lengths={known} with input {given}; give a padded tensor of three axes and one "
            "length from 1 to T for each of its sequences"
        )
    return pack_padded_sequence(input, known, batch_first=first, enforce_sorted=False)


@contextmanager
def _quietly(module: nn.Module) -> Iterator[None]:
    """No gradients, no autocast, no inference mode, and the random number generators as they were."""
    first = next(iter([*module.parameters(), *module.buffers()]), torch.empty(0))
    devices = [first.device] if first.is_cuda else []
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        # torch on CUDA says so of weights that do not lie side by side in memory
        warnings.filterwarnings("ignore", message=".*RNN module weights.*")
        with torch.autocast(first.device.type if first.is_cuda else "cpu", enabled=False):
            yield


def _usable(value: Any) -> Any:
    """The same tensors, copied if they were made in inference mode: autograd refuses those."""
    if isinstance(value, tuple) and not isinstance(value, PackedSequence):
        return tuple(_usable(each) for each in value)
    if isinstance(value, PackedSequence):
        return PackedSequence(*map(_usable, value))
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _materialised(module: nn.Module) -> Any:
    """A stand-in of the module, with drawn weights if it has none yet (device "meta")."""
    if any(parameter.is_inference() for parameter in module.parameters()):
        module = copy.deepcopy(module)
    if any(parameter.is_meta for parameter in module.parameters()):
        module = copy.deepcopy(module).to_empty(device="cpu")
        module.reset_parameters()  # type: ignore[operator]
    return stand_in(module)


def _random(layer: Any, shape: Any, sizes: tuple[int, int]) -> Tensor:
    """Random input of a shape, or of T and B.

    Raises:
        InputError: it is no shape that the layer takes.
    """
    T, B = sizes
    is_step = isinstance(layer, OneStep | nn.RNNCellBase)
    if shape is None:
        shape = (B,) if is_step else (B, T) if layer.batch_first else (T, B)
        shape = (*shape, layer.input_size)
    is_shape = isinstance(shape, tuple | list) and all(isinstance(n, int) and n > 0 for n in shape)
    axes = (1, 2) if is_step else (2, 3)
    if not is_shape or len(shape) not in axes or shape[-1] != layer.input_size:
        wanted = "[B, I] or [I]" if is_step else "[T, B, I] ([B, T, I] if batch_first) or [T, I]"
        raise InputError(
            f"explain: input={shape!r}; give a tensor, a PackedSequence or a shape that "
            f"{layer._get_name()} takes, {wanted} with I={layer.input_size}"
        )
    like = next(layer.parameters())
    generator = torch.Generator(device=like.device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=like.device).to(like.dtype)


def _explain_model(
    model: nn.Module, input: Any, hx: Any, sizes: tuple[int, int], lang: str, watch: Watch | None
) -> ModelExplanation:
    if hx is not None:
        raise InputError("explain: hx belongs to a layer; give a model's arguments as a tuple, input=(x, h)")
    calls = {} if input is None else _calls(model, input)
    found: list[tuple[str, Explanation]] = []
    others: list[Other] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        if is_recurrent(module):
            inside.update(module.modules())  # a parametrised layer has modules of its own
            given = calls.get(name, (None, None))
            found.append((name, _explain_layer(module, *given, sizes, lang, watch)))
        else:
            own = sum(p.numel() for p in module.parameters(recurse=False))
            is_leaf = not list(module.children())
            if own or (name and is_leaf):
                title = repr(module) if is_leaf else type(module).__name__
                others.append(Other(name, title.split("\n")[0], own))
    if not found:
        raise InputError(f"{type(model).__name__} holds no recurrent layer. explain takes {KNOWN}.")
    total = sum(p.numel() for p in model.parameters())
    return ModelExplanation(type(model).__name__, tuple(found), tuple(others), total, lang)


def _calls(model: nn.Module, input: Any) -> dict[str, tuple[Any, Any]]:
    """(input, hx) of the first call of every recurrent layer, from a run of a copy of the model."""
    twin = copy.deepcopy(model).eval()
    calls: dict[str, tuple[Any, Any]] = {}
    for name, module in twin.named_modules():
        if is_recurrent(module):

            def watch(module: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
                given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
                calls.setdefault(name, (given["input"], given.get("hx")))

            module.register_forward_pre_hook(watch, with_kwargs=True)
    is_many = isinstance(input, tuple) and not isinstance(input, PackedSequence)
    with _quietly(twin):
        twin(*input) if is_many else twin(input)
    return calls
