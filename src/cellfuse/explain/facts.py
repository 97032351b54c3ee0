"""Explanation: every fact about one layer on one size of input, immutable. Text is made from it.

Says nothing about how it looks: see `text`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TensorFact:
    """One tensor of the layer.

    Attributes:
        name: as in the program.
        letters: the axes, such as ("T", "B", "I"), or rows of gates for weights.
        shape: the sizes.
        bytes: its size in memory.
        en, zh: what it is.
    """

    name: str
    letters: tuple[str, ...]
    shape: tuple[int, ...]
    bytes: int
    en: str
    zh: str


@dataclass(frozen=True)
class Claim:
    """A statement as an expression that can be evaluated on the layer's tensors.

    Attributes:
        key: stable name.
        code: Python; true on `output`, `input`, the final states (`h_n`, ...), T, B, H, L, D.
        en, zh: what it means.
        holds: the result on the tensors that were at hand; None if it was not evaluated.
    """

    key: str
    code: str
    en: str
    zh: str
    holds: bool | None = None


@dataclass(frozen=True)
class Count:
    """One number with its formula."""

    name: str
    value: int
    formula: str
    en: str
    zh: str


@dataclass(frozen=True)
class Explanation:
    """Everything `explain` says about one layer.

    Attributes:
        title: the layer as torch would print it.
        cell, source, deviation: the cell and the paper it is from.
        sizes: T, B, I, H, P, L, D as numbers.
        gates: (gate, meaning) from the cell's docstring.
        equations: (left, right) of one time step.
        wiring: (from, to) for every arrow between the boxes of the map; keys are `in/0`, `c/layer/direction`,
            `h/k`, `out`.
        tensors, claims, counts: see their classes.
        was_given_input: whether the claims were checked on the user's own input.
        lang: "en" or "zh".
    """

    title: str
    cell: str
    source: str
    deviation: str
    sizes: dict[str, int]
    gates: tuple[tuple[str, str], ...]
    equations: tuple[tuple[str, str], ...]
    wiring: tuple[tuple[str, str], ...]
    tensors: tuple[TensorFact, ...]
    claims: tuple[Claim, ...]
    counts: tuple[Count, ...]
    states: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    was_given_input: bool = False
    lang: str = "en"

    def text(self, lang: str | None = None) -> str:
        """The explanation in words, at most 80 columns, in English ("en") or Chinese ("zh")."""
        from cellfuse.explain.text import text_of  # text is made from facts, and facts can print themselves

        return text_of(self, lang or self.lang)

    def to_dict(self) -> dict[str, Any]:
        """Every fact as plain Python, ready for JSON."""
        return asdict(self)

    def count(self, name: str) -> int:
        """The value of one count."""
        return next(count.value for count in self.counts if count.name == name)

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True)
class ModelExplanation:
    """The recurrent layers inside a model, by name, and the names of its other layers."""

    layers: tuple[tuple[str, Explanation], ...]
    others: tuple[str, ...]
    lang: str = "en"

    def text(self, lang: str | None = None) -> str:
        """Each layer's explanation under its name."""
        lang = lang or self.lang
        parts = [f"## {name}\n\n{layer.text(lang)}" for name, layer in self.layers]
        head = {"en": "other layers: ", "zh": "其他层："}[lang]
        return "\n\n".join([*parts, head + (", ".join(self.others) or "-")])

    def __str__(self) -> str:
        return self.text()
