"""How much a layer holds and does: parameters, multiply-adds, bytes. Each number is a formula's value.

The formulas follow from the graph of one step; nothing is measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from cellfuse.explain.facts import Count, TensorFact
from cellfuse.explain.subject import Subject
from cellfuse.explain.words import WORDS
from cellfuse.graph.expr import Expr, order

_PRODUCTS = ("product", "blocks_product")
# Operations that copy or mark a value and compute nothing.
_FREE = ("expand", "detach")
# Operations that read every unit of their argument.
_REDUCTIONS = ("sum", "amax")


def counts_of(subject: Subject, tensors: tuple[TensorFact, ...], item: int) -> list[Count]:
    """All counts; a number is `item` bytes long."""
    made = [*_parameters(subject, tensors), *_operations(subject)]
    return [*made, _chain(subject), *_memory(subject, tensors, item)]


def value_of(formula: str, sizes: dict[str, int]) -> int:
    """A formula's value."""
    return int(eval(formula, {"__builtins__": {}}, dict(sizes)))


def _count(key: str, formula: str, subject: Subject, level: int = 1) -> Count:
    return Count(key, value_of(formula, subject.sizes), formula, level, *WORDS[key])


def _total(key: str, parts: list[Count]) -> Count:
    """The sum of some counts. Its formula is theirs, added."""
    formula = " + ".join(part.formula for part in parts) or "0"
    return Count(key, sum(part.value for part in parts), formula, 0, *WORDS[key])


def _times(*factors: str) -> str:
    """A product without the factors that are 1."""
    return "*".join(f for f in factors if f and f != "1") or "1"


def _lanes(subject: Subject) -> str:
    """L*D, as short as it can be."""
    return _times("L" * (subject.sizes["L"] > 1), "D" * (subject.sizes["D"] > 1))


def _input_weights(subject: Subject) -> str:
    """The numbers in all weight_ih: layer 0 reads I features, the others all of the layer below."""
    way = "D" if subject.sizes["D"] > 1 else ""
    width = "I"
    if subject.sizes["L"] > 1:
        width = f"(I + {_times('(L-1)' if subject.sizes['L'] > 2 else '', way, subject.width)})"
    count = len(subject.cell.input_gates)
    return _times(way, str(count), "H", width) if count else ""


def _parameters(subject: Subject, tensors: tuple[TensorFact, ...]) -> list[Count]:
    """Learned numbers by kind, and the constants beside them."""
    first = [fact for fact in tensors if fact.name in _names(subject, subject.suffixes[0][2])]
    lanes, parts = _lanes(subject), []
    into = _input_weights(subject)
    groups: dict[str, list[TensorFact]] = {"count R": [], "count biases": [], "count projection": []}
    groups |= {"count own": [], "count constants": []}
    for fact in first:
        stem = fact.name.removesuffix(subject.suffixes[0][2])
        kind = {"weight_hh": "count R", "weight_hr": "count projection"}.get(stem, "count own")
        kind = "count biases" if stem in ("bias_ih", "bias_hh") else kind
        kind = "count constants" if fact.role == "constant" else kind
        if stem != "weight_ih":
            groups[kind].append(fact)
    if into:
        parts.append(_count("count W", into, subject))
    for kind, facts in groups.items():
        if facts:
            formula = _times(lanes, _sum_of_axes(facts))
            parts.append(_count(kind, formula, subject, 0 if kind == "count constants" else 1))
    learned = [part for part in parts if part.level]
    return [_total("count parameters", learned), *parts]


def _names(subject: Subject, suffix: str) -> set[str]:
    """The parameters and constants of one layer and direction."""
    stems = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh", *subject.cell.parameters)
    return {stem + suffix for stem in stems}


def _sum_of_axes(facts: Iterable[TensorFact]) -> str:
    """(4*H*H + 8*H): the numbers in some tensors, like ones together."""
    terms: Counter[str] = Counter()
    for fact in facts:
        factor, letters = 1, []
        for axis in fact.letters:
            head, star, rest = axis.partition("*")
            is_counted = bool(star) and head.isdigit()
            factor *= int(head) if is_counted else 1
            letters.append(rest if is_counted else axis)
        terms["*".join(letters).replace("*H/N", "*H//N")] += factor
    return _sum_of(terms)


def _sum_of(terms: Counter[str]) -> str:
    """Numbers of like terms as a formula; "" counts single numbers."""
    parts = [_times(str(n), term) for term, n in terms.items() if n]
    return parts[0] if len(parts) == 1 else f"({' + '.join(parts)})" if parts else "0"


def _operations(subject: Subject) -> list[Count]:
    """Multiply-adds of the matrix products, and the operations on one number each, of a forward pass."""
    lanes, steps = _lanes(subject), "B" if subject.is_step else "T*B"
    steps = {"packed": "S", "unbatched": "" if subject.is_step else "T"}.get(subject.form, steps)
    products: dict[str, Counter[str]] = {"count R h": Counter(), "count W_hr": Counter()}
    single: Counter[str] = Counter()
    blocks = ("N", "K", "K")
    for expr in order(subject.step.results):
        if expr.op in _PRODUCTS:
            matrix = expr.args[0]
            key = "count W_hr" if matrix.label == "W_hr" else "count R h"
            products[key]["H*H//N" if matrix.shape == blocks else "*".join(matrix.shape)] += 1
        elif not expr.is_leaf and expr.op not in _FREE:
            single["*".join(_counted(expr).shape)] += 1
    if subject.bias and "ih" in subject.cell.biases:
        single["H"] += len(subject.cell.input_gates)  # the graph has W x + b as one leaf
    into = _input_weights(subject)
    parts = [_count("count W x", _times(steps, into), subject)] if into else []
    for key, terms in products.items():
        if terms:
            parts.append(_count(key, _times(steps, lanes, _sum_of(terms)), subject))
    total = _total("count multiply-adds", parts)
    alone = _count("count element-wise", _times(steps, lanes, _sum_of(single)), subject, 0)
    flops = Count(
        "count FLOPs", 2 * total.value + alone.value, f"2*({total.formula}) + {alone.formula}", 0,
        *WORDS["count FLOPs"],
    )  # fmt: skip
    return [total, *parts, alone, flops]


def _counted(expr: Expr) -> Expr:
    """The value with as many numbers as the operation makes or reads."""
    return expr.args[0] if expr.op in _REDUCTIONS else expr


def _chain(subject: Subject) -> Count:
    """Steps that wait for each other. With two directions a layer waits for the whole layer below."""
    if subject.is_step:
        return _count("count chain", "1", subject, 0)
    if subject.sizes["D"] == 2:
        return _count("count chain two", "T*L", subject, 0)
    return _count("count chain", "T + L - 1" if subject.sizes["L"] > 1 else "T", subject, 0)


def _memory(subject: Subject, tensors: tuple[TensorFact, ...], item: int) -> list[Count]:
    parameters = [fact for fact in tensors if fact.role in ("parameter", "constant")]
    number = sum(math.prod(fact.shape) for fact in parameters)
    parts = [_count("bytes parameters", f"{item}*{number}", subject)]
    for role in ("input", "output", "state"):
        facts = [fact for fact in tensors if fact.role == role]
        if facts:
            parts.append(_count(f"bytes {role}", _times(str(item), _sum_of_axes(facts)), subject))
    return [_total("bytes", parts), *parts]
