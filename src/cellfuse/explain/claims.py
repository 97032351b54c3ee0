"""What is said about output, states and weights: each statement a Python expression. Runs none of them.

A claim is made here and run in `evaluate`; tests run all of them over a grid of settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cellfuse.explain.cell_graph import cell_graph
from cellfuse.explain.facts import Claim, TensorFact
from cellfuse.explain.subject import Subject
from cellfuse.explain.words import Words, listed, say

# More entries of h_n than this are not listed one by one.
_MANY = 8


def claims_of(subject: Subject, tensors: tuple[TensorFact, ...]) -> list[Claim]:
    """Everything that can be said about this layer with this form of input, in reading order."""
    writer = _Writer(subject, {fact.name: fact for fact in tensors})
    if subject.is_step:
        return [*_of_step(writer), *_before(writer), *_weights(writer)]
    made = [*_output(writer), *_states(writer), *_ends(writer)]
    made += _padding(writer) if subject.form == "packed" else _batch(writer)
    return [*made, *_before(writer), *_whole(writer), *_weights(writer), *_options(writer)]


@dataclass(frozen=True)
class _Writer:
    """Pieces of code for one layer and form of input."""

    subject: Subject
    facts: dict[str, TensorFact]

    @property
    def names(self) -> list[str]:
        """h_n, c_n, ..."""
        return [f"{s}_{'1' if self.subject.is_step else 'n'}" for s in self.subject.cell.states]

    @property
    def out_names(self) -> list[str]:
        """Those of the states that are the output."""
        return [f"{state}_n" for state in self.subject.output_states]

    @property
    def top(self) -> int:
        """Entry of h_n of the last layer, forward direction."""
        return (self.subject.sizes["L"] - 1) * self.subject.sizes["D"]

    @property
    def width(self) -> int:
        """Features of one direction."""
        return self.subject.sizes[self.subject.width]

    @property
    def hx(self) -> str:
        """How initial states are handed on in a call."""
        return ", hx" if self.subject.has_hx else ""

    @property
    def data(self) -> str:
        """What makes one tensor of a packed output."""
        return ".data" if self.subject.form == "packed" else ""

    @property
    def padded(self) -> str:
        """The output with an axis of time."""
        return "padded" if self.subject.form == "packed" else "output"

    @property
    def axis(self) -> int:
        """Which axis is time."""
        return 1 if self.subject.batch_first and self.subject.form == "batched" else 0

    def state(self, call: str, name: str) -> str:
        """One state of what a call of the layer returns."""
        place = f"[{self.names.index(name)}]" if len(self.names) > 1 else ""
        return f"{call}[1]{place}"

    def part(self, time: str, direction: int) -> str:
        """One direction's part of the output at one time step; "last" is each sequence's own."""
        form, D, W = self.subject.form, self.subject.sizes["D"], self.width
        features = "" if D == 1 else (f":{W}", f"{W}:")[direction]
        if form == "packed":
            last = ["lengths - 1", f"torch.arange({self.subject.sizes['B']})"]
            index = last if time == "last" else [time, ":"]
        else:
            index = ["-1" if time == "last" else time, *([":"] if form == "batched" else [])]
            index = index[::-1] if self.axis else index
        index.append(features)
        while index[-1] in ("", ":"):
            index.pop()
        return f"{self.padded}[{', '.join(index)}]"

    def steps(self, text: str) -> str:
        """A cut along time."""
        return f"[:, {text}]" if self.axis else f"[{text}]"

    def by_hand(self, state: str, layer: object, direction: object) -> str:
        """The equations in a loop."""
        return f'by_hand("{state}", {layer}, {direction})'


def _shape(fact: TensorFact) -> str:
    return _tuple([str(n) for n in fact.shape])


def _tuple(items: list[str]) -> str:
    """Code of a tuple."""
    return f"({', '.join(items)}{',' * (len(items) == 1)})"


def _axes(writer: _Writer, names: list[str]) -> Words:
    """The axes of some tensors, each kind once."""
    kinds = dict.fromkeys(f"[{', '.join(writer.facts[name].letters)}]" for name in names)
    return listed(list(kinds))


def _same_shapes(writer: _Writer, names: list[str]) -> str:
    """Code: the shapes are what they are said to be."""
    shapes: dict[str, list[str]] = {}
    for name in names:
        shapes.setdefault(_shape(writer.facts[name]), []).append(f"{name}.shape")
    return " and ".join(" == ".join([*each, shape]) for shape, each in shapes.items())


def _output(writer: _Writer) -> list[Claim]:
    subject, sizes = writer.subject, writer.subject.sizes
    fact, top, D = writer.facts["output"], sizes["L"] - 1, sizes["D"]
    if subject.form == "packed":
        words = say("output-shape packed", top=top, features=fact.letters[-1])
        code = f"padded.shape == ({sizes['T']}, {sizes['B']}, {fact.shape[-1]})"
    else:
        words = say("output-shape", top=top, axes=f"[{', '.join(fact.letters)}]")
        code = f"output.shape == {_shape(fact)}"
    made = [Claim("output-shape", "output", code, *words)]
    lanes = [writer.by_hand("output", top, direction) for direction in range(D)]
    joined = lanes[0] if D == 1 else f"torch.cat([{', '.join(lanes)}], -1)"
    words = say("output-parts one" if D == 1 else "output-parts two", W=writer.width)
    return [*made, Claim("output-parts", "output", f"close({joined}, {writer.padded})", *words)]


def _states(writer: _Writer) -> list[Claim]:
    names = writer.names
    first, rest = names[0], names[1:]
    key = "states-shape one" if len(names) == 1 else "states-shape"
    words = say(key, names=listed(names), axes=_axes(writer, names))
    made = [Claim("states-shape", "states", _same_shapes(writer, names), *words)]
    made.append(Claim("order", "states", _in_order(writer, first), *_entries(writer, first)))
    L, D = writer.subject.sizes["L"], writer.subject.sizes["D"]
    if L > 1 and D == 2:
        shape = ", ".join(str(n) for n in writer.facts[first].shape[1:])
        entry = f"{first}.view({L}, {D}, {shape})[k, d]"
        lane = writer.by_hand(first.removesuffix("_n"), "k", "d")
        code = f"all(close({lane}, {entry}) for k in range({L}) for d in range({D}))"
        made.append(Claim("order-view", "states", code, *say("order-view", name=first)))
    if rest:
        code = " and ".join(_in_order(writer, name) for name in rest)
        made.append(Claim("same-order", "states", code, *say("same-order", names=listed(rest))))
    return made


def _in_order(writer: _Writer, name: str) -> str:
    """Code: every entry of a state is its layer's and direction's."""
    L, D = writer.subject.sizes["L"], writer.subject.sizes["D"]
    state = name.removesuffix("_n")
    if L * D == 1:
        return f"close({writer.by_hand(state, 0, 0)}, {name}[0])"
    if D == 1:
        return f"all(close({writer.by_hand(state, 'k', 0)}, {name}[k]) for k in range({L}))"
    lane = writer.by_hand(state, "k // 2", "k % 2")
    return f"all(close({lane}, {name}[k]) for k in range({L * D}))"


def _entries(writer: _Writer, name: str) -> Words:
    """h_n[0] layer 0 forward, h_n[1] layer 0 reverse, ..."""
    L, D = writer.subject.sizes["L"], writer.subject.sizes["D"]
    keys = ["entry"] if D == 1 else ["entry forward", "entry reverse"]
    entries = [say(keys[k % D], name=name, k=k, layer=k // D) for k in range(min(L * D, _MANY))]
    end = ("", "") if L * D <= _MANY else (", …", "……")
    listing = Words(
        ", ".join(entry.en for entry in entries) + end[0],
        "，".join(entry.zh for entry in entries) + end[1],
    )
    if D == 2:
        return say("order two", name=name, entries=listing)
    return say("order one", name=name, entries=listing) if L > 1 else say("order", entries=listing)


def _ends(writer: _Writer) -> list[Claim]:
    subject, names, top = writer.subject, writer.names, writer.top
    outs, L, D = writer.out_names, subject.sizes["L"], subject.sizes["D"]
    last, start = writer.part("last", 0), writer.part("0", 1) if D == 2 else ""
    if not outs:
        fitting = [n for n in names if writer.facts[n].shape[-1] == writer.width]
        code = f"not any(torch.equal(s[{top}], {last}) for s in {_tuple(fitting)})"
        words = say("output-is-no-state", names=listed(names))
        return [Claim("output-is-no-state", "ends", code, *words, is_generic=True)]
    packed = " packed" if subject.form == "packed" else ""
    words = say(("forward-last" if D == 2 else "one-way-last") + packed)
    made = [Claim("forward-last", "ends", f"torch.equal({outs[0]}[{top}], {last})", *words)]
    if D == 2:
        code = f"torch.equal({outs[0]}[{top + 1}], {start})"
        made.append(Claim("reverse-last", "ends", code, *say("reverse-last" + packed)))
        if subject.sizes["T"] > 1:
            code = f"not torch.equal({outs[0]}[{top + 1}], {writer.part('last', 1)})"
            words = say("reverse-first")
            made.append(Claim("reverse-first", "ends", code, *words, is_generic=True))
    ends = _tuple([last, start] if D == 2 else [last])
    if L > 1:
        code = f"not any(torch.equal(s, y) for s in {outs[0]}[:{top}] for y in {ends})"
        inner = f"{outs[0]}[0]" if top == 1 else f"{outs[0]}[0:{top}]"
        words = say("inner-states", names=inner)
        made.append(Claim("inner-states", "ends", code, *words, is_generic=True))
    rest = [name for name in names if name not in outs]
    if rest:
        code = f"not any(torch.equal(s[{top}], {last}) for s in {_tuple(rest)})"
        words = say("other-states", names=listed(rest), state=subject.output_states[0])
        made.append(Claim("other-states", "ends", code, *words, is_generic=True))
    return made


def _batch(writer: _Writer) -> list[Claim]:
    names, T = writer.names, writer.subject.sizes["T"]
    if writer.subject.form == "unbatched":
        axis = 0 if writer.subject.batch_first else 1
        code = f"close(layer(input.unsqueeze({axis}){_with_batch(writer)})[0].squeeze({axis}), output)"
        return [Claim("unbatched", "batch", code, *say("unbatched", names=listed(names)))]
    key = "batch-first on" if writer.subject.batch_first else "batch-first off"
    call = f"swapped(layer)(input.transpose(0, 1){writer.hx})"
    code = f"close({call}[0], output.transpose(0, 1)) and close({writer.state(call, names[0])}, {names[0]})"
    words = say(key, names=listed(names), axes=_axes(writer, names))
    made = [Claim("batch-first", "batch", code, *words)]
    if T > 1:
        B = writer.subject.sizes["B"]
        lengths = f"[{T}] * {B - 1} + [{T - 1}]" if B > 1 else f"[{T - 1}]"
        first = ", batch_first=True" if writer.axis else ""
        packed = f"layer(pack_padded_sequence(input, {lengths}{first}){writer.hx})"
        cut = f"layer(input{writer.steps(f':{T - 1}')}{writer.hx})"
        ends = [f"{writer.state(call, names[0])}[:, -1]" for call in (packed, cut)]
        code = f"close({', '.join(ends)})"
        valid = "output[b, length - 1]" if writer.axis else "output[length - 1, b]"
        made.append(Claim("padding", "padding", code, *say("padding", name=names[0], valid=valid)))
    return made


def _with_batch(writer: _Writer) -> str:
    """hx with a batch axis."""
    if not writer.subject.has_hx:
        return ""
    axis = 0 if writer.subject.is_step else 1
    if len(writer.names) == 1:
        return f", hx.unsqueeze({axis})"
    return f", tuple(s.unsqueeze({axis}) for s in hx)"


def _padding(writer: _Writer) -> list[Claim]:
    subject, n = writer.subject, writer.subject.sizes["S"]
    code = f"len(input.data) == len(output.data) == int(lengths.sum()) == {n}"
    made = [Claim("packed-data", "padding", code, *say("packed-data", n=n))]
    if min(subject.lengths) < subject.sizes["T"]:
        code = "all((padded[n:, b] == 0).all() for b, n in enumerate(lengths))"
        made.append(Claim("packed-zeros", "padding", code, *say("packed-zeros")))
    if list(subject.lengths) != sorted(subject.lengths, reverse=True) and subject.sizes["B"] <= _MANY:
        words = say("packed-order", names=", ".join(writer.names))
        code = f"lengths.tolist() == {list(subject.lengths)}"
        made.append(Claim("packed-order", "padding", code, *words))
    return made


def _before(writer: _Writer) -> list[Claim]:
    subject, facts, names = writer.subject, writer.facts, writer.names
    initial = ", ".join(f"{state}_0" for state in subject.cell.states)
    listing = names[0] if len(names) == 1 else ", ".join(names)
    many = "one" if len(names) == 1 else "many"
    if subject.has_hx:
        pairs = [("hx" if many == "one" else f"hx[{k}]", name) for k, name in enumerate(names)]
        code = " and ".join(f"{given}.shape == {name}.shape" for given, name in pairs)
        words = say(f"given-{many}", initial=initial, names=listing)
        return [Claim("given", "before", code, *words)]
    made, special = [], []
    for state, name in zip(subject.cell.states, names, strict=True):
        shape = ", ".join(str(n) for n in facts[name].shape)
        value = float(subject.cell.initial.get(state, 0.0))  # type: ignore[arg-type]
        if value:
            number = f"{value:g}" if math.isfinite(value) else f'float("{value}")'
            made.append(f"input{writer.data}.new_full({_shape(facts[name])}, {number})")
            special.append(f"{state}_0 = {value:g}".replace("inf", "∞").replace("-", "−"))
        else:
            made.append(f"input{writer.data}.new_zeros({shape})")
    zeros = say("zeros but", special=", ".join(special)) if special else say("zeros")
    given = made[0] if many == "one" else f"({', '.join(made)})"
    call = f"layer(input, {given})"
    if not subject.is_step:
        code = f"close({call}[0]{writer.data}, output{writer.data})"
    else:
        place = "" if subject.cell.output_is_a_state else "[1]"
        code = f"close({call}{place}{'' if many == 'one' else '[0]'}, {names[0]})"
    words = say(f"initial-{many}", initial=initial, names=listing, value=zeros)
    return [Claim("initial", "before", code, *words)]


def _whole(writer: _Writer) -> list[Claim]:
    T = writer.subject.sizes["T"]
    if writer.subject.form == "packed" or T == 1:
        return []
    if writer.subject.sizes["D"] == 2:
        cut = writer.steps(f":{T - 1}")
        code = f"not close(layer(input{cut}{writer.hx})[0], output{cut})"
        return [Claim("whole-sequence", "whole", code, *say("whole-sequence"), is_generic=True)]
    before = f"layer(input{writer.steps(':1')}{writer.hx})[1]"
    code = f"close(layer(input{writer.steps('1:')}, {before})[0], output{writer.steps('1:')})"
    return [Claim("go-on", "whole", code, *say("go-on"))]


def _weights(writer: _Writer) -> list[Claim]:
    subject, sizes, name = writer.subject, writer.subject.sizes, writer.names[0]
    orders = [" ".join(subject.cell.input_gates), " ".join(subject.cell.recurrent_gates)]
    shown = [Words(gates, gates) if gates else say("nothing") for gates in orders]
    entry = name if subject.is_step else f"{name}[0]"
    given = "".join(f', {k}="{gates}"' for k, gates in zip(("ih", "hh"), orders, strict=True) if gates)
    code = f'close(by_hand("{subject.cell.states[0]}", 0, 0{given}), {entry})'
    has_bias = any(name.startswith("bias_") for name in writer.facts)
    biases = say("biases too") if has_bias else ""
    words = say("gate-rows", H=sizes["H"], ih=shown[0], hh=shown[1], biases=biases, name=entry)
    made = [Claim("gate-rows", "weights", code, *words)]
    if "weight_ih_l1" in writer.facts:
        code = " and ".join(
            f"layer.{weight}.shape == {_shape(writer.facts[weight])}"
            for weight in ("weight_ih_l0", "weight_ih_l1")
        )
        words = say("wider-weights", I=sizes["I"], W=sizes["D"] * writer.width)
        made.append(Claim("wider-weights", "weights", code, *words))
    return made if subject.is_step else [*made, *_biases(writer), *_variant(writer)]


# The other version of an equation that readers may have in mind.
_VARIANTS = {"gru": "gru_reset_before", "gru_reset_before": "gru"}


def _variant(writer: _Writer) -> list[Claim]:
    """That another cell's equations give another result; not where the state has not yet been used."""
    subject = writer.subject
    other = _VARIANTS.get(subject.cell.name)
    if other is None or subject.sizes["T"] == 1:
        return []
    data = writer.data
    code = f'not close(of_cell("{other}", layer)(input{writer.hx})[0]{data}, output{data})'
    words = say(f"variant {subject.cell.name}")
    return [Claim("variant", "weights", code, *words, is_generic=True)]


