"""Zoneout and recurrent dropout by the hand-written references: a plain loop over sequences and steps."""

import importlib
from collections.abc import Mapping

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cellfuse.cells import CELLS
from compare import OPTIONS, array, assert_same

T, B, I = 4, 3, 3
LENGTHS = [4, 3, 1]
# Shares that a cell takes; a state of sLSTM begins with -inf, of which there is no mean.
SHARES = {"slstm": {"h": 0.3, "c": 0.2, "n": 0.4}}


def shares_of(cell, zoneout):
    return {
        state: (zoneout.get(state, 0) if isinstance(zoneout, Mapping) else zoneout) for state in cell.states
    }


def width_of(layer, state):
    return layer.proj_size if state == layer.cell.projected else layer.hidden_size


def draw(layer, rows, batch, dtype, device="cpu"):
    """The masks of a call, in the order of the documentation: [{name: mask}] by layer and direction."""
    shares, made = shares_of(layer.cell, layer.zoneout), []
    for _ in range(layer.num_layers * layer.num_directions):
        found = {}
        for state, p in shares.items():
            if p:
                like = torch.empty(*rows, width_of(layer, state), dtype=dtype, device=device)
                found[state] = torch.bernoulli(like, p)
        if layer.recurrent_dropout:
            keep = 1 - layer.recurrent_dropout
            width = operand_width(layer)
            like = torch.empty(batch, width, dtype=dtype, device=device)
            found["R"] = torch.bernoulli(like, keep) / keep
        made.append(found)
    return made


def operand_width(layer):
    if layer.cell.recurrence == "dense":
        return layer.weight_hh_l0.shape[1]
    return layer.hidden_size


def scaled(weight, mask, cell):
    """R diag(mask): what multiplies a masked value."""
    if cell.recurrence == "dense":
        return weight * mask
    if cell.recurrence == "diagonal":
        return (weight.reshape(-1, len(mask)) * mask).reshape(weight.shape)
    heads = mask.reshape(-1, 1, weight.shape[1])  # [N, 1, K]
    parts = weight.reshape(-1, heads.shape[0], weight.shape[1], weight.shape[1])
    return (parts * heads).reshape(weight.shape)


def sequence(name, x, states, weights, masks, shares):
    """One sequence [T, 1, I], one direction: masks by state [T, W] and "R" [W]; none in evaluation."""
    cell, step = CELLS[name], importlib.import_module(f"reference.{name}").reference
    if masks and "R" in masks:
        weights = weights | {"weight_hh": scaled(weights["weight_hh"], masks["R"], cell)}
    outputs = []
    for t in range(len(x)):
        y, new = step(x[t : t + 1], states, weights)
        y, mixed = y[0], []
        for state, before, after in zip(cell.states, states, new, strict=True):
            if not shares[state]:
                mixed.append(after)
            elif masks is None:
                mixed.append(shares[state] * before + (1 - shares[state]) * after)
            else:
                mixed.append(np.where(masks[state][t] == 1, before, after))
        outputs.append(mixed[0] if np.array_equal(y, new[0]) else y)
        states = tuple(mixed)
    return np.concatenate(outputs), states


def stack(layer, x, hx, values, masks, lengths):
    """Output [T, B, D*W] (0 behind the ends) and final states, all in float64.

    values: the parameters by name. masks: as `draw` gives them, rows [T, B] or those of packed input; None
    in evaluation.
    """
    name, D = layer.cell.name, layer.num_directions
    shares = shares_of(layer.cell, layer.zoneout)
    starts = np.concatenate([[0], np.cumsum([sum(n > t for n in lengths) for t in range(max(lengths))])])
    finals = [np.zeros_like(state) for state in hx]
    for k in range(layer.num_layers):
        made = []
        for d in range(D):
            suffix, entry = f"_l{k}" + "_reverse" * d, k * D + d
            weights = {n[: -len(suffix)]: v for n, v in values.items() if n.endswith(suffix)}
            whole = np.zeros((len(x), len(lengths), width_of(layer, layer.cell.states[0])))
            for b, length in enumerate(lengths):
                turn = slice(None, None, -1) if d else slice(None)
                own = None
                if masks is not None:
                    own = {}
                    for key, mask in masks[entry].items():
                        mask = array(mask)
                        if key == "R":
                            own[key] = mask[b]
                        elif mask.ndim == 3:
                            own[key] = mask[:length, b][turn]
                        else:
                            own[key] = mask[starts[:length] + b][turn]
                states = tuple(state[entry, b : b + 1] for state in hx)
                y, ends = sequence(name, x[:length, b : b + 1][turn], states, weights, own, shares)
                whole[:length, b] = y[turn]
                for final, end in zip(finals, ends, strict=True):
                    final[entry, b] = end[0]
            made.append(whole)
        x = np.concatenate(made, -1)
    return x, finals


