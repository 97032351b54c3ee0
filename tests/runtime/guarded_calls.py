"""Whole calls on guarded memory, compared with the equations in float64: a program, because faults end it.

`python guarded_calls.py CELL-DTYPE-HIDDEN-COUNT-SEED ...` prints each case before it runs it, and "done" at
the end.
"""

import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch.nn.utils.rnn import pack_padded_sequence

import cellfuse as cf
from cellfuse.nn import quick
from cellfuse.runtime import fused
from compare import OPTIONS
from guarded import guarded
from masked import SHARES, has_products

KINDS = ("quick", "general", "packed", "reset", "masks", "recompute", "step", "both")
TOLERANCE = {"float32": 2e-5, "float64": 1e-11, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Case:
    """One call, with and without gradients.

    Attributes:
        kind: of KINDS; step: time step by time step; both: "quick", in both directions.
        is_at_end: whether memory stands before its guard, else behind it.
        cuts: whether there is little in a chunk of time steps, little is worth another thread, and few
            rows are summed in groups.
    """

    cell: str
    dtype: str
    kind: str
    T: int
    B: int
    I: int
    H: int
    layers: int
    is_bidirectional: bool
    is_batch_first: bool
    has_bias: bool
    threads: int
    cuts: bool
    is_at_end: bool
    seed: int


def cases(cell, dtype, hidden, count, seed):
    """Random ones, each at both guards; the kinds one after the other."""
    rng = random.Random(f"{cell} {dtype} {hidden} {seed}")
    for k in range(count):
        kinds = [kind for kind in KINDS if dtype != "bfloat16" or kind not in ("quick", "both", "step")]
        kind = kinds[(seed + k) % len(kinds)]
        case = Case(
            cell,
            dtype,
            kind,
            T=rng.choice((1, 2, 5)),
            B=rng.choice((1, 3, 33)),
            I=rng.choice((1, 3, 9, 17)),
            H=hidden,
            layers=rng.choice((1, 1, 2)) + (kind == "step"),  # with 3 there are outputs between layers
            is_bidirectional=kind == "both" or (kind != "step" and rng.random() < 0.4),
            is_batch_first=rng.random() < 0.4,
            has_bias=rng.random() < 0.8,
            threads=rng.choice((1, 2)),
            cuts=rng.random() < 0.6,
            is_at_end=True,
            seed=rng.randrange(1 << 30),
        )
        yield case
        yield replace(case, is_at_end=False)


def layer_of(case, **options):
    cell, H = cf.cells.find(case.cell), case.H
    options |= {"num_layers": case.layers, "bidirectional": case.is_bidirectional, "bias": case.has_bias}
    options |= {"batch_first": case.is_batch_first}
    if "proj_size" in OPTIONS.get(case.cell, {}):
        H = max(H, 2)
        options["proj_size"] = H // 2
    if "num_heads" in OPTIONS.get(case.cell, {}):
        H += H % 2
        options["num_heads"] = 2
    if case.kind == "masks":
        options["zoneout"] = SHARES.get(case.cell, 0.3)
        options["recurrent_dropout"] = 0.4 if has_products(case.cell) else 0.0
    return cell.layer(case.I, H, **options)


def tuple_of(states):
    return states if isinstance(states, tuple) else (states,)


def inputs(case, layer):
    """(x, states or None, resets or None, lengths or None), in numbers that the case's dtype has."""
    T, B, I = case.T, case.B, case.I
    x = torch.randn(B, T, I) if case.is_batch_first else torch.randn(T, B, I)
    hx = None
    if case.seed % 4:
        states = [state.nan_to_num(neginf=0.0) for state in tuple_of(layer.initial_states(B, x))]
        hx = [torch.rand_like(state) + 0.5 for state in states]  # sLSTM divides by one
    reset = torch.rand(x.shape[:2]) < 0.3 if case.kind == "reset" else None
    lengths = None
    if case.kind == "packed":
        lengths = torch.randint(1, T + 1, (B,))
        lengths[0] = T
    dtype = getattr(torch, case.dtype)
    return x.to(dtype), hx and [state.to(dtype) for state in hx], reset, lengths


def run(case, layer, x, hx, reset, lengths):
    """Outputs and states without and with gradients, and all of these."""
    x = x.detach().clone().requires_grad_()
    states = None if hx is None else [state.detach().clone().requires_grad_() for state in hx]
    given = None if states is None else states[0] if len(states) == 1 else tuple(states)
    if case.kind == "step" and layer.backend != "eager":
        return steps(case, layer, x.detach(), states)
    found = []
    for is_grad in (False, True):
        torch.manual_seed(case.seed)  # of masks
        with torch.set_grad_enabled(is_grad):
            value = (
                x
                if lengths is None
                else pack_padded_sequence(x, lengths, case.is_batch_first, enforce_sorted=False)
            )
            output, finals = layer(value, given, **({} if reset is None else {"reset": reset}))
        found.append([output if lengths is None else output.data, *tuple_of(finals)])
        if case.kind == "step":
            return found[0]
    made = found[1]
    rng = torch.Generator().manual_seed(case.seed)
    ways = [torch.randn(value.shape, generator=rng, dtype=torch.float64).to(value.dtype) for value in made]
    wanted = [x, *(states or ()), *layer.parameters()]
    gradients = torch.autograd.grad(made, wanted, ways, allow_unused=True, materialize_grads=True)
    return [*found[0], *made, *gradients]


def steps(case, layer, x, states):
    """As run, time step by time step, by the layer and by a stepper."""
    x = x.transpose(0, 1) if case.is_batch_first else x
    stepper, outputs = layer.stepper(case.B), []
    state = None if states is None else tuple(states) if len(states) > 1 else states[0]
    with torch.no_grad():
        if states is not None:
            stepper.state = state
        for value in x:
            value = value.clone()
            output, state = layer.step(value, state)
            again, remembered = stepper(value)
            assert all(map(torch.equal, (output, *tuple_of(state)), (again, *tuple_of(remembered))))
            outputs.append(output)
    return [torch.stack(outputs, 1 if case.is_batch_first else 0), *tuple_of(state)]


def check(case):
    """Fail if a result is wrong or a mark was written; a fault ends the process."""
    torch.manual_seed(case.seed)
    torch.set_num_threads(case.threads)
    sizes = {"_WORTH": 1, "_WORTH_MEETING": 1, "CHUNK": 1 << 10, "ROWS": 20, "_MANY": 0} if case.cuts else {}
    before = {name: getattr(fused, name) for name in sizes} | {"sequence": quick.sequence}
    for name, value in sizes.items():
        setattr(fused, name, value)
    if case.kind == "general":
        quick.sequence = lambda *_: None
    try:
        with guarded(case.is_at_end) as memory:
            ours = layer_of(
                case, backend="cpu", dtype=getattr(torch, case.dtype), recompute=case.kind == "recompute"
            )
            given = inputs(case, ours)
            results = [run(case, ours, *given) for _ in range(2)]  # in new memory, and in that of the first
        assert memory.calls, "no kernel was called"
        if case.cell in ("rnn", "gru", "lstm"):
            assert case.kind not in ("quick", "both") or all(ours._quick.sizes.values())
    finally:
        quick.sequence = before.pop("sequence")
        for name, value in before.items():
            setattr(fused, name, value)
    torch.set_num_threads(1)
    eager = layer_of(case, backend="eager", dtype=torch.float64)
    eager.load_state_dict(ours.state_dict())
    x, hx, *rest = given
    want = run(case, eager, x.double(), hx and [state.double() for state in hx], *rest)
    # Its only unit less its mean is 0, over a root of almost 0: what float32 rounds is enlarged.
    factor = 100 if case.cell == "layer_norm_lstm" and case.H == 1 else 1
    for made in results:
        for k, (got, value) in enumerate(zip(made, want, strict=True)):
            assert got.shape == value.shape, (k, got.shape, value.shape)
            error = (got.double() - value).abs().max().item()
            allowed = factor * TOLERANCE[case.dtype] * max(1.0, value.abs().max().item())
            assert error <= allowed, f"result {k} of shape {list(got.shape)}: {error:.1e}"


def main(families):
    for family in families:
        cell, dtype, *numbers = family.split("-")
        for case in cases(cell, dtype, *map(int, numbers)):
            print(case, flush=True)
            check(case)
    print("done")


if __name__ == "__main__":
    main(sys.argv[1:])
