"""The questions that readers ask: which claims answer each, and what to point at. Draws nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cellfuse.explain.facts import Claim, Explanation
from cellfuse.explain.words import Words, listed, say, translated


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        key: stable name.
        text: the question.
        claims: what answers it, evaluated.
        points: keys of boxes in the pictures; "out/*" is a whole row.
        note: what there is to say besides the claims; empty words if nothing.
    """

    key: str
    text: Words
    claims: tuple[Claim, ...]
    points: tuple[str, ...]
    note: Words


# Question: the claims that answer it, in this order, where the layer has them.
_CLAIMS: dict[str, tuple[str, ...]] = {
    "output": (
        "output-shape",
        "states-shape",
        "forward-last",
        "inner-states",
        "other-states",
        "output-is-no-state",
    ),
    "reverse": ("reverse-last", "reverse-first"),
    "order": ("order", "order-view", "same-order"),
    "batch": ("batch-first", "unbatched", "packed-data"),
    "padding": ("padding", "forward-last", "packed-zeros"),
    "biases": ("biases",),
    "halves": ("output-parts",),
    "initial": ("initial", "given"),
    "variant": ("variant", "gate-rows"),
    "dropout": ("dropout",),
    "pieces": ("go-on", "whole-sequence"),
}


def questions_of(facts: Explanation) -> tuple[Question, ...]:
    """The questions about a layer; a one-step module has only those about what it has."""
    known = {claim.key: claim for claim in facts.claims}
    names = listed([f"{state}_n" for state in facts.states])
    made = []
    for key, wanted in _CLAIMS.items():
        if facts.kind == "step" and key not in ("initial", "variant"):
            continue
        claims = tuple(known[each] for each in wanted if each in known)
        if key == "padding" and facts.form != "packed":
            claims = tuple(claim for claim in claims if claim.key == "padding")
        text = say(f"question {key}", names=names, first=f"{facts.states[0]}_n")
        made.append(Question(key, text, claims, _POINTS[key](facts), _note(facts, key, bool(claims))))
    return tuple(question for question in made if question.claims or question.note.en)


def _note(facts: Explanation, key: str, has_claims: bool) -> Words:
    if key in ("reverse", "halves") and facts.sizes["D"] == 1:
        return say("note one way")
    if key == "biases" and not has_claims:
        return say("note biases")
    if key == "padding" and not has_claims:
        return say("note no padding")
    if key == "variant":
        words = say("source", text=facts.source)
        if facts.deviation:
            from_it = say("deviation", text=translated(facts.deviation))
            words = Words(f"{words.en}. {from_it.en}", f"{words.zh}。{from_it.zh}")
        return words
    return Words("", "")


def _top(facts: Explanation) -> int:
    return (facts.sizes["L"] - 1) * facts.sizes["D"]


def _ends(facts: Explanation) -> tuple[str, ...]:
    """The last layer's last states and the places in output that equal them."""
    top, last = _top(facts), facts.sizes["T"] - 1
    if facts.sizes["D"] == 1:
        return (f"out/{last}", f"end/{facts.states[0]}/{top}")
    state = facts.states[0]
    return (f"out/{last}/0", f"end/{state}/{top}", "out/0/1", f"end/{state}/{top + 1}")


def _output(facts: Explanation) -> tuple[str, ...]:
    return ("out/*", *_ends(facts))


def _reverse(facts: Explanation) -> tuple[str, ...]:
    if facts.sizes["D"] == 1:
        return _ends(facts)
    top = _top(facts) + 1
    return (f"c/{facts.sizes['L'] - 1}/1/0", "out/0/1", f"end/{facts.states[0]}/{top}")


def _order(facts: Explanation) -> tuple[str, ...]:
    return ("end/*",)


def _batch(facts: Explanation) -> tuple[str, ...]:
    """The axes that change places; all of them where none does."""
    if facts.form != "batched":
        return ("axis/input/*", "axis/output/*")
    places = [(name, row, axis) for name in ("input", "output") for row in (0, 1) for axis in "TB"]
    return tuple(f"axis/{name}/{row}/{axis}" for name, row, axis in places)


def _padding(facts: Explanation) -> tuple[str, ...]:
    if facts.form != "packed":
        return _ends(facts)
    ends = tuple(f"step/{b}/{n - 1}" for b, n in enumerate(facts.lengths[:4]))
    return (*ends, *(f"step/{b}/0" for b in range(min(len(facts.lengths), 4)) if facts.sizes["D"] == 2))


def _biases(facts: Explanation) -> tuple[str, ...]:
    boxes = [n.key for n in facts.graph.nodes if n.kind == "product" and ("b_" in n.title or "d_" in n.title)]
    return ("rows/bias_ih_l0/*", "rows/bias_hh_l0/*", *boxes[:8])


def _halves(facts: Explanation) -> tuple[str, ...]:
    last = facts.sizes["T"] - 1
    if facts.sizes["D"] == 1:
        return (f"out/{last}",)
    return tuple(dict.fromkeys(("out/0/0", "out/0/1", f"out/{last}/0", f"out/{last}/1")))


def _initial(facts: Explanation) -> tuple[str, ...]:
    return ("start/*", *(f"s/{state}" for state in facts.states))


def _variant(facts: Explanation) -> tuple[str, ...]:
    """The recurrent products that are boxes of their own: there variants differ."""
    own = [n.key for n in facts.graph.nodes if n.kind == "product" and "W_" not in n.title]
    return tuple((own or [n.key for n in facts.graph.nodes if n.kind == "product"])[:8])


def _dropout(facts: Explanation) -> tuple[str, ...]:
    if facts.sizes["L"] == 1:
        return ("out/*",)
    return ("join/0/*",) if facts.sizes["D"] == 2 else ("c/0/0/*",)


def _pieces(facts: Explanation) -> tuple[str, ...]:
    return ("end/*", "start/*")


_POINTS: dict[str, Callable[[Explanation], tuple[str, ...]]] = {
    "output": _output, "reverse": _reverse, "order": _order, "batch": _batch, "padding": _padding,
    "biases": _biases, "halves": _halves, "initial": _initial, "variant": _variant,
    "dropout": _dropout, "pieces": _pieces,
}  # fmt: skip