def options_of(name, H):
    made = dict(OPTIONS.get(name, {}))
    if "num_heads" in made and H % made["num_heads"]:
        made["num_heads"] = 1
    return made


def has_products(name):
    cell = CELLS[name]
    return any(leaf.label.startswith("R_") for leaf in cell.step.inputs)


def make(name, H=5, backend="cpu", zoneout=0.3, dropout=0.4, **options):
    if not isinstance(zoneout, dict) and zoneout and name in SHARES:
        zoneout = SHARES[name]
    dropout = dropout if has_products(name) else 0.0
    given = {"dtype": torch.float64} | options_of(name, H) | options
    torch.manual_seed(0)
    return CELLS[name].layer(I, H, zoneout=zoneout, recurrent_dropout=dropout, backend=backend, **given)


def inputs(layer, batch=B, steps=T):
    torch.manual_seed(2)
    x = torch.randn(steps, batch, I, dtype=torch.float64)
    # Positive, because sLSTM divides by one of its states.
    hx = [torch.rand_like(value.nan_to_num(neginf=0.0)) + 0.5 for value in layer.initial_states(batch, x)]
    return [value.requires_grad_() for value in (x, *hx)]


def run(layer, x, hx, lengths=None, seed=7):
    """Output [T, B, ...] and final states, after torch.manual_seed(seed)."""
    torch.manual_seed(seed)
    states = tuple(hx) if len(hx) > 1 else hx[0]
    output, finals = layer(x if lengths is None else pack_padded_sequence(x, lengths), states)
    if lengths is not None:
        output = pad_packed_sequence(output, total_length=len(x))[0]
    return [output, *(finals if isinstance(finals, tuple) else (finals,))]


def drawn(layer, lengths=None, batch=B, steps=T, seed=7):
    torch.manual_seed(seed)
    rows = (steps, batch) if lengths is None else (sum(lengths),)
    return draw(layer, rows, batch, torch.float64)


def assert_reference(layer, lengths=None, batch=B, steps=T, tolerance=1e-12, seed=7):
    """Output, states and every gradient, these by differences of the reference along random directions."""
    x, *hx = inputs(layer, batch, steps)
    given = [x, *hx, *dict(layer.named_parameters()).values()]
    names = ["x", *(f"hx{k}" for k in range(len(hx))), *dict(layer.named_parameters())]
    masks = drawn(layer, lengths, batch, steps, seed) if layer.training else None
    got = run(layer, x, hx, lengths, seed)
    kept = {name: array(value) for name, value in zip(names, given, strict=True)}
    fixed = {name: array(value) for name, value in layer.named_buffers()}

    def reference(values):
        states = [values[f"hx{k}"] for k in range(len(hx))]
        length = lengths or [steps] * batch
        output, finals = stack(layer, values["x"], states, fixed | values, masks, length)
        return [output, *finals]

    want = reference(kept)
    for a, b in zip(got, want, strict=True):
        assert_same(a, b, tolerance=tolerance)
    rng = np.random.default_rng(3)
    weights = [rng.normal(size=value.shape) for value in want]
    loss = sum((v * torch.from_numpy(w)).sum() for v, w in zip(got, weights, strict=True))
    grads = torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)
    for name, grad in zip(names, grads, strict=True):
        way, tiny = rng.normal(size=kept[name].shape), 1e-6
        ends = [
            sum((v * w).sum() for v, w in zip(reference(kept | {name: kept[name] + e}), weights, strict=True))
            for e in (tiny * way, -tiny * way)
        ]
        slope, found = (ends[0] - ends[1]) / (2 * tiny), (array(grad) * way).sum()
        assert abs(slope - found) < 1e-6 * max(1, abs(slope)), (name, slope, found)