def _biases(writer: _Writer) -> list[Claim]:
    """Whether two biases of a gate are one number too many."""
    subject, cell = writer.subject, writer.subject.cell
    if not subject.bias or set(cell.biases) != {"ih", "hh"} or cell.input_gates != cell.recurrent_gates:
        return []
    boxes = [node.lines[-1] for node in cell_graph(subject).nodes if node.kind == "product"]
    apart = [g for g in cell.gates if not any(f"b_{g}" in box and f"d_{g}" in box for box in boxes)]
    code = f"close(merged(layer)(input{writer.hx})[0]{writer.data}, output{writer.data})"
    if not apart:
        return [Claim("biases", "weights", code, *say("biases one"))]
    words = say("biases apart", gates=listed(apart))
    return [Claim("biases", "weights", f"not {code}", *words, is_generic=True)]


def _options(writer: _Writer) -> list[Claim]:
    subject, sizes, made = writer.subject, writer.subject.sizes, []
    narrow = [f"{s}_n" for s in subject.cell.states if subject.cell.width(s) == "P"]
    wide = [f"{s}_n" for s in subject.cell.states if subject.cell.width(s) == "H"]
    if narrow and wide:
        words = say("projection-width", P=sizes["P"], H=sizes["H"], narrow=listed(narrow), wide=listed(wide))
        code = f"({narrow[0]}.shape[-1], {wide[0]}.shape[-1]) == ({sizes['P']}, {sizes['H']})"
        made.append(Claim("projection-width", "options", code, *words))
    if subject.dropout:
        key = "dropout-alone" if sizes["L"] == 1 else "dropout-between"
        call = f"{'in_training(layer)' if sizes['L'] == 1 else 'layer'}(input{writer.hx})[0]{writer.data}"
        words = say(key, p=f"{subject.dropout:g}")
        made.append(Claim("dropout", "options", f"torch.equal({call}, output{writer.data})", *words))
        return made
    code = f"torch.equal(with_dropout(layer)(input{writer.hx})[0]{writer.data}, output{writer.data})"
    if sizes["L"] == 1:
        return [*made, Claim("dropout", "options", code, *say("dropout nowhere"))]
    return [*made, Claim("dropout", "options", f"not {code}", *say("dropout off"), is_generic=True)]


def _of_step(writer: _Writer) -> list[Claim]:
    """A module for one time step returns its new states, or (output, new states)."""
    subject, names = writer.subject, writer.names
    key = "one" if len(names) == 1 else "many"
    key = f"step-shape {key if subject.cell.output_is_a_state else 'output'}"
    words = say(key, names=", ".join(names), axes=_axes(writer, names))
    made = [Claim("step-shape", "states", _same_shapes(writer, names), *words)]
    pairs = [(state, name) for state, name in zip(subject.cell.states, names, strict=True)]
    if not subject.cell.output_is_a_state:
        pairs.append(("output", "output"))
    code = " and ".join(f"close({writer.by_hand(state, 0, 0)}, {name})" for state, name in pairs)
    return [*made, Claim("step-equations", "states", code, *say("step-equations"))]
