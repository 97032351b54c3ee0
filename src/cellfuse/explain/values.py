"""The values inside the step over time, made small enough to draw: a few units, at most COLUMNS columns."""

from __future__ import annotations

import torch
from torch import Tensor

from cellfuse.explain.by_hand import ByHand
from cellfuse.explain.facts import Claim, Series, Trace
from cellfuse.explain.subject import Subject
from cellfuse.graph.expr import Expr, order

UNITS, COLUMNS, _MOST = 16, 100, 8


def traces_of(subject: Subject, by_hand: ByHand, claims: tuple[Claim, ...]) -> tuple[Trace, ...]:
    """One Trace for every direction of the first and the last layer; none where the output has NaN, or
    for one step."""
    if subject.is_step or all(claim.holds is None for claim in claims):
        return ()
    shown = dict.fromkeys((0, subject.sizes["L"] - 1))
    return tuple(_trace(subject, by_hand, k, d) for k in shown for d in range(subject.sizes["D"]))


def _trace(subject: Subject, by_hand: ByHand, layer: int, direction: int) -> Trace:
    T, lengths = subject.sizes["T"], by_hand.lengths
    number = min(T, COLUMNS)
    starts = [place * T // number for place in range(number)]
    seen, series = by_hand.seen(layer, direction), []
    keeps = _keeps(subject)
    for name in _chosen(by_hand.inner):
        kind = "gate" if by_hand.inner[name].op == "sigmoid" else "value"
        series.append(_series(name, kind, seen[name], lengths, starts, keeps.get(by_hand.inner[name], "")))
    return Trace(layer, direction, tuple(series), tuple(starts), int(lengths[0]))


def _chosen(inner: dict[str, Expr]) -> list[str]:
    """The names that are drawn: gates first, if there are too many."""
    if len(inner) <= _MOST:
        return list(inner)
    ends = [name for name in inner if name.endswith("′") or name == "y"]
    gates = [name for name, expr in inner.items() if expr.op == "sigmoid" and name not in ends]
    rest = [name for name in inner if name not in gates and name not in ends]
    kept = {*ends, *(gates + rest)[: _MOST - len(ends)]}
    return [name for name in inner if name in kept]


def _keeps(subject: Subject) -> dict[Expr, str]:
    """The values that a state is multiplied by, with the state."""
    found = {}
    for expr in order(subject.step.results):
        if expr.op == "mul":
            for value, state in (expr.args, expr.args[::-1]):
                if state.role == "state" and value.op == "sigmoid":
                    found[value] = state.label
    return found


def _series(name: str, kind: str, values: Tensor, lengths: Tensor, starts: list[int], keeps: str) -> Series:
    values = values.double()
    T, B = values.shape[:2]
    is_valid = torch.arange(T, device=values.device).unsqueeze(1) < lengths[:B]
    flat = values[is_valid]
    flat = flat[flat.isfinite()]  # a state may start at minus infinity
    first, length = values[:, 0, :UNITS], int(lengths[0])
    ends = [*starts[1:], T]
    columns: list[list[float | None]] = []
    for start, end in zip(starts, ends, strict=True):
        part = first[start : min(end, length)]
        columns.append([round(v, 4) for v in part.mean(0).tolist()] if len(part) else [None] * first.shape[1])
    return Series(
        name=name,
        kind=kind,
        units=tuple(zip(*columns, strict=True)),
        mean=float(flat.sum()) / max(len(flat), 1),
        low=float((flat < 0.1).sum()) / max(len(flat), 1),
        high=float((flat > 0.9).sum()) / max(len(flat), 1),
        keeps=keeps,
    )
