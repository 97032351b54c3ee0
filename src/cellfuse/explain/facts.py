"""Explanation: every fact about one layer on one input, immutable. Text is made from it.

Says nothing about how it looks: see `text`. Every fact that is a sentence has it in English and Chinese.
"""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellfuse.errors import OptionError

if TYPE_CHECKING:
    from cellfuse.explain.picture import Picture


@dataclass(frozen=True)
class Equation:
    """One line of the step: left = right, and what the left side is ("" if nothing is known of it).

    Attributes:
        left, right, en, zh: see above.
        line: of `Explanation.code`, from 1; 0 if it has none.
    """

    left: str
    right: str
    en: str
    zh: str
    line: int = 0


@dataclass(frozen=True)
class CellNode:
    """One box of the step.

    Attributes:
        key: "x", "s/h" for a state before the step, "new/h" after it, "out", or "n/3".
        kind: "input", "state", "new", "new output", "output", "product", "activation", "pointwise",
            "reduction", "choice" or "parameter".
        lines: the user's name of the value, if it has one, then the operation.
        title: the whole expression.
        equation: its place in `Explanation.equations`; -1 for what comes in.
        rows: of the weights that it reads.
    """

    key: str
    kind: str
    lines: tuple[str, ...]
    title: str
    equation: int = -1
    rows: str = ""


@dataclass(frozen=True)
class CellGraph:
    """The step as boxes and arrows.

    Attributes:
        nodes: every box.
        edges: (from, to) keys.
        spines: for each state that is carried on, the keys on its way through the step.
    """

    nodes: tuple[CellNode, ...]
    edges: tuple[tuple[str, str], ...]
    spines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Series:
    """One value of the step over time, of one layer and direction and the first sequence.

    Attributes:
        name: as in the equations.
        kind: "gate" (0 to 1) or "value".
        units: one row per shown unit, one number per shown column of time; None for padding.
        mean: over all valid steps, sequences and units that were looked at.
        low, high: shares below 0.1 and above 0.9.
        keeps: the state that it multiplies, "" if none.
    """

    name: str
    kind: str
    units: tuple[tuple[float | None, ...], ...]
    mean: float
    low: float
    high: float
    keeps: str = ""

    @property
    def half_life(self) -> float:
        """Time steps after which half of the state is left, if the gate stayed at its mean."""
        if not 0 < self.mean < 1:
            return math.inf if self.mean >= 1 else 0.0
        return math.log(0.5) / math.log(self.mean)


