"""Explanation -> text of at most 80 columns, in English or Chinese. A Chinese character is 2 columns.

Knows no facts of its own: sentences come from `words`, everything else from the Explanation.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby

from cellfuse.explain.facts import Claim, Explanation, ModelExplanation, TensorFact
from cellfuse.explain.step import letters_of
from cellfuse.explain.words import LANGUAGES, Words, listed, say, translated

WIDTH = 80

# What may not end a line, and what may not begin one.
_OPENING, _CLOSING = "（「", "，。；：、）」？"


def columns(text: str) -> int:
    """Width on a terminal: wide East Asian characters take two columns."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pad(text: str, width: int) -> str:
    """Filled with blanks to `width` columns."""
    return text + " " * max(0, width - columns(text))


def wrap(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """Lines of at most WIDTH columns; Chinese may break anywhere, English between words."""
    rest = " " * columns(first) if rest is None else rest
    lines, line, is_empty = [], first, True
    for token in _tokens(text):
        if columns(line) + columns(token.rstrip()) > WIDTH and not is_empty:
            lines.append(line.rstrip())
            line, token = rest, token.lstrip()
        line += token
        is_empty = not line.strip()
    return [*lines, line.rstrip()]


def wrap_code(text: str, first: str, rest: str) -> list[str]:
    """As `wrap`; an index such as [0, :, 20:] and a shape such as (4, 3, 20) stay in one piece."""
    glued = re.sub(r"(?<=\w)\[[^\[\]]*\]|\([\d, ]+\)", lambda found: found[0].replace(" ", "\0"), text)
    return [line.replace("\0", " ") for line in wrap(glued, first, rest)]


def _tokens(text: str) -> list[str]:
    """Pieces between which a line may end; closing punctuation stays with what it closes."""
    wide = r"[\u2e80-\u9fff\uff00-\uffef]"
    return re.findall(rf"\s+|[{_OPENING}]*(?:(?:(?!{wide})\S)+|{wide})[{_CLOSING}]*", text)


class _Writer:
    """The sections of one explanation in one language."""

    def __init__(self, facts: Explanation, lang: str) -> None:
        self.facts, self.place = facts, LANGUAGES.index(lang)
        self.sizes = facts.sizes

    def say(self, key: str, **values: object) -> str:
        return say(key, **values)[self.place]

    def own(self, fact: object) -> str:
        """A fact's own sentence."""
        return str(getattr(fact, LANGUAGES[self.place]))

    @property
    def comma(self) -> str:
        return (", ", "，")[self.place]

    @property
    def semicolon(self) -> str:
        return ("; ", "；")[self.place]

    def head(self) -> list[str]:
        facts, sizes, parts = self.facts, self.sizes, []
        for letter in "TBSIHPNLD":
            if letter == "B" and facts.form == "unbatched":
                parts.append(self.say("size B unbatched"))
            elif letter == "S" and facts.form == "packed":
                lengths = ", ".join(str(n) for n in facts.lengths[:8]) + ", …" * (len(facts.lengths) > 8)
                parts.append(self.say("size S", n=sizes["S"], lengths=f"[{lengths}]"))
            elif not self._is_idle(letter):
                one = " one" if sizes[letter] == 1 and letter in "TBLD" else ""
                parts.append(self.say(f"size {letter}{one}", n=sizes[letter]))
        return [*wrap(facts.title, rest="  "), *wrap(self.comma.join(parts), "  ")]

    def _is_idle(self, letter: str) -> bool:
        """Whether a size says nothing here."""
        if letter == "S" or (letter in "TLD" and self.facts.kind == "step"):
            return True
        return (letter == "P" and not self.sizes["P"]) or (letter == "N" and self.sizes["N"] == 1)

    def step(self) -> list[str]:
        facts = self.facts
        lines = [self.say("title cell")]
        widest = max(columns(f"  {e.left} = {e.right}") for e in facts.equations)
        column = min(widest + 3, 46)
        for equation in facts.equations:
            made = wrap(equation.right, f"  {equation.left} = ", "      ")
            meaning = self.own(equation)
            if meaning and max(columns(made[-1]) + 2, column) + columns(meaning) <= WIDTH:
                made[-1] = pad(made[-1] + "  ", column) + meaning
            elif meaning:
                made += wrap(meaning, " " * 8)
            lines += made
        lines += wrap(self._reads(), "  ")
        lines += wrap(self._letters(), "  ")
        lines += wrap(self._signs(), "  ") if self._signs() else []
        shown = {equation.left for equation in facts.equations}
        gates = [(gate, translated(text)[self.place]) for gate, text in facts.gates if gate not in shown]
        if gates:
            listing = self.comma.join(f"{gate} {text}" for gate, text in gates)
            lines += wrap(self.say("gates", gates=listing), "  ")
        lines += wrap(self.say("source", text=facts.source), "  ", "    ")
        if facts.deviation:
            lines += wrap(self.say("deviation", text=translated(facts.deviation)), "  ", "    ")
        return lines

    def _reads(self) -> str:
        """What is state and what is output."""
        states, outs = list(self.facts.states), self.facts.output_states
        key = "cell reads one" if len(states) == 1 else "cell reads"
        text = self.say(key, old=listed(states), new=listed([f"{s}′" for s in states]))
        rest = [f"{s}′" for s in states if s not in outs]
        blank = " " if self.place == 0 else ""
        if len(states) == 1 and outs:
            text += blank + self.say("both at once", state=f"{outs[0]}′")
        elif outs and rest:
            text += blank + self.say("one of them", state=f"{outs[0]}′", rest=listed(rest))
        return text

    def _letters(self) -> str:
        parts = [words[self.place] for words in letters_of(self.facts.tensors)]
        return self.say("letters", letters=self.comma.join(parts))

    def _signs(self) -> str:
        text = " ".join(equation.right for equation in self.facts.equations)
        signs = {"sigmoid": "σ", "tanh": "tanh", "times": "⊙"}
        parts = [self.say(key) for key, sign in signs.items() if sign in text]
        end = ".。"[self.place]
        return self.semicolon.join(parts) + end if parts else ""

    def layer(self) -> list[str]:
        """The map: layers from top to bottom; each direction is a lane over time."""
        facts, (L, D, T) = self.facts, (self.sizes[k] for k in "LDT")
        width = self.sizes["P"] or self.sizes["H"]
        lines = [self.say("title layer")]
        lines += wrap(self.say("map output", shape=list(facts.tensor("output").shape)), "  ")
        shown = range(L - 1, -1, -1) if L <= 4 else [L - 1, 1, 0]
        for layer in shown:
            lines += [self._lane(layer, direction) for direction in range(D - 1, -1, -1)]
            if L > 4 and layer == L - 1:
                lines.append("      " + self.say("map more", a=2, b=L - 2))
            elif layer and D == 2:
                lines += wrap(self.say("map joined", width=2 * width), "      ↑ ")
            elif layer:
                lines += wrap(self.say("map below"), "      ↑ ")
        lines += wrap(self.say("map input", shape=list(facts.tensor("input").shape)), "  ")
        notes = [self.say("map lanes")] if L * D > 1 else []
        notes += [self.say("map ways")] if D == 2 else []
        first, rest = f"{facts.states[0]}_n", [f"{s}_n" for s in facts.states[1:]]
        if rest:
            key = "map others" if len(rest) > 1 else "map other"
            notes.append(self.say(key, others=listed(rest), first=first))
        if facts.form == "packed" and T > 1:
            notes += [
                self.say("map packed", last=T - 1),
                *([self.say("map packed reverse")] if D == 2 else []),
            ]
        return lines + (wrap((" ", "")[self.place].join(notes), "  ") if notes else [])

    def _lane(self, layer: int, direction: int) -> str:
        T, k = self.sizes["T"], layer * self.sizes["D"] + direction
        steps = ["0", *(["1"] if T > 2 else []), *(["…"] if T > 3 else []), *([str(T - 1)] if T > 1 else [])]
        boxes = [("…" if s == "…" else f"[t={s}]") for s in steps]
        state = f"{self.facts.states[0]}_n[{k}]"
        if direction == 0:
            beside = " " * len(f"{state} ← ") if self.sizes["D"] == 2 else ""
            return f"    {layer} →  {beside}{' → '.join(boxes)} → {state}"
        return f"    {layer} ←  {state} ← {' ← '.join(boxes)}"

    def tensors(self) -> list[str]:
        shown, hidden = self._shown_tensors()
        rows = [[self.say(f"tensor {c}") for c in ("name", "shape", "axes", "meaning")]]
        for fact in shown:
            axes = f"[{', '.join(fact.letters)}]"
            rows.append([fact.name, str(list(fact.shape)), axes, self.own(fact)])
        widths = [max(columns(row[place]) for row in rows) + 2 for place in range(3)]
        lines = [self.say("title tensors")]
        for row in rows:
            head = "  " + "".join(pad(text, width) for text, width in zip(row, widths, strict=False))
            if columns(head) <= WIDTH - 20:
                lines += wrap(row[3], head)
            else:
                lines += wrap("  ".join(row), "  ", "    ")
        if hidden:
            what = ", ".join(f"*{ending}" if ending != "…" else ending for ending in hidden)
            lines += wrap(self.say("also other layers", what=what), "  ")
        for names, rows_of in self._rows():
            listing = self.comma.join(
                f"{place * self.sizes['H']}:{(place + 1) * self.sizes['H']} {gate}"
                for place, gate in enumerate(rows_of)
            )
            words = self.say("rows", n=self.sizes["H"], names=", ".join(names), rows=listing)
            lines += wrap(words, "  ")
        return lines

    def _shown_tensors(self) -> tuple[list[TensorFact], list[str]]:
        """Parameters of the first layer of each kind only; the endings of the others."""
        facts, shown = self.facts, []
        hidden: list[str] = []
        suffixes = [f"_l{k}{way}" for k in range(self.sizes["L"]) for way in ("_reverse", "")]
        for fact in facts.tensors:
            ending = next((s for s in suffixes if fact.name.endswith(s)), "")
            is_shown = facts.kind == "step" or ending in ("_l0", "_l1")
            if fact.role not in ("parameter", "constant") or is_shown:
                shown.append(fact)
            elif ending not in hidden:
                hidden.append(ending)
        return shown, hidden if len(hidden) <= 6 else [*hidden[:3], "…", hidden[-1]]

    def _rows(self) -> list[tuple[list[str], tuple[str, ...]]]:
        """Parameters of layer 0 that hold the same gates' rows, if there is more than one gate."""
        made: dict[tuple[str, ...], list[str]] = {}
        for fact in self.facts.tensors:
            is_first = fact.name.endswith("_l0") or self.facts.kind == "step"
            if len(fact.rows) > 1 and is_first:
                made.setdefault(fact.rows, []).append(fact.name)
        return [(names, rows) for rows, names in made.items()]

    def claims(self) -> list[str]:
        facts = self.facts
        what = say("yours" if facts.was_given_input else "random")
        lines = wrap(self.say("title claims", what=what))
        ending = "1" if facts.kind == "step" else "n"
        names = listed([f"{s}_{ending}" for s in facts.states])
        for topic, claims in groupby(facts.claims, key=lambda claim: claim.topic):
            one = " one" if topic == "states" and len(facts.states) == 1 else ""
            lines += wrap(self.say(f"topic {topic}{one}", names=names), "  ")
            for claim in claims:
                lines += wrap(self.own(claim), "    ")
                lines += wrap_code(claim.code, "      >>> ", "      ... ")
                lines += wrap(result_of_claim(claim, LANGUAGES[self.place]), "      ")
        return lines + self._helpers()

    def _helpers(self) -> list[str]:
        """What the names in the code are."""
        code = " ".join(claim.code for claim in self.facts.claims)
        names = (
            "close",
            "by_hand",
            "swapped",
            "in_training",
            "merged",
            "with_dropout",
            "of_cell",
            "padded",
            "pack_padded_sequence",
        )
        used = [name for name in names if re.search(rf"\b{name}\b", code)]
        if "padded" in used and "pack_padded_sequence" not in used:
            used.append("pack_padded_sequence")
        lines = ["  " + self.say("helpers")] if used else []
        for name in used:
            lines += wrap(self.say(f"helper {name}"), "    ", "      ")
        return lines

    def counts(self) -> list[str]:
        lines, facts = [self.say("title counts")], self.facts
        labels = [self.own(count) for count in facts.counts]
        name_width = max(
            columns(label) + 2 * count.level for label, count in zip(labels, facts.counts, strict=True)
        )
        number_width = max(len(f"{count.value:,}") for count in facts.counts)
        for count, label in zip(facts.counts, labels, strict=True):
            name = pad("  " * count.level + label, name_width)
            line = f"  {name}  {count.value:>{number_width},}"
            is_sum = count.key in ("count parameters", "count multiply-adds", "bytes", "count FLOPs")
            lines += [line] if is_sum else wrap(f"= {count.formula}", line + "  ")
        lines += wrap(self.say("note flops"), "  ")
        if facts.kind != "step" and self.sizes["L"] * self.sizes["T"] > 1:
            lines += wrap(self.say(f"note chain {'two' if self.sizes['D'] == 2 else 'one'}"), "  ")
        return lines + wrap(memory_words(facts)[self.place], "  ")


def memory_words(facts: Explanation) -> Words:
    """What training takes."""
    if facts.memory is None:
        return say("memory large")
    kept, each = facts.memory.kept, round(facts.memory.kept / facts.sizes["S"])
    return say("memory", kept=f"{kept:,}", each=f"{each:,}", alive=f"{facts.memory.alive:,}")


def result_of_claim(claim: Claim, lang: str) -> str:
    """What Python answers, and why where it is not True."""
    place = LANGUAGES.index(lang)
    if claim.holds is None:
        return say("not run")[place]
    if claim.holds:
        return "True"
    key = "by chance" if claim.is_generic else "rounding"
    return f"False  # {say(key)[place]}" if claim.is_generic or "close(" in claim.code else "False"


def text_of(facts: Explanation, lang: str) -> str:
    """The whole text."""
    writer = _Writer(facts, lang)
    sections = [writer.head(), writer.step()]
    sections += [writer.layer()] if facts.kind == "layer" else []
    sections += [writer.tensors(), writer.claims(), writer.counts()]
    return "\n\n".join("\n".join(section) for section in sections)


def text_of_model(facts: ModelExplanation, lang: str) -> str:
    """Each layer under its name, then the other parts by name."""
    place = LANGUAGES.index(lang)
    itself = say("model itself")[place]
    parts = [f"## {name or itself}\n\n{text_of(layer, lang)}" for name, layer in facts.layers]
    lines = ["## " + say("model others")[place]] if facts.others else []
    for other in facts.others:
        count = say("model parameters", n=f"{other.parameters:,}")[place]
        lines += wrap(f"{other.name or itself}  {other.title}  {count}", "  ", "    ")
    lines += wrap(say("model total", n=f"{facts.parameters:,}")[place])
    return "\n\n".join([facts.title, *parts, "\n".join(lines)])