@dataclass(frozen=True)
class Trace:
    """The values of one layer and direction over time, at most a hundred columns of it.

    Attributes:
        layer, direction: whose.
        series: one per named value, state and output.
        starts: the first time step of every column; a column is the mean of the steps up to the next.
        length: of the sequence; columns from there on are padding.
    """

    layer: int
    direction: int
    series: tuple[Series, ...]
    starts: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class TensorFact:
    """One tensor of the layer.

    Attributes:
        name: as in torch.nn.
        role: "input", "initial", "output", "state", "parameter" or "constant".
        letters: the axes, such as ("T", "B", "D*H").
        shape: their sizes.
        bytes: its size in memory.
        en, zh: what it holds.
        rows: the gates whose blocks of H rows a parameter holds, in order.
    """

    name: str
    role: str
    letters: tuple[str, ...]
    shape: tuple[int, ...]
    bytes: int
    en: str
    zh: str
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A statement as a Python expression that is evaluated on the layer's tensors.

    Attributes:
        key: stable name.
        topic: key of the heading it stands under, see `words`.
        code: over the names that `evaluate.Names` lists.
        en, zh: what it says.
        is_generic: True for all but special numbers (such as: two tensors differ).
        holds: the value of `code`; None if it was not run, because the output holds NaN.
    """

    key: str
    topic: str
    code: str
    en: str
    zh: str
    is_generic: bool = False
    holds: bool | None = None


@dataclass(frozen=True)
class Count:
    """One number with the formula that it is the value of.

    Attributes:
        key: stable name.
        value: the number.
        formula: a Python expression over the letters of `Explanation.sizes`.
        level: 0 a total, 1 a part of the total above it.
        en, zh: what is counted.
    """

    key: str
    value: int
    formula: str
    level: int
    en: str
    zh: str


@dataclass(frozen=True)
class Memory:
    """Bytes in memory after one forward pass in training, besides parameters and input; measured.

    Attributes:
        kept: held by autograd for the backward pass.
        alive: those, the output and the last states; what lies in the same memory counts once.
    """

    kept: int
    alive: int


@dataclass(frozen=True)
class Explanation:
    """Everything `explain` says about one layer. `print` it, or read the facts.

    Attributes:
        title: the layer as torch would print it.
        kind: "layer", or "step" for a module that makes one time step, such as LSTMCell.
        form: of the input: "batched", "unbatched" or "packed".
        cell, source, deviation: the cell's name, the paper it is from, and where it differs.
        states: the cell's states by name.
        output_states: those whose new value is the output.
        sizes: T, B, I, H, P (0: none), N (heads), L, D as numbers; S, the number of valid time steps
            of all sequences together: T*B unless packed.
        lengths: of the sequences of packed input, in the user's order.
        gates: (gate, its meaning in English) from the cell's docstring.
        equations, tensors, claims, counts: see their classes.
        graph: the step as boxes and arrows.
        code: the lines of the cell's function; none if its source cannot be found.
        trace: values over time of the first and the last layer; not part of `to_dict`.
        wiring: (from, to) for every arrow between the boxes of the map; keys are "in/0",
            "c/layer/direction", "h/k", "out".
        options: bias, batch_first, dropout, has_hx, dtype.
        memory: of training; None where it would be much to measure.
        was_given_input: whether the claims were checked on the user's own input.
        lang: of `str(...)`: "en" or "zh".
    """

    title: str
    kind: str
    form: str
    cell: str
    source: str
    deviation: str
    states: tuple[str, ...]
    output_states: tuple[str, ...]
    sizes: dict[str, int]
    lengths: tuple[int, ...]
    gates: tuple[tuple[str, str], ...]
    equations: tuple[Equation, ...]
    graph: CellGraph
    code: tuple[str, ...]
    wiring: tuple[tuple[str, str], ...]
    tensors: tuple[TensorFact, ...]
    claims: tuple[Claim, ...]
    counts: tuple[Count, ...]
    options: dict[str, Any]
    memory: Memory | None
    was_given_input: bool
    trace: tuple[Trace, ...] = ()
    lang: str = "en"

    def text(self, lang: str | None = None) -> str:
        """The explanation in words, at most 80 columns, in English ("en") or Chinese ("zh")."""
        from cellfuse.explain.text import text_of  # text is made from facts, and facts can print themselves

        return text_of(self, lang or self.lang)

    def picture(self, name: str, lang: str | None = None) -> Picture:
        """One picture as stand-alone SVG.

        Args:
            name: "cell", "layer" (one layer over time), "stack" (all layers), "shapes", "gates" (values
                over time) or "ragged" (packed sequences).
            lang: "en" or "zh".

        Raises:
            OptionError: there is no such picture, or this layer or input has none.
        """
        from cellfuse.explain.picture import picture_of  # as in text

        return picture_of(self, name, lang or self.lang)

    def save(self, path: str | Path, lang: str | None = None) -> Path:
        """Write a .html page (both languages; it opens in `lang`), a .txt text or .json facts.

        Raises:
            OptionError: another kind of file.
        """
        from cellfuse.explain.save import save  # as in text

        return save(self, Path(path), lang or self.lang)

    def _repr_html_(self) -> str:
        from cellfuse.explain.page import in_notebook  # as in text

        return in_notebook(self, self.lang)

    def to_dict(self) -> dict[str, Any]:
        """Every fact but the trace as plain Python, ready for JSON."""
        facts = asdict(replace(self, trace=()))
        del facts["trace"]
        return facts

    def tensor(self, name: str) -> TensorFact:
        """The tensor of this name."""
        return next(fact for fact in self.tensors if fact.name == name)

    def claim(self, key: str) -> Claim:
        """The claim of this key."""
        return next(claim for claim in self.claims if claim.key == key)

    def count(self, key: str) -> int:
        """The value of one count."""
        return next(count.value for count in self.counts if count.key == key)

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True)
class Other:
    """A part of a model that is not explained: its name, how it prints, its own parameters."""

    name: str
    title: str
    parameters: int


@dataclass(frozen=True)
class ModelExplanation:
    """The recurrent layers inside a model, by name, and its other parts.

    Attributes:
        title: the model's class.
        layers: (name inside the model, explanation).
        others: what is not recurrent.
        parameters: of the whole model, shared ones once.
        lang: of `str(...)`: "en" or "zh".
    """

    title: str
    layers: tuple[tuple[str, Explanation], ...]
    others: tuple[Other, ...]
    parameters: int
    lang: str = "en"

    def text(self, lang: str | None = None) -> str:
        """Each layer's explanation under its name, then the rest by name."""
        from cellfuse.explain.text import text_of_model  # as in Explanation.text

        return text_of_model(self, lang or self.lang)

    def layer(self, name: str = "") -> Explanation:
        """The layer of this name; the name may be left out where there is only one layer.

        Raises:
            OptionError: there is no such layer, or there are several.
        """
        found = [facts for own, facts in self.layers if name in ("", own)]
        if len(found) != 1:
            names = ", ".join(repr(own) for own, _ in self.layers)
            raise OptionError(
                f"layer {name!r}: the recurrent layers of {self.title} are {names}; give one's name"
            )
        return found[0]

    def picture(self, name: str, lang: str | None = None) -> Picture:
        """A picture of the model's only layer; of one of several: `facts.layer("encoder").picture(...)`."""
        return self.layer().picture(name, lang or self.lang)

    def save(self, path: str | Path, lang: str | None = None) -> Path:
        """The page, text or facts of the model's only layer; see `layer` for models with several."""
        return self.layer().save(path, lang or self.lang)

    def _repr_html_(self) -> str:
        return "".join(f"<h3>{html.escape(name)}</h3>{facts._repr_html_()}" for name, facts in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Every fact as plain Python, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text()
